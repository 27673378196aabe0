"""The autoregressive unit loop: one video unit after another, each through all the stages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checks import GUIDANCE, OneOf, check_shape, tensor
from ..distributed.parallel import SERIAL, Serial
from ..flow.latents import Generators, latent_pyramid, noise_pyramid
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..flow.solvers import SOLVERS
from ..flow.temporal_pyramid import gather_history
from ..models.transformer import PyramidTransformer
from .fast_mode import EXACT, FastMode
from .guidance import GuidanceSchedule, StageVelocity
from .prompts import GuidedText


@dataclass(frozen=True)
class Unit:
    """One autoregressive round.

    Raises:
        ValueError: There is no such solver.
    """

    index: int
    """Position in the video, of which given frames are the first units; an image is unit 0."""
    start: int
    """First latent frame of its noise; the unit takes frames `start` to `stop`."""
    stop: int
    steps: Sequence[int]
    """Steps of each stage."""
    guidance_scale: float
    """Scale of the guidance; 1 is the prompt alone."""
    text: int = 0
    """Which of the texts it follows."""
    solver: str = "euler"
    """How the steps are made, one of `flow.solvers.SOLVERS`."""

    def __post_init__(self) -> None:
        OneOf(SOLVERS)("solver", self.solver)


def plan_units(
    temp: int,
    *,
    frame_per_unit: int,
    first_index: int = 0,
    first_steps: Sequence[int],
    later_steps: Sequence[int],
    guidance: GuidanceSchedule,
) -> list[Unit]:
    """Units of a video whose initial noise has `temp` latent frames.

    Unit 0 is latent frame 0 alone, then come `frame_per_unit` frames per unit. What is given to
    start from (an image, a video) is not made: the units begin after it, with the first frame of
    the noise.

    Args:
        temp: Latent frames of the noise.
        frame_per_unit: Latent frames of every unit but unit 0.
        first_index: Position of the first unit that is made.
        first_steps: Steps of each stage in unit 0.
        later_steps: The same in the other units.
        guidance: Scales of the guidance.
    """
    units: list[Unit] = []
    start = 0
    for index in itertools.count(first_index):
        stop = start + (frame_per_unit if index else 1)
        if stop > temp:
            return units
        steps = later_steps if index else first_steps
        units.append(Unit(index, start, stop, steps, guidance.scale(index)))
        start = stop
    return units


@dataclass(frozen=True)
class Step:
    """What a step has made, and what the next ones follow."""

    timestep: float
    """Timestep input of the transformer."""
    latents: Tensor
    """Of the unit `[b, c, t, h_k, w_k]`."""
    guidance_scale: float
    text: GuidedText

    def changed(self, values: Mapping[str, Any]) -> Step:
        """With what `values` name: `latents`, `guidance_scale` and names of encoded prompts.

        Raises:
            TypeError: A value is of the wrong kind.
            ValueError: There is no such name, the guidance is outside its range, or a shape is
                another one.
        """
        own = self.values()
        for name in values:
            OneOf(tuple(own))("what a callback returns", name)
        scale, latents = (values.get(name, own[name]) for name in ("guidance_scale", "latents"))
        GUIDANCE("guidance_scale", scale)
        tensor("latents", latents)
        check_shape("latents", latents, tuple(self.latents.shape))
        return replace(
            self,
            latents=latents,
            guidance_scale=scale or 1.0,
            text=self.text.replaced(values),
        )

    def values(self) -> dict[str, Any]:
        """All that may be changed, by name."""
        own = {"latents": self.latents, "guidance_scale": self.guidance_scale}
        return own | self.text.arguments()


class Interrupted(Exception):
    """Raised by `on_step` to end the work."""


class UnitSampler:
    """Generates latents unit by unit (section 3.3 of arXiv 2410.05954).

    Args:
        dit: The transformer.
        scheduler: The mathematics of the stages.
        texts: What to show and to guide away from; each unit says which of them it follows.
        frame_per_unit: Latent frames per unit.
        generator: Source of the noise at the jumps, one for all or one per sample.
        batched_guidance: Compute the branches of the guidance as one batch, not in two passes.
        fast_mode: Approximations to make.
        parallel: Processes that share the work.
        on_step: Called after every step; returns what to go on with, or raises `Interrupted`.
            A text holds from then on wherever the old one would have, a scale everywhere.
    """

    def __init__(
        self,
        dit: PyramidTransformer,
        scheduler: PyramidFlowMatchEulerDiscreteScheduler,
        *,
        texts: Sequence[GuidedText],
        frame_per_unit: int,
        generator: Generators | None = None,
        batched_guidance: bool = True,
        fast_mode: FastMode = EXACT,
        parallel: Serial = SERIAL,
        on_step: Callable[[Step], Step] = lambda step: step,
    ) -> None:
        self.dit = dit
        self.scheduler = scheduler
        self.texts = list(texts)
        self.frame_per_unit = frame_per_unit
        self.generator = generator
        self.batched_guidance = batched_guidance
        self.fast_mode = fast_mode
        self.parallel = parallel
        self.on_step = on_step
        self._guidance_scale: float | None = None  # in place of the units'

    def run(
        self,
        noise: Callable[[Unit], Tensor],
        units: Iterable[Unit],
        *,
        past: Tensor | None = None,
        on_unit: Callable[[int], object] = lambda index: None,
    ) -> Iterator[Tensor]:
        """Generate the units one after another.

        Args:
            noise: Gives the white noise `[b, c, t, h, w]` of a unit, at full resolution, float32.
            units: What to generate, in order; there may be no end of them.
            past: Normalized latents `[b, c, t, h, w]` that the video starts with.
            on_unit: Called with the index of each unit before it is generated.

        Yields:
            Normalized latents of a unit `[b, c, t, h, w]`, float32.

        Raises:
            FloatingPointError: The latents of a unit are not finite.
        """
        # Unit by unit, so that a run that is resumed computes the same bits.
        stages = self.scheduler.config.stages
        history: Sequence[Tensor] = []
        if past is not None:
            units_given = [1] + [self.frame_per_unit] * ((past.shape[2] - 1) // self.frame_per_unit)
            for given in past.split(units_given, dim=2):
                history = extend_history(history, given, stages)
        for unit in units:
            on_unit(unit.index)
            history = self.fast_mode.seen_history(history, unit.index, self.frame_per_unit)
            white = noise(unit).contiguous()
            latents = self._generate(noise_pyramid(white, stages)[0], history, unit)
            history = extend_history(history, latents, stages)
            yield latents

    def _generate(self, latents: Tensor, history: Sequence[Tensor], unit: Unit) -> Tensor:
        """One unit, from noise at the lowest resolution to clean latents at the highest."""
        past_frames = history[-1].shape[2] if history else 0
        guided_steps = iter(self.fast_mode.guided_steps(sum(unit.steps)))
        scale = unit.guidance_scale if self._guidance_scale is None else self._guidance_scale
        finite: list[Tensor] = []  # looked at in the end, so that no step waits for the device
        for stage, steps in enumerate(unit.steps):
            if stage > 0:
                latents = enter_stage(self.scheduler, latents, stage, self.generator)
            plan = self.fast_mode.history_plan(
                past_frames, stage, unit=unit.index, frame_per_unit=self.frame_per_unit
            )
            velocity = StageVelocity(
                self.dit,
                gather_history(history, plan),
                latents.shape,
                text=self.texts[unit.text],
                scale=scale,
                batched=self.batched_guidance,
                refresh_history=self.fast_mode.history_cache,
                parallel=self.parallel,
            )
            schedule = self.scheduler.stage_schedule(steps, stage, solver=unit.solver)
            previous: Tensor | None = None
            with closing(velocity) as velocity_at:
                for index, timestep in enumerate(schedule.timesteps.tolist()):
                    direction = velocity_at(latents, timestep, guided=next(guided_steps))
                    latents = schedule.step(index, direction, latents, previous)
                    step = self.on_step(Step(timestep, latents, scale, self.texts[unit.text]))
                    latents, previous = step.latents, direction
                    if step.guidance_scale != scale:
                        scale = self._guidance_scale = step.guidance_scale
                    self.texts[unit.text] = step.text
                    velocity.follow(step.text, scale)
                    finite.append(latents.isfinite().all())
        is_finite = [] if latents.is_meta else torch.stack(finite).tolist()
        if not all(is_finite):
            raise FloatingPointError(
                f"the latents of unit {unit.index} are not finite from its step "
                f"{is_finite.index(False) + 1} of {len(is_finite)} on"
            )
        return latents


def enter_stage(
    scheduler: PyramidFlowMatchEulerDiscreteScheduler,
    latents: Tensor,
    stage: int,
    generator: Generators | None = None,
) -> Tensor:
    """The start of `stage` from the end of the one below it: up-sampled, with fresh block noise.

    Args:
        scheduler: The mathematics of the stages.
        latents: `[b, c, t, h, w]`.
        stage: The stage to enter, from 1 on.
        generator: Source of the noise, one for all or one per sample.

    Returns:
        `[b, c, t, 2h, 2w]`.

    Raises:
        ValueError: No jump leads into `stage`.
    """
    *rest, height, width = latents.shape
    noise = scheduler.sample_block_noise(
        (*rest, 2 * height, 2 * width),
        generator=generator,
        device=latents.device,
        dtype=latents.dtype,
    )
    return scheduler.jump(latents, stage, noise)


def extend_history(history: Sequence[Tensor], latents: Tensor, stages: int) -> list[Tensor]:
    """The pyramid `history`, lowest resolution first and perhaps empty, with one more unit.

    Args:
        history: Clean latents `[b, c, t, h_k, w_k]` of each stage.
        latents: Of the unit, `[b, c, t', h, w]`.
        stages: Their number.
    """
    levels = latent_pyramid(latents.contiguous(), stages)
    if not history:
        return levels
    return [torch.cat(pair, dim=2) for pair in zip(history, levels, strict=True)]
