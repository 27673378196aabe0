"""One call for a video, checked and made complete, and how far its work has come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..sampling.prompts import Prompts
from ..sampling.unit_sampler import Unit

if TYPE_CHECKING:
    from .engine import GenerationEngine

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]
Callback: TypeAlias = Callable[[int, int], object]
StepCallback: TypeAlias = Callable[
    ["GenerationEngine", int, float, dict[str, Any]], Mapping[str, Any] | None
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of `generate` or its kin, whose documentation says what is what."""

    texts: Sequence[Prompts]
    """Prompts; each unit says which of them it follows."""
    units: Sequence[Unit]
    height: int
    width: int
    temp: int
    """Latent frames of the noise."""
    clip: Tensor | None = None
    """Pixels `[b or 1, 3, 8n + 1, h, w]` in [-1, 1] that the videos start with."""
    image_latents: Tensor | None = None
    """The same for an image, as VAE latents `[b or 1, c, 1, h/8, w/8]`."""
    past: Tensor | None = None
    """The same as normalized latents `[b, c, t, h/8, w/8]`."""
    given_frames: int = 0
    """Latent frames of what the videos start with."""
    shows_given: bool = True
    """Whether the result has the frames that the videos start with."""
    nested: bool
    """Whether a single video comes as a list of one."""
    samples_each: int
    generator: Generators | None
    latents: Tensor | None
    output_type: str
    save_memory: bool
    cpu_offloading: bool
    inference_multigpu: bool
    callback: Callback | None
    callback_on_step_end: StepCallback | None

    @property
    def batch(self) -> int:
        """Number of videos."""
        return self.texts[0].batch * self.samples_each

    @property
    def num_units(self) -> int:
        """Units of the video, those that it starts with among them."""
        if self.units:
            return self.units[-1].index + 1
        return self.given_frames  # an image alone

    @property
    def total_steps(self) -> int:
        """Euler steps of all units together."""
        return sum(sum(unit.steps) for unit in self.units)


class Progress:
    """How far the work on a request has come; other threads may read it, and stop the work.

    Attributes:
        steps_done: Euler steps.
        latents: Normalized latents `[b, c, t, h/8, w/8]` of the complete units, given ones
            included, float32; None before there are any.
        noise: Initial noise of all units that were asked for `[b, c, temp, h/8, w/8]`.
        frames_made: Latent frames of `noise` that were used for complete units.
        generator_states: States of the sources of random numbers after the last complete unit.
    """

    def __init__(self) -> None:
        self.steps_done = 0
        self.latents: Tensor | None = None
        self.noise: Tensor | None = None
        self.frames_made = 0
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
        self.latents = torch.cat(parts, dim=2)
