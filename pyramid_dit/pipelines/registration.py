"""What lets `DiffusionPipeline.from_pretrained` and `AutoModel` of diffusers find our classes."""

from __future__ import annotations

import sys
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin


def register(*kinds: type) -> None:
    """Have diffusers know classes by the names that `save_pretrained` writes of them.

    It looks for a pipeline, and for a model whose config is all there is, among its own names. For
    a component it asks the package or module that `model_index.json` names, also for the base class
    whose way of loading it is to take.

    Args:
        kinds: A pipeline, models and schedulers of ours.
    """
    for kind in kinds:
        setattr(diffusers, kind.__name__, kind)
        for name in (_package(kind.__module__), kind.__module__):
            for base in (DiffusionPipeline, ModelMixin, SchedulerMixin):
                setattr(sys.modules[name], base.__name__, base)


def public_place(entry: Any) -> Any:
    """An entry of `model_index.json`: `[place, class]` with a class of ours by its package.

    diffusers writes the module, but files may move.
    """
    match entry:
        case (str(place), str(kind)) if _package(place) in {"pyramid_dit", "video_vae"}:
            return (_package(place), kind)
    return entry


def _package(module: str) -> str:
    return module.partition(".")[0]
