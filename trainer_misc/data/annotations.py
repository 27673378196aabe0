"""Annotations name the files of a sample and say what they show: lines, folders or shards."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from pyramid_dit.checks import shown

from .folders import PROBLEM, WHERE, Record, folder_annotations
from .shards import STORED, are_shards, member_copy, shard_annotations
from .skipped import SampleError

logger = logging.getLogger(__name__)

TEXTS = "texts"
"""Column of a storyboard: the text from each unit on, as `{"0": "a cat", "9": "a dog"}`. Where it
is needed, a single `text` will do."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotations of a source, which many processes share without copies of their own.

    That is why they are kept as text, and read one at a time: a list of dictionaries would be
    copied bit by bit by each process that looks at it.
    """

    text: bytes
    """The lines."""
    starts: np.ndarray
    """Where each begins; int64 `[n + 1]`, with the end of the last."""
    numbers: np.ndarray
    """The numbers of the lines in the file, from 1 on; int64 `[n]`."""
    folders: tuple[Path, ...]
    """Where relative paths begin; the first folder that has the file counts."""
    name: str
    """Of the source."""

    @classmethod
    def open(cls, source: str | PathLike[str], column: str) -> Annotations:
        """Open a source of any kind.

        Args:
            source: A file of JSON lines, see `read`; a folder, see `folder_annotations`; or
                WebDataset shards, see `shard_annotations`.
            column: What is wanted: where a folder or shards hold both videos and pictures, those
                alone that are a "video", or an "image".

        Raises:
            FileNotFoundError: There is no such source.
            ValueError: It holds no annotations.
        """
        if are_shards(source):
            records = shard_annotations(source)
        elif Path(source).is_dir():
            records = folder_annotations(source)
        else:
            return cls.read(source)
        other = {"video": "image", "image": "video"}.get(column)
        kept = [record for record in records if column in record or other not in record]
        if left := len(records) - len(kept):
            logger.info("%s: %d samples are left out, which have no %s", source, left, column)
        lines = ((0, json.dumps(record).encode() + b"\n") for record in kept)
        return cls._of(lines, Path(source).absolute(), str(source))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Annotations:
        """Read a file of JSON lines; empty lines are passed over.

        Paths in it are relative to the working directory, or else to the folder of the file.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds no annotations.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no such file of annotations: {str(path)!r}")
        with file.open("rb") as stored:
            lines = [
                (number, line if line.endswith(b"\n") else line + b"\n")
                for number, line in enumerate(stored, 1)
                if line.removeprefix(b"\xef\xbb\xbf").strip()
            ]
        return cls._of(lines, file.absolute().parent, str(path))

    @classmethod
    def _of(cls, lines: Iterable[tuple[int, bytes]], folder: Path, name: str) -> Annotations:
        numbered = list(lines)
        if not numbered:
            raise ValueError(f"{name} holds no annotations")
        numbers, kept = zip(*numbered, strict=True)
        starts = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        return cls(b"".join(kept), starts, np.array(numbers), (Path.cwd(), folder), name)

    def __len__(self) -> int:
        """The number of annotations."""
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Record:
        """The annotation at `index`, from 0 on.

        Raises:
            SampleError: The line holds no JSON object.
        """
        return self.checked(index, ())

    def checked(self, index: int, needed: Sequence[str]) -> Record:
        """The annotation at `index`, which has the columns `needed`, see `check_record`.

        Raises:
            SampleError: It does not; the message says where it stands.
        """
        line = self.text[self.starts[index] : self.starts[index + 1]]
        where = f"{self.name}, line {self.numbers[index]}"
        try:
            text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
            record = json.loads(text)
            if not isinstance(record, dict):
                what = f"it holds a {type(record).__name__}, not an object"
                raise SampleError("no valid JSON", what)
            where = record.pop(WHERE, where)
            check_record(record, needed)
        except SampleError as error:
            raise SampleError(error.kind, f"{where}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise SampleError("no valid JSON", f"{where}: no valid JSON: {error}") from None
        return record

    def called(self, index: int, column: str) -> str:
        """What the sample at `index` is called in messages: what it has as `column`, if any."""
        try:
            name = self[index].get(column)
        except SampleError:
            name = None
        return name if isinstance(name, str) and name else f"number {index} of {self.name}"

    def find(self, name: str) -> Path:
        """The file that an annotation calls `name`; if there is none, where its folder is."""
        candidates = [folder / name for folder in self.folders]
        there = [path for path in candidates if path.exists()]
        return [*there, *(path for path in candidates if path.parent.is_dir()), *candidates][0]

    def require(self, record: Mapping[str, Any], column: str) -> None:
        """Raise a SampleError where the file that a record has as `column` is not there."""
        if column not in record.get(STORED, {}):
            path = self.find(record[column])
            if not path.is_file():
                raise SampleError("missing file", f"there is no file {path}")

    @contextmanager
    def file(self, record: Mapping[str, Any], column: str) -> Iterator[Path]:
        """The file that a record has as `column`; of a shard a copy, which is deleted afterwards.

        Raises:
            SampleError: A shard cannot be read.
        """
        stored = record.get(STORED, {}).get(column)
        if stored is None:
            yield self.find(record[column])
            return
        with member_copy(record[column], *stored) as path:
            try:
                yield path
            except SampleError as error:
                reason = str(error).replace(str(path), record[column])
                raise SampleError(error.kind, reason) from error


def check_record(record: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Refuse a record that lacks one of the needed strings, or has `frames` that are no indices.

    `text` may be empty, but must be text in UTF-8. For `TEXTS` a storyboard or a `text` is needed.

    Raises:
        SampleError: It does not fit.
    """
    if PROBLEM in record:
        raise SampleError(*record[PROBLEM])
    if TEXTS in needed and TEXTS in record:
        _check_storyboard(record)
    single = ["text"] if TEXTS in needed and TEXTS not in record else []
    needed = [*(key for key in needed if key != TEXTS), *single]
    for key in needed:
        if key not in record:
            raise SampleError("missing column", f"it lacks {key!r}, which must be a string")
        value = record[key]
        if not isinstance(value, str) or not (value or key == "text"):
            raise SampleError(
                "wrong column", f"it has {shown(value)} as {key!r}, which must be a string"
            )
    if "text" in needed and not _is_text(record["text"]):
        raise SampleError("undecodable text", "its text is not in UTF-8")
    frames = record.get("frames")
    if frames is not None and not _are_indices(frames):
        raise SampleError(
            "wrong column", f"'frames' must be a list of indices from 0 on, got {shown(frames)}"
        )


def texts_by_unit(record: Mapping[str, Any]) -> dict[int, str]:
    """The texts of a checked record from each unit on, in order; a single one is there from 0."""
    return {int(unit): text for unit, text in record.get(TEXTS, {"0": record.get("text")}).items()}


def _check_storyboard(record: Mapping[str, Any]) -> None:
    storyboard = record[TEXTS]
    if "text" in record:
        raise SampleError("wrong column", f"it has both 'text' and {TEXTS!r}")
    if not isinstance(storyboard, dict) or not storyboard:
        raise SampleError(
            "wrong column",
            f"it has {shown(storyboard)} as {TEXTS!r}, which must be texts by the number of a unit",
        )
    units = [int(key) if key.isdecimal() and key.isascii() else -1 for key in storyboard]
    if units[0] != 0 or any(later <= unit for unit, later in itertools.pairwise(units)):
        raise SampleError(
            "wrong column",
            f"the units of {TEXTS!r} must be whole numbers that ascend from 0, got "
            f"{', '.join(map(shown, storyboard))}",
        )
    for unit, text in storyboard.items():
        if not isinstance(text, str):
            raise SampleError(
                "wrong column", f"{TEXTS!r} has {shown(text)} at {unit}, which must be a string"
            )
        if not _is_text(text):
            raise SampleError("undecodable text", f"its text at {unit} is not in UTF-8")


def _is_text(text: str) -> bool:
    """Whether it was UTF-8; what was not is left as surrogates, and UTF-16 has zeros in it."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _are_indices(frames: Any) -> bool:
    return (
        isinstance(frames, list)
        and len(frames) > 0
        and all(type(index) is int and index >= 0 for index in frames)
    )
