"""Folders with captions in place of files of annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyramid_dit.media.video_files import export_to_video
from trainer_misc.data.folders import folder_annotations
from trainer_misc.data.images import ImageBatches
from trainer_misc.data.videos import TextVideoBatches, VideoBatches


def test_captions_beside_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "more/c.webp", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" {name}\nin words\n")
    found = folder_annotations(tmp_path)
    assert [record["text"] for record in found] == [
        "a.JPG in words",
        "b.png in words",
        "more/c.webp in words",
    ]
    assert all(Path(record["image"]).is_file() for record in found)
    batch = ImageBatches(tmp_path, batch_size=3, resolution=[(16, 16)])[0]
    assert sorted(batch["text"]) == [record["text"] for record in found]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ValueError, match="b.png: it lacks 'text'"):
        ImageBatches(tmp_path, batch_size=1)


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("metadata.csv", 'file_name,text\na.mp4,"two, words"\n'),
        ("metadata.jsonl", '\n{"file_name": "a.mp4", "text": "two, words"}\n'),
    ],
)
def test_tables(tmp_path: Path, table: str, content: str) -> None:
    export_to_video([np.zeros((16, 16, 3), np.uint8)] * 3, tmp_path / "a.mp4")
    (tmp_path / table).write_text(content)
    expected = [{"video": str(tmp_path / "a.mp4"), "text": "two, words"}]
    assert folder_annotations(tmp_path) == expected
    assert TextVideoBatches(tmp_path, 16, 16, 3, batch_size=1)[0]["text"] == ["two, words"]
    batch = VideoBatches(tmp_path, batch_size=1, max_frames=3, resolution=16)[0]
    assert batch["video"].shape == (1, 3, 3, 16, 16)


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("metadata.csv", "name,text\na.mp4,b\n", "line 2: it needs 'file_name' and 'text'"),
        ("metadata.csv", "file_name,text\na.doc,b\n", "line 2: 'a.doc' is no video or picture"),
        ("metadata.jsonl", '{"file_name": \n', "line 1: no valid JSON"),
        ("metadata.jsonl", "[]\n", "line 1: it holds a list"),
        ("metadata.csv", "file_name,text\n", "there are no videos or pictures"),
    ],
)
def test_wrong_tables(tmp_path: Path, table: str, content: str, message: str) -> None:
    (tmp_path / table).write_text(content)
    with pytest.raises(ValueError, match=message):
        folder_annotations(tmp_path)


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder_annotations(tmp_path / "none")
    with pytest.raises(ValueError, match="there are no videos or pictures"):
        folder_annotations(tmp_path)
