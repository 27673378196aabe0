"""Reading JSON that people wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyramid_dit.json_files import read_json


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"0": "\xc3\xa4"}')
    assert read_json(tmp_path / "a.json") == {"0": "ä"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1,\n "b": }', r"a\.json, line 2: no valid JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', r"the key 'c' appears twice"),
        (b"[1]", "holds a list, not an object"),
        (b'{"a": "\xff"}', r"a\.json: no valid JSON"),
        (b"[" * 100_000, r"a\.json: no valid JSON"),
        (b"", r"a\.json, line 1"),
    ],
)
def test_the_message_has_the_place(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_json(tmp_path / "a.json")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_json(tmp_path / "nowhere.json")
