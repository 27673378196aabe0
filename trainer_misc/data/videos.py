"""Batches of clips from files of videos: for the VAE, and with texts for the transformer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyramid_dit.checks import FRAME_RATE, FRAMES, SIDE
from pyramid_dit.media.video_files import video_frames
from pyramid_dit.media.video_header import VideoHeader

from .annotations import Record, check_record
from .batches import BucketedBatches
from .images import Size, find_file
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

    def _check(self, record: Record) -> None:
        check_record(record, ["video"])

    def _name(self, record: Record) -> str:
        return str(record["video"])

    def _bucket(self, record: Record) -> str:
        find_file(self._annotations.find(record["video"]))
        return "video"

    def _sample(self, record: Record, bucket: str, source: np.random.Generator) -> Tensor:
        clip = read_clip(
            self._annotations.find(record["video"]),
            self.max_frames,
            size=(self.resolution, self.resolution),
            fps=self.fps,
            place=source.random(),
            indices=record.get("frames"),
        )
        return clip_pixels(clip[np.arange(self.max_frames) % len(clip)])

    def _batch(self, samples: list[Tensor], bucket: str) -> dict[str, Any]:
        return {"video": torch.stack(samples), "identifier": bucket}


@dataclass(eq=False, repr=False)
class TextVideoBatches(BucketedBatches):
    """Batches of `{"video", "text"}`. A batch has

    - `video`: pixels `[b, 3, t, h, w]` in [-1, 1];
    - `text`: the texts;
    - `identifier`: "video".

    The beginning of a video is taken, as latents are made of it, at a rate as for `VideoBatches`,
    scaled to cover the size and cropped in the middle. A shorter video cannot be used.

    Arguments and errors as for `BucketedBatches`, and:

    Args:
        width: In pixels.
        height: In pixels.
        num_frames: Frames of a clip.
        fps: Frames a second; see `read_clip`.
    """

    width: int
    height: int
    num_frames: int
    _: KW_ONLY
    fps: float = 24

    def __post_init__(self) -> None:
        SIDE("width", self.width)
        SIDE("height", self.height)
        FRAMES("num_frames", self.num_frames)
        FRAME_RATE("fps", self.fps)
        super().__post_init__()

    def _check(self, record: Record) -> None:
        check_record(record, ["video", "text"])

    def _name(self, record: Record) -> str:
        return str(record["video"])

    def _bucket(self, record: Record) -> str:
        find_file(self._annotations.find(record["video"]))
        return "video"

    def _sample(
        self, record: Record, bucket: str, source: np.random.Generator
    ) -> tuple[Tensor, str]:
        path = self._annotations.find(record["video"])
        clip = read_clip(
            path,
            self.num_frames,
            size=(self.width, self.height),
            fps=self.fps,
            indices=record.get("frames"),
        )
        if len(clip) < self.num_frames:
            raise SampleError(
                "too short", f"{path} has {len(clip)} of the {self.num_frames} frames"
            )
        return clip_pixels(clip), record["text"]

    def _batch(self, samples: list[tuple[Tensor, str]], bucket: str) -> dict[str, Any]:
        return {
            "video": torch.stack([pixels for pixels, _ in samples]),
            "text": [text for _, text in samples],
            "identifier": bucket,
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
    try:
        if indices is not None:
            begin = _begin(place, len(indices), length)
            return _stored_frames(path, indices[begin : begin + length], size)
        return _window(path, length, size, fps, place)
    except FileNotFoundError:
        raise SampleError("missing file", f"there is no file {path}") from None
    except SampleError:
        raise
    except (OSError, ValueError) as error:
        raise SampleError("unreadable file", str(error)) from error


def clip_pixels(clip: np.ndarray) -> Tensor:
    """Bytes `[t, h, w, 3]` as pixels `[3, t, h, w]`, float32 in [-1, 1]."""
    return (torch.tensor(clip).float() / 127.5 - 1).movedim(-1, 0).contiguous()


def _window(path: Path, length: int, size: Size, fps: float, place: float) -> np.ndarray:
    header = VideoHeader.read(path)
    rate = fps
    if header.frame_rate is not None:
        # some room, for 47.95 is twice 23.976, which goes by the name of 24
        rate = header.frame_rate / max(1, math.floor(header.frame_rate / fps + 0.01))
    there = math.floor((header.seconds or 0) * rate)
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
