"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

_EXCHANGE = 2  # of Linux' renameat2
_HERE = -100  # names are taken as they are


@contextmanager
def replacing(target: str | PathLike[str]) -> Iterator[Path]:
    """Hand out a new name beside `target`; what the body writes there becomes `target`.

    It does so only if the body succeeds, and is removed if not: `target` holds what is complete or
    what it held before. The new name is short, so that any name that a file may have will do for
    `target`, whose folder is made if it is not there.

    Yields:
        The path for a file or a folder, which is not there yet.

    Raises:
        OSError: `target` cannot be replaced.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target)
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            _exchange(temporary, target)
        else:
            os.replace(temporary, target)
    finally:
        remove(temporary)


def beside(target: str | PathLike[str], ending: str = ".part") -> Path:
    """A short name in the folder of `target` that is nobody's."""
    return Path(target).parent / f".{secrets.token_hex(6)}{ending}"


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Have two folders change names, at once where the system can."""
    try:
        names = os.fsencode(one), os.fsencode(other)
        if ctypes.CDLL(None).renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0:
            return
    except (OSError, AttributeError):  # another system
        pass
    aside = beside(other, ".old")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
