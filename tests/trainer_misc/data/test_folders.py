"""Folders with captions in place of files of annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyramid_dit.media.video_files import export_to_video
from trainer_misc.data.folders import folder_annotations
from trainer_misc.data.images import ImageBatches, StillBatches
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
    (found,) = folder_annotations(tmp_path)
    assert found["video"] == str(tmp_path / "a.mp4") and found["text"] == "two, words"
    assert TextVideoBatches(tmp_path, [(16, 16)], 3, batch_size=1)[0]["text"] == ["two, words"]
    batch = VideoBatches(tmp_path, batch_size=1, max_frames=3, resolution=16)[0]
    assert batch["video"].shape == (1, 3, 3, 16, 16)


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("metadata.csv", "name,text\na.mp4,b\n", "line 2: it lacks 'file_name'"),
        (
            "metadata.csv",
            "file_name,text\na.doc,b\n",
            "line 2: 'a.doc' is not the name of a video or picture",
        ),
        ("metadata.csv", "file_name,text\na.mp4\n", "line 2: it lacks 'text'"),
        ("metadata.jsonl", '{"file_name": \n', "line 1: no valid JSON"),
        ("metadata.jsonl", "[]\n", "line 1: it holds a list"),
        ("metadata.csv", "file_name,text\n", "there are no videos or pictures"),
    ],
)
def test_wrong_tables(tmp_path: Path, table: str, content: str, message: str) -> None:
    (tmp_path / table).write_text(content)
    with pytest.raises(ValueError, match=message):
        TextVideoBatches(tmp_path, [(16, 16)], 3, batch_size=1)


def test_tables_of_folders_in_the_folder(tmp_path: Path) -> None:
    """As the library datasets writes a set with splits."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / split / "a.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.png,{split}\n")
    batch = ImageBatches(tmp_path, batch_size=2, resolution=[(16, 16)])[0]
    assert sorted(batch["text"]) == ["test", "train"]
    batch = ImageBatches(tmp_path / "train", batch_size=1, resolution=[(16, 16)])[0]
    assert batch["text"] == ["train"]


def test_what_is_wrong_in_a_few_lines_is_counted(tmp_path: Path) -> None:
    lines = [b'{"file_name": "a.png", "text": "%d"}' % number for number in range(4)]
    lines += [b'{"file_name": "a.png", "text": "caf\xe9"}', b'{"file_name": "a.png"}', b"{"]
    lines += [b'{"file_name": "a.png", "text": "\\ud83d"}']
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="4 of 8 samples cannot be used .undecodable text: 2"):
        ImageBatches(tmp_path, batch_size=4)
    options: dict[str, Any] = {"max_skipped": 0.5, "skipped_to": tmp_path / "run"}
    batches = ImageBatches(tmp_path, batch_size=4, resolution=[(16, 16)], **options)
    assert sorted(batches[0]["text"]) == ["0", "1", "2", "3"]
    kinds = {"undecodable text": 2, "missing column": 1, "no valid JSON": 1}
    assert batches.skipped[0].kinds == kinds
    named = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").open()]
    assert [entry["sample"] for entry in named] == [4, 5, 6, 7]
    assert all("metadata.jsonl, line" in entry["reason"] for entry in named)


def test_captions_in_another_encoding(tmp_path: Path) -> None:
    text = "ein schöner Tag"
    for name, encoding in (("a", "utf-8"), ("b", "utf-8-sig"), ("c", "latin-1"), ("d", "utf-16")):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding=encoding)
    batches = ImageBatches(tmp_path, batch_size=2, resolution=[(16, 16)], max_skipped=0.5)
    assert batches[0]["text"] == [text, text]
    assert batches.skipped[0].kinds == {"undecodable text": 2}
    assert len(StillBatches(tmp_path, batch_size=1, resolution=16).buckets["image"]) == 4


def test_a_folder_of_both(tmp_path: Path) -> None:
    export_to_video([np.zeros((16, 16, 3), np.uint8)] * 9, tmp_path / "clip.mp4")
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    for name in ("clip", "picture"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert TextVideoBatches(tmp_path, [(16, 16)], 9, batch_size=1)[0]["text"] == ["clip"]
    assert ImageBatches(tmp_path, batch_size=1, resolution=[(16, 16)])[0]["text"] == ["picture"]


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder_annotations(tmp_path / "none")
    with pytest.raises(ValueError, match="there are no videos or pictures"):
        folder_annotations(tmp_path)
