"""Batches of pixels in [-1, 1]: pictures, and clips of videos, with their texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyramid_dit.checks import FRAMES, SIDE, OneOf
from pyramid_dit.media.rgb import rgb_image
from pyramid_dit.media.video_files import video_frames
from pyramid_dit.media.video_header import VideoHeader

from .annotations import Record, check_record
from .batches import BucketedBatches
from .skipped import SampleError

FPS = 24
PICTURE_SIZES = {
    "768p": ((1024, 1024), (768, 1280), (1280, 768)),
    "384p": ((512, 512), (384, 640), (640, 384)),
}
"""Widths and heights; a picture gets the one of the nearest ratio."""


@dataclass(eq=False, repr=False)
class ImageBatches(BucketedBatches):
    """Batches of `{"image", "text"}`, one size each: `video` `[b, 3, h, w]`, `text`, "image".

    A picture is scaled to cover the size of its bucket, bicubic, and cropped at random.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        resolution: "384p" or "768p", see `PICTURE_SIZES`.
    """

    _: KW_ONLY
    resolution: str = "384p"

    def __post_init__(self) -> None:
        OneOf(tuple(PICTURE_SIZES))("resolution", self.resolution)
        super().__post_init__()

    def _check(self, record: Record) -> None:
        check_record(record, ["image", "text"])

    def _name(self, record: Record) -> str:
        return str(record["image"])

    def _bucket(self, record: Record) -> tuple[int, int]:
        width, height = picture_size(self._annotations.find(record["image"]))
        sizes = PICTURE_SIZES[self.resolution]
        return min(sizes, key=lambda size: abs(size[0] / size[1] - width / height))

    def _sample(
        self, record: Record, bucket: tuple[int, int], source: np.random.Generator
    ) -> tuple[Tensor, str]:
        picture = read_picture(self._annotations.find(record["image"]))
        return _pixels(np.asarray(random_crop(picture, bucket, source))), record["text"]

    def _batch(self, samples: list[tuple[Tensor, str]], bucket: Any) -> dict[str, Any]:
        return {
            "video": torch.stack([pixels for pixels, _ in samples]),
            "text": [text for _, text in samples],
            "identifier": "image",
        }


@dataclass(eq=False, repr=False)
class _ClipBatches(BucketedBatches):
    """Batches of clips of one size and length, at 24 frames a second.

    An annotation may have `frames`, the indices of stored frames to take.
    """

    def _name(self, record: Record) -> str:
        return str(record["video"])

    def _bucket(self, record: Record) -> Hashable:
        path = self._annotations.find(record["video"])
        if not path.is_file():
            raise SampleError("missing file", f"there is no file {path}")
        return ""

    @property
    @abstractmethod
    def _size(self) -> tuple[int, int]:
        """Width and height."""

    def _clip(self, record: Record, count: int, source: np.random.Generator | None) -> np.ndarray:
        """Bytes `[t, h, w, 3]`, at most `count`: a window drawn from `source`, or the beginning."""
        path = self._annotations.find(record["video"])
        try:
            if "frames" in record:
                wanted = record["frames"][:count]
                stored = list(islice(video_frames(path, size=self._size), 1 + max(wanted)))
                return np.stack([stored[index] for index in wanted])
            seek: list[str] = []
            if source is not None:
                spare = (VideoHeader.read(path).seconds or 0.0) - (count + 1) / FPS
                seek = ["-ss", f"{source.uniform(0, spare):.3f}"] if spare > 0 else []
            frames = video_frames(path, size=self._size, fps=FPS, input_options=seek)
            return np.stack(list(islice(frames, count)))
        except IndexError as error:
            raise SampleError("too short", f"{path} has not all of the frames {wanted}") from error
        except (OSError, ValueError) as error:
            raise SampleError("unreadable file", str(error)) from error


@dataclass(eq=False, repr=False)
class VideoBatches(_ClipBatches):
    """Batches of `{"video"}` for the VAE: `video` `[b, 3, t, s, s]`, "video".

    The short side is scaled to s, the middle cropped; the clip begins at random. A video that is
    shorter is repeated.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        resolution: s, in pixels.
        max_frames: t.
    """

    _: KW_ONLY
    resolution: int = 256
    max_frames: int = 17

    def __post_init__(self) -> None:
        SIDE("resolution", self.resolution)
        FRAMES("max_frames", self.max_frames)
        super().__post_init__()

    @property
    def _size(self) -> tuple[int, int]:
        return self.resolution, self.resolution

    def _check(self, record: Record) -> None:
        check_record(record, ["video"])

    def _sample(self, record: Record, bucket: Any, source: np.random.Generator) -> Tensor:
        frames = self._clip(record, self.max_frames, source)
        return _pixels(frames[np.arange(self.max_frames) % len(frames)])

    def _batch(self, samples: list[Tensor], bucket: Any) -> dict[str, Any]:
        return {"video": torch.stack(samples), "identifier": "video"}


@dataclass(eq=False, repr=False)
class TextVideoBatches(_ClipBatches):
    """Batches of `{"video", "text"}`: `video` `[b, 3, t, h, w]`, `text`, "video".

    The beginning of a video is taken; one that is shorter cannot be used.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        width: In pixels, which a frame is scaled to cover and cropped to in the middle.
        height: The same.
        num_frames: t.
    """

    _: KW_ONLY
    width: int
    height: int
    num_frames: int

    def __post_init__(self) -> None:
        SIDE("width", self.width)
        SIDE("height", self.height)
        FRAMES("num_frames", self.num_frames)
        super().__post_init__()

    @property
    def _size(self) -> tuple[int, int]:
        return self.width, self.height

    def _check(self, record: Record) -> None:
        check_record(record, ["video", "text"])

    def _sample(
        self, record: Record, bucket: Any, source: np.random.Generator
    ) -> tuple[Tensor, str]:
        frames = self._clip(record, self.num_frames, None)
        if len(frames) < self.num_frames:
            raise SampleError(
                "too short", f"{record['video']} has {len(frames)} frames of {self.num_frames}"
            )
        return _pixels(frames), record["text"]

    def _batch(self, samples: list[tuple[Tensor, str]], bucket: Any) -> dict[str, Any]:
        return {
            "video": torch.stack([pixels for pixels, _ in samples]),
            "text": [text for _, text in samples],
            "identifier": "video",
        }


@dataclass(eq=False, repr=False)
class StillBatches(BucketedBatches):
    """Batches of `{"image"}` for the VAE: `video` `[b, 3, s, s]`, "image".

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        resolution: s, in pixels: the picture is scaled to cover it and cropped at random.
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

    def _bucket(self, record: Record) -> Hashable:
        path = self._annotations.find(record["image"])
        if not path.is_file():
            raise SampleError("missing file", f"there is no file {path}")
        return ""

    def _sample(self, record: Record, bucket: Any, source: np.random.Generator) -> Tensor:
        picture = read_picture(self._annotations.find(record["image"]))
        size = (self.resolution, self.resolution)
        return _pixels(np.asarray(random_crop(picture, size, source)))

    def _batch(self, samples: list[Tensor], bucket: Any) -> dict[str, Any]:
        return {"video": torch.stack(samples), "identifier": "image"}


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is seen, which is not decoded.

    Raises:
        SampleError: The file is not there, or no picture.
    """
    with _opened(path) as picture:
        turned = picture.getexif().get(0x0112, 1) >= 5  # EXIF's orientation, on a side
        return (picture.height, picture.width) if turned else picture.size


def read_picture(path: Path) -> Image.Image:
    """A picture as it is seen, see `rgb_image`; SampleError: it cannot be read."""
    with _opened(path) as picture:
        return rgb_image(picture)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        raise SampleError("missing file", f"there is no file {path}")
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError("unreadable file", f"cannot read {path}: {error}") from error


def random_crop(
    picture: Image.Image, size: tuple[int, int], source: np.random.Generator
) -> Image.Image:
    """`picture` scaled to cover `size`, bicubic, and a part of that size drawn from `source`."""
    width, height = size
    scale = max(width / picture.width, height / picture.height)
    wide, high = (max(s, round(side * scale)) for s, side in zip(size, picture.size, strict=True))
    left = int(source.integers(wide - width + 1))
    top = int(source.integers(high - height + 1))
    larger = picture.resize((wide, high), Image.Resampling.BICUBIC)
    return larger.crop((left, top, left + width, top + height))


def _pixels(frames: np.ndarray) -> Tensor:
    """Bytes `[t, h, w, 3]` or `[h, w, 3]` as float32 `[3, ...]` in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).movedim(-1, 0).float().div(127.5).sub(1)
