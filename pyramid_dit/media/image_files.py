"""Files of pictures, opened or refused in words; without PyTorch, so that a refusal is quick."""

from __future__ import annotations

from os import PathLike

from PIL import Image, UnidentifiedImageError

from .rgb import rgb_image

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BY_PROGRAMS = ("EPS",)  # Pillow has another program run these
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")  # Pillow may open their 16-bit gray as 32-bit


def open_image(
    path: str | PathLike[str],
    *,
    least_side: int,
    most_pixels: int | None = None,
) -> Image.Image:
    """Decode a picture, see `rgb_image`.

    Args:
        path: The file.
        least_side: Pixels that both sides must have.
        most_pixels: What is larger is not decoded.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no picture, damaged, too large or too small; the message goes on from
            the name of the picture.
    """
    most = most_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 10**9)  # from there on Pillow refuses
    too_large = ValueError(f"is too large: at most {most // 10**6} million pixels")
    damaged = ValueError("is damaged: it cannot be decoded")
    try:
        Image.init()
        image = Image.open(path, formats=[name for name in Image.ID if name not in _BY_PROGRAMS])
        if image.width * image.height > most:
            raise too_large
        if min(image.size) < least_side:
            raise ValueError(
                f"is too small, {image.width}x{image.height}: both sides must be at least "
                f"{least_side} pixels"
            )
    except Image.DecompressionBombError as error:
        raise too_large from error
    except UnidentifiedImageError as error:
        if _is_heic(path):
            raise ValueError(
                "is a HEIC picture, which cannot be read here: save it as JPEG or PNG "
                "(phones do that where photos are shared or exported)"
            ) from error
        raise ValueError(
            "is not a picture that can be read here (PNG, JPEG, WebP, AVIF, TIFF, GIF, ...)"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise damaged from error  # Pillow's own, of a header that ends early
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise damaged from error
    sixteen_bits = image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    try:
        return rgb_image(image.convert("I;16") if sixteen_bits else image)
    except ValueError as error:
        raise ValueError(f"cannot be used: {error}") from error


def _is_heic(path: str | PathLike[str]) -> bool:
    """Whether a file says that it is one of Apple's pictures: a box `ftyp` with their brands."""
    with open(path, "rb") as file:
        head = file.read(64)
    return head[4:8] == b"ftyp" and any(head[8:12] == brand for brand in _HEIC_BRANDS)
