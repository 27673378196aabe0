"""Approximations that trade some quality for speed; all are off by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SINK = 1
"""Units at the start that a video without end goes on seeing."""


@dataclass(frozen=True, kw_only=True)
class FastMode:
    """What to approximate; `python -m benchmarks.fast_mode` measures what each saves and costs.

    Attributes:
        history_cache: Compute the tokens of text and history only at every so many steps of a
            stage and keep their keys and values in between; 1 is exact.
        guidance_interval: Share of a unit's steps, from and to, within 0 to 1, that are guided;
            the others follow the prompt alone, at half the price.
        history_window: Let a unit see only so many units before it, so that the price of a unit
            stops growing with the length of the video; None shows it all.
        history_sink: With a window, let it also see so many units at the start of the video. They
            take the places right before the window, as if there was nothing in between.

    Raises:
        ValueError: A value is outside its range.
    """

    history_cache: int = 1
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    history_window: int | None = None
    history_sink: int = 0

    def __post_init__(self) -> None:
        if self.history_cache < 1:
            raise ValueError(f"history_cache must be at least 1, got {self.history_cache}")
        start, stop = self.guidance_interval
        if not 0 <= start <= stop <= 1:
            raise ValueError(
                f"guidance_interval must ascend within 0 to 1, got {self.guidance_interval}"
            )
        if self.history_window is not None and self.history_window < 1:
            raise ValueError(f"history_window must be at least 1, got {self.history_window}")
        if self.history_sink < 0:
            raise ValueError(f"history_sink must be at least 0, got {self.history_sink}")

    def guided_steps(self, total: int) -> list[bool]:
        """Whether each of the `total` steps of a unit, all stages together, is guided."""
        start, stop = self.guidance_interval
        return [start <= step / total < stop for step in range(total)]

    def without_end(self, units: int) -> FastMode:
        """The same for a video without end, whose history needs a window.

        Without a window of its own it gets one that leaves a unit as many units before it as the
        last one of a video of `units` units has, `SINK` of them at the start of the video.
        """
        if self.history_window is not None:
            return self
        sink = max(0, min(SINK, units - 2))
        return replace(self, history_window=max(1, units - 1 - sink), history_sink=sink)

    def seen_units(self, before: int | None) -> int:
        """How many units a unit sees of those `before` it; None, with a window, are any number."""
        if self.history_window is None:
            assert before is not None
            return before
        most = self.history_sink + self.history_window
        return most if before is None else min(before, most)

    def seen_history(self, pyramid: Sequence[Tensor], frame_per_unit: int) -> Sequence[Tensor]:
        """What a unit may see of the history; what is left out no later unit sees either.

        Args:
            pyramid: Clean latents `[b, c, t, h_k, w_k]`, lowest resolution first; may be empty.
            frame_per_unit: Latent frames of every unit but unit 0.
        """
        if self.history_window is None or not pyramid:
            return pyramid
        # the first unit is a frame alone; so is, for the plan, the first that is seen
        frames = 1 + (self.history_sink + self.history_window - 1) * frame_per_unit
        if pyramid[0].shape[2] <= frames:
            return pyramid
        sink = 1 + (self.history_sink - 1) * frame_per_unit if self.history_sink else 0
        return [
            torch.cat([level[:, :, :sink], level[:, :, sink - frames :]], dim=2)
            for level in pyramid
        ]


EXACT = FastMode()
