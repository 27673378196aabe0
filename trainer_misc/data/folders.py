"""Folders of videos or pictures with captions, as annotations."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
"""One annotation."""

VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"})
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp"})
TABLES = ("metadata.jsonl", "metadata.csv")

WHERE = "__where__"
"""Entry of a record: what it is called in messages."""
PROBLEM = "__problem__"
"""Entry of a record that cannot be used: the kind and the reason, as a SampleError has them."""


def folder_annotations(folder: str | PathLike[str]) -> list[Record]:
    """The videos and pictures of a folder: `{"video", "text"}` or `{"image", "text"}` each.

    They are named in `metadata.jsonl` or `metadata.csv` by `file_name` and `text`, as the folders
    of the library datasets and the training examples of diffusers have it; or each has its caption
    beside it, `clip.txt` for `clip.mp4`. What has no caption is left without `text`. Folders in the
    folder are looked through, too, for such tables as well; what begins with a dot is not. What
    cannot be understood has an entry `PROBLEM`; letters that are no UTF-8 are left as surrogates.

    Args:
        folder: The folder.

    Returns:
        Records in the order of the tables or of the names, with whole paths.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There is no video or picture in it, or a table cannot be read.
    """
    top = Path(folder).absolute()
    if not top.is_dir():
        raise FileNotFoundError(f"no such folder: {str(folder)!r}")
    files = [path for path in sorted(top.rglob("*")) if path.is_file() and _is_seen(path, top)]
    tables: dict[Path, Path] = {}
    for path in files:
        if path.name == TABLES[0] or (path.name in TABLES and path.parent not in tables):
            tables[path.parent] = path
    if tables:
        records = [record for table in tables.values() for record in _listed(table)]
    else:
        records = [_captioned(path) for path in files if kind_of(path.name)]
    if not records:
        raise ValueError(f"there are no videos or pictures in {str(folder)!r}")
    return records


def kind_of(name: str) -> str | None:
    """Whether a file is a "video" or an "image" by its name, None for neither."""
    ending = Path(name).suffix.lower()
    return "video" if ending in VIDEOS else "image" if ending in PICTURES else None


def plain_text(content: bytes) -> str:
    """A caption in one line; letters that are no UTF-8 are left as surrogates."""
    return " ".join(
        content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split()
    )


def _is_seen(path: Path, top: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(top).parts)


def _captioned(path: Path) -> Record:
    record = {str(kind_of(path.name)): str(path), WHERE: str(path)}
    caption = path.with_suffix(".txt")
    if caption.is_file():
        record["text"] = plain_text(caption.read_bytes())
    return record


def _listed(table: Path) -> Iterator[Record]:
    for number, row in _rows(table):
        record: Record = {WHERE: f"{table}, line {number}"}
        if PROBLEM in row:
            yield record | row
            continue
        name = row.get("file_name")
        kind = kind_of(name) if isinstance(name, str) else None
        if not isinstance(name, str) or not name:
            record[PROBLEM] = "missing column", "it lacks 'file_name', which must be a string"
        elif kind is None:
            record[PROBLEM] = "wrong column", f"{name!r} is not the name of a video or picture"
        else:
            record[kind] = str(table.parent / name)
        if row.get("text") is not None:
            record["text"] = row["text"]
        yield record


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the line and content of the entries of a table."""
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line)
    except csv.Error as error:
        raise ValueError(f"{table} cannot be read: {error}") from error


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {PROBLEM: ("no valid JSON", f"no valid JSON: {error}")}
    if not isinstance(row, dict):
        return {PROBLEM: ("no valid JSON", f"it holds a {type(row).__name__}, not an object")}
    return row
