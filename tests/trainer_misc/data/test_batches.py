"""Batches from annotations: what is in them, in which order, and what cannot be used."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pyramid_dit.video_io import export_to_video
from trainer_misc.data import (
    ImageBatches,
    LatentBatches,
    MixedBatches,
    StillBatches,
    TextVideoBatches,
    VideoBatches,
    loader,
)
from trainer_misc.data.schedule import Schedule


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """Ten samples in two buckets, of both kinds of files; the sample's number is its value."""
    records = []
    for number in range(10):
        ending = "pt" if number % 3 else "safetensors"
        name, text = tmp_path / f"{number}.{ending}", tmp_path / f"{number}_text.{ending}"
        value = torch.full((1, 16, 3 + number % 2, 4, 4), float(number))
        length = 2 + number % 3
        features = {
            "prompt_embed": torch.full((1, length, 8), float(number)),
            "prompt_attention_mask": torch.ones(1, length, dtype=torch.int64),
            "pooled_prompt_embed": torch.full((1, 6), float(number)),
        }
        if ending == "pt":
            torch.save(value, name)
            torch.save(features, text)
        else:
            save_file({"latent": value}, name)
            save_file(features, text)
        record = {"video": f"{number}.mp4", "text": str(number)}
        records.append(record | {"latent": name.name, "text_fea": text.name})
    return write_lines(tmp_path / "annotations.jsonl", records)


def numbers(batch: dict[str, Any]) -> list[int]:
    return batch["video"].flatten(1)[:, 0].int().tolist()


# ---- latents ----------------------------------------------------------------------------------


def test_a_batch_of_latents_with_features(latents: Path) -> None:
    batches = LatentBatches(latents, batch_size=4, max_frames=16)
    for number in range(batches.batches_per_epoch):
        batch = batches[number]
        shown = numbers(batch)
        assert batch["identifier"] == "video" and batch["video"].dtype == torch.float32
        assert len({n % 2 for n in shown}) == 1  # one bucket
        assert batch["video"].shape == (4, 16, 3 + shown[0] % 2, 4, 4)
        text = batch["text"]
        lengths = [2 + n % 3 for n in shown]
        assert text["prompt_embeds"].shape == (4, max(lengths), 8)
        assert text["prompt_attention_mask"].sum(1).tolist() == lengths
        assert text["pooled_prompt_embeds"][:, 0].int().tolist() == shown
    assert set(itertools.chain(*(numbers(batches[n]) for n in range(4)))) == set(range(10))


def test_latents_are_cut_and_texts_given_out(latents: Path) -> None:
    batches = LatentBatches(latents, batch_size=5, max_frames=2, text_features=False)
    assert list(batches.buckets) == [(2, 4, 4)]
    batch = batches[0]
    assert batch["video"].shape == (5, 16, 2, 4, 4)
    assert batch["text"] == [str(number) for number in numbers(batch)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_very_next_batch(latents: Path, workers: int) -> None:
    batches = LatentBatches(latents, batch_size=3, max_frames=16, seed=5)
    whole = [numbers(batches[number]) for number in range(12)]
    for start in (0, 5):
        coming = loader(batches, start=start, workers=workers)
        taken = [numbers(batch) for batch in itertools.islice(coming, 12 - start)]
        assert taken == whole[start:]
    other = LatentBatches(latents, batch_size=3, max_frames=16, seed=6)
    assert [numbers(other[number]) for number in range(12)] != whole


@pytest.mark.parametrize("sizes", [[7], [5, 9, 1], [64, 32]])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_sample_is_lost_in_an_epoch_and_processes_share_it(sizes: list[int], world: int) -> None:
    starts = np.cumsum([0, *sizes])
    buckets = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    schedules = [Schedule(buckets, batch_size=4, rank=r, world=world) for r in range(world)]
    count = schedules[0].batches_per_epoch
    for epoch in range(3):
        seen: list[int] = []
        for number in range(epoch * count, (epoch + 1) * count):
            for schedule in schedules:
                found, bucket, indices = schedule(number)
                assert found == epoch and len(indices) == 4
                assert set(indices.tolist()) <= set(buckets[bucket].tolist())
                seen += indices.tolist()
        assert set(seen) == set(range(starts[-1]))
    if sizes == [64, 32] and world == 2:  # nothing is left over: each comes exactly once
        assert sorted(seen) == list(range(96))


SPOILS = {
    "missing file": lambda path: path.unlink(),
    "unreadable file": lambda path: path.write_bytes(b"PK no archive"),
    "not finite": lambda path: torch.save(torch.full((1, 16, 4, 4, 4), torch.nan), path),
    "wrong shape": lambda path: torch.save(torch.zeros(1, 3, 4, 4, 4), path),
    "missing key": lambda path: torch.save([1], path),
}


@pytest.mark.parametrize("kind", SPOILS)
def test_what_cannot_be_used_is_replaced_and_counted(
    kind: str, latents: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SPOILS[kind](latents.with_name("1.pt"))
    settings: dict[str, Any] = {"batch_size": 2, "max_frames": 16, "text_features": False}
    batches = LatentBatches(latents, max_skipped=0.1, skipped_to=tmp_path / "run", **settings)
    seen = set()
    for batch in itertools.islice(loader(batches), 12):
        assert batch["video"].isfinite().all()
        seen |= set(numbers(batch))
    assert seen == set(range(10)) - {1}
    assert dict(batches.skipped[0].kinds) == {kind: 1}
    (line,) = (tmp_path / "run/skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == kind and "1.pt" in json.loads(line)["reason"]
    assert len([r for r in caplog.records if "skipping" in r.getMessage()]) == 1
    with pytest.raises(ValueError, match=f"1 of .* cannot be used \\({kind}: 1\\).*1.pt"):
        strict = LatentBatches(latents, max_skipped=0.05, **settings)
        for _ in itertools.islice(loader(strict), 12):
            pass


def test_pickled_code_is_not_run(latents: Path, tmp_path: Path) -> None:
    class MakesAFile:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "made",)

    torch.save(MakesAFile(), latents.with_name("1.pt"))
    batches = LatentBatches(latents, batch_size=2, max_frames=16, max_skipped=0.2)
    assert dict(batches.skipped[0].kinds) == {"unreadable file": 1}
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no valid JSON"),
        ("[1]", "line 2: it holds a list"),
        ('{"latent": "a.pt"}', "line 2: it lacks 'text_fea'"),
        ('{"latent": 3, "text_fea": "b.pt"}', "line 2: it has 3 as 'latent'"),
    ],
)
def test_a_line_that_does_not_fit_is_named(latents: Path, line: str, message: str) -> None:
    lines = latents.read_text().splitlines()
    latents.write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(ValueError, match=message):
        LatentBatches(latents, batch_size=1, max_frames=1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LatentBatches("nowhere.jsonl", batch_size=1, max_frames=1)


# ---- pixels -----------------------------------------------------------------------------------


def test_pictures_come_in_buckets_of_their_ratio(tmp_path: Path) -> None:
    records = []
    for number, (width, height) in enumerate([(80, 80), (60, 100), (100, 60), (90, 100)]):
        picture = Image.new("RGB", (width, height), (255, 0, 0))
        exif = Image.Exif()
        if number == 2:  # lies on a side, and is seen standing
            exif[0x0112] = 6
        picture.save(tmp_path / f"{number}.jpg", exif=exif)
        records.append({"image": f"{number}.jpg", "text": str(number)})
    path = write_lines(tmp_path / "a.jsonl", records)
    three = "512x512,384x640,640x384"
    batches = ImageBatches(path, batch_size=2, resolution=three)
    assert {k: len(v) for k, v in batches.buckets.items()} == {(384, 640): 2, (512, 512): 2}
    for number in range(2):
        batch = batches[number]
        texts = set(batch["text"])
        size = (512, 512) if texts == {"0", "3"} else (640, 384)
        assert texts in ({"0", "3"}, {"1", "2"}) and batch["identifier"] == "image"
        assert batch["video"].shape == (2, 3, *size)
        assert batch["video"][:, 0].min() > 0.97 and batch["video"][:, 1].max() < -0.95
    for name, square in (("768p", (1024, 1024)), ("768p-any", (960, 1088))):
        large = ImageBatches(path, batch_size=2, resolution=name)
        assert list(large.buckets) == sorted({(768, 1280), square, (1024, 1024)})


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos of 48 and of 5 frames, whose gray tells the time."""
    for name, count in (("long", 48), ("short", 5)):
        frames = [np.full((60, 80, 3), 5 * t, np.uint8) for t in range(count)]
        export_to_video(frames, tmp_path / f"{name}.mp4", 24)
    records = [{"video": f"{name}.mp4", "text": name} for name in ("long", "short")]
    return write_lines(tmp_path / "videos.jsonl", records)


def times(clip: torch.Tensor) -> list[int]:
    gray = clip.mean(dim=(0, 2, 3)).add(1).mul(127.5 / 5)
    return gray.round().int().tolist()


def test_clips_for_the_vae_begin_at_random_and_short_ones_are_repeated(videos: Path) -> None:
    batches = VideoBatches(videos, batch_size=2, resolution=32, max_frames=9)
    begins = set()
    for number in range(4):
        batch = batches[number]
        assert batch["video"].shape == (2, 3, 9, 32, 32) and batch["identifier"] == "video"
        assert batch["video"].min() >= -1 and batch["video"].max() <= 1
        shown = sorted(map(times, batch["video"]), key=lambda clip: clip[8] - clip[0])
        assert shown[0] == [t % 5 for t in range(9)]
        assert shown[1] == list(range(shown[1][0], shown[1][0] + 9))
        begins.add(shown[1][0])
        assert torch.equal(batch["video"], batches[number]["video"])
    assert len(begins) > 1


def test_clips_with_texts_are_the_beginning_and_never_short(videos: Path) -> None:
    batches = TextVideoBatches(videos, [(40, 24)], 9, max_skipped=0.5, batch_size=1)
    for number in range(3):
        batch = batches[number]
        assert batch["text"] == ["long"] and batch["video"].shape == (1, 3, 9, 24, 40)
        assert times(batch["video"][0]) == list(range(9))
    assert dict(batches.skipped[0].kinds) == {"too short": 1}


def test_frames_of_an_annotation(tmp_path: Path, videos: Path) -> None:
    frames = {"video": "long.mp4", "text": "", "frames": [3, 7, 30]}
    path = write_lines(tmp_path / "frames.jsonl", [frames])
    batches = TextVideoBatches(path, [(40, 24)], 3, batch_size=1)
    assert times(batches[0]["video"][0]) == [3, 7, 30]


def test_pictures_among_videos(tmp_path: Path, videos: Path) -> None:
    Image.new("RGB", (50, 70), (0, 0, 255)).save(tmp_path / "blue.png")
    path = write_lines(tmp_path / "images.jsonl", [{"image": "blue.png"}])
    stills = StillBatches(path, batch_size=3, resolution=32)
    clips = VideoBatches(videos, batch_size=2, resolution=32, max_frames=1)
    mixed = MixedBatches(clips, stills, 0.25)
    kinds = [batch["identifier"] for batch in itertools.islice(loader(mixed), 20)]
    assert kinds.count("image") == 5
    batch = mixed[kinds.index("image")]
    assert batch["video"].shape == (3, 3, 32, 32) and batch["video"][:, 2].min() > 0.99
