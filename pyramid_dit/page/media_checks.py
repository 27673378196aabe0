"""Pictures and videos from strangers: what they are is found out before they are decoded.

A file is judged by its first bytes, never by its name. ffmpeg is given the demuxer to use and
may open that one file only, so that a playlist in a video's clothes reaches nothing else.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..cli.options import SIZE_MULTIPLE
from ..media import image_files, video_files
from ..media.embedded_settings import read_comment
from ..media.video_header import UnsupportedVideoError, VideoHeader
from .settings import Settings

MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGE_PIXELS = 50_000_000
MAX_VIDEO_BYTES = 200 * 2**20
MAX_VIDEO_PIXELS = 3840 * 2160
MAX_VIDEO_SECONDS = 60

_QUICKTIME_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


class VideoInfo(NamedTuple):
    """What the header of a video says."""

    kind: str
    """ffmpeg's name of the container."""
    width: int
    height: int
    seconds: float | None
    """Length, None where the header does not say."""
    has_sound: bool


def open_image(path: str | Path) -> Image.Image:
    """Decode a picture that is not too large in bytes or pixels.

    Raises:
        ValueError: It is no picture, damaged, too large or too small.
    """
    _check_bytes(path, MAX_IMAGE_BYTES, "picture")
    try:
        return image_files.open_image(path, least_side=SIZE_MULTIPLE, most_pixels=MAX_IMAGE_PIXELS)
    except ValueError as error:
        raise ValueError(f"the file {error}") from error


def check_video(path: str | Path) -> VideoInfo:
    """Look at the header of a video.

    Raises:
        ValueError: It is no video, or too large in bytes, pixels or seconds.
    """
    _check_bytes(path, MAX_VIDEO_BYTES, "video")
    kind = _container(path)
    try:
        header = VideoHeader.read(path, _input_options(kind))
    except ValueError as error:
        raise ValueError("the video is damaged, or there is no picture in it") from error
    width, height, seconds = header.width, header.height, header.seconds
    if width * height > MAX_VIDEO_PIXELS:
        raise ValueError(
            f"the video is too large, {width} x {height}: at most {MAX_VIDEO_PIXELS:,} pixels "
            "a frame (3840 x 2160)"
        )
    if seconds is not None and seconds > MAX_VIDEO_SECONDS:
        raise ValueError(
            f"the video is too long, {seconds:.0f} seconds: at most {MAX_VIDEO_SECONDS}"
        )
    return VideoInfo(kind, width, height, seconds, header.has_sound)


def has_sound(path: str | Path) -> bool:
    """Whether there is sound in a video; `False` of what is none."""
    try:
        return check_video(path).has_sound
    except (ValueError, OSError):
        return False


def video_frames(
    path: str | Path, width: int, height: int, frames_per_second: float
) -> Iterator[np.ndarray]:
    """Frames `[height, width, 3]` of a video, uint8, at a size and a rate of choice.

    The video is scaled to cover the size and cropped in the middle; of a longer one only the
    first `MAX_VIDEO_SECONDS` are read, a frame at a time.

    Raises:
        ValueError: As `check_video`, or the video cannot be decoded.
    """
    options = ["-t", str(MAX_VIDEO_SECONDS), *_input_options(check_video(path).kind)]
    try:
        yield from video_files.video_frames(
            path, size=(width, height), fps=frames_per_second, input_options=options
        )
    except UnsupportedVideoError as error:
        raise ValueError(f"the video cannot be used: {error}") from error
    except ValueError as error:  # which tells where the file lies
        raise ValueError("the video is damaged: it cannot be decoded") from error


def read_settings(path: str | Path) -> Settings:
    """The settings in a video that this page made.

    Raises:
        ValueError: It is no video, or one without such settings.
    """
    comment = read_comment(input_arguments(path, check_video(path).kind))
    if comment is None:
        raise ValueError("there are no settings in this file: it was not made with this page")
    return Settings.from_json(comment)


def last_frames(frames: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The last `count` of the frames, or all of fewer: `[t, height, width, 3]`."""
    return np.stack(deque(frames, maxlen=count))


def input_arguments(path: str | Path, kind: str) -> list[str]:
    """What makes ffmpeg read the file at `path` as a `kind`, and nothing else."""
    return [*_input_options(kind), "-i", f"file:{os.path.abspath(path)}"]


def _input_options(kind: str) -> list[str]:
    return ["-protocol_whitelist", "file", "-f", kind]


def _check_bytes(path: str | Path, most: int, what: str) -> None:
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f"the {what} is empty, a file of 0 bytes")
    if size > most:
        raise ValueError(
            f"the {what} is too large, {size / 2**20:.0f} MB: at most {most // 2**20} MB"
        )


def _container(path: str | Path) -> str:
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] in _QUICKTIME_ATOMS:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    raise ValueError("this is not a video that can be read here (mp4, mov, webm, mkv, avi, gif)")
