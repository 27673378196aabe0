"""Whether the sizes that a config states are those of the weights beside it.

Only the headers of the files are read and nothing is allocated, so that a config that was mixed up,
or made to ask for all memory there is, is refused before any model is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..json_files import read_json

Shapes = dict[str, tuple[int, ...]]


def check_sizes(folder: Path, files: Iterable[Path], kind: type[nn.Module]) -> None:
    """Compare the config in `folder` with `files` of weights; what is quantized is let pass.

    Args:
        folder: Where `config.json` is.
        files: All of its weights.
        kind: Class of the model, of diffusers or of transformers.

    Raises:
        ValueError: A size is another one, or weights are missing; or a file is damaged.
    """
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        return
    stored: Shapes = {}
    for path in files:
        stored |= _stored_shapes(path)
    for name, number in _numbers_of_layers(config):
        if number > len(stored):
            raise ValueError(
                f"the weights in {folder} are {len(stored)} tensors, which does not fit its "
                f"config.json: {name} is {number}"
            )
    try:
        model = without_memory(kind, config)
    except Exception as error:  # libraries have classes of their own for what a config may not say
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / 'config.json'} makes no {kind.__name__}: {reason}") from error
    expected = model.state_dict()
    for name, value in expected.items():
        if name in stored and stored[name] != tuple(value.shape):
            raise ValueError(
                f"the weights in {folder} do not fit its config.json: {name} has the shape "
                f"{list(stored[name])}, not {list(value.shape)}"
            )
    needed = sum(parameter.numel() for parameter in model.parameters())
    there = sum(torch.Size(shape).numel() for shape in stored.values())
    if needed > there:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: they hold {there:,} of "
            f"{needed:,} numbers and lack {sorted(expected.keys() - stored)[:5]}"
        )


def stored_dtypes(path: Path) -> set[str] | None:
    """Dtypes of the tensors in a safetensors file, `F32`, `BF16`, ...; None where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {entry.get_dtype() for entry in map(file.get_slice, file.keys())}
    except SafetensorError:
        return None


def _stored_shapes(path: Path) -> Shapes:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    from video_vae.checkpoint_file import read_state_dict  # only now: it brings models

    state = read_state_dict(path, device="meta")
    return {name: tuple(value.shape) for name, value in state.items()}


def _numbers_of_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Entries that say how often something is repeated, as each repetition takes time to build."""
    for name, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            if "layers" in name and isinstance(number, int):
                yield name, number


def without_memory(kind: type[Any], config: Mapping[str, Any]) -> nn.Module:
    """A model of diffusers or transformers by its config, with weights that are `meta`."""
    with torch.device("meta"):
        if hasattr(kind, "from_config"):  # diffusers
            return kind.from_config(dict(config))
        return kind(kind.config_class.from_dict(dict(config)))
