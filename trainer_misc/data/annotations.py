"""Annotations name the files of a sample and say what they show: JSON lines, or folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from pyramid_dit.checks import shown

from .folders import Record, folder_annotations


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotations of a file, which many processes share without copies of their own.

    That is why they are kept as text, and read one at a time: a list of dictionaries would be
    copied bit by bit by each process that looks at it.
    """

    text: bytes
    """The lines."""
    starts: np.ndarray
    """Where each begins; int64 `[n + 1]`, with the end of the last."""
    folders: tuple[Path, ...]
    """Where relative paths begin; the first folder that has the file counts."""

    @classmethod
    def read(
        cls, path: str | PathLike[str], check: Callable[[Record], None] | None = None
    ) -> Annotations:
        """Read a file of JSON lines; empty lines are passed over.

        Paths in it are relative to the working directory, or else to the folder of the file.

        Args:
            path: The file.
            check: Raises a ValueError for a record that does not fit.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A line holds no JSON object, or does not fit, or there is none.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no such file of annotations: {str(path)!r}")
        with file.open("rb") as lines:
            return cls._of(_checked(lines, str(path), check), file.absolute().parent, str(path))

    @classmethod
    def of_folder(
        cls, path: str | PathLike[str], check: Callable[[Record], None] | None = None
    ) -> Annotations:
        """The videos and pictures of a folder, see `folder_annotations`.

        Args:
            path: The folder.
            check: Raises a ValueError for a record that does not fit.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: There is none, or one does not fit.
        """
        lines = []
        for record in folder_annotations(path):
            try:
                if check is not None:
                    check(record)
            except ValueError as error:
                raise ValueError(f"{next(iter(record.values()))}: {error}") from error
            lines.append(json.dumps(record).encode() + b"\n")
        return cls._of(lines, Path(path).absolute(), str(path))

    @classmethod
    def _of(cls, lines: Iterable[bytes], folder: Path, name: str) -> Annotations:
        kept = list(lines)
        if not kept:
            raise ValueError(f"{name} holds no annotations")
        starts = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        return cls(b"".join(kept), starts, (Path.cwd(), folder))

    def __len__(self) -> int:
        """The number of annotations."""
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Record:
        """The annotation at `index`, from 0 on."""
        record: Record = json.loads(self.text[self.starts[index] : self.starts[index + 1]])
        return record

    def find(self, name: str) -> Path:
        """The file that an annotation calls `name`, whether it is there or not."""
        candidates = [folder / name for folder in self.folders]
        return next((path for path in candidates if path.exists()), candidates[0])


def check_record(record: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Refuse a record that lacks one of the needed strings, or has `frames` that are no indices.

    `text` may be empty.

    Raises:
        ValueError: It does not fit.
    """
    for key in needed:
        value = record.get(key)
        if not isinstance(value, str) or not (value or key == "text"):
            has = f"has {shown(value)} as" if key in record else "lacks"
            raise ValueError(f"it {has} {key!r}, which must be a string")
    frames = record.get("frames")
    if frames is not None and not _are_indices(frames):
        raise ValueError(f"'frames' must be a list of indices from 0 on, got {shown(frames)}")


def _checked(
    lines: Iterable[bytes], name: str, check: Callable[[Record], None] | None
) -> Iterable[bytes]:
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"it holds a {type(record).__name__}, not an object")
            if check is not None:
                check(record)
        except (ValueError, RecursionError) as error:
            what = "no valid JSON: " if isinstance(error, json.JSONDecodeError) else ""
            raise ValueError(f"{name}, line {number}: {what}{error}") from error
        yield line if line.endswith(b"\n") else line + b"\n"


def _are_indices(frames: Any) -> bool:
    return (
        isinstance(frames, list)
        and len(frames) > 0
        and all(type(index) is int and index >= 0 for index in frames)
    )
