"""Pictures of any kind as upright 8-bit sRGB: the one rule for what comes in and what goes out."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LA", "La", "PA", "RGBA", "RGBa", "I;16")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the color space of a profile


def rgb_image(image: Image.Image) -> Image.Image:
    """`image` upright in sRGB, as a viewer shows it; what is transparent shows white.

    EXIF orientation and ICC profile are applied, and are not in the result, so that nothing
    happens twice. 16-bit gray is scaled.

    Raises:
        TypeError: `image` is no PIL image.
        ValueError: Its mode has no obvious meaning in 8-bit RGB (32-bit or float gray, Lab).
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"the image must be a PIL image, got {type(image).__name__}")
    wide = image.mode.startswith("I;16")
    if image.mode not in _MODES and not wide:
        raise ValueError(
            f"an image of mode {image.mode} is not supported, only {', '.join(_MODES)}"
        )
    image.load()
    upright = _upright(image)
    if wide:
        upright = _narrow(upright)
    if upright.has_transparency_data:
        straight = upright.convert("LA") if upright.mode == "La" else upright
        layer = straight.convert("RGBA")
        opaque = straight.convert("L") if straight.mode == "LA" else layer.convert("RGB")
        color = _srgb(opaque, image).convert("RGBA")
        color.putalpha(layer.getchannel("A"))
        white = Image.new("RGBA", color.size, "white")
        result = Image.alpha_composite(white, color).convert("RGB")
    else:
        result = _srgb(upright, image)
    result.info = {}
    return result


def byte_image(array: np.ndarray, name: str) -> np.ndarray:
    """Floats in [0, 1] as bytes, rounded; bytes as they are.

    What is outside by no more than one byte's step is rounding error, and is clipped.

    Args:
        array: Of any shape.
        name: What a message calls it.

    Raises:
        TypeError: It holds neither floats nor bytes.
        ValueError: A value is NaN or outside the range.
    """
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{name} must be of uint8 or of floats in [0, 1], not {array.dtype}")
    values = array.astype(np.float32, copy=False)
    wrong = ~((values >= -1 / 255) & (values <= 256 / 255))  # of NaN neither is true
    if wrong.any():
        value = float(values[wrong].flat[0])
        raise ValueError(f"{name} holds {value:g}: floats must be in [0, 1], bytes of type uint8")
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image  # metadata that cannot be read turn nothing
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _narrow(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray, with alpha where one value stands for transparency."""
    values = np.asarray(image)
    gray = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * 255))
    return gray


def _srgb(image: Image.Image, source: Image.Image) -> Image.Image:
    """`image`, which has no transparency, in RGB, by the ICC profile that `source` came with.

    As in browsers, a profile that is damaged or for other colors than the image's is none.
    """
    data = source.info.get("icc_profile")
    if not data:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        mode = _PROFILE_MODES.get(profile.profile.xcolor_space.strip())
        if mode is None or not _is_for(mode, image):
            return image.convert("RGB")
        result = ImageCms.profileToProfile(
            image.convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    assert result is not None
    return result


def _is_for(mode: str, image: Image.Image) -> bool:
    """Whether a profile for the mode "RGB", "L" or "CMYK" may describe the colors of `image`."""
    if mode == "L":
        return image.mode in ("1", "L")
    return (mode == "CMYK") == (image.mode == "CMYK")
