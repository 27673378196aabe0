"""Reading JSON that people and other programs wrote."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any


def read_json(path: str | PathLike[str]) -> dict[str, Any]:
    """Read the JSON object in a file, with or without a byte order mark.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no JSON object, it may be truncated, or a key appears twice. The
            message has the file, and the line or the key.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"missing file {path}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: no valid JSON, is it truncated? ({error.msg})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return content
