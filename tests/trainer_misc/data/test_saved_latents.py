"""Latents and text features from real files: what a batch is, its order, and what fails."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trainer_misc.data.batches import loader
from trainer_misc.data.latents import LatentBatches, stack_text_features

SHAPES = [(3, 4, 6)] * 5 + [(9, 4, 6)] * 4 + [(2, 6, 4)] * 2
"""Latents of the samples; cut to 4 frames they are three buckets."""


def features(words: int, width: int = 8) -> dict[str, torch.Tensor]:
    return {
        "prompt_embed": torch.full((1, words, width), float(words)).bfloat16(),
        "prompt_attention_mask": torch.ones(1, words, dtype=torch.int64),
        "pooled_prompt_embed": torch.full((1, 6), float(words)),
    }


def write_sample(folder: Path, index: int, shape: tuple[int, ...]) -> dict[str, str]:
    """Files of sample `index`, whose latents hold `index` everywhere; every other is PyTorch's."""
    latents = torch.full((1, 16, *shape), float(index)).bfloat16()
    text = features(2 + index % 3)
    ending = "pt" if index % 2 else "safetensors"
    names = f"latent{index}.{ending}", f"text{index}.{ending}"
    if ending == "pt":
        torch.save(latents, folder / names[0])
        torch.save(text, folder / names[1])
    else:
        save_file({"latent": latents}, folder / names[0])
        save_file(text, folder / names[1])
    return {"video": f"{index}.mp4", "text": f"text {index}", "latent": names[0]} | {
        "text_fea": names[1]
    }


def write_lines(folder: Path, records: list[Any]) -> Path:
    path = folder / "anno.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("latents")
    return folder, [write_sample(folder, index, shape) for index, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def annotations(records: tuple[Path, list[dict[str, str]]]) -> Path:
    return write_lines(*records)


def batches_of(path: Path, **options: Any) -> LatentBatches:
    return LatentBatches(path, **{"batch_size": 2, "max_frames": 4, **options})


def samples_in(batch: dict[str, Any]) -> list[int]:
    return [int(latents.flatten()[0]) for latents in batch["video"]]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def test_a_batch_is_of_one_bucket(annotations: Path) -> None:
    batches = batches_of(annotations)
    assert {key: len(found) for key, found in batches.buckets.items()} == {
        (2, 6, 4): 2,
        (3, 4, 6): 5,
        (4, 4, 6): 4,
    }
    for number in range(batches.batches_per_epoch):
        batch = batches[number]
        assert batch["video"].dtype == torch.float32 and batch["identifier"] == "video"
        assert batch["video"].shape[:2] == (2, 16)
        samples = samples_in(batch)
        for sample, latents, embeds, mask, pooled in zip(
            samples, batch["video"], *batch["text"].values(), strict=True
        ):
            length, *size = SHAPES[sample]
            assert latents.shape == (16, min(length, 4), *size)
            assert (latents == sample).all()
            words = 2 + sample % 3
            assert mask.sum() == words and (embeds[:words] == words).all()
            assert not embeds[words:].any() and (pooled == words).all()


def test_texts_in_place_of_features(annotations: Path) -> None:
    batch = batches_of(annotations, text_features=False)[0]
    assert batch["text"] == [f"text {sample}" for sample in samples_in(batch)]


def test_every_sample_is_in_every_epoch_in_a_new_order(annotations: Path) -> None:
    batches = batches_of(annotations, batch_size=2)
    assert batches.batches_per_epoch == 3 + 2 + 1
    epochs = [
        [samples_in(batches[6 * epoch + number]) for number in range(6)] for epoch in range(3)
    ]
    for epoch in epochs:
        counts = Counter(sample for batch in epoch for sample in batch)
        assert set(counts) == set(range(11)) and sorted(counts.values()) == [1] * 10 + [2]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [samples_in(batches_of(annotations, seed=1)[n]) for n in range(6)]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_an_epoch(annotations: Path, world: int) -> None:
    ranks = [batches_of(annotations, rank=rank, world=world) for rank in range(world)]
    lengths = {rank.batches_per_epoch for rank in ranks}
    assert lengths == {-(-6 // world)}
    dealt = [tuple(samples_in(rank[n])) for rank in ranks for n in range(rank.batches_per_epoch)]
    assert {sample for batch in dealt for sample in batch} == set(range(11))
    assert len(set(dealt)) == 6, "only where there are not enough is a batch given out twice"


def test_ranks_have_one_size_at_a_time(annotations: Path) -> None:
    ranks = [batches_of(annotations, rank=rank, world=2, batch_size=1) for rank in range(2)]
    sizes = [tuple(rank[n]["video"].shape for rank in ranks) for n in range(6)]
    assert sum(len(set(pair)) > 1 for pair in sizes) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_does_not_depend_on_workers_or_interruptions(
    annotations: Path, workers: int
) -> None:
    batches = batches_of(annotations)
    expected = [batches[number] for number in range(9)]
    first = list(islice(loader(batches_of(annotations), workers=workers), 4))
    rest = list(islice(loader(batches_of(annotations), start=4, workers=workers), 5))
    assert all(equal(one, other) for one, other in zip(expected, first + rest, strict=True))


# ---- what fails -------------------------------------------------------------------------------


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def with_failures(tmp_path: Path) -> Iterator[Path]:
    """20 samples, of which 6 fail: two when they are looked at first, four when they are read."""
    records = [write_sample(tmp_path, index, (3, 4, 4)) for index in range(20)]
    (tmp_path / records[0]["latent"]).unlink()
    torch.save(torch.zeros(1, 4, 3, 4, 4), tmp_path / records[1]["latent"])
    save_file({"latent": torch.full((1, 16, 3, 4, 4), torch.nan)}, tmp_path / records[2]["latent"])
    (tmp_path / records[3]["text_fea"]).write_bytes(b"PK\x03\x04 cut off")
    save_file({"prompt_embed": torch.zeros(1, 2, 8)}, tmp_path / records[4]["text_fea"])
    with (tmp_path / records[5]["text_fea"]).open("wb") as file:
        pickle.dump(Hostile(tmp_path / "was run"), file)
    yield write_lines(tmp_path, records)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_are_replaced_counted_and_named(
    with_failures: Path, workers: int, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_skipped": 0.4, "skipped_to": tmp_path / "run"}
    batches = batches_of(with_failures, **options)
    assert batches.skipped[0].kinds == {"missing file": 1, "wrong shape": 1}
    found = list(islice(loader(batches, workers=workers), 3 * batches.batches_per_epoch))
    assert all(sample >= 6 for batch in found for sample in samples_in(batch))
    assert batches.skipped[0].kinds == {
        "missing file": 1,
        "wrong shape": 1,
        "not finite": 1,
        "unreadable file": 2,
        "missing key": 1,
    }
    lines = (tmp_path / "run/skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["sample"] for line in lines) == [0, 1, 2, 3, 4, 5]
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 6 and any("code in it is not run" in message for message in named)

    again = batches_of(with_failures, **options)
    assert all(equal(again[number], batch) for number, batch in enumerate(found[:9]))
    assert lines == (tmp_path / "run/skipped.jsonl").read_text().splitlines()


def test_too_many_failures_at_the_first_look_end_it(with_failures: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of 20 samples cannot be used \(missing file: 1"):
        batches_of(with_failures)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_failures_end_it_later(with_failures: Path, workers: int) -> None:
    batches = batches_of(with_failures, max_skipped=0.15)
    with pytest.raises(ValueError, match="4 of 20 samples cannot be used"):
        list(islice(loader(batches, workers=workers), 20))


def test_a_hostile_latent_is_not_run(tmp_path: Path) -> None:
    records = [write_sample(tmp_path, index, (3, 4, 4)) for index in range(2)]
    with (tmp_path / records[1]["latent"]).open("wb") as file:
        pickle.dump(Hostile(tmp_path / "was run"), file)
    batches = batches_of(write_lines(tmp_path, records), max_skipped=0.5)
    assert batches.skipped[0].kinds == {"unreadable file": 1}
    assert not (tmp_path / "was run").exists()


def test_a_bucket_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    records = [write_sample(tmp_path, index, (3, 4, 4 + index % 2)) for index in range(4)]
    for record in records[::2]:
        (tmp_path / record["text_fea"]).unlink()
    batches = batches_of(write_lines(tmp_path, records), max_skipped=1)
    assert len(batches.buckets) == 2
    for number in range(4):
        assert set(samples_in(batches[number])) <= {1, 3}, "the next bucket takes its place"
    assert batches.skipped[0].kinds == {"missing file": 2}
    for record in records[1::2]:
        (tmp_path / record["text_fea"]).unlink()
    with pytest.raises(ValueError, match="none of the samples"):
        batches_of(write_lines(tmp_path, records), max_skipped=1)[0]


def test_features_of_different_encoders_do_not_mix() -> None:
    two = [{key: value[0] for key, value in features(3, width).items()} for width in (8, 4)]
    with pytest.raises(ValueError, match=r"different text encoders are mixed: widths \[4, 8\]"):
        stack_text_features(two)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"latent": "a.pt"}', "line 2: it lacks 'text_fea', which must be a string"),
        ('{"latent": 3, "text_fea": "b"}', "line 2: it has 3 as 'latent'"),
        ('{"latent": "a.pt", "text', "line 2: no valid JSON"),
        ('["a.pt"]', "line 2: it holds a list, not an object"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: str, message: str) -> None:
    first = json.dumps(write_sample(tmp_path, 0, (3, 4, 4)))
    (tmp_path / "anno.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(ValueError, match=message) as error:
        batches_of(tmp_path / "anno.jsonl")
    assert str(tmp_path / "anno.jsonl") in str(error.value)


def test_files_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of annotations"):
        batches_of(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no annotations"):
        batches_of(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"rank": 2, "world": 2}, {"max_skipped": 1.5}, {"seed": -1}],
)
def test_wrong_arguments(annotations: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        batches_of(annotations, **wrong)


def test_paths_are_relative_to_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("here", 1.0), ("beside", 2.0)):
        (tmp_path / name).mkdir()
        save_file(
            {"latent": torch.full((1, 16, 1, 2, 2), value)}, tmp_path / name / "a.safetensors"
        )
    path = write_lines(tmp_path / "beside", [{"latent": "a.safetensors", "text": ""}])
    monkeypatch.chdir(tmp_path / "here")
    assert samples_in(batches_of(path, text_features=False, batch_size=1)[0]) == [1]
    monkeypatch.chdir(tmp_path)
    assert samples_in(batches_of(path, text_features=False, batch_size=1)[0]) == [2]


# ---- storyboards ------------------------------------------------------------------------------

STORY = {"0": "left", "2": "right", "5": "up"}


def write_story(folder: Path, *storyboards: Any, length: int = 7) -> Path:
    """Samples whose latents are the number of their frame."""
    records = []
    frames = torch.arange(length).float().view(1, 1, -1, 1, 1).expand(1, 16, -1, 4, 4)
    for number, texts in enumerate(storyboards):
        save_file({"latent": frames.contiguous()}, folder / f"{number}.safetensors")
        records.append({"latent": f"{number}.safetensors", "texts": texts})
    return write_lines(folder, records)


@pytest.mark.parametrize("frame_per_unit", [1, 2])
def test_clips_of_several_texts_are_cut_at_every_unit(tmp_path: Path, frame_per_unit: int) -> None:
    other = {"0": "grows", "1": "shrinks"}
    path = write_story(tmp_path, STORY | {"5": "up"} if frame_per_unit == 1 else other, other)
    options = {"text_features": False, "max_frames": 99, "frame_per_unit": frame_per_unit}
    batches = batches_of(path, **options)
    units = 1 + 6 // frame_per_unit
    cuts: Counter[int] = Counter()
    for number in range(60 * units):
        batch = batches[number]
        assert batch["last_unit"] is True and batch["video"].is_contiguous()
        length = batch["video"].shape[2]
        assert (length - 1) % frame_per_unit == 0
        assert torch.equal(batch["video"][0, 0, :, 0, 0], torch.arange(length).float())
        last = (length - 1) // frame_per_unit
        cuts[last] += 1
        story = STORY if frame_per_unit == 1 else other
        expected = {one[str(max(int(k) for k in one if int(k) <= last))] for one in (story, other)}
        assert set(batch["text"]) == expected
        assert number > 20 or equal(batch, batches_of(path, **options)[number])
    assert set(cuts) == set(range(units))
    assert min(cuts.values()) > 40, "all units alike"
    assert equal(
        batches[5]["video"].shape, batches_of(path, rank=1, world=2, **options)[5]["video"].shape
    )
    assert set(batches.texts()) == {*story.values(), *other.values()}


def test_a_single_text_is_as_before_also_among_storyboards(tmp_path: Path) -> None:
    path = write_story(tmp_path, {"0": "left"}, {"0": "up"})
    batch = batches_of(path, text_features=False, max_frames=5)[0]
    assert batch["video"].shape[2] == 5 and sorted(batch["text"]) == ["left", "up"]
    assert "last_unit" not in batch
    pictures = batches_of(write_story(tmp_path, STORY, STORY), text_features=False, max_frames=1)
    assert pictures[0]["text"] == ["left", "left"] and "last_unit" not in pictures[0]
    lines = path.read_text().splitlines()
    plain = {"latent": "1.safetensors", "text": "stays"}
    mixed = write_lines(tmp_path, [json.loads(lines[0]), plain])
    batch = next(
        batch
        for batch in map(
            batches_of(mixed, text_features=False, max_frames=7).__getitem__, range(99)
        )
        if batch["video"].shape[2] == 4
    )
    assert sorted(batch["text"]) == ["right", "stays"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({}, "line 2: it has {} as 'texts', which must be texts by the number of a unit"),
        ("left", "line 2: it has 'left' as 'texts'"),
        ({"1": "left"}, "line 2: the units of 'texts' must be whole numbers that ascend from 0"),
        ({"0": "left", "3": "up", "2": "down"}, "ascend from 0, got '0', '3', '2'"),
        ({"0": "left", "-1": "up"}, "ascend from 0, got '0', '-1'"),
        ({"0": "left", "x": "up"}, "ascend from 0, got '0', 'x'"),
        ({"0": "left", "1": 3}, "line 2: 'texts' has 3 at 1, which must be a string"),
        ({"0": "left", "1": "\ud800"}, "line 2: its text at 1 is not in UTF-8"),
        ({"0": "left", "7": "up"}, r"has 7 units from 0 on, its 'texts' begin at [0, 7]"),
    ],
)
def test_bad_storyboards_are_named(
    tmp_path: Path, texts: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_story(tmp_path, STORY, texts)
    batches_of(path, text_features=False, max_skipped=0.5)
    [message] = [record.getMessage() for record in caplog.records]
    assert words in message and "1.safetensors" in message


def test_a_text_and_a_storyboard_do_not_go_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_story(tmp_path, STORY, STORY)
    path.write_text(path.read_text().rstrip()[:-1] + ', "text": "left"}\n')
    batches_of(path, text_features=False, max_skipped=0.5)
    assert "line 2: it has both 'text' and 'texts'" in caplog.text
    with pytest.raises(ValueError, match="lacks 'text_fea'"):
        batches_of(path)
