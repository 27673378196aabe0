"""Files and folders are written whole or not at all."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from pyramid_dit.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with replacing(target) as temporary:
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "one"
        assert target.read_text() == text
    with pytest.raises(OSError, match="full"), replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")
    assert target.read_text() == "two" and names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_as_a_whole(
    tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not at_once:  # as on systems that cannot
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    target = tmp_path / "folder"
    for text in ("one", "two"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / text).touch()
        assert names(target) == [text] and names(tmp_path) == ["folder"]
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "three").touch()
        raise KeyboardInterrupt
    assert names(target) == ["two"] and names(tmp_path) == ["folder"]


def test_any_name_that_a_file_may_have_will_do(tmp_path: Path) -> None:
    target = tmp_path / ("y" * 251 + ".mp4")
    with replacing(target) as temporary:
        assert len(temporary.name) < 30
        temporary.touch()
    assert names(tmp_path) == [target.name]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
