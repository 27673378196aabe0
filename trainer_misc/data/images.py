"""Batches of images with their texts, each of one size that is near to their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyramid_dit.checks import SIDE
from pyramid_dit.media.image_files import open_image
from pyramid_dit.media.images import image_pixels

from .batches import BucketedBatches
from .folders import Record
from .sizes import Size, closest_size, sizes_of
from .skipped import SampleError

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
        resolution: See `sizes_of`.
    """

    _: KW_ONLY
    resolution: str | Sequence[Size] = "384p"

    def __post_init__(self) -> None:
        self.sizes = sizes_of(self.resolution)
        super().__post_init__()

    def _columns(self) -> list[str]:
        return ["image", "text"]

    def _bucket(self, record: Record) -> Size:
        with self._annotations.file(record, "image") as path:
            return closest_size(*picture_size(path), self.sizes)

    def _sample(
        self, record: Record, bucket: Size, source: np.random.Generator
    ) -> tuple[Tensor, str]:
        with self._annotations.file(record, "image") as path:
            return _crop(path, bucket, source), record["text"]

    def _batch(
        self, samples: list[tuple[Tensor, str]], bucket: Size, number: int
    ) -> dict[str, Any]:
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

    def _columns(self) -> list[str]:
        return ["image"]

    def _bucket(self, record: Record) -> str:
        self._annotations.require(record, "image")
        return "image"

    def _sample(self, record: Record, bucket: str, source: np.random.Generator) -> Tensor:
        with self._annotations.file(record, "image") as path:
            return _crop(path, (self.resolution, self.resolution), source)

    def _batch(self, samples: list[Tensor], bucket: str, number: int) -> dict[str, Any]:
        return {"video": torch.stack(samples), "identifier": bucket}


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
        raise SampleError("unreadable file", f"{path} is not a picture: {error}") from error


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


def _crop(path: Path, size: Size, source: np.random.Generator) -> Tensor:
    """A part of a picture drawn from `source`, pixels `[3, h, w]`."""
    across, down = source.random(2)
    return image_pixels(covering(read_picture(path), size, (across, down)))[0, :, 0]
