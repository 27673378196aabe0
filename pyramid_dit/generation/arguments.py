"""What `generate` and its kin have in common: arguments that are given by name."""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..checks import check_count
from ..sampling.prompts import TENSOR_NAMES, Triple
from .request import Generators, Request, StepCallback

if TYPE_CHECKING:
    from .video_generator import VideoGenerator

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Arguments that `generate`, `generate_i2v` and `generate_v2v` have in common.

    Attributes:
        num_frames: Length of the video in frames, in place of `temp`.
        seconds: Length of the video in seconds, in place of `temp`: the nearest that there is.
        prompts: A storyboard in place of `prompt`: the prompt (or a list of them, one a video)
            from each of these units on. Unit 0 is the first frame; with one latent frame a unit,
            unit i > 0 has the frames 8 i - 7 to 8 i.
        guidance_scales: Guidance from each of these units on, whatever other arguments say of it.
        prompt_suffix: What is appended to the prompts, "" for nothing; by default that of the
            checkpoint, for the released models ", hyper quality, Ultra HD, 8K".
        seed: In place of `generator`: one number, or a list with one a sample.
        callback_on_step_end: Called as `callback(self, step, timestep, {"latents": latents})`
            after each Euler step, where steps are counted over the whole video and `latents` are
            those of the unit `[b, c, t, h_k, w_k]`; it may return a dictionary with latents to
            go on with. To end the run it calls `self.stop()`.
        prompt_embeds: Encoded prompts `[b, L, d]`, instead of `prompt`.
        prompt_attention_mask: `[b, L]`, 1 at real tokens.
        pooled_prompt_embeds: `[b, p]`.
        negative_prompt_embeds: Encoded negative prompts `[b or 1, L', d]`.
        negative_prompt_attention_mask: `[b or 1, L']`.
        negative_pooled_prompt_embeds: `[b or 1, p]`.
        latents: Initial white noise `[b, c, temp, height/8, width/8]`. It is not modified.
    """

    num_frames: int | None = None
    seconds: float | None = None
    prompts: Mapping[int, str | Sequence[str]] | None = None
    guidance_scales: Mapping[int, float] | None = None
    prompt_suffix: str | None = None
    seed: int | Sequence[int] | None = None
    callback_on_step_end: StepCallback | None = None
    prompt_embeds: Tensor | None = None
    prompt_attention_mask: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    latents: Tensor | None = None

    @property
    def encoded(self) -> Triple:
        """The encoded prompts."""
        return self.prompt_embeds, self.prompt_attention_mask, self.pooled_prompt_embeds

    @property
    def encoded_negative(self) -> Triple:
        """The encoded negative prompts."""
        return (
            self.negative_prompt_embeds,
            self.negative_prompt_attention_mask,
            self.negative_pooled_prompt_embeds,
        )

    def refuse_but_embeds(self, reason: str, **own: object) -> None:
        """Refuse everything that the caller gave, but encoded prompts and the callback.

        Args:
            reason: Start of the message.
            own: Arguments beside those of this class.

        Raises:
            ValueError: Something is given.
        """
        prefixed = (f"{sign}{name}" for sign in ("", "negative_") for name in TENSOR_NAMES)
        allowed = {"callback_on_step_end", *prefixed}
        for name, value in {**own, **vars(self)}.items():
            if value is not None and name not in allowed:
                raise ValueError(f"{reason} {name}, {value!r} was given")

    def storyboard(
        self, prompt: str | Sequence[str] | None
    ) -> Mapping[int, str | Sequence[str] | None]:
        """The prompts by the unit from which on they hold; `prompt` from the first unit on.

        Raises:
            TypeError: A key is not an integer.
            ValueError: There are both, a key is negative, or the first unit has no prompt.
        """
        if self.prompts is None:
            return {0: prompt}
        if prompt:
            raise ValueError("give either prompt or prompts, not both")
        if any(tensor is not None for tensor in self.encoded):
            raise ValueError("give either prompts or prompt_embeds, not both")
        check_units("prompts", self.prompts)
        if 0 not in self.prompts:
            raise ValueError(f"prompts must say what unit 0 shows, got units {[*self.prompts]}")
        return dict(sorted(self.prompts.items()))

    def guidance_at(self, unit: int, otherwise: float) -> float:
        """Guidance of `unit`, as `guidance_scales` has it.

        Raises:
            TypeError: A key is not an integer, or a scale no number.
            ValueError: A key is negative.
        """
        scales = self.guidance_scales or {}
        check_units("guidance_scales", scales)
        for scale in scales.values():
            if isinstance(scale, bool) or not isinstance(scale, Real):
                raise TypeError(f"guidance_scales must be numbers, got {scale!r}")
        return held_at(unit, {-1: otherwise, **scales})

    def generators(self, generator: Generators | None) -> Generators | None:
        """Sources of random numbers: the caller's `generator`, or new ones from `seed`.

        They draw on the CPU, so that a seed means the same on every device.

        Raises:
            TypeError: A seed is not an integer.
            ValueError: There are both, or a seed is negative.
        """
        if self.seed is None:
            return generator
        if generator is not None:
            raise ValueError("give either seed or generator, not both")
        if isinstance(self.seed, Sequence):
            return [_seeded(seed) for seed in self.seed]
        return _seeded(self.seed)

    def length(
        self,
        temp: int | None,
        *,
        of_frames: Callable[[int], int],
        of_seconds: Callable[[float], int],
    ) -> int | None:
        """Latent frames, as the caller says in one of three ways; None where he does not.

        Raises:
            TypeError: A number of frames is not an integer.
            ValueError: There are several, or one is outside its range.
        """
        given = {"temp": temp, "num_frames": self.num_frames, "seconds": self.seconds}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ValueError(f"give only one of {', '.join(names)}")
        if self.num_frames is not None:
            check_count("num_frames", self.num_frames)
            return of_frames(self.num_frames)
        return temp if self.seconds is None else of_seconds(self.seconds)


def held_at(unit: int, values: Mapping[int, T]) -> T:
    """The value of `values` (by unit) that holds at `unit`: that of the last key up to it."""
    keys = sorted(values)
    return values[keys[bisect_right(keys, unit) - 1]]


def check_units(name: str, values: Mapping[int, object]) -> None:
    """Refuse keys that are no positions of units (TypeError, ValueError)."""
    for unit in values:
        if isinstance(unit, bool) or not isinstance(unit, int):
            raise TypeError(f"{name} has the units as keys, integers, got {unit!r}")
        if unit < 0:
            raise ValueError(f"{name} has the units as keys, from 0 on, got {unit}")


def _seeded(seed: int) -> torch.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"a seed must be an integer, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed must be from 0 to 2**64 - 1, got {seed}")
    return torch.Generator().manual_seed(seed)


def carried_out(
    run: Callable[[VideoGenerator, Request], R],
) -> Callable[
    [Callable[Concatenate[VideoGenerator, P], Request]],
    Callable[Concatenate[VideoGenerator, P], R],
]:
    """Make of a method that makes a request one that carries it out with `run`.

    The signature shown has the fields of `Options` in the place of `**options`.
    """

    def decorate(
        make_request: Callable[Concatenate[VideoGenerator, P], Request],
    ) -> Callable[Concatenate[VideoGenerator, P], R]:
        def method(self: VideoGenerator, *args: P.args, **kwargs: P.kwargs) -> R:
            return run(self, make_request(self, *args, **kwargs))

        signature = inspect.signature(make_request)
        shown = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        shown += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None)
            for f in fields(Options)
        ]
        method.__doc__ = make_request.__doc__
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=shown, return_annotation=Any
        )
        return method

    return decorate
