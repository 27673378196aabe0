"""Solvers of a stage: their order, where they evaluate, what they remember, and their config."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler as Scheduler
from pyramid_dit.flow.solvers import StageSchedule

Field = Callable[[Tensor, float], Tensor]


def through(schedule: StageSchedule, velocity: Field, sample: Tensor) -> Tensor:
    """The end of the stage, from `sample` at its start."""
    previous = None
    for index, position in enumerate(schedule.sigmas[:-1].tolist()):
        direction = velocity(sample, position)
        sample = schedule.step(index, direction, sample, previous)
        previous = direction
    return sample


def decay(x: Tensor, position: float) -> Tensor:
    """dx = 2 r x dr, so that x(0) = x(1) / e."""
    return 2 * position * x


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2)])
def test_order_of_convergence(solver: str, order: int) -> None:
    scheduler = Scheduler(timestep_spacing="trailing")
    start = torch.ones(1)

    def error(steps: int) -> float:
        end = through(scheduler.stage_schedule(steps, 1, solver=solver), decay, start)
        return abs(float(end) - math.exp(-1))

    # halving the steps divides the error by 2 ** order
    assert error(32) / error(64) == pytest.approx(2**order, rel=0.1)


def test_second_order_is_exact_where_the_velocity_is_linear_along_the_path() -> None:
    uneven = StageSchedule(torch.zeros(4), torch.tensor([1.0, 0.7, 0.6, 0.15, 0.0]), "ab2")
    zero, places = torch.zeros(1), uneven.sigmas.tolist()
    for index, (here, there) in enumerate(itertools.pairwise(places)):
        before = torch.tensor([places[max(index - 1, 0)]])
        moved = float(uneven.step(index, torch.tensor([here]), zero, before))
        exact = there**2 / 2 - here**2 / 2  # of the velocity r
        euler = (there - here) * here  # the first step, whatever is passed
        assert moved == pytest.approx(exact if index else euler, abs=1e-7)


def test_without_the_velocity_before_a_step_is_eulers() -> None:
    scheduler = Scheduler(timestep_spacing="trailing")
    sample, velocity, previous = torch.randn(3, 1, 4, 1, 4, 4)
    ab2, euler = (scheduler.stage_schedule(5, 1, solver=solver) for solver in ("ab2", "euler"))
    for index in range(5):
        expected = euler.step(index, velocity, sample)
        assert torch.equal(ab2.step(index, velocity, sample), expected)
        assert torch.equal(euler.step(index, velocity, sample, previous), expected)
        if index > 0:
            assert not torch.equal(ab2.step(index, velocity, sample, previous), expected)


def test_a_step_computes_in_float32_and_leaves_its_arguments_alone() -> None:
    schedule = Scheduler().stage_schedule(4, 0, solver="ab2")
    sample = torch.randn(1, 4, 1, 4, 4)
    velocity, previous = torch.randn(2, 1, 4, 1, 4, 4).bfloat16()
    copies = sample.clone(), velocity.clone(), previous.clone()
    result = schedule.step(2, velocity, sample, previous)
    expected = sample - 0.25 * (1.5 * velocity.float() - 0.5 * previous.float())
    torch.testing.assert_close(result, expected.bfloat16(), rtol=0, atol=0)
    for tensor, copy in zip((sample, velocity, previous), copies, strict=True):
        assert torch.equal(tensor, copy)


# ---- where steps begin --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"num_train_timesteps": 60}])
@pytest.mark.parametrize("steps", [1, 3, 7, 60, 100])
def test_trailing_steps_are_equal_and_their_timesteps_those_of_the_table(
    config: dict[str, Any], steps: int
) -> None:
    scheduler = Scheduler(**config, timestep_spacing="trailing")
    total = scheduler.config.num_train_timesteps
    for stage in range(3):
        schedule = scheduler.stage_schedule(steps, stage)
        assert schedule.solver == "euler"
        positions = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        torch.testing.assert_close(schedule.sigmas, positions, rtol=0, atol=1e-12)
        assert len(schedule.timesteps) == steps
        table = scheduler.timesteps_per_stage[stage]
        for index in range(steps):
            place = index * total / steps
            if place == int(place):
                expected = float(table[int(place)])
                assert float(schedule.timesteps[index]) == pytest.approx(expected, rel=1e-6)
        if steps == total:
            assert schedule.timesteps.tolist() == pytest.approx(table.tolist(), rel=1e-6)


def test_only_eulers_steps_can_have_the_references_last_one() -> None:
    reference, trailing = Scheduler(), Scheduler(timestep_spacing="trailing")
    for stage in range(3):
        usual = reference.stage_schedule(4, stage)
        assert usual.sigmas.tolist() == pytest.approx([1, 0.667, 0.334, 0.001, 0])
        for scheduler in (reference, trailing):
            schedule = scheduler.stage_schedule(4, stage, solver="ab2")
            assert schedule.sigmas.tolist() == [1, 0.75, 0.5, 0.25, 0]
            assert schedule.solver == "ab2"
        assert trailing.stage_schedule(4, stage, solver="euler").sigmas[-2] == 0.25


# ---- the scheduler by itself --------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_steps_of_the_scheduler_are_those_of_the_schedule(solver: str) -> None:
    scheduler = Scheduler(solver=solver)
    start = torch.randn(1, 4, 1, 4, 4)
    for stage in (0, 1):  # the second starts anew
        x = start
        scheduler.set_timesteps(5, stage)
        for timestep, position in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
            x = scheduler.step(decay(x, position), timestep, x).prev_sample
        assert torch.equal(x, through(scheduler.stage_schedule(5, stage), decay, start))


def test_the_config_is_saved_loaded_and_handed_on(tmp_path: Path) -> None:
    scheduler = Scheduler(solver="ab2", timestep_spacing="trailing", gamma=0.2)
    scheduler.save_pretrained(tmp_path)
    for other in (Scheduler.from_pretrained(tmp_path), Scheduler.from_config(scheduler.config)):
        assert (other.config.solver, other.config.timestep_spacing) == ("ab2", "trailing")
    changed = Scheduler.from_config(scheduler.config, solver="euler")
    assert (changed.config.solver, changed.config.gamma) == ("euler", 0.2)
    assert scheduler.config.solver == "ab2"


def test_a_config_from_before_there_were_solvers_is_the_references(tmp_path: Path) -> None:
    Scheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    config = json.loads(path.read_text())
    assert (config.pop("solver"), config.pop("timestep_spacing")) == ("euler", "linspace")
    path.write_text(json.dumps(config))
    loaded = Scheduler.from_pretrained(tmp_path)
    assert (loaded.config.solver, loaded.config.timestep_spacing) == ("euler", "linspace")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"solver": "heun"}, "solver must be one of euler, ab2, got 'heun'"),
        ({"timestep_spacing": "leading"}, "timestep_spacing must be one of linspace, trailing"),
    ],
)
def test_other_words_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(**config)


def test_another_solver_of_a_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="solver must be one of euler, ab2, got 'rk4'"):
        Scheduler().stage_schedule(1, 0, solver="rk4")
