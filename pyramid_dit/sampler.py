"""The autoregressive unit loop: one video unit after another, each through all the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .conditioning import TextCondition
from .fast_mode import EXACT, FastMode
from .guidance import GuidanceSchedule, StageVelocity
from .latent_pyramid import latent_pyramid, noise_pyramid
from .parallel import SERIAL, Serial
from .scheduler import PyramidFlowMatchEulerDiscreteScheduler
from .temporal_pyramid import gather_history, history_plan
from .transformer import PyramidTransformer

Generator = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class Unit:
    """One autoregressive round."""

    index: int
    """Position in the video; an image given as the first frame is unit 0."""
    start: int
    """First latent frame of its noise; the unit takes frames `start` to `stop`."""
    stop: int
    steps: Sequence[int]
    """Euler steps of each stage."""
    guidance_scale: float
    """Scale of the guidance; 1 is the prompt alone."""


def plan_units(
    temp: int,
    *,
    frame_per_unit: int,
    from_image: bool,
    first_steps: Sequence[int],
    later_steps: Sequence[int],
    guidance: GuidanceSchedule,
) -> list[Unit]:
    """Units of a video whose initial noise has `temp` latent frames.

    Text-to-video: unit 0 is latent frame 0 alone, then come `frame_per_unit` frames a unit.
    Image-to-video: the image is unit 0, so the units start at 1, with the first of the noise.

    Args:
        temp: Latent frames of the noise.
        frame_per_unit: Latent frames of every unit but unit 0.
        from_image: Whether the video starts with a given image.
        first_steps: Euler steps of each stage in unit 0.
        later_steps: The same in the other units.
        guidance: Scales of the guidance.
    """
    units = [] if from_image else [Unit(0, 0, 1, first_steps, guidance.scale(0))]
    first, last = (0, temp - frame_per_unit) if from_image else (1, temp)
    for index, start in enumerate(range(first, last, frame_per_unit), start=1):
        stop = start + frame_per_unit
        units.append(Unit(index, start, stop, later_steps, guidance.scale(index)))
    return units


class UnitSampler:
    """Generates latents unit by unit (section 3.3 of arXiv 2410.05954).

    Args:
        dit: The transformer.
        scheduler: The mathematics of the stages.
        prompt: What to show.
        negative: What to guide away from; None without guidance.
        frame_per_unit: Latent frames a unit.
        generator: Source of the noise at the jumps, one for all or one a sample.
        batched_guidance: Compute the branches of the guidance as one batch, not in two passes.
        fast_mode: Approximations to make.
        parallel: Processes that share the work.
        on_step: Called after every Euler step.
    """

    def __init__(
        self,
        dit: PyramidTransformer,
        scheduler: PyramidFlowMatchEulerDiscreteScheduler,
        *,
        prompt: TextCondition,
        negative: TextCondition | None,
        frame_per_unit: int,
        generator: Generator = None,
        batched_guidance: bool = True,
        fast_mode: FastMode = EXACT,
        parallel: Serial = SERIAL,
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.dit = dit
        self.scheduler = scheduler
        self.prompt = prompt
        self.negative = negative
        self.frame_per_unit = frame_per_unit
        self.generator = generator
        self.batched_guidance = batched_guidance
        self.fast_mode = fast_mode
        self.parallel = parallel
        self.on_step = on_step

    def run(
        self,
        noise: Tensor,
        units: Sequence[Unit],
        *,
        first_frame: Tensor | None = None,
        on_unit: Callable[[int], object] = lambda index: None,
        on_latents: Callable[[Tensor], object] = lambda latents: None,
    ) -> Tensor:
        """Generate the units one after another.

        Args:
            noise: White noise `[b, c, temp, h, w]` at full resolution, float32.
            units: What to generate, in order.
            first_frame: Normalized latents `[b, c, 1, h, w]` of an image that starts the video.
            on_unit: Called with the index of each unit before it is generated.
            on_latents: Called with the latents of each unit as soon as they are there, and first
                with `first_frame`.

        Returns:
            Normalized latents `[b, c, t, h, w]`, the first frame included, float32.
        """
        stages = self.scheduler.config.stages
        lowest_noise = noise_pyramid(noise, stages)[0]
        history = [] if first_frame is None else latent_pyramid(first_frame, stages)
        if first_frame is not None:
            on_latents(first_frame)
        for unit in units:
            on_unit(unit.index)
            latents = self._generate(lowest_noise[:, :, unit.start : unit.stop], history, unit)
            on_latents(latents)
            levels = latent_pyramid(latents, stages)
            if history:
                levels = [torch.cat(pair, dim=2) for pair in zip(history, levels, strict=True)]
            history = levels
        return history[-1]

    def _generate(self, latents: Tensor, history: Sequence[Tensor], unit: Unit) -> Tensor:
        """One unit, from noise at the lowest resolution to clean latents at the highest."""
        history = self.fast_mode.seen_history(history, self.frame_per_unit)
        past_frames = history[-1].shape[2] if history else 0
        guided_steps = iter(self.fast_mode.guided_steps(sum(unit.steps)))
        for stage, steps in enumerate(unit.steps):
            if stage > 0:
                latents = self._jump(latents, stage)
            plan = history_plan(past_frames, stage, frame_per_unit=self.frame_per_unit)
            self.dit.forget_cached()
            velocity_at = StageVelocity(
                self.dit,
                gather_history(history, plan),
                latents.shape,
                prompt=self.prompt,
                negative=self.negative,
                scale=unit.guidance_scale,
                batched=self.batched_guidance,
                refresh_history=self.fast_mode.history_cache,
                parallel=self.parallel,
            )
            # on the CPU, where reading a timestep waits for nothing
            self.scheduler.set_timesteps(steps, stage, "cpu")
            for timestep in self.scheduler.timesteps:
                velocity = velocity_at(latents, float(timestep), guided=next(guided_steps))
                (latents,) = self.scheduler.step(velocity, timestep, latents, return_dict=False)
                self.on_step()
        return latents

    def _jump(self, latents: Tensor, stage: int) -> Tensor:
        *rest, height, width = latents.shape
        noise = self.scheduler.sample_block_noise(
            (*rest, 2 * height, 2 * width),
            generator=self.generator,
            device=latents.device,
            dtype=latents.dtype,
        )
        return self.scheduler.jump(latents, stage, noise)
