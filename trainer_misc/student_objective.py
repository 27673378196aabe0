"""What a student of few steps is trained on: velocities to the ends of the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyramid_dit.flow.latents import latent_pyramid
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.flow.temporal_pyramid import gather_history, history_plan
from pyramid_dit.models.text_condition import TextCondition

from .log import Figures


class StudentObjective:
    """Loss of a batch of units, of which all stages are trained together.

    With n evaluations a stage, the student stands at r_i = 1 - i/n, at x_i: at first the recorded
    start, x_0, and then where its own steps of Euler bring it, without gradients through them.
    Each evaluation is regressed to (x_i - x_end) / r_i, the velocity of the straight way from
    there to the recorded end. So any number of steps, fewer or more, leads to the same end.

    Args:
        scheduler: The mathematics of the stages; its steps of Euler must be `trailing`.
        first_steps: Evaluations in each stage of the first unit.
        later_steps: The same for the other units.
        frame_per_unit: Latent frames of every unit but unit 0.
    """

    def __init__(
        self,
        scheduler: PyramidFlowMatchEulerDiscreteScheduler,
        *,
        first_steps: Sequence[int],
        later_steps: Sequence[int],
        frame_per_unit: int,
    ) -> None:
        self._stages = scheduler.config.stages
        self._unit = frame_per_unit
        self._schedules = {
            first: [
                scheduler.stage_schedule(count, stage, solver="euler")
                for stage, count in enumerate(steps)
            ]
            for first, steps in ((True, first_steps), (False, later_steps))
        }

    def __call__(
        self,
        predict: Callable[..., list[Tensor]],
        batch: Mapping[str, Any],
        text: TextCondition,
        device: torch.device,
    ) -> tuple[Tensor, Figures]:
        """The loss of a batch of `StageBatches`, and figures for the log.

        Args:
            predict: The transformer's forward.
            batch: Units and their stages.
            text: What they show, `[b, ...]`, on `device`.
            device: Where to compute.

        Returns:
            The mean squared error of the velocities, mean over stages and evaluations; and for
            each stage the mean square of the distance from its end, over that of the way there.
        """
        first = batch["unit"] == 0
        clips = self._history(batch["history"].to(device))
        points = [start.to(device).float() for start in batch["starts"]]
        ends = [end.to(device).float() for end in batch["ends"]]
        ways = [(x - end).square().mean() for x, end in zip(points, ends, strict=True)]
        schedules = self._schedules[first]
        losses = []
        for step in range(max(len(schedule.timesteps) for schedule in schedules)):
            stages = [k for k, one in enumerate(schedules) if step < len(one.timesteps)]
            times = [schedules[stage].timesteps[step] for stage in stages]
            predictions = predict(
                sample=[[*clips[stage], points[stage]] for stage in stages],
                encoder_hidden_states=text.prompt_embeds.repeat_interleave(len(stages), dim=0),
                encoder_attention_mask=text.prompt_attention_mask.repeat_interleave(
                    len(stages), dim=0
                ),
                pooled_projections=text.pooled_prompt_embeds.repeat_interleave(len(stages), dim=0),
                timestep_ratio=torch.stack(times).repeat(text.batch).to(device),
            )
            for stage, velocity in zip(stages, predictions, strict=True):
                position = float(schedules[stage].sigmas[step])
                target = (points[stage] - ends[stage]) / position
                losses.append((velocity.float() - target).square().mean())
                points[stage] = schedules[stage].step(
                    step, velocity.detach().float(), points[stage]
                )
        loss = torch.stack(losses).mean()
        left = [
            (x - end).square().mean() / way for x, end, way in zip(points, ends, ways, strict=True)
        ]
        kind = "first" if first else "later"
        names = ["loss", *(f"error_{kind}_stage_{stage}" for stage in range(self._stages))]
        values = torch.stack([loss.detach(), *left]).tolist()  # waits for the device but once
        return loss, dict(zip(names, values, strict=True))

    def _history(self, latents: Tensor) -> list[list[Tensor]]:
        """Clips of history for each stage from what was there before, `[b, c, t, h, w]`."""
        frames = latents.shape[2]
        if frames == 0:
            return [[] for _ in range(self._stages)]
        pyramid = latent_pyramid(latents.float(), self._stages)
        return [
            gather_history(pyramid, history_plan(frames, stage, frame_per_unit=self._unit))
            for stage in range(self._stages)
        ]
