"""What diffusers asks of all its schedulers, asked of ours."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from pyramid_dit import PyramidFlowMatchEulerDiscreteScheduler as Scheduler

OTHER: dict[str, Any] = {
    "num_train_timesteps": 500,
    "shift": 3.0,
    "stages": 2,
    "stage_range": [0, 0.5, 1],
    "gamma": 0.25,
    "solver": "ab2",
    "timestep_spacing": "trailing",
}


def run(scheduler: Scheduler, *, steps: int = 4) -> list[Tensor]:
    """All the latents of a stage whose velocity depends on them."""
    sample = torch.randn(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps, 0)
    samples = [sample]
    for timestep in scheduler.timesteps:
        velocity = samples[-1] * (1 + timestep / 1000)
        samples.append(scheduler.step(velocity, timestep, samples[-1]).prev_sample)
    return samples


@pytest.mark.parametrize("name", OTHER)
def test_each_setting_survives_saving(name: str, tmp_path: Path) -> None:
    own = {name: OTHER[name]}
    if name in ("stages", "stage_range"):
        own = {key: OTHER[key] for key in ("stages", "stage_range")}
    scheduler = Scheduler(**own)
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert issubclass(Scheduler, SchedulerMixin)
    loaded = Scheduler.from_pretrained(str(tmp_path), subfolder="scheduler")
    assert {**loaded.config}.items() >= own.items()
    for again in (loaded, Scheduler.from_config(scheduler.config)):
        for ours, theirs in zip(run(again), run(scheduler), strict=True):
            assert torch.equal(ours, theirs)


def test_a_config_is_changed_by_arguments(tmp_path: Path) -> None:
    Scheduler(**OTHER).save_pretrained(tmp_path)
    assert Scheduler.from_pretrained(str(tmp_path), shift=1.5).config.shift == 1.5
    changed = Scheduler.from_config(Scheduler(**OTHER).config, gamma=0.1)
    assert (changed.config.gamma, changed.config.shift) == (0.1, 3.0)
    config, unused = Scheduler.from_config(changed.config, colour="red", return_unused_kwargs=True)
    assert unused == {"colour": "red"} and "colour" not in config.config


def test_the_config_of_a_flow_matching_scheduler_is_understood() -> None:
    plain = FlowMatchEulerDiscreteScheduler(num_train_timesteps=800, shift=3.0)
    ours = Scheduler.from_config(plain.config)
    assert (ours.config.num_train_timesteps, ours.config.shift) == (800, 3.0)
    assert torch.allclose(ours.sigmas, plain.sigmas[:800])


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_a_run(solver: str) -> None:
    scheduler = Scheduler(solver=solver)
    samples = run(scheduler)
    assert {sample.shape for sample in samples} == {samples[0].shape}
    for ours, theirs in zip(samples, run(scheduler), strict=True):  # no state is left
        assert torch.equal(ours, theirs)
    finer = run(scheduler, steps=5)
    assert not torch.equal(finer[-1], samples[-1])


def test_steps_as_records_and_as_tuples() -> None:
    sample = torch.randn(1, 4, 1, 4, 4)
    results = []
    for return_dict in (True, False):
        scheduler = Scheduler()
        scheduler.set_timesteps(3, 1)
        step = scheduler.step(sample, scheduler.timesteps[0], sample, return_dict=return_dict)
        results.append(step)
    assert isinstance(results[0], SchedulerOutput)
    assert torch.equal(results[0].prev_sample, results[1][0])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_number_of_steps(steps: int) -> None:
    scheduler = Scheduler()
    for stage in range(scheduler.config.stages):
        scheduler.set_timesteps(steps, stage, device="cpu")
        assert len(scheduler.timesteps) == steps
        assert (scheduler.timesteps.diff() < 0).all()


def test_the_public_interface() -> None:
    parameters = [*inspect.signature(Scheduler.step).parameters]
    assert parameters == ["self", "model_output", "timestep", "sample", "generator", "return_dict"]
    assert Scheduler.order == 1
    assert {"gamma", "stages"} <= {*Scheduler().config}
