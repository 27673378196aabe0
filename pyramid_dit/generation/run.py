"""One run: a request, the models that carry it out, and how far they have come."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..distributed.parallel import SERIAL, Serial, processes_at_work
from ..flow.sizes import temp_of
from ..sampling.fast_mode import EXACT, FastMode
from ..sampling.prompts import Prompts
from ..sampling.unit_sampler import Unit
from .components import Components
from .request import Request
from .saved_latents import SavedLatents, SavedText


class Run:
    """All state of making one video; other threads may read it, and stop the work.

    What was set on the model when the run began holds for all of it, so that runs of several
    threads may share a model.

    Args:
        request: What to make.
        model: The models.
        fast_mode: Approximations to make; the history of a video without end gets a window.
        batched_guidance: Whether both branches of the guidance are computed as one batch; None
            decides by the memory that is free.
        progress_bar: Arguments of the `tqdm` bar over all steps.
        caller: What callbacks are handed first; by default the run.

    Attributes:
        parallel: The processes that make the video together.
        steps_done: Steps so far.
        latents: Normalized latents `[b, c, t, h/8, w/8]` of the complete units, given ones
            included, float32; None before there are any. Of a video without end those that the
            next unit sees.
        noise: Initial noise of all units that were asked for `[b, c, temp, h/8, w/8]`; empty
            where it is drawn unit by unit.
        units_made: Units that are complete, given ones not counted.
        texts: The prompts of the request, or those that came after them.
        generator_states: States of the sources of random numbers after the last complete unit.

    Raises:
        ValueError: There are more processes than the transformer has heads for.
    """

    def __init__(
        self,
        request: Request,
        model: Components,
        *,
        fast_mode: FastMode = EXACT,
        batched_guidance: bool | None = None,
        progress_bar: Mapping[str, Any] | None = None,
        caller: Any = None,
    ) -> None:
        self.request = request
        self.model = replace(model)
        self.fast_mode = fast_mode
        if request.endless:
            longest = temp_of(model.defaults.frames())
            self.fast_mode = fast_mode.without_end(1 + (longest - 1) // model.frame_per_unit)
        self.batched_guidance = batched_guidance
        self.progress_bar = dict(progress_bar or {})
        self.caller = self if caller is None else caller
        self.parallel: Serial = SERIAL
        if request.arguments.inference_multigpu:
            scales = {unit.guidance_scale for unit in request.units}
            self.parallel = processes_at_work(guided=scales != {1.0})
            self.parallel.check_heads(model.dit.config.num_attention_heads)
        self.steps_done = 0
        self.latents: Tensor | None = None
        self.noise: Tensor | None = None
        self.units_made = 0
        self.texts = list(request.texts)
        self.generator_states: list[Tensor] = []
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have the work end after the step that is being computed."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether the work is to end."""
        return self._stopped.is_set()

    def add(self, latents: Tensor) -> None:
        """Append the latents `[b, c, t, h/8, w/8]` of a unit, or of what is given."""
        parts = [latents] if self.latents is None else [self.latents, latents]
        joined = torch.cat(parts, dim=2)
        if self.request.endless:
            unit = self.units_left()[0].index
            [joined] = self.fast_mode.seen_history([joined], unit, self.model.frame_per_unit)
        self.latents = joined

    def units_left(self) -> list[Unit]:
        """The units that are to be made; without an end, up to the one that all others are like."""
        units, made = self.request.units, self.units_made
        if self.request.endless and made >= len(units):
            return [replace(units[-1], index=units[0].index + made)]
        return list(units[made:])

    def saved(self) -> SavedLatents:
        """What it takes to make the rest.

        Raises:
            ValueError: No unit is complete.
        """
        if self.latents is None or self.noise is None:
            raise ValueError("there are no latents to save: no unit of the video is complete")
        left, source = self.units_left(), self.request.generator
        made = left[0].start if left else self.noise.shape[2]
        if isinstance(source, list):
            source = source[0]
        return SavedLatents(
            latents=self.latents.cpu(),
            noise=self.noise[:, :, made:].cpu(),
            generator_states=self.generator_states,
            generator_device=(self.noise if source is None else source).device.type,
            units=[replace(u, start=u.start - made, stop=u.stop - made) for u in left],
            texts=[_in_words(prompts) for prompts in self.texts],
            samples_each=self.request.samples_each,
            kept=self.request.arguments.kept,
            model=self.model.name,
            endless=self.request.endless,
        )


def _in_words(prompts: Prompts) -> SavedText:
    pair = (prompts.positive, prompts.negative)
    return SavedText(*(words if isinstance(words, list) else None for words in pair))
