"""Checkpoints of a training run: written whole or not at all, found again, thinned out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from pyramid_dit.files import replacing

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """All complete checkpoints below `folder`, by step."""
    found = {}
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    return next(reversed(checkpoint_steps(folder).values()), None)


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, which is then put in the place of `target`."""
    with replacing(target) as temporary:
        temporary.mkdir()
        write(temporary)


def thin_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in list(checkpoint_steps(folder).values())[: -keep or None]:
        shutil.rmtree(path)
