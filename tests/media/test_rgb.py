"""Pictures of any kind: the way up, the colors, the depth and the transparency that they have."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from pyramid_dit.media.image_files import open_image
from pyramid_dit.media.images import fit_image, image_pixels, pictures_of
from pyramid_dit.media.rgb import rgb_image
from pyramid_dit.media.video_files import frame_arrays


def display_p3() -> bytes:
    """An ICC profile of the colors of phones and of recent screens."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*values)

    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0)
    curve += fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    name = b"desc\0\0\0\0" + struct.pack(">I", 3) + b"P3\0" + b"\0" * 78
    tags = {
        b"desc": name,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"cprt": b"text\0\0\0\0none\0",
    }
    table, body = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        padded = value + b"\0" * (-len(value) % 4)
        table += tag + struct.pack(">II", begin + len(body), len(padded))
        body += padded
    head = struct.pack(
        ">I4sI4s4s4s", begin + len(body), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    return (head + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + body


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    file = BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def ways(image: Image.Image) -> list[np.ndarray]:
    """What becomes of a picture of one size at every door."""
    arrays = [rgb_image(image), fit_image(image, *rgb_image(image).size), pictures_of(image)[0]]
    pixels = (image_pixels(image)[0, :, 0].movedim(0, -1) + 1) * 127.5
    return [
        *map(np.asarray, arrays),
        pixels.round().byte().numpy(),
        next(frame_arrays([image])),
    ]


TURNS = {  # EXIF's orientation: what undoes it
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_stand_upright_at_every_door(orientation: int, kind: str, tmp_path: Path) -> None:
    seen = Image.effect_noise((64, 96), 80).convert("RGB")
    exif, turn = Image.Exif(), TURNS[orientation]
    exif[0x0112] = orientation
    stored = seen if turn is None else seen.transpose(turn)
    options = {"lossless": True} if kind == "WEBP" else {}
    for array in ways(saved(stored, kind, exif=exif, **options)):
        np.testing.assert_array_equal(array, np.asarray(seen))
    stored.save(tmp_path / "photo", kind, exif=exif, **options)
    opened = open_image(tmp_path / "photo", least_side=64)
    assert opened.size == (64, 96)
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(seen))
    np.testing.assert_array_equal(np.asarray(rgb_image(opened)), np.asarray(seen))  # not twice


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors_are_brought_to_srgb_once(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), (230, 160, 60))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    for array in ways(saved(image, icc_profile=display_p3())):
        assert np.abs(array.astype(int) - (242, 156, 19)).max() <= 3
    image.save(tmp_path / "photo.png", icc_profile=display_p3())
    opened = rgb_image(open_image(tmp_path / "photo.png", least_side=64))
    assert np.abs(np.asarray(opened).astype(int) - (242, 156, 19)).max() <= 3


def test_the_profile_of_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    result = np.asarray(rgb_image(saved(image, icc_profile=profile))).astype(int)
    assert np.abs(result - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "LA"])
@pytest.mark.parametrize("profile", [b"rubbish", display_p3()[:200], display_p3()])
def test_a_profile_that_does_not_fit_is_none(mode: str, profile: bytes) -> None:
    image = Image.new("L", (64, 64), 100).convert(mode)
    plain = np.asarray(rgb_image(image)).astype(int)
    image.info["icc_profile"] = profile
    assert np.abs(np.asarray(rgb_image(image)) - plain).max() <= 2  # gray is gray in P3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_gray_of_16_bits_is_scaled(kind: str, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    expected = np.rint(values / 257).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "scan", kind)
    opened = np.asarray(open_image(tmp_path / "scan", least_side=64))
    np.testing.assert_array_equal(opened, np.stack([expected] * 3, -1))
    for array in ways(Image.fromarray(values)):
        np.testing.assert_array_equal(array[..., 1], expected)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_what_has_no_meaning_in_bytes_is_refused(mode: str, tmp_path: Path) -> None:
    for door in (rgb_image, pictures_of, image_pixels, lambda image: next(frame_arrays([image]))):
        with pytest.raises(ValueError, match=f"mode {mode} is not supported"):
            door(Image.new(mode, (64, 64)))
    Image.new(mode, (64, 64)).save(tmp_path / "picture.tif")
    with pytest.raises(ValueError, match=f"^cannot be used: .*mode {mode}"):
        open_image(tmp_path / "picture.tif", least_side=64)


def test_transparency_shows_white_whatever_it_is_stored_as() -> None:
    layer = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    layer.paste((10, 20, 30, 255), (32, 0, 64, 64))
    gray = Image.new("L", (64, 64), 7)
    gray.paste(90, (32, 0, 64, 64))
    gray16 = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    shown = {
        "RGBA": (layer, (10, 20, 30)),
        "RGBa": (layer.convert("RGBa"), (10, 20, 30)),
        "palette": (saved(layer.quantize(4)), (10, 20, 30)),
        "GIF": (saved(layer, "GIF"), (10, 20, 30)),
        "LA": (layer.convert("LA"), (18, 18, 18)),
        "La": (layer.convert("LA").convert("La"), (18, 18, 18)),
        "one gray": (saved(gray, transparency=7), (90, 90, 90)),
        "one gray of 16 bits": (saved(gray16, transparency=7 * 257), (90, 90, 90)),
    }
    for name, (image, color) in shown.items():
        for array in ways(image):
            assert tuple(array[5, 5]) == (255, 255, 255), name
            assert np.abs(array[5, 60].astype(int) - color).max() <= 1, name


def test_heic_gets_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)
    with pytest.raises(ValueError, match="^is a HEIC picture.*save it as JPEG or PNG"):
        open_image(tmp_path / "IMG_1.HEIC", least_side=64)
