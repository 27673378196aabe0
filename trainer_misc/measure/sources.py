"""The videos that a command line names, and which of them belong together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyramid_dit.media.image_files import open_image
from pyramid_dit.media.video_files import read_video

from ..data.folders import kind_of


@dataclass(frozen=True)
class VideoSource:
    """A file of a video, or a folder of its frames."""

    path: Path
    name: str
    """Without the ending, and within the folder that was given: what it is paired by."""

    def read(self) -> np.ndarray:
        """Its frames, bytes `[t, h, w, 3]`.

        Raises:
            OSError: It cannot be read.
            ValueError: It is no video, or its frames differ in size.
        """
        if not self.path.is_dir():
            return read_video(self.path)
        frames: list[np.ndarray] = []
        for picture in _pictures(self.path):
            try:
                frame = np.asarray(open_image(picture, least_side=1))
            except ValueError as error:
                raise ValueError(f"{picture} {error}") from error
            if frames and frame.shape != frames[0].shape:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (frames[0].shape, frame.shape)]
                raise ValueError(f"{picture} has {sizes[1]} pixels, the frames before {sizes[0]}")
            frames.append(frame)
        return np.stack(frames)


def sources_of(paths: Sequence[str | Path]) -> list[VideoSource]:
    """The videos in files and folders, in the order of the paths and of the names in each.

    A folder that holds videos, or folders with some, stands for all of these. One that holds
    pictures and no videos is one video, of its frames. What begins with a dot is left out.

    Args:
        paths: Files and folders.

    Raises:
        FileNotFoundError: One is not there.
        ValueError: One is no video, or a folder holds none.
    """
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no such video file or folder: {str(path)!r}")
        if path.is_file() and kind_of(path.name) != "video":
            raise ValueError(f"{str(path)!r} is not the name of a video file")
        inside = [path] if path.is_file() else list(_videos(path))
        if not inside:
            raise ValueError(f"there are no videos in {str(path)!r}")
        for video in inside:
            within = Path(path.name) if video == path else video.relative_to(path)
            name = within if video.is_dir() else within.with_suffix("")
            found.append(VideoSource(video, name.as_posix()))
    return found


def paired(
    videos: Sequence[VideoSource], references: Sequence[VideoSource]
) -> list[tuple[VideoSource, VideoSource]]:
    """Each video with its reference: by name where the names are the same, otherwise in order.

    Args:
        videos: The videos.
        references: What they are compared with.

    Raises:
        ValueError: There are not as many references, or some names have a reference and some none.
    """
    if len(videos) != len(references):
        raise ValueError(
            f"{_count(videos)} cannot be paired with {len(references)} as reference; sets that "
            "belong together only as a whole are compared with --measures frechet"
        )
    by_name = _by_name(references)
    wanted = _by_name(videos)
    missing = sorted(wanted.keys() - by_name.keys())
    if len(wanted) < len(videos) or len(by_name) < len(videos) or len(missing) == len(videos):
        return list(zip(videos, references, strict=True))
    if missing:
        raise ValueError(
            f"{str(wanted[missing[0]].path)!r} has no reference of that name, others have one"
        )
    return [(video, by_name[video.name]) for video in videos]


def _by_name(sources: Sequence[VideoSource]) -> Mapping[str, VideoSource]:
    return {source.name: source for source in sources}


def _count(sources: Sequence[VideoSource]) -> str:
    return "1 video" if len(sources) == 1 else f"{len(sources)} videos"


def _videos(folder: Path) -> Iterator[Path]:
    """Files and folders that are a video each; the folder itself where it holds only frames."""
    entries = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=_order)
    inside = [
        video
        for entry in entries
        for video in (_videos(entry) if entry.is_dir() else [entry])
        if video.is_dir() or kind_of(video.name) == "video"
    ]
    if inside:
        yield from inside
    elif any(kind_of(entry.name) == "image" for entry in entries):
        yield folder


def _pictures(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if kind_of(path.name) == "image"), key=_order)


def _order(path: Path) -> list[tuple[int, str]]:
    """By name, with numbers in their order: `frame_9` before `frame_10`."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
