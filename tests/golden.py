"""Access to the recorded runs of the reference implementation, which are not part of the project.

The folder is `$PYRAMID_FLOW_GOLDEN`, by default `../shared/golden` beside the project. Tests that
read it skip where it is absent.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def golden_dir() -> Path | None:
    """The folder of recorded runs, or None where there is none."""
    folder = os.environ.get("PYRAMID_FLOW_GOLDEN") or PROJECT_ROOT / "../shared/golden"
    path = Path(folder).resolve()
    return path if path.is_dir() else None


@functools.cache
def load_golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `<name>.json` says and the tensors of `<name>.safetensors`; skips where absent."""
    folder = golden_dir()
    if folder is None or not (folder / f"{name}.json").is_file():
        pytest.skip(f"no recorded runs of {name}: set PYRAMID_FLOW_GOLDEN to their folder")
    description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return description, load_file(folder / f"{name}.safetensors")


def golden_cases(name: str, key: str) -> list[tuple[int, dict[str, Any]]]:
    """Entries of the list `key` of `<name>.json`, numbered, for `pytest.mark.parametrize`.

    Empty where the file is absent: pytest then reports the test as skipped.
    """
    folder = golden_dir()
    path = folder / f"{name}.json" if folder else None
    if path is None or not path.is_file():
        return []
    return list(enumerate(json.loads(path.read_text(encoding="utf-8"))[key]))


def relative_error(actual: Tensor, reference: Tensor) -> float:
    """max |actual - reference| / max |reference|, in float64; the shapes must agree."""
    assert actual.shape == reference.shape, f"{tuple(actual.shape)} != {tuple(reference.shape)}"
    reference = reference.to(torch.float64)
    difference = (actual.detach().cpu().to(torch.float64) - reference).abs().max()
    return float(difference / reference.abs().max())
