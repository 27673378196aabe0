"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from os import PathLike
from pathlib import Path

LONGEST_NAME = 255  # bytes, on every file system in wide use
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
        ValueError: `target` has a name longer than a file may have.
        OSError: `target` cannot be replaced.
    """
    check_name(target)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target)
    try:
        yield temporary
        replace(temporary, target)
    finally:
        remove(temporary)


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, which is then put in the place of `target`."""
    with replacing(target) as temporary:
        temporary.mkdir()
        write(temporary)
        _to_disk(temporary)


def check_name(path: str | PathLike[str]) -> None:
    """Refuse a path with a name that is longer than file systems allow, before any work.

    Raises:
        ValueError: It has one.
    """
    for name in Path(path).parts:
        if (length := len(os.fsencode(name))) > LONGEST_NAME:
            raise ValueError(
                f"cannot write {os.fspath(path)!r}: a name may have {LONGEST_NAME} bytes, "
                f"not {length}"
            )


def replace(source: Path, target: Path) -> None:
    """Rename a file or a folder to `target`, in whose place it comes if there is one."""
    if source.is_dir() and target.is_dir():
        _exchange(source, target)
    else:
        os.replace(source, target)


def rename_to_free(source: Path, target: Path) -> None:
    """Rename a file or a folder to `target`, which nothing may have as its name.

    Raises:
        FileExistsError: Something has it, or had it first.
    """
    if source.is_dir():
        target.mkdir()
        source.rename(target)  # in place of an empty folder, at once
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        os.replace(source, target)
    else:
        source.unlink()


def numbered(target: Path) -> Iterator[Path]:
    """`clip.mp4`, `clip-2.mp4`, `clip-3.mp4`, ..."""
    yield target
    for number in count(2):
        yield target.with_name(f"{target.stem}-{number}{target.suffix}")


def part_of(target: str | PathLike[str], ending: str) -> Path:
    """A name for the beginning of `target`, for people: in its folder, short, and nobody's."""
    target = Path(target)
    stem = os.fsencode(target.stem)[:40].decode(errors="ignore")
    while True:
        part = target.with_name(f"{stem}.partial-{secrets.token_hex(3)}{ending}")
        if not os.path.lexists(part):
            return part


def beside(target: str | PathLike[str], ending: str = ".part") -> Path:
    """A short name in the folder of `target` that is nobody's."""
    return Path(target).parent / f".{secrets.token_hex(6)}{ending}"


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(folder: Path) -> None:
    """Have the system write what is in `folder`, which a loss of power would else leave empty."""
    if os.name == "nt":
        return
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
