"""Checks of values, each of which names the value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

RELEASED_SIZES = "640x384, 1280x768, 768x1280, 1024x1024"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_size(height: int, width: int, multiple: int) -> None:
    """Refuse a size whose latents do not survive the halvings and the 2x2 patch.

    Raises:
        TypeError: A side is not an integer.
        ValueError: A side is not a positive multiple of `multiple`.
    """
    for name, side in (("height", height), ("width", width)):
        check_count(name, side)
        if side % multiple:
            below = side // multiple * multiple
            nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ValueError(
                f"{name} must be a multiple of {multiple} pixels, got {side}; try {nearest} "
                f"(sizes of the released models, width x height: {RELEASED_SIZES})"
            )


def check_temp(temp: int, frame_per_unit: int, *, from_image: bool) -> None:
    """Refuse a number of latent frames that is no whole number of units.

    Raises:
        TypeError: `temp` is not an integer.
        ValueError: `temp` is below 1, or does not fit `frame_per_unit`.
    """
    check_count("temp", temp)
    if from_image and temp % frame_per_unit:
        raise ValueError(f"temp must be a multiple of {frame_per_unit}, got {temp}")
    if not from_image and (temp - 1) % frame_per_unit:
        raise ValueError(f"temp must be 1 plus a multiple of {frame_per_unit}, got {temp}")


def check_steps(name: str, steps: int | Sequence[int], stages: int) -> list[int]:
    """Steps for each of the stages; one number serves all.

    Raises:
        TypeError: A number of steps is not an integer.
        ValueError: A number of steps is below 1, or the list has another length.
    """
    per_stage = list(steps) if isinstance(steps, Sequence) else [steps] * stages
    if len(per_stage) != stages:
        raise ValueError(
            f"{name} must be one number or {stages}, one a stage, got {len(per_stage)}: {per_stage}"
        )
    for count in per_stage:
        check_count(name, count)
    return per_stage


def check_output_type(output_type: str) -> None:
    """Refuse an unknown form of the result with a ValueError."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}"
        )


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


def check_generator(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int
) -> torch.Generator | list[torch.Generator] | None:
    """One generator for all, or a list with one a sample.

    Raises:
        ValueError: The list does not fit the batch.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    generators = list(generator)
    if len(generators) != batch:
        raise ValueError(f"{len(generators)} generators for a batch of {batch}")
    return generators


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape with a ValueError."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def check_count(name: str, value: int) -> None:
    """Refuse what is no integer (TypeError) or below 1 (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
