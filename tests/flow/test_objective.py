"""Training batches: recorded runs, lengths, history, loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from golden import golden_cases, load_golden, relative_error
from torch import Tensor

from pyramid_dit.flow.latents import latent_pyramid, noise_pyramid
from pyramid_dit.flow.objective import FlowObjective, highest_stage_units, unit_counts
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler as Scheduler
from pyramid_dit.flow.temporal_pyramid import gather_history, history_plan

TOLERANCE = 2e-6
# constructor arguments of the pipeline that reach the scheduler, under the names they have there
SCHEDULER_ARGUMENTS = {
    "timestep_shift": "shift",
    "stage_range": "stage_range",
    "scheduler_gamma": "gamma",
}


@dataclass
class RecordedDraws:
    """The random numbers of one recorded run, whose tensors are named `<run>.<what>`."""

    tensors: dict[str, Tensor]
    run: int
    num_columns: int

    def noise(self, shape, *, column, frames):
        noise = self._tensor("noise.main")[column :: self.num_columns, :, frames]
        assert noise.shape == tuple(shape)
        return noise

    def positions(self, count, *, column):
        return self._tensor(f"u.{column}")

    def corruptions(self, count, *, column):
        return self._tensor(f"sigma.{column}")

    def history_noise(self, shape, *, column, age):
        return self._tensor(f"noise.cond.{column}.{age}")

    def _tensor(self, name: str) -> Tensor:
        return self.tensors[f"{self.run}.{name}"]


def objective_of(init: dict) -> FlowObjective:
    """The objective that a pipeline with these constructor arguments would have."""
    init = dict(init)
    config = {new: init.pop(old) for old, new in SCHEDULER_ARGUMENTS.items() if old in init}
    config["stages"] = len(init.pop("stages", (1, 2, 4)))
    return FlowObjective(Scheduler(**config), **init)


@pytest.mark.parametrize(("index", "run"), golden_cases("noising", "runs"))
def test_golden_noising(index, run):
    _, tensors = load_golden("noising")
    objective = objective_of(run["init"])
    latents = tensors[f"{index}.latents"]
    batch = objective.prepare(
        latents,
        step=run.get("accumulate_steps", 0) + 1,
        # the recorded rule is that of a full group of processes
        world_size=objective.video_sync_group,
        use_temporal_pyramid=run["temporal"],
        draws=RecordedDraws(tensors, index, run["columns"]),
    )

    pyramid = latent_pyramid(latents, objective.scheduler.config.stages)
    for stage, level in enumerate(pyramid):
        assert relative_error(level, tensors[f"{index}.pyramid.{stage}"]) <= TOLERANCE
    assert len(batch.columns) == run["columns"]
    for column, actual in enumerate(batch.columns):
        assert [list(clip.shape) for clip in actual.clips] == run["clip_shapes"][column]
        for i, clip in enumerate(actual.clips):
            assert relative_error(clip, tensors[f"{index}.input.{column}.{i}"]) <= TOLERANCE
        for name in ("target", "timestep", "ratio"):
            reference = tensors[f"{index}.{name}.{column}"]
            assert relative_error(getattr(actual, name), reference) <= TOLERANCE, name


# ---- lengths ------------------------------------------------------------------------------


@pytest.mark.parametrize("sync_group", [1, 2, 4, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 16])
def test_every_length_is_visited_whatever_the_number_of_processes(sync_group, world_size):
    for max_units in range(1, 32):
        visits = Counter(
            highest_stage_units(
                step=step,
                rank=rank,
                world_size=world_size,
                max_units=max_units,
                sync_group=sync_group,
            )
            for step in range(1, max_units + 1)
            for rank in range(min(sync_group, world_size))
        )
        # one round: the group visits each length equally often, and nothing else
        assert set(visits) == set(range(1, max_units + 1))
        assert set(visits.values()) == {min(sync_group, world_size)}


@pytest.mark.parametrize(("max_units", "group"), [(16, 8), (31, 8), (5, 4), (12, 3), (8, 8)])
def test_the_rule_of_the_reference_holds_where_it_visits_every_length(max_units, group):
    blocks, left_over = divmod(max_units, group)
    steps = 5 * max_units if left_over == 0 else group * blocks
    for step in range(1, steps + 1):
        for rank in range(2 * group):
            units = highest_stage_units(
                step=step,
                rank=rank,
                world_size=2 * group,
                max_units=max_units,
                sync_group=group,
            )
            assert units == rank % group + 1 + group * (step % blocks)


def test_lower_stages_are_short_where_the_highest_is_long():
    arguments = {"rank": 0, "world_size": 1, "max_units": 7, "sync_group": 8}
    for step in range(1, 8):
        low, middle, high = unit_counts(3, step=step, **arguments)
        assert low == middle == 8 - high
    assert unit_counts(1, step=1, **arguments) == (2,)


def test_bad_lengths_are_refused():
    good = {"step": 1, "rank": 0, "world_size": 1, "max_units": 4, "sync_group": 1}
    for bad in ({"step": 0}, {"rank": 1}, {"rank": -1}, {"max_units": 0}, {"sync_group": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            highest_stage_units(**(good | bad))


# ---- batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_per_unit", [1, 2, 3])
def test_history_of_training_is_history_of_sampling(frame_per_unit):
    """Uncorrupted, each unit of a clip is trained on what sampling shows the model before it."""
    max_units = 31
    num_frames = 1 + (max_units - 1) * frame_per_unit
    latents = torch.randn(3, 1, num_frames, 8, 8)
    objective = FlowObjective(
        Scheduler(),
        sample_ratios=(1, 1, 1),
        frame_per_unit=frame_per_unit,
        max_temporal_length=num_frames,
        corrupt_ratio=0.0,
    )
    for units in range(1, max_units + 1):
        # sampling: the latents generated so far, their pyramid, and the plan of each stage
        generated = 0 if units == 1 else 1 + (units - 2) * frame_per_unit
        batch = objective.prepare(latents, units=[units] * 3)
        for stage, column in enumerate(batch.columns):
            pyramid = latent_pyramid(latents[stage::3, :, :generated], 3) if generated else []
            plan = history_plan(generated, stage, frame_per_unit=frame_per_unit)
            history = gather_history(pyramid, plan)
            assert len(column.clips) == len(history) + 1
            for actual, expected in zip(column.clips, history, strict=False):
                torch.testing.assert_close(actual, expected)
            assert column.clips[-1].shape[2] == (1 if units == 1 else frame_per_unit)


def test_perfect_velocity_has_no_loss_and_leads_to_the_ends_of_the_stage():
    scheduler = Scheduler()
    objective = FlowObjective(scheduler, sample_ratios=(1, 1, 4), max_temporal_length=5)
    latents = torch.randn(12, 4, 5, 16, 16)
    batch = objective.prepare(latents, step=3)
    assert [column.stage for column in batch.columns] == [0, 1, 2, 2, 2, 2]
    loss, log = objective.loss(batch.targets, batch.targets)
    assert loss == 0
    assert set(log) == {"loss", "loss_stage_0", "loss_stage_1", "loss_stage_2"}

    pyramid = latent_pyramid(latents, 3)
    for index, column in enumerate(batch.columns[2:], start=2):
        end = column.clips[-1] - column.ratio * column.target
        frames = slice(sum(clip.shape[2] for clip in column.clips[:-1]), None)
        clean = pyramid[2][index::6, :, frames][:, :, : end.shape[2]]
        torch.testing.assert_close(end, clean, rtol=0, atol=1e-5)


def test_loss_is_the_mean_over_samples_of_different_size():
    objective = FlowObjective(Scheduler())
    targets = [torch.zeros(2, 4, 1, size, size) for size in (4, 8, 8, 16)]
    predictions = [
        torch.full_like(t, value) for t, value in zip(targets, (1, 2, 4, 3), strict=True)
    ]
    loss, log = objective.loss(predictions, targets)
    assert loss == (1 + 4 + 16 + 9) / 4
    assert log["loss_stage_1"] == (4 + 16) / 2
    with pytest.raises(ValueError, match="for targets of shapes"):
        objective.loss(predictions[:3], targets)


def test_layout_is_that_of_the_transformers():
    objective = FlowObjective(Scheduler(), sample_ratios=(1, 2, 1), max_temporal_length=4)
    batch = objective.prepare(torch.randn(8, 4, 4, 16, 16), units=(4, 2, 1))
    shapes = [[tuple(clip.shape) for clip in clips] for clips in batch.samples]
    assert shapes[0] == [(2, 4, 2, 4, 4), (2, 4, 1, 4, 4), (2, 4, 1, 4, 4)]
    assert shapes[1] == shapes[2] == [(2, 4, 1, 8, 8), (2, 4, 1, 8, 8)]
    assert shapes[3] == [(2, 4, 1, 16, 16)]
    assert batch.timesteps.shape == (8,)
    for column in range(4):
        assert torch.equal(batch.timesteps[column::4], batch.columns[column].timestep)


def test_a_stage_may_have_no_column():
    objective = FlowObjective(Scheduler(), sample_ratios=(0, 0, 1))
    batch = objective.prepare(torch.randn(2, 4, 3, 16, 16), units=(3, 3, 3))
    assert [column.stage for column in batch.columns] == [2]


def test_units_are_capped_by_the_clip():
    objective = FlowObjective(Scheduler(), sample_ratios=(1, 1, 1), frame_per_unit=2)
    # 6 frames hold 3 units of 1 + 2 + 2 frames
    batch = objective.prepare(torch.randn(3, 1, 6, 8, 8), units=(31, 31, 31))
    for column in batch.columns:
        assert sum(clip.shape[2] for clip in column.clips) == 5


def test_short_clips_train_all_their_lengths_alike():
    objective = FlowObjective(Scheduler(), sample_ratios=(0, 0, 1), max_temporal_length=31)
    lengths = []
    for step in range(1, 9):
        (column,) = objective.prepare(torch.randn(1, 1, 4, 8, 8), step=step).columns
        lengths.append(sum(clip.shape[2] for clip in column.clips))
    assert sorted(lengths) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_history_is_corrupted_within_the_ratio():
    objective = FlowObjective(Scheduler(), sample_ratios=(0, 0, 1), corrupt_ratio=1 / 3)
    generator = torch.Generator().manual_seed(0)
    batch = objective.prepare(torch.zeros(64, 4, 2, 32, 32), units=(2, 2, 2), generator=generator)
    strength = batch.columns[0].clips[0].std((1, 2, 3, 4))
    assert strength.max() < 0.34
    assert strength.mean() == pytest.approx(1 / 6, abs=0.03)


def test_each_frame_of_the_history_can_be_corrupted_by_its_own_strength():
    objective = FlowObjective(
        Scheduler(), sample_ratios=(0, 0, 1), corrupt_ratio=1 / 3, corrupt_frames=True
    )
    generator = torch.Generator().manual_seed(0)
    latents = torch.zeros(16, 4, 6, 64, 64)
    (column,) = objective.prepare(latents, units=(6, 6, 6), generator=generator).columns
    history = column.clips[:-1]
    assert [clip.shape[2] for clip in history] == [3, 1, 1]
    strengths = torch.cat([clip.std((1, 3, 4)) for clip in history], dim=1)
    assert strengths.max() < 0.36
    assert strengths.mean() == pytest.approx(1 / 6, abs=0.03)
    # as apart within a sample as between samples
    assert strengths.std(1).mean() == pytest.approx(float(strengths.std(0).mean()), rel=0.3)
    assert strengths.std(1).min() > 0.02


def test_noise_is_the_pyramid_of_the_full_clip():
    """Drawing only the frames in training is the same as cutting them from the full clip."""
    noise = torch.randn(4, 4, 5, 16, 16)
    for stage, level in enumerate(noise_pyramid(noise, 3)):
        part = noise_pyramid(noise[1::4, :, 2:3], 3 - stage)[0]
        torch.testing.assert_close(part, level[1::4, :, 2:3])


def test_a_generator_decides_everything_and_latents_are_not_modified():
    objective = FlowObjective(Scheduler(), max_temporal_length=5)
    latents = torch.randn(4, 4, 5, 16, 16)
    copy = latents.clone()
    first, second = (
        objective.prepare(latents, step=2, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    for a, b in zip(first.columns, second.columns, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.clips, b.clips, strict=True))
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.timestep, b.timestep)
    for column in first.columns:
        for clip in column.clips:
            clip.add_(1)  # nor do the results share memory with them
        column.target.add_(1)
    assert torch.equal(latents, copy)


def test_bad_batches_are_refused():
    objective = FlowObjective(Scheduler())
    with pytest.raises(ValueError, match=r"B a multiple of 4 columns, got shape \(3, 4, 5, 8, 8\)"):
        objective.prepare(torch.zeros(3, 4, 5, 8, 8))
    with pytest.raises(ValueError, match=r"units must be 3 counts of at least 1, got \[1, 0, 1\]"):
        objective.prepare(torch.zeros(4, 4, 5, 8, 8), units=[1, 0, 1])
    for bad in (
        {"sample_ratios": (1, 1)},
        {"sample_ratios": (0, 0, 0)},
        {"sample_ratios": (2, -1, 2)},
        {"frame_per_unit": 0},
        {"max_temporal_length": 0},
        {"video_sync_group": 0},
        {"corrupt_ratio": 1.5},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must"):
            FlowObjective(Scheduler(), **bad)
