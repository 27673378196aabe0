"""WebDataset shards in place of files of annotations."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from pyramid_dit.media.video_files import export_to_video
from trainer_misc.data.batches import loader
from trainer_misc.data.images import ImageBatches
from trainer_misc.data.latents import LatentBatches
from trainer_misc.data.shards import STORED, shard_annotations
from trainer_misc.data.videos import TextVideoBatches


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def picture(gray: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (gray,) * 3).save(file, "PNG")
    return file.getvalue()


def pictures(first: int, count: int) -> dict[str, bytes]:
    files = {}
    for number in range(first, first + count):
        files[f"set/{number:04}.png"] = picture(number)
        files[f"set/{number:04}.txt"] = f"number {number}\n".encode()
    return files


def batches_of(source: str | Path, **options: Any) -> ImageBatches:
    return ImageBatches(source, **{"batch_size": 2, "resolution": [(16, 16)], **options})


def texts_in(batch: dict[str, Any]) -> list[str]:
    """The texts of a batch, each of which tells the gray of its picture."""
    grays = ((batch["video"].mean(dim=(1, 2, 3)) + 1) * 127.5).round().int().tolist()
    assert batch["text"] == [f"number {gray}" for gray in grays]
    return list(batch["text"])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number, count in enumerate((3, 1, 5)):
        write_shard(tmp_path / f"set-{number + 8:03}.tar", pictures(10 * number, count))
    return tmp_path


@pytest.mark.parametrize("source", [".", "set-{008..010}.tar"])
def test_every_sample_comes_in_every_epoch(shards: Path, source: str) -> None:
    batches = batches_of(shards / source)
    assert batches.batches_per_epoch == 5
    for epoch in range(2):
        numbers = range(5 * epoch, 5 * epoch + 5)
        seen = {text for number in numbers for text in texts_in(batches[number])}
        assert seen == {f"number {n}" for n in (0, 1, 2, 10, 20, 21, 22, 23, 24)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_very_next_batch(shards: Path, workers: int) -> None:
    all_of_it = [texts_in(batch) for batch in islice(loader(batches_of(shards)), 12)]
    rest = islice(loader(batches_of(shards), start=7, workers=workers), 5)
    assert [texts_in(batch) for batch in rest] == all_of_it[7:]


def test_videos_latents_and_captions_in_json(tmp_path: Path) -> None:
    export_to_video([np.full((32, 32, 3), 200, np.uint8)] * 9, tmp_path / "a.mp4")
    video = (tmp_path / "a.mp4").read_bytes()
    latent = torch.randn(1, 16, 2, 4, 4)
    features = {
        "prompt_embed": torch.randn(1, 3, 8),
        "prompt_attention_mask": torch.ones(1, 3),
        "pooled_prompt_embed": torch.randn(1, 6),
    }
    stored = io.BytesIO()
    torch.save(features, stored)
    files = {"__meta__.json": b"{}", ".hidden.mp4": video}
    for name, entries in (("x.y/0", {"text": "of text"}), ("x.y/1", {"caption": "of caption"})):
        files[f"{name}.mp4"] = video
        files[f"{name}.json"] = json.dumps(entries).encode()
        files[f"{name}.latent.safetensors"] = save({"latent": latent})
        files[f"{name}.text_fea.pt"] = stored.getvalue()
    shard = write_shard(tmp_path / "a.tar", files)
    clips = TextVideoBatches(shard, [(32, 32)], 9, batch_size=2)[0]
    assert sorted(clips["text"]) == ["of caption", "of text"]
    assert clips["video"].shape == (2, 3, 9, 32, 32)
    assert torch.allclose(clips["video"], torch.tensor(200 / 127.5 - 1), atol=0.03)
    batch = LatentBatches(shard, max_frames=3, batch_size=2)[0]
    assert torch.equal(batch["video"], latent.expand(2, -1, -1, -1, -1))
    embeds = features["prompt_embed"].expand(2, -1, -1)
    assert torch.equal(batch["text"]["prompt_embeds"], embeds)
    texts = LatentBatches(shard, max_frames=3, text_features=False, batch_size=2)[0]["text"]
    assert sorted(texts) == ["of caption", "of text"]


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    good = pictures(0, 4)
    bad = {"4.png": picture(4), "5.txt": b"no picture", "6.png": b"none", "6.txt": b"broken"}
    bad |= {"7.png": picture(7), "7.txt": "sch\u00f6n".encode("latin-1")}
    bad |= {"8.png": picture(8), "8.json": b"{"}
    write_shard(tmp_path / "a.tar", good | bad)
    write_shard(tmp_path / "empty.tar", {})
    (tmp_path / "nothing.tar").touch()
    (tmp_path / "other.tar").write_text("no archive at all" * 100)
    shard = write_shard(tmp_path / "cut.tar", pictures(20, 3)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(shard[: 5 * 1024 + 600])
    (tmp_path / "open.tar").write_bytes(shard[: 4 * 1024])
    damaged = bytearray(shard)
    damaged[4 * 1024 + 10] ^= 1
    (tmp_path / "wrong.tar").write_bytes(damaged)
    batches = batches_of(tmp_path, max_skipped=0.9, skipped_to=tmp_path / "run")
    assert batches.skipped[0].kinds == {
        "missing column": 2,
        "undecodable text": 1,
        "no valid JSON": 1,
        "unreadable file": 1,
        "empty shard": 2,
        "damaged shard": 4,
    }
    numbers = range(batches.batches_per_epoch)
    seen = {text for number in numbers for text in texts_in(batches[number])}
    assert seen == {f"number {number}" for number in (0, 1, 2, 3, 20, 21)}
    named = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").open()]
    assert {entry["name"] for entry in named if entry["kind"] == "unreadable file"} == {
        f"{tmp_path}/a.tar/6.png"
    }
    assert not any("/tmp" in entry["reason"].replace(str(tmp_path), "") for entry in named)
    with pytest.raises(ValueError, match="11 of 21 samples cannot be used"):
        batches_of(tmp_path)


def test_a_shard_that_is_cut_off_later(shards: Path) -> None:
    batches = batches_of(shards / "set-010.tar", max_skipped=0.9)
    shard = shards / "set-010.tar"
    (record, *_) = shard_annotations(shard)
    shard.write_bytes(shard.read_bytes()[: record[STORED]["image"][1] + 20])
    with pytest.raises(ValueError, match="5 of 5 samples cannot be used .damaged shard: 5"):
        batches[0]


def test_shards_that_are_not_there_or_compressed(tmp_path: Path) -> None:
    write_shard(tmp_path / "a-0.tar", pictures(0, 1))
    with pytest.raises(FileNotFoundError, match="no such shard: .*a-1.tar"):
        batches_of(tmp_path / "a-{0..1}.tar")
    (tmp_path / "b.tar.gz").touch()
    with pytest.raises(ValueError, match="b.tar.gz is compressed.*unpack"):
        batches_of(tmp_path / "b.tar.gz")


def test_shards_of_the_library(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "w-%06d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(5):
            entries = {"png": picture(number), "json": {"text": f"number {number}"}}
            writer.write({"__key__": f"sample{number:06}", **entries})
    batches = batches_of(tmp_path / "w-{000000..000002}.tar", batch_size=5)
    assert sorted(texts_in(batches[0])) == [f"number {number}" for number in range(5)]
