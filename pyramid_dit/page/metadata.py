"""The settings of a video in the file itself: in the tag `comment`, as JSON."""

from __future__ import annotations

import re
from pathlib import Path

from ..media.ffmpeg import COMPLETE, run_ffmpeg
from ..media.video_files import replacing
from .media_checks import check_video, ffmpeg_says, input_arguments
from .settings import Settings


def write_settings(path: str | Path, settings: Settings) -> None:
    """Put `settings` into the mp4 at `path`; its picture is not encoded again.

    Raises:
        OSError: The file could not be written.
    """
    target = Path(path)
    with replacing(target) as temporary:
        run_ffmpeg(
            ["-i", str(target.absolute()), "-c", "copy", "-map_metadata", "-1"]
            + ["-metadata", f"comment={settings.to_json()}", "-fflags", "+bitexact"]
            + [*COMPLETE, str(temporary.absolute())]
        )


def read_settings(path: str | Path) -> Settings:
    """The settings in a video that this page made.

    Raises:
        ValueError: It is no video, or one without such settings.
    """
    kind = check_video(path).kind
    said = ffmpeg_says([*input_arguments(path, kind), "-f", "ffmetadata", "-"])
    comments = re.findall(
        r"^comment=((?:\\.|[^\\\n])*)$",
        said.stdout.decode(errors="replace"),
        re.MULTILINE | re.DOTALL,
    )
    if said.returncode or not comments:
        raise ValueError("there are no settings in this file: it was not made with this page")
    return Settings.from_json(re.sub(r"\\(.)", r"\1", comments[0], flags=re.DOTALL))
