"""The one record of what can be asked of a model.

Every option stands here once: its name, type and default are a field; its range, its help, its
option of the command line and its field on the page are that field's metadata. The methods of
Python, the command line, the page and its API, saved latents and the settings in files are made
from it. An option that is new is a field of `KeywordArguments`, and the place where it takes
effect.

The order of the other fields is the official repository's, for arguments by position. Nothing is
imported here that takes long: the command line answers `--help` from this file.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ..checks import (
    FLAG,
    FRAMES,
    FUNCTION,
    GUIDANCE,
    LATENT_FRAMES,
    SECONDS,
    SEED,
    SIDE,
    STEPS,
    TEXT,
    ByUnit,
    Check,
    Kind,
    Number,
    OneOf,
    OneOrMore,
    Whole,
    finite_tensor,
    random_source,
    shown,
    tensor,
)
from ..flow.solvers import SOLVERS

if sys.version_info >= (3, 11):
    from typing import dataclass_transform
else:  # it comes with PyTorch
    from typing_extensions import dataclass_transform

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from ..flow.latents import Generators
    from .saved_latents import SavedLatents

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
A = TypeVar("A")

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
HISTORY_FRAMES = 33


@dataclass(frozen=True)
class Option:
    """What is known of one argument beside its name, type and default."""

    help: str
    """What it does, as a sentence."""
    check: Check
    """Refuses other values."""
    flag: str | None = None
    """On the command line, for a value that stands in one word; without the dashes also the name
    of the field of the page and of its API."""
    metavar: str | None = None
    label: str | None = None
    """On the page, if visitors may set it there."""
    info: str = ""
    """There, below the label."""
    offered: Check | None = None
    """What may be chosen there, where that is less."""
    resumes: bool = False
    """Whether it may be given along with what was saved of a run."""
    kept: bool = False
    """Whether what is saved of a run has it, for the rest of that run."""
    formerly: Any = None
    """What held before there was this option, where that is not its default."""

    @property
    def key(self) -> str:
        """Name of the field of the page and of the attribute of the command line."""
        return (self.flag or "").lstrip("-").replace("-", "_")


def option(help: str, check: Check, *, default: Any, **rest: Any) -> Any:
    """A field of a record of arguments; `rest` as the fields of `Option`."""
    return field(default=default, metadata={"option": Option(help, check, **rest)})


@dataclass_transform(field_specifiers=(option, field))
def record(kind: type[T]) -> type[T]:
    """Make a frozen dataclass of a record of arguments."""
    return dataclass(frozen=True, eq=False)(kind)


_ANY = Kind("anything", lambda value: True)
_TEXTS = OneOrMore(TEXT)
_FIRST_GUIDANCE = "How closely it follows the prompt. Much of it is garish; 0 is off, and faster."


@record
class KeywordArguments:
    """What all ways to ask take by name; an option that is new belongs here.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A value is outside its range, or two exclude each other.
    """

    _: KW_ONLY
    seed: int | Sequence[int] | None = option(
        "The same seed gives the same video, whatever the device; a list has one per sample.",
        OneOrMore(SEED),
        flag="--seed",
        metavar="N",
        offered=Whole(0, 2**32 - 1),
        label="Seed",
        info="The same seed and settings give the same video.",
        default=None,
    )
    prompts: Mapping[int, str | Sequence[str]] | None = option(
        "A storyboard in place of `prompt`: the prompt (or a list of them, one per video) from "
        "each of these units on. Unit 0 is the first frame; with one latent frame a unit, "
        "unit i > 0 has the frames 8 i - 7 to 8 i, of a video that goes on counted from its "
        "history on.",
        ByUnit(_TEXTS),
        default=None,
    )
    guidance_scales: Mapping[int, float] | None = option(
        "Guidance from each of these units on, whatever other arguments say of it.",
        ByUnit(GUIDANCE),
        default=None,
    )
    prompt_suffix: str | None = option(
        'What is appended to the prompts, "" for nothing.',
        TEXT,
        flag="--prompt-suffix",
        metavar="TEXT",
        default=None,
    )
    max_sequence_length: int = option(
        "Tokens that T5 reads of a prompt, at most what its tokenizer allows.",
        Whole(1, 100_000),
        flag="--max-sequence-length",
        metavar="N",
        offered=Whole(1, 512),
        label="Length of prompts",
        info="In tokens, about a word each; what is longer is cut.",
        kept=True,
        default=128,
    )
    solver: str | None = option(
        "How steps are made: `euler` as by the official code, or `ab2` of second order, which "
        "needs fewer steps for the same error.",
        OneOf(SOLVERS),
        flag="--solver",
        metavar="NAME",
        label="Solver",
        info="How steps are made; ab2 needs fewer of them.",
        formerly="euler",
        default=None,
    )
    image_latents: Tensor | None = option(
        "Latents of the image `[b or 1, c, 1, h/8, w/8]`, not normalized, instead of a draw "
        "from the VAE's posterior.",
        finite_tensor,
        default=None,
    )
    history_frames: int = option(
        "So many frames of the video are looked at, at most; of fewer or more, the last "
        "8n + 1 that make whole units.",
        FRAMES,
        default=HISTORY_FRAMES,
    )

    def __post_init__(self) -> None:
        options = {entry.name: option_of(entry) for entry in fields(self)}
        for name, value in self.given():
            options[name].check(name, value)
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse two that exclude each other (ValueError)."""

    def given(self) -> Iterator[tuple[str, Any]]:
        """Names and values of what differs from its default."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            same_kind = type(value) is type(entry.default)
            plain = isinstance(value, (str, int, float))
            if value is not entry.default and not (plain and same_kind and value == entry.default):
                yield entry.name, value


@record
class Arguments(KeywordArguments):
    """Everything that can be asked for, in the official repository's order."""

    prompt: str | Sequence[str] | None = option(
        "What the video shows: one prompt, or a list of them for as many videos.",
        _TEXTS,
        default=None,
    )
    height: int | None = option(
        "Pixels, a multiple of 64; by default the model's.", SIDE, default=None
    )
    width: int | None = option(
        "Pixels, a multiple of 64; by default the model's.", SIDE, default=None
    )
    input_image: Image | Sequence[Image] | None = option(
        "An image, or a list with one per prompt, whose sides are multiples of 64 "
        "(`media.images.fit_image` brings any image there). What is transparent shows white.",
        _ANY,
        default=None,
    )
    video: str | PathLike[str] | Sequence[Image] | np.ndarray | None = option(
        "Frames as images or as bytes `[t, h, w, 3]`, or the name of a file; sides are "
        "multiples of 64.",
        _ANY,
        default=None,
    )
    temp: int | None = option(
        "Latent frames to make; a video of n has 8 (n - 1) + 1 frames, and what goes on gets "
        "8 n more. By default the model's length.",
        LATENT_FRAMES,
        default=None,
    )
    num_inference_steps: int | Sequence[int] | None = option(
        "Steps for the first frame: one number, or one for each stage from coarse to fine; "
        "more is slower and better. Of a video that starts with an image or a video, steps "
        "for all frames.",
        OneOrMore(STEPS),
        flag="--steps",
        metavar="N[,N,N]",
        offered=Whole(1, 100),
        label="Steps of the first frame",
        info="At each of three resolutions. More take longer and draw more carefully.",
        default=None,
    )
    video_num_inference_steps: int | Sequence[int] | None = option(
        "The same for all later frames.",
        OneOrMore(STEPS),
        flag="--video-steps",
        metavar="N[,N,N]",
        offered=Whole(1, 100),
        label="Steps of later frames",
        info="The same for all other frames; here most of the time goes.",
        default=None,
    )
    guidance_scale: float | None = option(
        "How closely the first frame follows the prompt; 0 turns guidance off.",
        GUIDANCE,
        flag="--guidance",
        metavar="G",
        offered=Number(0, 20),
        label="Guidance of the first frame",
        info=_FIRST_GUIDANCE,
        default=None,
    )
    video_guidance_scale: float | None = option(
        "The same for all later frames.",
        GUIDANCE,
        flag="--video-guidance",
        metavar="G",
        offered=Number(0, 20),
        label="Guidance of later frames",
        info="The same for all other frames; with less of it things move more freely.",
        default=None,
    )
    min_guidance_scale: float = option("Lower bound of linear guidance.", GUIDANCE, default=2.0)
    use_linear_guidance: bool = option(
        "Guide unit i by max(guidance_scale - alpha i, min_guidance_scale).", FLAG, default=False
    )
    alpha: float = option("Slope of linear guidance.", GUIDANCE, default=0.5)
    negative_prompt: str | Sequence[str] | None = option(
        "What the video should not look like, one for all or one per prompt.",
        _TEXTS,
        flag="--negative-prompt",
        metavar="TEXT",
        label="Negative prompt",
        info="What the video should not look like. It has an effect where there is guidance.",
        default=None,
    )
    num_images_per_prompt: int = option("Samples of each prompt.", Whole(1, 1000), default=1)
    generator: torch.Generator | Sequence[torch.Generator] | None = option(
        "Source of all random numbers, one for all or a list with one per sample.",
        random_source,
        default=None,
    )
    output_type: str = option(
        '"pil", "np", "pt" or "latent".', OneOf(OUTPUT_TYPES), resumes=True, default="pil"
    )
    save_memory: bool = option(
        "Decode in small pieces: less memory, same frames.", FLAG, resumes=True, default=True
    )
    cpu_offloading: bool = option(
        "Move each model to the accelerator only for its part of the work.",
        FLAG,
        resumes=True,
        default=False,
    )
    inference_multigpu: bool = option(
        "Share the work with the other processes that torchrun started (docs/multi-gpu.md): "
        "all of them call this with the same arguments, and all get the result.",
        FLAG,
        resumes=True,
        default=False,
    )
    callback: Callable[[int, int], object] | None = option(
        "Called as `callback(unit_index, num_units)` before each unit.",
        FUNCTION,
        resumes=True,
        default=None,
    )
    _: KW_ONLY
    num_frames: int | None = option(
        "Length in frames: 8n+1, such as 1 (a still), 49, 97, 121 or 241; to go on with a "
        "video, 8n.",
        FRAMES,
        flag="--num-frames",
        metavar="N",
        default=None,
    )
    seconds: float | None = option(
        "Length in seconds, put to the nearest possible one.",
        SECONDS,
        flag="--seconds",
        metavar="S",
        offered=Number(0, 10, above=True),
        label="Seconds",
        info="How long the video is, or how much is added to one that goes on.",
        default=None,
    )
    callback_on_step_end: StepCallback | None = option(
        'Called as `callback(self, step, timestep, {"latents": latents})` after each step, '
        "where steps are counted over the whole video and `latents` are those of the unit "
        "`[b, c, t, h_k, w_k]`; it may return a dictionary with latents to go on with, and "
        "end the run by `self.stop()`.",
        FUNCTION,
        resumes=True,
        default=None,
    )
    prompt_embeds: Tensor | None = option(
        "Encoded prompts `[b, L, d]`, instead of `prompt`.", tensor, resumes=True, default=None
    )
    prompt_attention_mask: Tensor | None = option(
        "`[b, L]`, 1 at real tokens.", finite_tensor, resumes=True, default=None
    )
    pooled_prompt_embeds: Tensor | None = option(
        "`[b, p]`.", finite_tensor, resumes=True, default=None
    )
    negative_prompt_embeds: Tensor | None = option(
        "Encoded negative prompts `[b or 1, L', d]`.", tensor, resumes=True, default=None
    )
    negative_prompt_attention_mask: Tensor | None = option(
        "`[b or 1, L']`.", finite_tensor, resumes=True, default=None
    )
    negative_pooled_prompt_embeds: Tensor | None = option(
        "`[b or 1, p]`.", finite_tensor, resumes=True, default=None
    )
    latents: Tensor | None = option(
        "Initial white noise `[b, c, temp, height/8, width/8]`. It is not modified.",
        finite_tensor,
        default=None,
    )
    resume: SavedLatents | str | PathLike[str] | None = option(
        "What `VideoStream.save_latents` wrote, in place of `video`. The result is then the "
        "whole video, to the bit what it would have been without the stop; prompts, steps, "
        "guidance and the state of the random numbers are those of that run.",
        _ANY,
        resumes=True,
        default=None,
    )

    def _check_pairs(self) -> None:
        """Refuse two that exclude each other (ValueError)."""
        lengths = [n for n in ("temp", "num_frames", "seconds") if getattr(self, n) is not None]
        if len(lengths) > 1:
            raise ValueError(f"give only one of {', '.join(lengths)}")
        if self.seed is not None and self.generator is not None:
            raise ValueError("give either seed or generator, not both")
        if self.prompts is None:
            return
        if self.prompt:
            raise ValueError("give either prompt or prompts, not both")
        if any(tensor is not None for tensor in self.encoded):
            raise ValueError("give either prompts or prompt_embeds, not both")
        if 0 not in self.prompts:
            raise ValueError(f"prompts must say what unit 0 shows, got units {[*self.prompts]}")

    @property
    def kept(self) -> dict[str, Any]:
        """What is saved of a run for the rest of it."""
        return {name: getattr(self, name) for name, option in OPTIONS.items() if option.kept}

    def with_kept(self: A, values: Mapping[str, Any]) -> A:
        """These arguments with what was saved of a run, checked."""
        changed = copy.copy(self)
        for name, value in values.items():
            if name not in OPTIONS or not OPTIONS[name].kept:
                raise ValueError(f"{name!r} is nothing that is saved of a run")
            OPTIONS[name].check(name, value)
            object.__setattr__(changed, name, value)
        return changed

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

    @property
    def storyboard(self) -> Mapping[int, str | Sequence[str] | None]:
        """The prompts by the unit from which on they hold; `prompt` from the first unit on."""
        return {0: self.prompt} if self.prompts is None else dict(sorted(self.prompts.items()))

    def guidance_at(self, unit: int, otherwise: float) -> float:
        """Guidance of `unit`, as `guidance_scales` has it."""
        return held_at(unit, {-1: otherwise, **(self.guidance_scales or {})})

    def sources(self) -> Generators | None:
        """Sources of random numbers: the caller's `generator`, or new ones from `seed`.

        They draw on the CPU, so that a seed means the same on every device.
        """
        if self.seed is None:
            return list(self.generator) if isinstance(self.generator, Sequence) else self.generator
        import torch

        if isinstance(self.seed, Sequence):
            return [torch.Generator().manual_seed(seed) for seed in self.seed]
        return torch.Generator().manual_seed(self.seed)


Triple = tuple["Tensor | None", "Tensor | None", "Tensor | None"]
StepCallback = Callable[[Any, int, float, "dict[str, Any]"], "Mapping[str, Any] | None"]
OPTIONS: dict[str, Option] = {entry.name: entry.metadata["option"] for entry in fields(Arguments)}
"""By the name of the argument."""
DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(Arguments)}


@record
class TextToVideo(Arguments):
    """Arguments of `generate` and `stream`."""

    input_image: None = field(default=None, init=False)
    video: None = field(default=None, init=False)
    image_latents: None = field(default=None, init=False)
    history_frames: int = field(default=HISTORY_FRAMES, init=False)
    resume: None = field(default=None, init=False)


@record
class ImageToVideo(Arguments):
    """Arguments of `generate_i2v` and `stream_i2v`; the size is the image's."""

    height: None = field(default=None, init=False)
    width: None = field(default=None, init=False)
    video: None = field(default=None, init=False)
    video_num_inference_steps: None = field(default=None, init=False)
    history_frames: int = field(default=HISTORY_FRAMES, init=False)
    resume: None = field(default=None, init=False)

    def _check_pairs(self) -> None:
        super()._check_pairs()
        if self.input_image is not None and self.image_latents is not None:
            raise ValueError("give either input_image or image_latents, not both")


@record
class VideoToVideo(Arguments):
    """Arguments of `generate_v2v` and `stream_v2v`; the size is the video's."""

    height: None = field(default=None, init=False)
    width: None = field(default=None, init=False)
    input_image: None = field(default=None, init=False)
    video_num_inference_steps: None = field(default=None, init=False)
    image_latents: None = field(default=None, init=False)

    def _check_pairs(self) -> None:
        if self.resume is not None:
            for name, value in self.given():
                if not OPTIONS[name].resumes and value != "":
                    raise ValueError(
                        f"a run that is resumed has its own {name}, {shown(value)} was given"
                    )
        super()._check_pairs()


def takes(
    kind: Callable[P, A], *, like: Callable[..., Any] | None = None
) -> Callable[[Callable[[S, A], R]], Taking[S, P, R]]:
    """Make of a method of one of the records above one that takes the record's arguments.

    The signature and the section `Args` of its documentation are the record's.

    Args:
        kind: The class of the record.
        like: The method whose documentation is also this one's.
    """

    def decorate(method: Callable[[S, A], R]) -> Taking[S, P, R]:
        @functools.wraps(method)
        def call(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
            return method(self, kind(*args, **kwargs))

        shown_first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        own = inspect.signature(kind).parameters.values()
        result = inspect.signature(method).return_annotation
        call.__signature__ = inspect.Signature([shown_first, *own], return_annotation=result)  # type: ignore[attr-defined]
        call.__doc__ = _with_arguments(method.__doc__ or "", kind, [p.name for p in own])
        if like is not None:
            call.__doc__ = like.__doc__
        return call

    return decorate


Taking = Callable[Concatenate[S, P], R]


def option_of(entry: Field[Any]) -> Option:
    """What is known of a field, which may be said where another record has it."""
    return entry.metadata.get("option") or OPTIONS[entry.name]


def held_at(unit: int, values: Mapping[int, T]) -> T:
    """The value of `values` (by unit) that holds at `unit`: that of the last key up to it."""
    keys = sorted(values)
    return values[keys[bisect_right(keys, unit) - 1]]


def _with_arguments(text: str, kind: Any, names: Sequence[str]) -> str:
    """`text` with a section `Args` in front of the section `Returns`."""
    entries = {entry.name: entry for entry in fields(kind)}
    lines = ["Args:"]
    for name in names:
        line = f"{name}: {option_of(entries[name]).help}"
        lines += textwrap.wrap(line, 90, initial_indent="    ", subsequent_indent="        ")
    described, returns, rest = inspect.cleandoc(text).partition("\nReturns:")
    return "\n\n".join([described.strip(), "\n".join(lines), f"{returns}{rest}".strip()]).strip()
