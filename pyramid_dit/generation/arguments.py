"""The one record of every option of a model.

Every option is defined here, once: name, type and default are a field; range, help text,
command-line option and field on the page are that field's metadata. The methods of
Python, the command line, the page and its API, saved latents and the settings in files are made
from it. To add an option, add a field to `KeywordArguments` and the code where it takes effect.

The other fields are in the official repository's order, for positional arguments. Nothing slow is
imported here, because the command line answers `--help` from this file.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import sys
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

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
    """What one argument has besides its name, type and default."""

    help: str
    """What it does, as a sentence."""
    check: Check
    """Rejects values that are not allowed."""
    flag: str | None = None
    """On the command line, for values that fit in one word; without the dashes also the name
    of the field on the page and in its API."""
    metavar: str | None = None
    label: str | None = None
    """On the page, if visitors may set it there."""
    info: str = ""
    """Text below that label."""
    offered: Check | None = None
    """What visitors may choose on the page, if that is less than `check` allows."""
    resumes: bool = False
    """Whether it may be passed when a saved run is resumed."""
    kept: bool = False
    """Whether it is saved with a run and used for the rest of that run."""
    formerly: Any = None
    """The value that applied before this option existed, if that is not its default."""

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


class PromptQueue(Protocol):
    """A `queue.Queue` or `SimpleQueue` of prompts."""

    def get_nowait(self) -> str:
        """The next prompt; `queue.Empty` without one."""


NextPrompt: TypeAlias = "Callable[[int], str | Sequence[str] | None] | PromptQueue"

_ANY = Kind("anything", lambda value: True)
_TEXTS = OneOrMore(TEXT)
_FIRST_GUIDANCE = (
    "How closely it follows the prompt. High values oversaturate; 0 is off and faster."
)


@record
class KeywordArguments:
    """Arguments that every method takes by name; new options belong here.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A value is outside its range, or two exclude each other.
    """

    _: KW_ONLY
    seed: int | Sequence[int] | None = option(
        "The same seed gives the same video on any device; a list has one seed per sample.",
        OneOrMore(SEED),
        flag="--seed",
        metavar="N",
        offered=Whole(0, 2**32 - 1),
        label="Seed",
        info="The same seed and settings give the same video.",
        default=None,
    )
    prompts: Mapping[int, str | Sequence[str]] | None = option(
        "A storyboard instead of `prompt`: the prompt (or a list of them, one per video) that "
        "starts at each of these units. Unit 0 is the first frame. With one latent frame per "
        "unit, unit i > 0 has frames 8 i - 7 to 8 i. When a video is extended, units are counted "
        "from the start of its history.",
        ByUnit(_TEXTS),
        default=None,
    )
    guidance_scales: Mapping[int, float] | None = option(
        "Guidance that starts at each of these units; overrides the other guidance arguments.",
        ByUnit(GUIDANCE),
        default=None,
    )
    next_prompt: NextPrompt | None = option(
        "Asked for another prompt before each unit: a queue, whose newest prompt counts, or a "
        "function that is called as `next_prompt(unit_index)` and returns a prompt (or a list of "
        "them, one per video), or None to go on with the last one. Among several processes the "
        "first one is asked.",
        Kind("a function or a queue", lambda x: callable(x) or hasattr(x, "get_nowait")),
        resumes=True,
        default=None,
    )
    prompt_suffix: str | None = option(
        'Text appended to the prompts; "" appends nothing.',
        TEXT,
        flag="--prompt-suffix",
        metavar="TEXT",
        default=None,
    )
    max_sequence_length: int = option(
        "How many tokens of a prompt T5 reads, at most what its tokenizer allows.",
        Whole(1, 100_000),
        flag="--max-sequence-length",
        metavar="N",
        offered=Whole(1, 512),
        label="Length of prompts",
        info="In tokens, about one per word; longer prompts are cut.",
        kept=True,
        default=128,
    )
    solver: str | None = option(
        "The ODE solver: `euler`, as in the official code, or `ab2`, of second order, which "
        "needs fewer steps for the same error.",
        OneOf(SOLVERS),
        flag="--solver",
        metavar="NAME",
        label="Solver",
        info="ab2 needs fewer steps than euler for the same quality.",
        formerly="euler",
        default=None,
    )
    image_latents: Tensor | None = option(
        "Latents of the image `[b or 1, c, 1, h/8, w/8]`, not normalized, used instead of a "
        "sample from the VAE's posterior.",
        finite_tensor,
        default=None,
    )
    history_frames: int = option(
        "How many frames at the end of the video are used as history, at most: the last 8n + 1 "
        "that form whole units.",
        FRAMES,
        default=HISTORY_FRAMES,
    )

    def __post_init__(self) -> None:
        options = {entry.name: option_of(entry) for entry in fields(self)}
        for name, value in self.given():
            options[name].check(name, value)
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Reject arguments that exclude each other (ValueError)."""

    def given(self) -> Iterator[tuple[str, Any]]:
        """Names and values of the arguments that differ from their defaults."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            same_kind = type(value) is type(entry.default)
            plain = isinstance(value, (str, int, float))
            if value is not entry.default and not (plain and same_kind and value == entry.default):
                yield entry.name, value


@record
class Arguments(KeywordArguments):
    """All arguments, in the official repository's order."""

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
        "(`media.images.fit_image` fits any image). Transparent areas become white.",
        _ANY,
        default=None,
    )
    video: str | PathLike[str] | Sequence[Image] | np.ndarray | None = option(
        "Frames as images or as a uint8 array `[t, h, w, 3]`, or the name of a file; sides must "
        "be multiples of 64.",
        _ANY,
        default=None,
    )
    temp: int | None = option(
        "Latent frames to generate: n of them give a video of 8 (n - 1) + 1 frames, or extend a "
        "video by 8 n frames. By default the model's length.",
        LATENT_FRAMES,
        default=None,
    )
    num_inference_steps: int | Sequence[int] | None = option(
        "Steps for the first frame: one number, or one per stage from coarse to fine; more "
        "steps are slower and give better quality. If the video starts from an image or another "
        "video, steps for all frames.",
        OneOrMore(STEPS),
        flag="--steps",
        metavar="N[,N,N]",
        offered=Whole(1, 100),
        label="Steps of the first frame",
        info="Per resolution, of which there are three. More are slower and more precise.",
        default=None,
    )
    video_num_inference_steps: int | Sequence[int] | None = option(
        "Steps for all later frames, in the same form.",
        OneOrMore(STEPS),
        flag="--video-steps",
        metavar="N[,N,N]",
        offered=Whole(1, 100),
        label="Steps of later frames",
        info="The same for all other frames. Most of the time is spent on these.",
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
        "How closely all later frames follow the prompt.",
        GUIDANCE,
        flag="--video-guidance",
        metavar="G",
        offered=Number(0, 20),
        label="Guidance of later frames",
        info="The same for all other frames. Lower values give more motion.",
        default=None,
    )
    min_guidance_scale: float = option("Lower bound of linear guidance.", GUIDANCE, default=2.0)
    use_linear_guidance: bool = option(
        "Guide unit i by max(guidance_scale - alpha i, min_guidance_scale).", FLAG, default=False
    )
    alpha: float = option("Slope of linear guidance.", GUIDANCE, default=0.5)
    negative_prompt: str | Sequence[str] | None = option(
        "What the video should not show: one text for all videos, or one per prompt.",
        _TEXTS,
        flag="--negative-prompt",
        metavar="TEXT",
        label="Negative prompt",
        info="What the video should not show. It only has an effect with guidance.",
        default=None,
    )
    num_images_per_prompt: int = option(
        "Number of samples for each prompt.", Whole(1, 1000), default=1
    )
    generator: torch.Generator | Sequence[torch.Generator] | None = option(
        "Source of all random numbers: one for everything, or a list with one per sample.",
        random_source,
        default=None,
    )
    output_type: str = option(
        '"pil", "np", "pt" or "latent".', OneOf(OUTPUT_TYPES), resumes=True, default="pil"
    )
    save_memory: bool = option(
        "Decode in small pieces: less memory, the same frames.", FLAG, resumes=True, default=True
    )
    cpu_offloading: bool = option(
        "Move each model to the accelerator only while it is used.",
        FLAG,
        resumes=True,
        default=False,
    )
    inference_multigpu: bool = option(
        "Share the work with the other processes that torchrun started (docs/multi-gpu.md). All "
        "of them must make this call with the same arguments, and all of them get the result.",
        FLAG,
        resumes=True,
        default=False,
    )
    callback: Callable[[int, Any], object] | None = option(
        "Called as `callback(unit_index, num_units)` before each unit; `num_units` of a video "
        "without end is infinity.",
        FUNCTION,
        resumes=True,
        default=None,
    )
    _: KW_ONLY
    num_frames: int | None = option(
        "Length in frames: 8n+1, such as 1 (a still), 49, 97, 121 or 241; when a video is "
        "extended, the frames to add, 8n.",
        FRAMES,
        flag="--num-frames",
        metavar="N",
        default=None,
    )
    seconds: float | None = option(
        "Length in seconds, rounded to the nearest possible length; `inf` has no end, for `stream` "
        "and mp4.",
        SECONDS,
        flag="--seconds",
        metavar="S",
        offered=Number(0, 10, above=True),
        label="Seconds",
        info="Length of the video, or how much to add when you extend one.",
        default=None,
    )
    callback_on_step_end: StepCallback | None = option(
        "Called as `callback(self, step, timestep, values)` after each step, where `step` counts "
        "over the whole video and `values` has the `latents` of the current unit "
        "`[b, c, t, h_k, w_k]`, its `guidance_scale` and its encoded prompts by the names of these "
        "arguments. It may return a dictionary of other ones to go on with, and may end the run "
        "with `self.stop()`.",
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
        "Initial white noise `[b, c, temp, height/8, width/8]`; it is not modified.",
        finite_tensor,
        default=None,
    )
    resume: SavedLatents | str | PathLike[str] | None = option(
        "A file written by `VideoStream.save_latents`, instead of `video`. The result is the "
        "whole video, bit for bit the same as without the interruption. Prompts, steps, guidance "
        "and the random state are taken from the file.",
        _ANY,
        resumes=True,
        default=None,
    )

    def _check_pairs(self) -> None:
        """Reject arguments that exclude each other (ValueError)."""
        lengths = [n for n in ("temp", "num_frames", "seconds") if getattr(self, n) is not None]
        if len(lengths) > 1:
            raise ValueError(f"give only one of {', '.join(lengths)}")
        if self.endless and self.latents is not None:
            raise ValueError("seconds=inf draws noise without end, so latents cannot be given")
        if self.endless and self.prompts is not None:
            raise ValueError(
                "seconds=inf does not go with prompts, a storyboard: next_prompt changes the "
                "prompt of a video without end"
            )
        if self.seed is not None and self.generator is not None:
            raise ValueError("give either seed or generator, not both")
        if self.prompts is None:
            return
        if self.next_prompt is not None:
            raise ValueError("give either prompts or next_prompt, not both")
        if self.prompt:
            raise ValueError("give either prompt or prompts, not both")
        if any(tensor is not None for tensor in self.encoded):
            raise ValueError("give either prompts or prompt_embeds, not both")
        if 0 not in self.prompts:
            raise ValueError(f"prompts must say what unit 0 shows, got units {[*self.prompts]}")

    @property
    def endless(self) -> bool:
        """Whether the video has no end."""
        return self.seconds == math.inf

    @property
    def kept(self) -> dict[str, Any]:
        """Arguments that are saved with a run."""
        return {name: getattr(self, name) for name, option in OPTIONS.items() if option.kept}

    def with_kept(self: A, values: Mapping[str, Any]) -> A:
        """These arguments with those that were saved with a run, checked."""
        changed = copy.copy(self)
        for name, value in values.items():
            if name not in OPTIONS or not OPTIONS[name].kept:
                raise ValueError(f"{name!r} is not saved with a run")
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
        """The prompts, by the unit at which each starts; `prompt` starts at the first unit."""
        return {0: self.prompt} if self.prompts is None else dict(sorted(self.prompts.items()))

    def guidance_at(self, unit: int, otherwise: float) -> float:
        """Guidance of `unit` according to `guidance_scales`."""
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
class LiveVideo(TextToVideo):
    """Arguments of `live`."""

    seconds: float = field(default=math.inf, kw_only=True)
    temp: None = field(default=None, init=False)
    num_frames: None = field(default=None, init=False)
    prompts: None = field(default=None, init=False)
    latents: None = field(default=None, init=False)

    def _check_pairs(self) -> None:
        super()._check_pairs()
        if self.next_prompt is None:
            raise ValueError("next_prompt is needed, a queue or a function, got None")


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
                        f"a resumed run keeps its own {name}, so {shown(value)} cannot be given"
                    )
        super()._check_pairs()


def takes(
    kind: Callable[P, A], *, like: Callable[..., Any] | None = None
) -> Callable[[Callable[[S, A], R]], Taking[S, P, R]]:
    """Turn a method that takes one of the records above into one that takes its arguments.

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
    """The option of a field, which may be defined by another record."""
    return entry.metadata.get("option") or OPTIONS[entry.name]


def held_at(unit: int, values: Mapping[int, T]) -> T:
    """The value of `values` (by unit) that applies at `unit`: that of the last key up to it."""
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
