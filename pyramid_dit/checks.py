"""Checks of values, each of which names the value and what is allowed.

A check is called with the name of an argument and its value, and raises a TypeError for another
kind of value or a ValueError for one outside the range. Every door asks the same checks: Python,
the command line, the page, and files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Check: TypeAlias = Callable[[str, Any], object]


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int = 1
    most: int = 2**31 - 1

    def __call__(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer, got {shown(value)}")
        _check_range(name, value, self.least, self.most)

    def parse(self, text: str) -> int:
        """The number in `text`, in range; ValueError."""
        try:
            value = int(text)
        except ValueError as error:
            raise ValueError(f"{shown(text)} is not a whole number") from error
        _check_range("it", value, self.least, self.most)
        return value


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`, or above `least`."""

    least: float
    most: float
    above: bool = False
    """Whether `least` itself is not allowed."""
    infinite: bool = False
    """Whether infinity is allowed too."""

    def __call__(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {shown(value)}")
        if value != value:
            raise ValueError(f"{name} must be a number, got {value}")
        if self.infinite and value == math.inf:
            return
        if self.above and value <= self.least:
            raise ValueError(f"{name} must be above {self.least:g}, got {shown(value)}")
        _check_range(name, value, self.least, self.most)

    def parse(self, text: str) -> float:
        """The number in `text`, in range; ValueError."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        endless = self.infinite and text.strip().lower() in ("inf", "infinity")
        if not (math.isfinite(value) or endless):
            raise ValueError(f"{shown(text)} is not a number")
        self("it", value)
        return value


@dataclass(frozen=True)
class OneOrMore:
    """One value, or a sequence of values, that `check` allows."""

    check: Check

    def __call__(self, name: str, value: Any) -> None:
        several = _is_list(value)
        if several and not value:
            raise ValueError(f"{name} is empty")
        for entry in value if several else [value]:
            self.check(name, entry)


@dataclass(frozen=True)
class Words:
    """A list of words."""

    def __call__(self, name: str, value: Any) -> None:
        """Refuse another value."""
        if not _is_list(value) or not all(isinstance(word, str) for word in value):
            raise TypeError(f"{name} must be a list of words, got {shown(value)}")


@dataclass(frozen=True)
class Sentence:
    """A list of texts and, where there is a choice, of mappings from one name to several texts."""

    def __call__(self, name: str, value: Any) -> None:
        """Refuse another value."""
        if not _is_list(value) or not all(isinstance(p, str) or _is_choice(p) for p in value):
            raise TypeError(
                f'{name} must be a list of texts and of choices such as {{"color": ["red", '
                f'"blue"]}}, got {shown(value)}'
            )
        names = [key for part in value if not isinstance(part, str) for key in part]
        if len({*names}) < len(names):
            raise ValueError(f"{name} must name each choice differently, got {', '.join(names)}")


@dataclass(frozen=True)
class ByUnit:
    """A mapping from units, whole numbers from 0 on, to values that `check` allows."""

    check: Check

    def __call__(self, name: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a mapping by unit, got {shown(value)}")
        for unit, entry in value.items():
            if isinstance(unit, bool) or not isinstance(unit, Integral):
                raise TypeError(f"{name} has the units as keys, integers, got {shown(unit)}")
            if unit < 0:
                raise ValueError(f"{name} has the units as keys, from 0 on, got {shown(unit)}")
            self.check(f"{name}[{unit}]", entry)


@dataclass(frozen=True)
class OneOf:
    """One of some words."""

    words: tuple[str, ...]

    def __call__(self, name: str, value: Any) -> None:
        if value not in self.words:
            raise ValueError(f"{name} must be one of {', '.join(self.words)}, got {shown(value)}")

    def parse(self, text: str) -> str:
        """The word in `text`; ValueError."""
        self("it", text)
        return text


@dataclass(frozen=True)
class Kind:
    """Anything of some kind, said in words for the message."""

    words: str
    fits: Callable[[Any], bool]

    def __call__(self, name: str, value: Any) -> None:
        if not self.fits(value):
            raise TypeError(f"{name} must be {self.words}, got {shown(value)}")


FRAMES = Whole(1, 100_000)
LATENT_FRAMES = Whole(1, 12_500)
SECONDS = Number(0, 100_000, above=True, infinite=True)
SIDE = Whole(1, 8192)
STEPS = Whole(1, 1000)
GUIDANCE = Number(0, 100)
SEED = Whole(0, 2**63 - 1)
FRAME_RATE = Number(0, 1000, above=True)
TEXT = Kind("a string", lambda value: isinstance(value, str))
FLAG = Kind("True or False", lambda value: isinstance(value, bool))
FUNCTION = Kind("a function", callable)


def tensor(name: str, value: Any) -> None:
    """Refuse what is no tensor (TypeError)."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {shown(value)}")


def finite_tensor(name: str, value: Any) -> None:
    """Refuse what is no tensor (TypeError), or has NaN or infinity in it (ValueError)."""
    tensor(name, value)
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity in it")


def random_source(name: str, value: Any) -> None:
    """Refuse what is neither a `torch.Generator` nor a sequence of them (TypeError)."""
    import torch

    for source in value if isinstance(value, Sequence) else [value]:
        if not isinstance(source, torch.Generator):
            raise TypeError(f"{name} must be a torch.Generator or several, got {shown(source)}")


def shown(value: Any) -> str:
    """`value` for a message: its repr, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python turns into text
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def check_size(height: int, width: int, multiple: int) -> None:
    """Refuse a size whose latents do not survive the halvings and the 2x2 patch.

    Raises:
        TypeError: A side is not an integer.
        ValueError: A side is no multiple of `multiple`, or outside its range.
    """
    for name, side in (("height", height), ("width", width)):
        SIDE(name, side)
        if side % multiple:
            below = side // multiple * multiple
            nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ValueError(
                f"{name} must be a multiple of {multiple} pixels, got {side}; try {nearest} "
                "(sizes of the released models, width x height: 640x384, 1280x768, 768x1280, "
                "1024x1024)"
            )


def check_temp(temp: int, frame_per_unit: int, *, from_image: bool) -> None:
    """Refuse a number of latent frames that is no whole number of units.

    Raises:
        TypeError: `temp` is not an integer.
        ValueError: `temp` is outside its range, or does not fit `frame_per_unit`.
    """
    LATENT_FRAMES("temp", temp)
    if from_image and temp % frame_per_unit:
        raise ValueError(f"temp must be a multiple of {frame_per_unit}, got {temp}")
    if not from_image and (temp - 1) % frame_per_unit:
        raise ValueError(f"temp must be 1 plus a multiple of {frame_per_unit}, got {temp}")


def steps_per_stage(name: str, steps: int | Sequence[int], stages: int) -> list[int]:
    """Steps for each of the stages; one number serves all.

    Raises:
        TypeError: A number of steps is not an integer.
        ValueError: A number of steps is outside its range, or the list has another length.
    """
    per_stage = list(steps) if isinstance(steps, Sequence) else [steps] * stages
    if len(per_stage) != stages:
        raise ValueError(f"{name} must be one number or {stages}, one per stage, got {per_stage}")
    for count in per_stage:
        STEPS(name, count)
    return per_stage


def check_prompts(prompt: str | Sequence[str], *, allow_empty: bool = False) -> list[str]:
    """The prompts as a list.

    Raises:
        TypeError: `prompt` is neither a string nor a sequence of strings.
        ValueError: There is no prompt, or one is blank and `allow_empty` does not hold.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty")
    for entry in prompts:
        if not isinstance(entry, str):
            raise TypeError(f"a prompt must be a string, got {type(entry).__name__}")
        if not allow_empty and not entry.strip():
            raise ValueError("the prompt is empty: say what the video should show")
    return prompts


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape with a ValueError."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form of a repository on the hub, `owner/repository`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_choice(part: Any) -> bool:
    """Whether it is one name with texts to choose from."""
    if not isinstance(part, Mapping) or len(part) != 1:
        return False
    ((name, texts),) = part.items()
    said = [name, *texts] if _is_list(texts) and texts else [None]
    return all(isinstance(text, str) for text in said)


def _check_range(name: str, value: Any, least: float, most: float) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {_plain(least)}, got {shown(value)}")
    if value > most:
        raise ValueError(f"{name} must be at most {_plain(most)}, got {shown(value)}")


def _plain(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) and bound < 2**31 else f"{bound:g}"


def memory_size(text: Any) -> float:
    """Bytes in a size such as `16GB`; ValueError where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)GB", text) if isinstance(text, str) else None
    if found is None or not 0 < float(found[1]) < 1e6:
        raise ValueError(f"a size of memory is written like 16GB, got {shown(text)}")
    return float(found[1]) * 1e9
