"""Frames to files and back: mp4 (H.264), gif, or a folder of PNGs.

Everything is written under a temporary name beside its target and renamed at the end, so that
the final name holds either a complete file or what it held before: after an error, a full disk
or Ctrl-C the temporary file is removed.

`progressive_video.py` is for files that are watched while they grow.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL.Image import Image, fromarray

from ..files import check_name, replacing
from .ffmpeg import COMPLETE, Encoder, file_name
from .rgb import byte_image, rgb_image
from .video_header import VideoHeader

Frame: TypeAlias = Image | np.ndarray
"""A PIL image, or an array [height, width, 3]: uint8, or floats in [0, 1]."""

PNG_NAME = "frame_{:04d}.png"
PNG_PATTERN = re.compile(r"frame_\d{4,}\.png")
HISTORY_FRAMES = 33
"""Of a video that goes on, so many frames at its end are looked at."""


def export_to_video(frames: Iterable[Frame], path: str | Path, fps: float = 24) -> str:
    """Write an H.264 mp4 (yuv420p, BT.709, index at the front), which plays everywhere.

    Args:
        frames: the frames in order, all of one size. yuv420p needs even sizes, so the last
            column or row of an odd size is written twice.
        path: the file to write; its folder is made if it is not there.
        fps: frames a second.

    Returns:
        `path` as a string.

    Raises:
        ValueError: no frames, frames of different sizes, a float that is NaN or more than 1/255
            outside [0, 1], or `fps` not above 0.
        TypeError: something that is not a frame.
        OSError: the file could not be written.
    """
    check_fps(fps)
    with replacing(Path(path)) as temporary:
        _encode(frame_arrays(frames), temporary, fps)
    return str(path)


def export_to_gif(frames: Iterable[Frame], path: str | Path, fps: float = 24) -> str:
    """Write an endless gif. Arguments, result and errors as for `export_to_video`.

    Gif counts time in hundredths of a second: each frame is shown for the whole number of them
    that keeps the clip as a whole on time. Above 50 frames a second, which viewers would slow
    down, some frames are left out.
    """
    check_fps(fps)
    images = [fromarray(array) for array in frame_arrays(frames)]
    images, durations = _gif_timing(images, fps)
    with replacing(Path(path)) as temporary:
        images[0].save(
            temporary, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
        )
    return str(path)


def export_to_png_folder(frames: Iterable[Frame], path: str | Path) -> str:
    """Write `frame_0000.png`, `frame_0001.png`, ... to a folder, made or replaced as a whole.

    Arguments and errors as for `export_to_video`; also `FileExistsError` for a folder that holds
    anything but the frames of an earlier run, which is never touched.
    """
    target = Path(path)
    check_replaceable(target)
    with replacing(target) as temporary:
        temporary.mkdir()
        for index, array in enumerate(frame_arrays(frames)):
            fromarray(array).save(temporary / PNG_NAME.format(index))
    return str(path)


def save_frames(frames: Iterable[Frame], path: str | Path, fps: float = 24) -> str:
    """Write frames in the format that the name asks for, see `output_format`."""
    kind = output_format(path)
    if kind == "mp4":
        return export_to_video(frames, path, fps)
    if kind == "gif":
        return export_to_gif(frames, path, fps)
    return export_to_png_folder(frames, path)


def output_format(path: str | Path) -> str:
    """`"mp4"`, `"gif"` or `"png"` (a folder): by the ending of the name.

    A name without an ending, or one that ends in a slash, is a folder of PNGs.

    Raises:
        ValueError: any other ending, or a name longer than a file may have.
    """
    check_name(path)
    suffix = Path(path).suffix.lower()
    if suffix in (".mp4", ".gif"):
        return suffix[1:]
    if not suffix or str(path).endswith(("/", os.sep)) or Path(path).is_dir():
        return "png"
    raise ValueError(
        f"cannot write {str(path)!r}: a name must end in .mp4 or .gif, or in / for a folder of PNGs"
    )


def check_writable(path: str | Path) -> None:
    """Raise now what `save_frames(..., path)` would raise about its target after all the work.

    The folder is tried by really creating a file in it: permission bits say nothing about a
    read-only or a full disk. Nothing is left behind.

    Raises:
        ValueError: an unknown ending, or a name longer than a file may have.
        OSError: the target is in the way (`FileExistsError`, `IsADirectoryError`), or its folder
            is not a folder or takes no files.
    """
    target = Path(path)
    if output_format(path) == "png":
        check_replaceable(target)
    elif target.is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a folder")
    check_folder(path)


def check_folder(path: str | Path) -> None:
    """Refuse a file that cannot be written.

    Raises:
        ValueError: Its name is longer than a file may have.
        OSError: Its folder is no folder, or takes no files.
    """
    check_name(path)
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {str(path)!r}: {str(folder)!r} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {str(path)!r}: {str(folder)!r} takes no files"
        ) from error


def read_video(path: str | Path) -> np.ndarray:
    """Decode a video to uint8 frames [time, height, width, 3], every stored frame once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: ffmpeg finds no video in it.
    """
    return np.stack(list(video_frames(path)))


def video_frames(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    input_options: Sequence[str] = (),
) -> Generator[np.ndarray, None, None]:
    """Decode a video to uint8 frames [height, width, 3], one at a time, as a player shows it.

    Frames are upright, of square pixels, in the colors of an ordinary screen: HDR is tone-mapped.

    Args:
        path: the file.
        size: width and height that a frame is scaled to cover, and cropped to in the middle;
            by default in its own size.
        fps: frames a second, by dropping and repeating; by default every stored frame once.
        input_options: ffmpeg's options for the input.

    Raises:
        FileNotFoundError: no such file.
        ValueError: ffmpeg finds no video in it, or it is HDR and this ffmpeg cannot read that.
    """
    from imageio_ffmpeg import read_frames

    # which warns of any size but the stored one
    logging.getLogger("imageio_ffmpeg").addFilter(_is_of_no_size)
    header = VideoHeader.read(path, input_options)
    options = ["-map", "0:V:0", "-vf", ",".join(header.filters(size, fps))]
    if fps is None:
        options += ["-fps_mode", "passthrough"]
    reader = read_frames(file_name(path), input_params=list(input_options), output_params=options)
    count = 0
    try:
        width, height = next(reader)["size"]
        for frame in reader:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
            count += 1
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"not a video that ffmpeg can read: {str(path)!r}") from error
    finally:
        reader.close()
    if count == 0:
        raise ValueError(f"a video without frames: {str(path)!r}")


def last_frames(
    path: str | Path,
    count: int,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> np.ndarray:
    """The last `count` frames of `video_frames(path, size=size, fps=fps)`, or all of fewer.

    Of a long video only the end is decoded.

    Returns:
        Bytes `[t, height, width, 3]`.
    """
    seconds = VideoHeader.read(path).seconds
    if fps is not None and seconds is not None:
        # From a whole second on, a whole number of frames a second falls on the same instants.
        begin = math.floor(seconds - count / fps - 1)
        if begin > 0:
            seek = ["-ss", str(begin)]
            with suppress(ValueError):  # nothing there: the sound may be longer than the picture
                frames = video_frames(path, size=size, fps=fps, input_options=seek)
                last = deque(frames, maxlen=count)
                if len(last) == count:
                    return np.stack(last)
    return np.stack(deque(video_frames(path, size=size, fps=fps), maxlen=count))


def video_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a video, as it is shown.

    Raises:
        FileNotFoundError: no such file.
        ValueError: ffmpeg finds no video in it.
    """
    frames = video_frames(path)
    try:
        height, width = next(frames).shape[:2]
    finally:
        frames.close()
    return width, height


def _is_of_no_size(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("The frame size for reading")


def _encode(frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    """Write a complete mp4. Raises `OSError` with what ffmpeg said if it fails."""
    first = even(next(frames))
    encoder = Encoder(path, first.shape, fps, COMPLETE)
    try:
        encoder.write(first)
        for frame in frames:
            encoder.write(even(frame))
        encoder.finish()
    except BaseException:
        encoder.kill()
        raise


def _gif_timing(images: list[Image], fps: float) -> tuple[list[Image], list[int]]:
    """The frames that are shown, and for how many milliseconds each."""
    count = len(images)
    if fps > 50:
        length = round(100 * count / fps)
        shown = max(1, length // 2)
        images = [images[min(count - 1, round(index * fps / 50))] for index in range(shown)]
        return images, [20] * (shown - 1) + [max(20, 10 * length - 20 * (shown - 1))]
    ends = [round(100 * (index + 1) / fps) for index in range(count)]
    return images, [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]


def check_replaceable(folder: Path) -> None:
    """A folder of PNGs may replace an empty folder or an earlier one of its kind, nothing else."""
    check_name(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"cannot write {str(folder)!r}: a file of that name is in the way")
    if other := next((p.name for p in folder.iterdir() if not PNG_PATTERN.fullmatch(p.name)), None):
        raise FileExistsError(
            f"cannot write {str(folder)!r}: the folder already holds {other!r}; name a new folder"
        )


def check_fps(fps: float) -> None:
    """Refuse with a ValueError what is no number of frames a second."""
    if not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be a number above 0, not {fps!r}")


def frame_arrays(
    frames: Iterable[Frame], *, first: int = 0, shape: tuple[int, ...] | None = None
) -> Iterator[np.ndarray]:
    """The frames as uint8 arrays [height, width, 3] of one size, at least one.

    Args:
        frames: The frames.
        first: Number of the first of them.
        shape: What earlier ones had.
    """
    for index, frame in enumerate(frames, first):
        array = _frame_array(frame, index)
        shape = shape or array.shape
        if array.shape != shape:
            raise ValueError(
                f"all frames must have one size: frame 0 is {shape[1]}x{shape[0]}, "
                f"frame {index} is {array.shape[1]}x{array.shape[0]}"
            )
        yield array
    if shape is None:
        raise ValueError("there are no frames to write")


def _frame_array(frame: Frame, index: int) -> np.ndarray:
    array = np.asarray(rgb_image(frame) if isinstance(frame, Image) else frame)
    kinds = array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)
    if array.ndim != 3 or array.shape[2] != 3 or not kinds:
        raise TypeError(
            f"frame {index} must be a PIL image or an array [height, width, 3] of uint8 or of "
            f"floats in [0, 1], not {array.dtype} {list(array.shape)}"
        )
    return byte_image(array, f"frame {index}")


def even(array: np.ndarray) -> np.ndarray:
    """The frame with its last column or row written twice where its size is odd."""
    height, width = array.shape[:2]
    return np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
