"""How strongly a video is guided, and the guided velocity of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..distributed.parallel import SERIAL, Serial
from ..models.text_condition import TextCondition
from ..models.transformer import PyramidTransformer, StageContext
from .prompts import GuidedText


@dataclass(frozen=True)
class GuidanceSchedule:
    """How strongly each unit is guided."""

    first: float
    """Scale of unit 0; there is guidance at all where it is above 0."""
    later: float
    """Scale of the other units."""
    slope: float | None = None
    """With a slope, linear guidance: unit i has max(first - slope i, lower_bound)."""
    lower_bound: float = 2.0

    @property
    def on(self) -> bool:
        """Whether there is guidance."""
        return self.first > 0

    def scale(self, index: int) -> float:
        """Scale of unit `index`, 1 without guidance."""
        if not self.on:
            return 1.0
        if self.slope is not None:
            return max(self.first - self.slope * index, self.lower_bound)
        return self.later if index else self.first


class StageVelocity:
    """The guided velocity of one unit in one stage: v- + scale (v+ - v-).

    What does not change between the steps is computed once, when it is first needed.

    Args:
        dit: The transformer.
        history: Clean clips `[b, c, t, h, w]`, oldest first.
        shape: Shape of the unit's latents, `[b, c, t, h, w]`.
        text: What to show, and what to guide away from.
        scale: Of the guidance; at 1 the guided velocity is that of the prompt, at half the price.
        batched: Compute both branches as one batch, not in two passes.
        refresh_history: Steps between two computations of the history, see
            `PyramidTransformer.prepare`.
        parallel: Processes that share the work.
    """

    def __init__(
        self,
        dit: PyramidTransformer,
        history: Sequence[Tensor],
        shape: Sequence[int],
        *,
        text: GuidedText,
        scale: float,
        batched: bool = True,
        refresh_history: int = 1,
        parallel: Serial = SERIAL,
    ) -> None:
        self.dit, self.history, self.shape = dit, history, shape
        self.text, self.scale = text, scale
        self.batched, self.refresh_history = batched, refresh_history
        self.parallel = parallel
        self._contexts: list[StageContext] = []

    def __call__(self, latents: Tensor, timestep: float, *, guided: bool = True) -> Tensor:
        """Velocity of `latents` `[b, c, t, h, w]` at `timestep` (0..1000), float32.

        Args:
            latents: The unit's noisy latents.
            timestep: Timestep input of the transformer.
            guided: `False` gives the velocity of the prompt alone.
        """
        if not guided or self.text.negative is None or self.scale == 1:
            return self._run(latents, timestep, self._positive)
        if self.parallel.cfg > 1:
            both = self.parallel.join_branches(self._run(latents, timestep, self._branch))
            negative, positive = both.chunk(2)
        elif self.batched:
            both = self._run(torch.cat([latents, latents]), timestep, self._both)
            negative, positive = both.chunk(2)
        else:
            negative = self._run(latents, timestep, self._negative)
            positive = self._run(latents, timestep, self._positive)
        return torch.lerp(negative, positive, self.scale)

    def _run(self, latents: Tensor, timestep: float, context: StageContext) -> Tensor:
        # filled on the device, so that nothing waits for a copy
        timesteps = latents.new_full((len(latents),), timestep, dtype=torch.float32)
        return self.dit.denoise(latents, timesteps, context).float()

    @cached_property
    def _positive(self) -> StageContext:
        return self._prepare(self.text.prompt)

    @cached_property
    def _negative(self) -> StageContext:
        assert self.text.negative is not None
        return self._prepare(self.text.negative)

    @cached_property
    def _branch(self) -> StageContext:
        """The branch of this process.

        Not `_positive`, which unguided steps use: what a context keeps from step to step must
        not depend on the process.
        """
        assert self.text.negative is not None
        return self._prepare((self.text.negative, self.text.prompt)[self.parallel.cfg_rank])

    @cached_property
    def _both(self) -> StageContext:
        assert self.text.negative is not None
        return self._prepare(self.text.negative.followed_by(self.text.prompt))

    def follow(self, text: GuidedText, scale: float) -> None:
        """Go on with another text or another scale of the guidance.

        Raises:
            ValueError: There was no guidance, and now there is to be some.
        """
        if scale != 1 and text.negative is None:
            raise ValueError(
                f"guidance_scale cannot become {scale:g} in a run that began without guidance: "
                "its negative prompt was not encoded"
            )
        self.scale = scale
        if text is self.text:
            return
        self.text = text
        self.close()
        for name in ("_positive", "_negative", "_branch", "_both"):
            self.__dict__.pop(name, None)

    def close(self) -> None:
        """Forget what was kept from step to step."""
        for context in self._contexts:
            self.dit.forget_cached(context)
        self._contexts.clear()

    def _prepare(self, text: TextCondition) -> StageContext:
        batch, *rest = self.shape
        copies = text.batch // batch
        context = self.dit.prepare(
            [torch.cat([clip] * copies) for clip in self.history],
            (text.batch, *rest),
            *text,
            refresh_history=self.refresh_history,
            parallel=self.parallel,
        )
        self._contexts.append(context)
        return context
