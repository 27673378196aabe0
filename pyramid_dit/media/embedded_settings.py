"""The settings of a video in the file itself: in the tag `comment`, as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..files import replacing
from .ffmpeg import COMPLETE, ffmpeg_says, file_name, run_ffmpeg


def write_comment(path: str | Path, text: str, *, source: str | Path | None = None) -> None:
    """Put `text` into the mp4 at `path`; its picture is not encoded again.

    Args:
        path: The file, made or replaced.
        text: What to put in.
        source: The mp4 to take the picture from, which may still be written; by default `path`.

    Raises:
        OSError: The file could not be written.
    """
    target = Path(path)
    with replacing(target) as temporary:
        run_ffmpeg(
            ["-i", file_name(source or target), "-c", "copy", "-map_metadata", "-1"]
            + ["-metadata", f"comment={text}", "-fflags", "+bitexact"]
            + [*COMPLETE, file_name(temporary)]
        )


def read_comment(input_arguments: Sequence[str]) -> str | None:
    """The comment in the file that ffmpeg opens by `input_arguments`, None without one.

    Raises:
        ValueError: It takes much too long to read the file.
    """
    said = ffmpeg_says([*input_arguments, "-f", "ffmetadata", "-"])
    comments = re.findall(
        r"^comment=((?:\\.|[^\\\n])*)$",
        said.stdout.decode(errors="replace"),
        re.MULTILINE | re.DOTALL,
    )
    if said.returncode or not comments:
        return None
    return re.sub(r"\\(.)", r"\1", comments[0], flags=re.DOTALL)
