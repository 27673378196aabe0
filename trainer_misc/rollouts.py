"""Rollouts whose stages are recorded: where each begins, and where a teacher ends it.

A rollout goes the way of generation, through the same stages, jumps and histories. It is what a
student of few steps learns from: the start of a stage and its history are what it will meet, the
end is what the teacher makes of them in many guided steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyramid_dit.files import replacing
from pyramid_dit.flow.latents import noise_pyramid
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.flow.temporal_pyramid import gather_history, history_plan
from pyramid_dit.models.transformer import PyramidTransformer
from pyramid_dit.sampling.guidance import GuidanceSchedule, StageVelocity
from pyramid_dit.sampling.prompts import GuidedText
from pyramid_dit.sampling.unit_sampler import Unit, enter_stage, extend_history, plan_units

FORMAT = "1"


@dataclass(frozen=True, kw_only=True)
class StageSolver:
    """A model that goes through the stages, and how it does.

    Attributes:
        dit: The transformer.
        scheduler: The mathematics of the stages; it says where Euler's steps begin.
        first_steps: Evaluations in each stage of the first unit.
        later_steps: The same for the other units.
        solver: One of `flow.solvers.SOLVERS`.
        guidance: Scales of the guidance; with a scale of 1 the prompt is followed alone.
        around: Entered while the model computes.
    """

    dit: PyramidTransformer
    scheduler: PyramidFlowMatchEulerDiscreteScheduler
    first_steps: Sequence[int]
    later_steps: Sequence[int]
    solver: str
    guidance: GuidanceSchedule
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def units(self, temp: int, frame_per_unit: int, first_index: int) -> list[Unit]:
        """What `plan_units` plans for this model."""
        return plan_units(
            temp,
            frame_per_unit=frame_per_unit,
            first_index=first_index,
            first_steps=self.first_steps,
            later_steps=self.later_steps,
            guidance=self.guidance,
        )

    @torch.no_grad()
    def end(
        self, start: Tensor, stage: int, unit: Unit, history: Sequence[Tensor], text: GuidedText
    ) -> Tensor:
        """Where the model ends `stage` of `unit`.

        Args:
            start: Latents at the start of the stage, `[b, c, t, h_k, w_k]`, float32.
            stage: The stage.
            unit: Says how many steps, and how strongly it is guided.
            history: Clean clips, oldest first.
            text: What to show, and what to guide away from.

        Returns:
            Latents like `start`.
        """
        schedule = self.scheduler.stage_schedule(unit.steps[stage], stage, solver=self.solver)
        velocity = StageVelocity(
            self.dit, history, start.shape, text=text, scale=unit.guidance_scale
        )
        latents, previous = start, None
        with self.around(), closing(velocity):
            for index, timestep in enumerate(schedule.timesteps.tolist()):
                direction = velocity(latents, timestep)
                latents = schedule.step(index, direction, latents, previous)
                previous = direction
        return latents


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Videos, and the stages of their units.

    Attributes:
        latents: Normalized latents `[b, c, T, h, w]`, with what the videos were given to start
            with.
        starts: For each stage, where it began in each unit that was made: `[b, c, T', h_k, w_k]`,
            the units one after another in time.
        ends: The same for where the teacher ended it.
        storyboard: The prompts `[b]` from each unit on.
    """

    latents: Tensor
    starts: Sequence[Tensor]
    ends: Sequence[Tensor]
    storyboard: Mapping[int, Sequence[str]]

    @property
    def given(self) -> int:
        """Latent frames that the videos were given to start with."""
        return self.latents.shape[2] - self.ends[0].shape[2]

    def write(self, path: Path) -> None:
        """Write it to a file of safetensors in float16, whole or not at all."""
        tensors = {"latents": self.latents}
        for stage, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            tensors |= {f"start_{stage}": start, f"end_{stage}": end}
        half = {name: value.half().contiguous().cpu() for name, value in tensors.items()}
        texts = json.dumps({unit: list(prompts) for unit, prompts in self.storyboard.items()})
        with replacing(path) as temporary:
            save_file(half, temporary, metadata={"format": FORMAT, "storyboard": texts})

    @classmethod
    def read(cls, path: Path) -> Rollout:
        """Read what `write` wrote, in float16.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT or "storyboard" not in metadata:
                    raise ValueError(f"{path} holds no rollout of this version")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        stages = range(sum(name.startswith("start_") for name in tensors))
        texts = json.loads(metadata["storyboard"])
        return cls(
            latents=tensors["latents"],
            starts=[tensors[f"start_{stage}"] for stage in stages],
            ends=[tensors[f"end_{stage}"] for stage in stages],
            storyboard={int(unit): prompts for unit, prompts in texts.items()},
        )


@torch.no_grad()
def roll_out(
    teacher: StageSolver,
    student: StageSolver | None,
    *,
    noise: Tensor,
    texts: Mapping[int, GuidedText],
    storyboard: Mapping[int, Sequence[str]],
    frame_per_unit: int,
    generator: torch.Generator | None = None,
    past: Tensor | None = None,
) -> Rollout:
    """Make videos, and record where each stage begins and where the teacher ends it.

    Args:
        teacher: Says where stages end.
        student: Goes on from its own ends, so that later stages and units begin where it brings
            them; without it the teacher goes on from its own.
        noise: White noise `[b, c, t, h, w]` of what is made, float32.
        texts: The prompts, encoded, from each unit on; unit 0 has some.
        storyboard: The same in words.
        frame_per_unit: Latent frames of every unit but unit 0.
        generator: Source of the noise at the jumps.
        past: Normalized latents `[b, c, 1, h, w]` of a first frame that is given.

    Raises:
        FloatingPointError: A model's latents are not finite.
    """
    stages = teacher.scheduler.config.stages
    walker = student or teacher
    first_index = 0 if past is None else 1
    plans = [one.units(noise.shape[2], frame_per_unit, first_index) for one in (teacher, walker)]
    history = [] if past is None else extend_history([], past, stages)
    made = [] if past is None else [past]
    starts: list[list[Tensor]] = [[] for _ in range(stages)]
    ends: list[list[Tensor]] = [[] for _ in range(stages)]
    for taught, own in zip(*plans, strict=True):
        text = texts[max(start for start in texts if start <= own.index)]
        latents = noise_pyramid(noise[:, :, own.start : own.stop].contiguous(), stages)[0]
        frames = history[-1].shape[2] if history else 0
        for stage in range(stages):
            if stage > 0:
                latents = enter_stage(walker.scheduler, latents, stage, generator)
            plan = history_plan(frames, stage, frame_per_unit=frame_per_unit)
            seen = gather_history(history, plan)
            starts[stage].append(latents)
            ends[stage].append(teacher.end(latents, stage, taught, seen, text))
            latents = ends[stage][-1]
            if student is not None:
                latents = student.end(starts[stage][-1], stage, own, seen, text)
        history = extend_history(history, latents, stages)
        made.append(latents)
    found = Rollout(
        latents=torch.cat(made, dim=2),
        starts=[torch.cat(units, dim=2) for units in starts],
        ends=[torch.cat(units, dim=2) for units in ends],
        storyboard=storyboard,
    )
    if not all(x.isfinite().all() for x in (found.latents, *found.starts, *found.ends)):
        raise FloatingPointError("a rollout has latents that are not finite")
    return found
