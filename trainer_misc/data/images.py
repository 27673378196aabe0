"""Batches of images with their texts, each of one size that is near to their shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyramid_dit.checks import SIDE, OneOf
from pyramid_dit.media.image_files import open_image
from pyramid_dit.media.images import image_pixels

from .annotations import Record, check_record
from .batches import BucketedBatches
from .skipped import SampleError

Size: TypeAlias = tuple[int, int]
"""Width and height."""

SIZES: dict[str, list[Size]] = {
    "768p": [(1024, 1024), (768, 1280), (1280, 768)],
    "384p": [(512, 512), (384, 640), (640, 384)],
}
_ORIENTATION = 0x0112  # the EXIF tag
_ON_THE_SIDE = range(5, 9)  # its values of pictures that are turned by a quarter


@dataclass(eq=False, repr=False)
class ImageBatches(BucketedBatches):
    """Batches of `{"image", "text"}`, one size each. A batch has

    - `video`: pixels `[b, 3, h, w]` in [-1, 1];
    - `text`: the texts;
    - `identifier`: "image".

    Of the sizes an image gets the one that cuts off least. It is scaled to cover it, and cropped
    at random, anew in each epoch.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        resolution: "384p" or "768p", see `SIZES`; or other sizes, width and height each.
    """

    _: KW_ONLY
    resolution: str | Sequence[Size] = "384p"

    def __post_init__(self) -> None:
        if isinstance(self.resolution, str):
            OneOf(tuple(SIZES))("resolution", self.resolution)
            self.sizes = SIZES[self.resolution]
        else:
            self.sizes = [(width, height) for width, height in self.resolution]
        if not self.sizes:
            raise ValueError("resolution has no sizes")
        for side in (side for size in self.sizes for side in size):
            SIDE("a side of resolution", side)
        super().__post_init__()

    def _check(self, record: Record) -> None:
        check_record(record, ["image", "text"])

    def _name(self, record: Record) -> str:
        return str(record["image"])

    def _bucket(self, record: Record) -> Size:
        width, height = picture_size(self._annotations.find(record["image"]))
        return closest_size(width, height, self.sizes)

    def _sample(
        self, record: Record, bucket: Size, source: np.random.Generator
    ) -> tuple[Tensor, str]:
        path = self._annotations.find(record["image"])
        return _crop(path, bucket, source), record["text"]

    def _batch(self, samples: list[tuple[Tensor, str]], bucket: Size) -> dict[str, Any]:
        return {
            "video": torch.stack([pixels for pixels, _ in samples]),
            "text": [text for _, text in samples],
            "identifier": "image",
        }


@dataclass(eq=False, repr=False)
class StillBatches(BucketedBatches):
    """Batches of `{"image"}` for the VAE, squares without texts. A batch has

    - `video`: pixels `[b, 3, s, s]` in [-1, 1];
    - `identifier`: "image".

    An image is scaled to cover the square, and cropped at random, anew in each epoch.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        resolution: Side of the square in pixels.
    """

    _: KW_ONLY
    resolution: int = 256

    def __post_init__(self) -> None:
        SIDE("resolution", self.resolution)
        super().__post_init__()

    def _check(self, record: Record) -> None:
        check_record(record, ["image"])

    def _name(self, record: Record) -> str:
        return str(record["image"])

    def _bucket(self, record: Record) -> str:
        find_file(self._annotations.find(record["image"]))
        return "image"

    def _sample(self, record: Record, bucket: str, source: np.random.Generator) -> Tensor:
        path = self._annotations.find(record["image"])
        return _crop(path, (self.resolution, self.resolution), source)

    def _batch(self, samples: list[Tensor], bucket: str) -> dict[str, Any]:
        return {"video": torch.stack(samples), "identifier": bucket}


def closest_size(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The size whose ratio of the sides is the closest to that of a picture, up or down."""
    return min(sizes, key=lambda size: abs(math.log(size[0] * height / (size[1] * width))))


def covering(image: Image.Image, size: Size, place: tuple[float, float]) -> Image.Image:
    """A part of `image`, as large as possible, scaled (bicubic) to `size`.

    Args:
        image: In RGB.
        size: Width and height.
        place: Of the part, across and down: 0 for the left and upper edge, 1 for the others.
    """
    scale = min(image.width / size[0], image.height / size[1])
    part = size[0] * scale, size[1] * scale
    left = (image.width - part[0]) * place[0]
    upper = (image.height - part[1]) * place[1]
    box = left, upper, min(left + part[0], image.width), min(upper + part[1], image.height)
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def picture_size(path: Path) -> Size:
    """Width and height of a picture as it is shown, from its header.

    Raises:
        SampleError: The file is not there, or is no picture.
    """
    try:
        with Image.open(path) as image:
            # elsewhere it may stand behind the pixels, and it takes their decoding to find it
            known = image.format != "PNG" or "exif" in image.info
            turned = known and image.getexif().get(_ORIENTATION) in _ON_THE_SIDE
            return (image.height, image.width) if turned else image.size
    except FileNotFoundError:
        raise SampleError("missing file", f"there is no file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SampleError("unreadable file", f"{path} is no picture: {error}") from error


def read_picture(path: Path) -> Image.Image:
    """A picture upright in sRGB, see `rgb_image`.

    Raises:
        SampleError: The file is not there, is no picture, or is damaged.
    """
    try:
        return open_image(path, least_side=1)
    except FileNotFoundError:
        raise SampleError("missing file", f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise SampleError("unreadable file", f"{path} {error}") from error


def find_file(path: Path) -> None:
    """Raise a SampleError where there is no file."""
    if not path.is_file():
        raise SampleError("missing file", f"there is no file {path}")


def _crop(path: Path, size: Size, source: np.random.Generator) -> Tensor:
    """A part of a picture drawn from `source`, pixels `[3, h, w]`."""
    across, down = source.random(2)
    return image_pixels(covering(read_picture(path), size, (across, down)))[0, :, 0]
