"""The training objective: clean latents -> noisy inputs, history and velocity targets.

A batch of B latents is dealt to S columns, `sum(sample_ratios)` of them; every column trains one
pyramid stage on the samples `column::S` and is one stage entry of the transformer's `sample`.
In the autoregressive mode a column trains the last unit of a clip that is cut to the number of
units which `unit_counts` says, conditioned on the units before it (section 3.3 of
arXiv 2410.05954); the flow itself is that of section 3.2 (`scheduler.stage_flow`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .history import WHOLE_HISTORY, HistoryRule
from .latents import latent_pyramid, noise_pyramid
from .scheduler import PyramidFlowMatchEulerDiscreteScheduler
from .temporal_pyramid import gather_history


class Draws(Protocol):
    """Where the random numbers of a batch come from."""

    def noise(self, shape: Sequence[int], *, column: int, frames: slice) -> Tensor:
        """White noise at full resolution for `frames` of the clips of `column`."""

    def positions(self, count: int, *, column: int) -> Tensor:
        """`[count]` from U(0, 1): where in the stage each sample stands."""

    def corruptions(self, count: int, *, column: int) -> Tensor:
        """`[count]` from U(0, 1): how much the history of each sample, or frame, is corrupted."""

    def history_noise(self, shape: Sequence[int], *, column: int, age: int) -> Tensor:
        """White noise for the clip of history of that age, 0 being the newest."""


@dataclass
class RandomDraws:
    """Fresh random numbers on `device`, from `generator` or from the global one.

    Only the frames in training are drawn: frames are independent, so that this is the same as
    cutting them from the noise of the full clip.
    """

    generator: torch.Generator | None = None
    device: torch.device = torch.device("cpu")

    def noise(self, shape: Sequence[int], *, column: int, frames: slice) -> Tensor:
        return self._normal(shape)

    def positions(self, count: int, *, column: int) -> Tensor:
        return self._uniform(count)

    def corruptions(self, count: int, *, column: int) -> Tensor:
        return self._uniform(count)

    def history_noise(self, shape: Sequence[int], *, column: int, age: int) -> Tensor:
        return self._normal(shape)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return randn_tensor(tuple(shape), generator=self.generator, device=self.device)

    def _uniform(self, count: int) -> Tensor:
        source = self.generator.device if self.generator is not None else self.device
        return torch.rand(count, generator=self.generator, device=source).to(self.device)


@dataclass
class FlowColumn:
    """One column of the batch: b samples that train the same stage at the same length."""

    stage: int
    clips: list[Tensor]
    """History, oldest first, and the noisy clip last, each `[b, c, t, h, w]`."""
    timestep: Tensor
    """`[b]`"""
    ratio: Tensor
    """Position in the stage, `[b, 1, 1, 1, 1]`."""
    target: Tensor
    """Velocity of the noisy clip, of its shape."""


@dataclass
class FlowBatch:
    """A training batch in the layout of the transformers' forward."""

    columns: list[FlowColumn]

    @property
    def samples(self) -> list[list[Tensor]]:
        """The transformer's `sample`: one entry a column."""
        return [column.clips for column in self.columns]

    @property
    def targets(self) -> list[Tensor]:
        """The velocity that the transformer should return for each entry."""
        return [column.target for column in self.columns]

    @property
    def timesteps(self) -> Tensor:
        """`[B]`: row i belongs to sample i of the batch, and so does row i of its text."""
        return torch.stack([column.timestep for column in self.columns], dim=1).flatten()


def highest_stage_units(
    *, step: int, rank: int, world_size: int, max_units: int, sync_group: int
) -> int:
    """Number of units, 1 to `max_units`, that the highest stage trains on.

    The G = min(sync_group, world_size) ranks of a group take G consecutive lengths, the step
    says which: (rank mod G + 1) + G (step mod M), M = U // G, for the U = `max_units` lengths.
    That misses the last U mod G lengths (all of them where U < G), so a round of U steps is G
    sweeps of M steps each by that rule and then U mod G steps in which the ranks take turns at
    the lengths that are left. Every round thus visits every length, and the group as a whole
    visits each of them G times.

    Args:
        step: Training step, counted from 1.
        rank: Rank of this process.
        world_size: Number of processes.
        max_units: U, the number of units of the longest clip.
        sync_group: Ranks among which lengths are spread, if there are as many.

    Raises:
        ValueError: `step`, `max_units` or `sync_group` is below 1, or `rank` is not a rank.
    """
    for name, value in (("step", step), ("max_units", max_units), ("sync_group", sync_group)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
    group = min(sync_group, world_size)
    blocks, left_over = divmod(max_units, group)
    position = (step - 1) % max_units
    if position < group * blocks:
        return rank % group + 1 + group * ((position + 1) % blocks)
    return group * blocks + 1 + (rank + position) % left_over


def unit_counts(
    stages: int, *, step: int, rank: int, world_size: int, max_units: int, sync_group: int
) -> tuple[int, ...]:
    """Number of units each stage trains on, lowest resolution first.

    The lower stages take 1 + U less the units of the highest stage: short where that is long,
    which evens out the tokens of a batch. Arguments are those of `highest_stage_units`.
    """
    highest = highest_stage_units(
        step=step, rank=rank, world_size=world_size, max_units=max_units, sync_group=sync_group
    )
    return (1 + max_units - highest,) * (stages - 1) + (highest,)


class FlowObjective:
    """Prepares training batches and measures the loss.

    Args:
        scheduler: The stage mathematics.
        sample_ratios: How many columns each stage has, lowest resolution first.
        frame_per_unit: Latent frames in every unit after the first, which has one.
        max_temporal_length: Latent frames of the longest clip, which sets the lengths in turn.
        video_sync_group: Number of ranks among which lengths are spread (`unit_counts`).
        corrupt_ratio: The history of each sample is c noise + (1 - c) clean latents with
            c ~ U(0, corrupt_ratio).
        corrupt_frames: Draw a c for each latent frame of the history, not one per sample: errors
            of a generated history differ from frame to frame.
        history: What each unit sees of the units before it.

    Raises:
        ValueError: An argument is outside its range.
    """

    def __init__(
        self,
        scheduler: PyramidFlowMatchEulerDiscreteScheduler,
        *,
        sample_ratios: Sequence[int] = (1, 2, 1),
        frame_per_unit: int = 1,
        max_temporal_length: int = 31,
        video_sync_group: int = 8,
        corrupt_ratio: float = 1 / 3,
        corrupt_frames: bool = False,
        history: HistoryRule = WHOLE_HISTORY,
    ) -> None:
        stages = scheduler.config.stages
        if len(sample_ratios) != stages or min(sample_ratios) < 0 or sum(sample_ratios) < 1:
            raise ValueError(
                f"sample_ratios must be {stages} numbers of columns, not all 0, "
                f"got {list(sample_ratios)}"
            )
        for name, value in (
            ("frame_per_unit", frame_per_unit),
            ("max_temporal_length", max_temporal_length),
            ("video_sync_group", video_sync_group),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= corrupt_ratio <= 1:
            raise ValueError(f"corrupt_ratio must lie in [0, 1], got {corrupt_ratio}")
        self.scheduler = scheduler
        self.column_stages = [k for k, count in enumerate(sample_ratios) for _ in range(count)]
        self.frame_per_unit = frame_per_unit
        self.max_units = 1 + (max_temporal_length - 1) // frame_per_unit
        self.video_sync_group = video_sync_group
        self.corrupt_ratio = corrupt_ratio
        self.corrupt_frames = corrupt_frames
        self.history = history

    def prepare(
        self,
        latents: Tensor,
        *,
        step: int = 1,
        rank: int = 0,
        world_size: int = 1,
        units: Sequence[int] | None = None,
        use_temporal_pyramid: bool = True,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> FlowBatch:
        """Noise a batch of normalized clean latents.

        Args:
            latents: `[B, c, T, h, w]`, B a multiple of the number of columns. Not modified; the
                noising is done in float32.
            step: Training step counted from 1, which with `rank` decides the lengths.
            rank: Rank of this process.
            world_size: Number of processes.
            units: Number of units each stage trains on, lowest resolution first, capped by the
                clip's own units. By default `step` and `rank` say, in turn, which of all lengths up
                to `max_temporal_length` or to the clip's own, where that is shorter.
            use_temporal_pyramid: `False` noises all frames alike, without history; images and
                full-sequence training.
            generator: Source of the random numbers; by default the global one of the device.
            draws: Random numbers to use instead.

        Raises:
            ValueError: B does not fit the columns, or `units` does not fit the stages.
        """
        num_columns = len(self.column_stages)
        if latents.ndim != 5 or latents.shape[0] == 0 or latents.shape[0] % num_columns:
            raise ValueError(
                f"latents must be [B, c, T, h, w] with B a multiple of {num_columns} columns, "
                f"got shape {tuple(latents.shape)}"
            )
        draws = draws or RandomDraws(generator, latents.device)
        num_frames = latents.shape[2]
        if use_temporal_pyramid:
            if units is None:
                units = unit_counts(
                    self.scheduler.config.stages,
                    step=step,
                    rank=rank,
                    world_size=world_size,
                    max_units=min(self.max_units, self._units_of(num_frames)),
                    sync_group=self.video_sync_group,
                )
            spans = [self._last_unit(count, num_frames) for count in self._check_units(units)]
        else:
            spans = [slice(0, num_frames)] * self.scheduler.config.stages

        longest = max(spans[stage].stop for stage in self.column_stages)
        pyramid = latent_pyramid(latents[:, :, :longest].float(), len(spans))
        return FlowBatch(
            [
                self._column(
                    [level[column::num_columns] for level in pyramid],
                    stage,
                    spans[stage],
                    draws=draws,
                    column=column,
                )
                for column, stage in enumerate(self.column_stages)
            ]
        )

    def loss(
        self, predictions: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity: mean over each sample, then over all samples.

        Args:
            predictions: What the transformer returns, one `[b, c, t, h, w]` a column.
            targets: `targets` of the batch.

        Returns:
            The loss, and for the log, detached, `loss` and `loss_stage_<k>` of each stage.

        Raises:
            ValueError: The lists or their shapes do not fit.
        """
        if [p.shape for p in predictions] != [t.shape for t in targets]:
            raise ValueError(
                f"predictions of shapes {[tuple(p.shape) for p in predictions]} for targets of "
                f"shapes {[tuple(t.shape) for t in targets]}"
            )
        # a column's samples have one shape: its plain mean is the mean of theirs
        losses = torch.stack(
            [
                (p.float() - t.float()).square().mean()
                for p, t in zip(predictions, targets, strict=True)
            ]
        )
        log = {"loss": losses.mean().detach()}
        for stage in sorted(set(self.column_stages)):
            of_stage = [column for column, k in enumerate(self.column_stages) if k == stage]
            log[f"loss_stage_{stage}"] = losses[of_stage].mean().detach()
        return losses.mean(), log

    def _column(
        self,
        pyramid: list[Tensor],
        stage: int,
        frames: slice,
        *,
        draws: Draws,
        column: int,
    ) -> FlowColumn:
        """Noise `frames` of the column's clips, with the frames before them as history."""
        count = pyramid[0].shape[0]
        position = self.scheduler.stage_position(draws.positions(count, column=column), stage)
        full_size = pyramid[-1][:, :, frames].shape
        noise = draws.noise(full_size, column=column, frames=frames)
        flow = self.scheduler.stage_flow(
            stage,
            noise_pyramid(noise, len(pyramid) - stage)[0],
            pyramid[stage][:, :, frames],
            coarser=pyramid[stage - 1][:, :, frames] if stage > 0 else None,
            ratio=position.ratio,
        )
        clean = self._seen(pyramid, stage, frames.start)
        history = self._corrupt(clean, draws=draws, column=column)
        return FlowColumn(
            stage=stage,
            clips=[*history, flow.sample],
            timestep=position.timestep,
            ratio=position.ratio,
            target=flow.velocity,
        )

    def _corrupt(self, history: list[Tensor], *, draws: Draws, column: int) -> list[Tensor]:
        """c noise + (1 - c) clip, fresh noise per clip, the newest clip first.

        There is one c per sample, or per sample and frame.
        """
        if not history:
            return []
        count, lengths = history[0].shape[0], [clip.shape[2] for clip in history]
        frames = sum(lengths) if self.corrupt_frames else 1
        drawn = draws.corruptions(count * frames, column=column).view(count, 1, frames, 1, 1)
        c = self.corrupt_ratio * drawn
        strengths = c.split(lengths, dim=2) if self.corrupt_frames else [c] * len(history)
        newest_first = [
            torch.lerp(clip, draws.history_noise(clip.shape, column=column, age=age), strength)
            for age, (clip, strength) in enumerate(
                reversed([*zip(history, strengths, strict=True)])
            )
        ]
        return newest_first[::-1]

    def _seen(self, pyramid: list[Tensor], stage: int, start: int) -> list[Tensor]:
        """Clean clips that the unit which begins with latent frame `start` sees, oldest first."""
        unit = self._units_of(start) if start else 0
        past = [level[:, :, :start] for level in pyramid]
        seen = self.history.seen_history(past, unit, self.frame_per_unit)
        plan = self.history.history_plan(
            seen[0].shape[2], stage, unit=unit, frame_per_unit=self.frame_per_unit
        )
        return gather_history(seen, plan)

    def _units_of(self, num_frames: int) -> int:
        """Units of a clip of so many latent frames."""
        return 1 + (num_frames - 1) // self.frame_per_unit

    def _check_units(self, units: Sequence[int]) -> Sequence[int]:
        stages = self.scheduler.config.stages
        if len(units) != stages or min(units) < 1:
            raise ValueError(f"units must be {stages} counts of at least 1, got {list(units)}")
        return units

    def _last_unit(self, count: int, num_frames: int) -> slice:
        """Frames of the last of `count` units, in a clip that may have fewer units."""
        count = min(count, self._units_of(num_frames))
        stop = 1 + (count - 1) * self.frame_per_unit
        return slice(max(stop - self.frame_per_unit, 0), stop)
