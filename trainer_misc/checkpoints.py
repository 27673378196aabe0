"""Checkpoints of a training run: written whole or not at all, found again, thinned out.

A checkpoint is a folder `checkpoint-STEP` of safetensors and one `state.json`, so that reading it
runs no code. The tensors are whole and under the names of the parameters, however many processes
trained: a run goes on with another number of them.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyramid_dit.files import remove, replacing, write_folder
from pyramid_dit.json_files import read_json

logger = logging.getLogger(__name__)

STATE = "state.json"
FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)")

Tensors: TypeAlias = dict[str, Tensor]


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """All checkpoints below `folder`, by step."""
    found = {}
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None; damaged ones are passed over, and said."""
    for path in reversed(checkpoint_steps(folder).values()):
        try:
            check_whole(path)
        except (ValueError, OSError) as error:
            logger.warning("skipping %s: %s", path, error)
        else:
            return path
    return None


def check_whole(checkpoint: Path) -> None:
    """Look for every file of a checkpoint, and whether each has the length it was written with.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the folder is a checkpoint of something else.
    """
    state = read_json(checkpoint / STATE)
    files = state.get("files")
    if state.get("format") != FORMAT or not isinstance(files, dict):
        raise ValueError(f"{checkpoint / STATE} is not of a training run of this version")
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, {size} were written")
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def write_checkpoint(target: Path, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> None:
    """Write a checkpoint, to the disk and not only to the system's memory.

    Args:
        target: Its folder; what is there is replaced.
        tensors: By the name of the file, without its ending.
        state: What else there is to keep, for JSON.

    Raises:
        FloatingPointError: A tensor is not finite; nothing is written.
        OSError: The disk is full, or the folder cannot be written.
    """
    for name, group in tensors.items():
        check_finite(group, name)

    def write(folder: Path) -> None:
        for name, group in tensors.items():
            save_file(_apart(group), folder / f"{name}.safetensors", metadata={"format": "pt"})
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        text = json.dumps({"format": FORMAT, **state, "files": sizes}, indent=2)
        (folder / STATE).write_text(text + "\n", encoding="utf-8")

    write_folder(target, write)


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The tensors of a checkpoint by file, and its `state.json`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged.
    """
    check_whole(checkpoint)
    state = read_json(checkpoint / STATE)
    return {Path(name).stem: load_file(checkpoint / name) for name in state["files"]}, state


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse NaN and infinity with a FloatingPointError that names the tensor."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(f"{what}: {name} has values that are not finite")


def split_optimizer_state(state: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Tensors of an optimizer's state, and the rest for JSON, which `join_optimizer_state` joins.

    Args:
        state: With the names of the parameters, as of `get_optimizer_state_dict` of PyTorch.
    """
    tensors, numbers = {}, {}
    for place, value in _flat(state.get("state", {})):
        if isinstance(value, Tensor):
            tensors[place] = value
        else:
            numbers[place] = value
    return tensors, {"param_groups": state.get("param_groups", []), "numbers": numbers}


def _flat(entries: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries, with their keys joined by slashes."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}/")
        else:
            yield f"{before}{key}", value


def join_optimizer_state(tensors: Tensors, rest: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `split_optimizer_state`."""
    state: dict[str, dict[str, Any]] = {}
    for place, value in [*tensors.items(), *rest["numbers"].items()]:
        *outer, key = place.split("/")
        entries: dict[str, Any] = state
        for name in outer:
            entries = entries.setdefault(name, {})
        entries[key] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def thin_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints; with 0, none.

    A damaged one does not count, and goes when it is older than all that are kept.
    """
    whole = [path for path in checkpoint_steps(folder).values() if _is_whole(path)]
    if not keep or len(whole) < keep:
        return
    oldest = whole[-keep]
    for path in checkpoint_steps(folder).values():
        if path == oldest:
            return
        shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run was writing in `folder`."""
    for path in folder.glob(".*.part"):
        remove(path)


def trim_log(path: Path, step: int) -> None:
    """Cut what came after `step` off a log; a run that goes on from there writes it anew."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _apart(tensors: Tensors) -> Tensors:
    """The tensors, of which no two share memory, as tied weights do."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        known = value.data_ptr() in seen
        seen.add(value.data_ptr())
        apart[name] = value.clone() if known else value.contiguous()
    return apart


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off in the middle by a kill


def _is_whole(checkpoint: Path) -> bool:
    try:
        check_whole(checkpoint)
    except (ValueError, OSError):
        return False
    return True


def full_precision(value: Tensor) -> Tensor:
    """A copy in float32 on the CPU, gathered if it is divided among processes."""
    whole = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.detach().to("cpu", torch.float32, copy=True)
