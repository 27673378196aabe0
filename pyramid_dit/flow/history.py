"""How much of the video before it a unit sees: all of it, or a window and the start.

Sampling and training ask the same rule. A video without end has no other history than the one of
`HistoryRule.without_end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .temporal_pyramid import HistoryClip, history_plan

if TYPE_CHECKING:
    from typing_extensions import Self

WINDOW, SINK = 2, 1
"""What a unit of a video without end sees: the last units, and units at the start."""


@dataclass(frozen=True, kw_only=True)
class HistoryRule:
    """Which units before it a unit sees; by default all.

    Attributes:
        history_window: Let a unit see only so many units before it, so that the price of a unit
            stops growing with the length of the video; None shows it all.
        history_sink: With a window, let it also see so many units at the start of the video, at
            the resolution that it is computed at. They take the places right before the window, as
            if there was nothing in between.
        history_whole: With a window, so many units at the start of the video still see it all.

    Raises:
        ValueError: A value is outside its range.
    """

    history_window: int | None = None
    history_sink: int = 0
    history_whole: int = 0

    def __post_init__(self) -> None:
        if self.history_window is not None and self.history_window < 1:
            raise ValueError(f"history_window must be at least 1, got {self.history_window}")
        for name in ("history_sink", "history_whole"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def without_end(self, units: int) -> Self:
        """The same for a video without end, whose history needs a window.

        Without a window of its own it gets one of `WINDOW` units and `SINK` at the start, which
        begins where a video of `units` units ends, the longest that the checkpoint is made for.
        """
        if self.history_window is not None:
            return self
        window = max(1, min(WINDOW, units - 1 - SINK))
        sink = max(0, min(SINK, units - 1 - window))
        return replace(self, history_window=window, history_sink=sink, history_whole=units)

    def sees_all(self, unit: int) -> bool:
        """Whether unit `unit` sees all units before it."""
        window = self.history_window
        return window is None or unit < self.history_whole or unit <= self.history_sink + window

    @property
    def most_units(self) -> int:
        """How many units before it a unit sees at most, with a window."""
        assert self.history_window is not None
        return max(self.history_whole - 1, self.history_sink + self.history_window)

    def seen_history(
        self, pyramid: Sequence[Tensor], unit: int, frame_per_unit: int
    ) -> Sequence[Tensor]:
        """What unit `unit` may see of the history; what is left out no later unit sees either.

        Args:
            pyramid: Clean latents `[b, c, t, h_k, w_k]`, lowest resolution first; may be empty.
            unit: Its position in the video.
            frame_per_unit: Latent frames of every unit but unit 0.
        """
        if self.history_window is None or self.sees_all(unit) or not pyramid:
            return pyramid
        # the first unit is a frame alone; so is, for the plan, the first that is seen
        frames = 1 + (self.history_sink + self.history_window - 1) * frame_per_unit
        if pyramid[0].shape[2] <= frames:
            return pyramid
        sink = self._sink_frames(frame_per_unit)
        return [
            torch.cat([level[:, :, :sink], level[:, :, sink - frames :]], dim=2)
            for level in pyramid
        ]

    def history_plan(
        self, frames: int, stage: int, *, unit: int, frame_per_unit: int
    ) -> tuple[HistoryClip, ...]:
        """The clips of the `frames` that unit `unit` sees, as `temporal_pyramid.history_plan`.

        Units at the start that are no neighbors of the window are seen at the unit's resolution:
        at the lowest, which is that of all old ones, they would say little of a shape.
        """
        plan = history_plan(frames, stage, frame_per_unit=frame_per_unit)
        sink = self._sink_frames(frame_per_unit)
        if not sink or self.sees_all(unit):
            return plan
        rest = (clip._replace(start=max(clip.start, sink)) for clip in plan if clip.stop > sink)
        return HistoryClip(0, sink, stage), *rest

    def _sink_frames(self, frame_per_unit: int) -> int:
        return 1 + (self.history_sink - 1) * frame_per_unit if self.history_sink else 0


WHOLE_HISTORY = HistoryRule()
