"""Batches of clips from files of videos: for the VAE, and with texts for the transformer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyramid_dit.checks import FRAME_RATE, FRAMES, SIDE
from pyramid_dit.flow.sizes import TEMPORAL_FACTOR
from pyramid_dit.media.video_files import video_frames
from pyramid_dit.media.video_header import VideoHeader

from .batches import BucketedBatches
from .folders import Record
from .sizes import Size, closest_size, sizes_of
from .skipped import SampleError


@dataclass(eq=False, repr=False)
class VideoBatches(BucketedBatches):
    """Batches of `{"video"}` for the VAE, squares without texts. A batch has

    - `video`: pixels `[b, 3, t, s, s]` in [-1, 1];
    - `identifier`: "video".

    The short side is scaled to the square, and the middle taken; of the frames, at about `fps` a
    second, a window at random, anew in each epoch. A shorter video is repeated. Where an annotation
    has `frames`, these of the stored frames are all there is.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        max_frames: Frames of a clip.
        resolution: Side of the square in pixels.
        fps: Frames a second; see `read_clip`.
    """

    _: KW_ONLY
    max_frames: int = 17
    resolution: int = 256
    fps: float = 24

    def __post_init__(self) -> None:
        FRAMES("max_frames", self.max_frames)
        SIDE("resolution", self.resolution)
        FRAME_RATE("fps", self.fps)
        super().__post_init__()

    def _columns(self) -> list[str]:
        return ["video"]

    def _bucket(self, record: Record) -> str:
        self._annotations.require(record, "video")
        return "video"

    def _sample(self, record: Record, bucket: str, source: np.random.Generator) -> Tensor:
        with self._annotations.file(record, "video") as path:
            clip = read_clip(
                path,
                self.max_frames,
                size=(self.resolution, self.resolution),
                fps=self.fps,
                place=source.random(),
                indices=record.get("frames"),
            )
        return clip_pixels(clip[np.arange(self.max_frames) % len(clip)])

    def _batch(self, samples: list[Tensor], bucket: str, number: int) -> dict[str, Any]:
        return {"video": torch.stack(samples), "identifier": bucket}


Bucket: TypeAlias = tuple[int, Size]
"""Frames of a clip, and its size."""


@dataclass(eq=False, repr=False)
class TextVideoBatches(BucketedBatches):
    """Batches of `{"video", "text"}`, one size and length each. A batch has

    - `video`: pixels `[b, 3, t, h, w]` in [-1, 1];
    - `text`: the texts;
    - `identifier`: "video".

    Of the sizes a video gets the one whose shape is the closest to its own; it is scaled to cover
    it and cropped in the middle. The beginning is taken, at a rate as for `VideoBatches`: t is the
    largest 8n + 1 up to `num_frames` that the video has. Where it has fewer frames than its header
    says, its batch is cut to what there is. With less than `least_frames` it cannot be used.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        resolution: See `sizes_of`.
        num_frames: Most frames of a clip.
        least_frames: Fewest; where more are wanted than `num_frames`, so many.
        fps: Frames a second; see `read_clip`.
    """

    resolution: str | Sequence[Size]
    num_frames: int
    _: KW_ONLY
    least_frames: int = 9
    fps: float = 24

    def __post_init__(self) -> None:
        FRAMES("num_frames", self.num_frames)
        FRAMES("least_frames", self.least_frames)
        FRAME_RATE("fps", self.fps)
        self.sizes = sizes_of(self.resolution)
        super().__post_init__()

    def _columns(self) -> list[str]:
        return ["video", "text"]

    def _bucket(self, record: Record) -> Bucket:
        self._annotations.require(record, "video")
        with self._annotations.file(record, "video") as path, _said_of(path):
            indices, header = record.get("frames"), VideoHeader.read(path)
            there = len(indices) if indices else Timing.of(header, self.fps).frames
            return self._whole_frames(path, there), closest_size(header.aspect, 1, self.sizes)

    def _whole_frames(self, path: Path, there: int) -> int:
        """How many of the frames that are there make whole latents; SampleError for too few."""
        if there >= self.num_frames:
            return self.num_frames
        least = min(self.least_frames, self.num_frames)
        if there < least:
            raise SampleError("too short", f"{path} has {there} frames, and not {least}")
        return there - (there - 1) % TEMPORAL_FACTOR

    def _sample(
        self, record: Record, bucket: Bucket, source: np.random.Generator
    ) -> tuple[Tensor, str]:
        frames, size = bucket
        with self._annotations.file(record, "video") as path:
            indices = record.get("frames")
            clip = read_clip(path, frames, size=size, fps=self.fps, indices=indices)
            clip = clip[: self._whole_frames(path, len(clip))]
        return clip_pixels(clip), record["text"]

    def _batch(
        self, samples: list[tuple[Tensor, str]], bucket: Bucket, number: int
    ) -> dict[str, Any]:
        shortest = min(pixels.shape[1] for pixels, _ in samples)
        return {
            "video": torch.stack([pixels[:, :shortest] for pixels, _ in samples]),
            "text": [text for _, text in samples],
            "identifier": "video",
        }


def read_clip(
    path: Path,
    length: int,
    *,
    size: Size,
    fps: float = 24,
    place: float = 0,
    indices: Sequence[int] | None = None,
) -> np.ndarray:
    """A window of a video, of which little more than that is decoded.

    Args:
        path: The file.
        length: Frames of the window.
        size: Width and height that frames are scaled to cover, and cropped to in the middle.
        fps: Frames a second. Every n-th frame is taken, so that there are as many or more, but
            less than twice as many; of a slower video all.
        place: Of the window, from 0 for the first to below 1 for the last.
        indices: Of the stored frames that there are, instead of all at a rate.

    Returns:
        Bytes `[t, h, w, 3]`, of a shorter video less than `length`.

    Raises:
        SampleError: The file is not there, is no video, or lacks one of `indices`.
    """
    with _said_of(path):
        if indices is not None:
            begin = _begin(place, len(indices), length)
            return _stored_frames(path, indices[begin : begin + length], size)
        return _window(path, length, size, fps, place)


def clip_pixels(clip: np.ndarray) -> Tensor:
    """Bytes `[t, h, w, 3]` as pixels `[3, t, h, w]`, float32 in [-1, 1]."""
    return (torch.tensor(clip).float() / 127.5 - 1).movedim(-1, 0).contiguous()


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Turns what the reading of a video says into a SampleError."""
    try:
        yield
    except FileNotFoundError:
        raise SampleError("missing file", f"there is no file {path}") from None
    except SampleError:
        raise
    except (OSError, ValueError) as error:
        raise SampleError("unreadable file", str(error)) from error


class Timing(NamedTuple):
    """Frames a second that are taken of a video, and about how many that makes."""

    rate: float
    frames: int

    @classmethod
    def of(cls, header: VideoHeader, fps: float) -> Timing:
        rate = fps
        if header.frame_rate is not None:
            # some room, for 47.95 is twice 23.976, which goes by the name of 24
            rate = header.frame_rate / max(1, math.floor(header.frame_rate / fps + 0.01))
        # the header rounds to hundredths of a second
        return cls(rate, math.floor(((header.seconds or 0) + 0.005) * rate))


def _window(path: Path, length: int, size: Size, fps: float, place: float) -> np.ndarray:
    rate, there = Timing.of(VideoHeader.read(path), fps)
    begin = _begin(place, there, length)
    clip = _frames_from(path, begin, length, size, rate)
    if begin > 0 and len(clip) < length:  # the sound may be longer than the picture
        begin = max(0, begin + len(clip) - length) if clip else 0
        clip = _frames_from(path, begin, length, size, rate)
    return np.stack(clip)


def _begin(place: float, there: int, length: int) -> int:
    return math.floor(place * (max(there - length, 0) + 1))


def _frames_from(path: Path, begin: int, length: int, size: Size, rate: float) -> list[np.ndarray]:
    """At most `length` frames; none where nothing is left after `begin`."""
    seek = ["-ss", f"{begin / rate:.6f}"] if begin else []
    try:
        with closing(video_frames(path, size=size, fps=rate, input_options=seek)) as frames:
            return list(itertools.islice(frames, length))
    except ValueError:
        if begin:
            return []
        raise


def _stored_frames(path: Path, indices: Sequence[int], size: Size) -> np.ndarray:
    wanted, found = set(indices), {}
    with closing(video_frames(path, size=size)) as frames:
        for index, frame in enumerate(itertools.islice(frames, max(indices) + 1)):
            if index in wanted:
                found[index] = frame
    if missing := wanted - found.keys():
        raise SampleError("too short", f"{path} has no frame {min(missing)}")
    return np.stack([found[index] for index in indices])
