"""A video without end: what it sees of itself, what it keeps, and that it goes on."""

from __future__ import annotations

import gc
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import LATENT_CHANNELS, QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.flow.history import SINK, WHOLE_HISTORY, WINDOW
from pyramid_dit.flow.objective import FlowObjective
from pyramid_dit.flow.temporal_pyramid import history_plan
from pyramid_dit.generation.saved_latents import SavedLatents
from pyramid_dit.generation.stream import VideoStream
from pyramid_dit.sampling.fast_mode import FastMode

PROMPT = "a red circle"
LONGEST = 5  # latent frames of the longest video that the checkpoint is made for
LATENTS: dict[str, Any] = {"seed": 3, "output_type": "latent"}
ENDLESS: dict[str, Any] = {"seconds": math.inf, **LATENTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = QUICK_INDEX | {"num_frames": 8 * (LONGEST - 1) + 1}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=index)


@pytest.fixture
def model(folder: Path) -> PyramidDiTForVideoGeneration:
    model = PyramidDiTForVideoGeneration.from_pretrained(folder)
    model.set_progress_bar_config(disable=True)
    return model


def units(stream: VideoStream, count: int) -> list[torch.Tensor]:
    return list(itertools.islice(stream, count))


def joined(stream: VideoStream, count: int) -> torch.Tensor:
    return torch.cat(units(stream, count), dim=2)


def history_tokens(model: PyramidDiTForVideoGeneration, stream: VideoStream) -> Iterator[list[int]]:
    """For each unit the tokens of what it saw, by stage."""
    prepare, seen = model.dit.prepare, []

    def spy(history: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        seen.append(sum(clip[0, 0].numel() for clip in history))
        return prepare(history, *args, **kwargs)

    model.dit.prepare = spy  # type: ignore[method-assign]
    for _ in stream:
        yield seen[:]
        seen.clear()


@pytest.mark.parametrize("frame_per_unit", [1, 2])
def test_nothing_changes_below_the_trained_length(
    model: PyramidDiTForVideoGeneration, frame_per_unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.frame_per_unit = frame_per_unit
    # the noise of the jumps comes from elsewhere, so that all that is drawn is the units' own
    jumps = torch.Generator()
    monkeypatch.setattr(
        type(model.scheduler),
        "sample_block_noise",
        lambda self, shape, **_: torch.randn(shape, generator=jumps),
    )
    sizes = [1] + [frame_per_unit] * ((LONGEST - 1) // frame_per_unit)
    source = torch.Generator().manual_seed(LATENTS["seed"])
    noise = [torch.randn(1, LATENT_CHANNELS, n, 8, 8, generator=source) for n in sizes]
    jumps.manual_seed(1)
    finite = model.generate(PROMPT, latents=torch.cat(noise, dim=2), temp=LONGEST, **LATENTS)
    jumps.manual_seed(1)
    endless = model.stream(PROMPT, **ENDLESS)
    assert torch.equal(joined(endless, len(sizes)), finite)
    assert next(endless).shape[2] == frame_per_unit


def test_every_unit_costs_the_same_once_the_window_is_full(
    model: PyramidDiTForVideoGeneration,
) -> None:
    stream = model.stream(PROMPT, **ENDLESS)
    tokens = list(itertools.islice(history_tokens(model, stream), LONGEST + 6))
    assert tokens[0] == [0, 0, 0]
    growing, full = tokens[:LONGEST], tokens[LONGEST:]
    assert all(a < b for a, b in itertools.pairwise(growing))
    assert all(unit == full[0] for unit in full)


def test_it_sees_the_start_and_the_last_units_as_neighbors(
    model: PyramidDiTForVideoGeneration,
) -> None:
    made = joined(model.stream(PROMPT, **ENDLESS), LONGEST + 3)
    stream = model.stream(PROMPT, **ENDLESS)
    units(stream, LONGEST + 3)
    assert stream.latents is not None
    expected = torch.cat([made[:, :, :SINK], made[:, :, -WINDOW:]], dim=2)
    assert torch.equal(stream.latents, expected)


@pytest.mark.parametrize("frame_per_unit", [1, 2])
def test_training_sees_the_history_that_sampling_sees(
    model: PyramidDiTForVideoGeneration, frame_per_unit: int
) -> None:
    model.frame_per_unit = frame_per_unit
    prepare, seen = model.dit.prepare, []

    def spy(history: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        seen.append([clip[-1:].clone() for clip in history])
        return prepare(history, *args, **kwargs)

    model.dit.prepare = spy  # type: ignore[method-assign]
    objective = FlowObjective(
        model.scheduler,
        sample_ratios=(1, 1, 1),
        frame_per_unit=frame_per_unit,
        corrupt_ratio=0.0,
        history=WHOLE_HISTORY.without_end(1 + (LONGEST - 1) // frame_per_unit),
    )
    made: list[torch.Tensor] = []
    lengths = []
    for unit, latents in enumerate(itertools.islice(model.stream(PROMPT, **ENDLESS), LONGEST + 4)):
        made.append(latents)
        clips = torch.cat(made, dim=2).repeat(3, 1, 1, 1, 1)
        columns = objective.prepare(clips, units=[unit + 1] * 3).columns
        assert len(seen) == len(columns) == 3
        for column, history in zip(columns, seen, strict=True):
            *past, noisy = column.clips
            assert noisy.shape[2] == latents.shape[2] and len(past) == len(history)
            for trained, sampled in zip(past, history, strict=True):
                torch.testing.assert_close(trained, sampled)
        lengths.append(sum(clip.shape[2] for clip in seen[-1]))
        seen.clear()
    window = objective.history.history_window
    assert window is not None and lengths[-1] == lengths[-2] == SINK + window * frame_per_unit
    assert lengths[-1] < sum(latents.shape[2] for latents in made[:-1])


def test_nothing_grows(model: PyramidDiTForVideoGeneration) -> None:
    def living() -> tuple[int, int]:
        gc.collect()
        found = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
        return len(found), sum(x.untyped_storage().nbytes() for x in found)

    with model.stream(PROMPT, seconds=math.inf, seed=0) as stream:
        units(stream, LONGEST + 2)
        before = living()
        units(stream, 6)
        assert living() == before


def test_a_seed_gives_the_same_video_again(model: PyramidDiTForVideoGeneration) -> None:
    first, again = (joined(model.stream(PROMPT, **ENDLESS), 7) for _ in range(2))
    assert torch.equal(first, again)
    other = joined(model.stream(PROMPT, **ENDLESS | {"seed": 4}), 2)
    assert not torch.equal(first[:, :, :2], other)


@pytest.mark.parametrize("made", [2, LONGEST + 3])
@pytest.mark.parametrize("frame_per_unit", [1, 2])
def test_it_goes_on_where_it_was_stopped(
    model: PyramidDiTForVideoGeneration, made: int, frame_per_unit: int, tmp_path: Path
) -> None:
    model.frame_per_unit = frame_per_unit
    options = ENDLESS | {"use_linear_guidance": True, "alpha": 0.3, "guidance_scale": 3.0}
    whole = units(model.stream(PROMPT, **options), made + 4)
    stream = model.stream(PROMPT, **options)
    units(stream, made)
    stream.save_latents(tmp_path / "run")
    saved = SavedLatents.load(tmp_path / "run")
    assert saved.endless and saved.latents.shape[2] < LONGEST and saved.noise.shape[2] == 0
    resumed = model.stream_v2v(resume=saved, output_type="latent")
    assert resumed.num_units == math.inf
    assert torch.equal(next(resumed), saved.latents)
    for piece, expected in zip(units(resumed, 4), whole[made:], strict=True):
        assert torch.equal(piece, expected)
    frames = units(model.stream_v2v(resume=tmp_path / "run"), 2)
    assert [len(images) for images in frames] == [8 * frame_per_unit] * 2


def test_steps_and_units_have_no_number(model: PyramidDiTForVideoGeneration) -> None:
    told: list[Any] = []
    stream = model.stream(PROMPT, **ENDLESS, callback=lambda *call: told.append(call))
    units(stream, 3)
    assert told == [(0, math.inf), (1, math.inf), (2, math.inf)]
    assert stream.num_units == stream.total_steps == math.inf and stream.steps_done == 9
    stream.close()
    assert units(stream, 1) == []


def test_images_and_videos_go_on_without_end(model: PyramidDiTForVideoGeneration) -> None:
    images = units(model.stream(PROMPT, seconds=math.inf), 2)
    assert [len(frames) for frames in images] == [1, 8]
    started = units(model.stream_i2v(PROMPT, images[0][0], seconds=math.inf), LONGEST + 1)
    assert [len(frames) for frames in started] == [1] + [8] * LONGEST
    extended = units(model.stream_v2v(PROMPT, [*images[0], *images[1]], seconds=math.inf), 2)
    assert [len(frames) for frames in extended] == [8, 8]


def test_the_window_is_the_callers_where_there_is_one(
    model: PyramidDiTForVideoGeneration,
) -> None:
    model.enable_fast_mode(history_window=2, history_sink=0)
    stream = model.stream(PROMPT, **ENDLESS)
    made = joined(stream, LONGEST)
    assert stream.latents is not None and torch.equal(stream.latents, made[:, :, -2:])


def test_a_sink_also_helps_a_video_that_ends(model: PyramidDiTForVideoGeneration) -> None:
    arguments = {"temp": LONGEST, **LATENTS}
    exact = model.generate(PROMPT, **arguments)
    tokens = {}
    for sink in (0, 1):
        model.enable_fast_mode(history_window=1, history_sink=sink)
        stream = model.stream(PROMPT, **arguments)
        tokens[sink] = list(history_tokens(model, stream))
        assert stream.latents is not None and stream.latents.shape == exact.shape
    assert tokens[0][1] == tokens[0][-1]
    assert tokens[0][2] < tokens[1][2] < tokens[1][3] == tokens[1][-1]


@pytest.mark.parametrize(
    ("frames", "frame_per_unit", "stage", "plan"),
    [
        (3, 1, 2, [(0, 1, 2), (1, 2, 1), (2, 3, 2)]),
        (3, 1, 0, [(0, 1, 0), (1, 2, 0), (2, 3, 0)]),
        (5, 2, 2, [(0, 1, 2), (1, 3, 1), (3, 5, 2)]),
        (6, 1, 2, [(0, 1, 2), (1, 4, 0), (4, 5, 1), (5, 6, 2)]),
    ],
)
def test_the_start_is_seen_at_the_units_own_resolution(
    frames: int, frame_per_unit: int, stage: int, plan: list[tuple[int, int, int]]
) -> None:
    mode = FastMode(history_window=(frames - 1) // frame_per_unit, history_sink=1)
    sizes = {"frame_per_unit": frame_per_unit}
    found = mode.history_plan(frames, stage, unit=9, **sizes)
    assert [tuple(clip) for clip in found] == plan
    near = (frames - 1) // frame_per_unit + 1
    assert mode.history_plan(frames, stage, unit=near, **sizes) == history_plan(
        frames, stage, **sizes
    )


@pytest.mark.parametrize("longest", [1, 2, 3, 16])
def test_any_checkpoint_has_a_window(longest: int) -> None:
    bounded = FastMode().without_end(longest)
    assert bounded.history_window is not None and bounded.history_window >= 1
    assert bounded.most_units == max(1, longest - 1)
    assert all(bounded.sees_all(unit) for unit in range(longest))
    assert not bounded.sees_all(max(longest, 2))
    own = FastMode(history_window=7)
    assert own.without_end(longest) is own


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": {0: PROMPT}}, "storyboard"),
        ({"prompt": PROMPT, "latents": torch.zeros(1, 4, 1, 8, 8)}, "latents"),
        ({"prompt": PROMPT, "temp": 3}, "only one of temp, seconds"),
        ({"prompt": PROMPT, "seconds": -math.inf}, "seconds must be above 0"),
        ({"prompt": PROMPT, "seconds": math.nan}, "seconds must be a number"),
    ],
)
def test_what_does_not_go_with_no_end(
    model: PyramidDiTForVideoGeneration, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        model.stream(**{"seconds": math.inf} | arguments)


def test_generate_needs_an_end(model: PyramidDiTForVideoGeneration, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds=inf.*use stream"):
        model.generate(PROMPT, seconds=math.inf)
    stream = model.stream(PROMPT, **ENDLESS)
    units(stream, 1)
    stream.save_latents(tmp_path / "run")
    with pytest.raises(ValueError, match="use stream"):
        model.generate_v2v(resume=tmp_path / "run")


def test_files_of_before_are_of_videos_that_end(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    stream = model.stream(PROMPT, temp=3, **LATENTS)
    units(stream, 1)
    stream.save_latents(tmp_path / "run")
    with safe_open(tmp_path / "run", "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["settings"])
    assert settings.pop("endless") is False
    save_file(
        load_file(tmp_path / "run"),
        tmp_path / "old",
        metadata | {"settings": json.dumps(settings)},
    )
    assert SavedLatents.load(tmp_path / "old").endless is False
