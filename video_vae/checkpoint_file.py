"""Reading one file of weights, safetensors or pickled, without running code from it."""

from __future__ import annotations

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

MODEL_KEY = "model"
"""Where a training checkpoint keeps the weights."""


def read_state_dict(
    path: str | PathLike[str], *, model_key: str = MODEL_KEY, device: str = "cpu"
) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file or of a file written by ``torch.save``.

    A training checkpoint that keeps its weights under ``model_key`` gives those weights, whatever
    else it holds. Pickled files are read with ``weights_only=True``, so none can run code; beside
    tensors they may hold the ``argparse.Namespace`` of the command line that wrote them.

    Args:
        path: The file.
        model_key: Name of the weights in a file that holds more.
        device: Where the tensors are put; with ``meta`` no weight of a pickled file is read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds more than plain tensors, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    content = _read(path, device)
    if isinstance(content, dict) and isinstance(content.get(model_key), dict):
        content = content[model_key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} is not a state dict: its entry {key!r} is a {type(value).__name__}, "
                "not a tensor"
            )
    return content


def _read(path: Path, device: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device)
        return read_pickled(path, device, mapped=device == "meta")
    except (ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"cannot read weights from {path}: {reason}") from error


def read_pickled(path: Path, device: str = "cpu", *, mapped: bool = False) -> Any:
    """What ``torch.save`` wrote to a file, of which no code is run.

    Args:
        path: The file.
        device: Where tensors are put; with ``meta``, and mapped, none of their values is read.
        mapped: Leave values in the file until they are used, where its format allows that.

    Raises:
        ValueError: The file is damaged, or holds more than tensors and an ``argparse.Namespace``.
    """
    mapped = mapped and zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # whose advice is to run what is in the file
        found = re.search(r"GLOBAL (\S+)", str(error))
        more = f" ({found[1]})" if found else ""
        raise ValueError(
            f"it holds more than tensors{more}, or is damaged; code in it is not run"
        ) from None
    except (RuntimeError, EOFError, KeyError, AttributeError) as error:
        raise ValueError(str(error).strip().split("\n")[0]) from error


def part_of(state_dict: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """The weights whose names start with the first of ``prefixes`` that any does, without it."""
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in state_dict):
            own = {name: x for name, x in state_dict.items() if name.startswith(prefix)}
            return {name.removeprefix(prefix): x for name, x in own.items()}
    return {}


def load_strictly(
    module: torch.nn.Module,
    state_dict: dict[str, Tensor],
    *,
    source: str | PathLike[str],
    assign: bool = False,
) -> None:
    """Load ``state_dict`` into ``module``, every key and shape matching.

    Args:
        module: Where the weights go.
        state_dict: The weights.
        source: What to call the place that they are from.
        assign: Put them in the place of the module's own, which may be ``meta``.

    Raises:
        ValueError: Keys are missing, left over, or of another shape; ``source`` is named.
    """
    try:
        module.load_state_dict(state_dict, assign=assign)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit {type(module).__name__}: {error}") from error
