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


def folder_annotations(folder: str | PathLike[str]) -> list[Record]:
    """The videos and pictures of a folder: `{"video", "text"}` or `{"image", "text"}` each.

    They are named in `metadata.jsonl` or `metadata.csv` by `file_name` and `text`, or each has its
    caption beside it, `clip.txt` for `clip.mp4`; what has none is left without `text`. Folders in
    the folder are looked through, too; what begins with a dot is not.

    Args:
        folder: The folder.

    Returns:
        Records in the order of the table or of the names, with whole paths.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There is no video or picture in it, or an entry of its table does not fit.
    """
    top = Path(folder).absolute()
    if not top.is_dir():
        raise FileNotFoundError(f"no such folder: {str(folder)!r}")
    table = next((top / name for name in TABLES if (top / name).is_file()), None)
    records = list(_captioned(top) if table is None else _listed(table))
    if not records:
        raise ValueError(f"there are no videos or pictures in {str(folder)!r}")
    return records


def _captioned(top: Path) -> Iterator[Record]:
    for path in sorted(top.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
        if hidden or path.suffix.lower() not in VIDEOS | PICTURES or not path.is_file():
            continue
        record = {_kind(path): str(path)}
        caption = path.with_suffix(".txt")
        if caption.is_file():
            try:
                record["text"] = " ".join(caption.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                raise ValueError(f"{caption} is no text in UTF-8") from error
        yield record


def _listed(table: Path) -> Iterator[Record]:
    for number, row in _rows(table):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not name or not isinstance(text, str):
            raise ValueError(f"{table}, line {number}: it needs 'file_name' and 'text'")
        path = table.parent / name
        if path.suffix.lower() not in VIDEOS | PICTURES:
            raise ValueError(f"{table}, line {number}: {name!r} is no video or picture by its name")
        yield {_kind(path): str(path), "text": text}


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the line and content of the entries of a table."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    what = type(row).__name__
                    raise ValueError(f"{table}, line {number}: it holds a {what}, not an object")
                yield number, row
    except json.JSONDecodeError as error:
        raise ValueError(f"{table}, line {number}: no valid JSON: {error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read: {error}") from error


def _kind(path: Path) -> str:
    return "video" if path.suffix.lower() in VIDEOS else "image"
