"""The components of a `PyramidFlowPipeline`, loaded from a folder in either layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import torch
from diffusers.quantizers import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import QuantizationConfigMixin, QuantizationMethod

from video_vae import CausalVideoVAE

from ..checkpoints.folder import CheckpointFolder
from ..checkpoints.weights import load_model, vae_dtype
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler

Quantization: TypeAlias = PipelineQuantizationConfig | Mapping[str, Any] | QuantizationConfigMixin
"""What to quantize: diffusers' choice for a pipeline, one by the name of the component, or that
of the transformer."""


def load_components(
    folder: CheckpointFolder,
    *,
    dtype: torch.dtype,
    given: Mapping[str, Any],
    quantization: Quantization | None,
) -> dict[str, Any]:
    """Load what `given` does not hold, by the names of the constructor's arguments.

    Args:
        folder: What to load from.
        dtype: Dtype of the weights.
        given: Components and settings of the caller, which may be None.
        quantization: What to quantize, and how.

    Raises:
        FileNotFoundError: A folder or a file is missing.
        ValueError: A file is damaged, or its weights do not fit.
    """
    found = dict(given)
    parts = folder.architecture.text_encoder.parts()
    wanted = {"transformer", "vae"} | {name for part in parts for name in part[:2]}
    wanted -= {*given, *folder.absent}
    folder.check_files([part for part in parts if wanted.issuperset(part[:2])], vae="vae" in wanted)
    if "transformer" in wanted:
        found["transformer"] = load_model(
            folder.architecture.transformer,
            folder.path / folder.variant,
            dtype=dtype,
            **_quantized(quantization, "transformer", from_diffusers=True),
        )
    if "vae" in wanted:
        found["vae"] = load_model(
            CausalVideoVAE, folder.path / folder.vae_folder, dtype=vae_dtype(dtype)
        )
    for part in parts:
        if part.encoder in wanted:
            options = _quantized(quantization, part.encoder, from_diffusers=False)
            found[part.encoder] = part.load_encoder(folder.path, dtype=dtype, **options)
        if part.tokenizer in wanted:
            found[part.tokenizer] = part.load_tokenizer(folder.path)
    scheduler = PyramidFlowMatchEulerDiscreteScheduler(**folder.scheduler_config)
    found.setdefault("scheduler", scheduler)
    found.setdefault("latent_statistics", asdict(folder.statistics))
    found.setdefault(
        "generation_defaults", asdict(replace(folder.defaults, num_frames=folder.defaults.frames()))
    )
    found.setdefault("frame_per_unit", folder.frame_per_unit)
    return found


def _quantized(
    quantization: Quantization | None, component: str, *, from_diffusers: bool
) -> dict[str, Any]:
    """Argument of `from_pretrained` that quantizes a component, if that is asked for.

    Raises:
        ValueError: It is to be read from a GGUF file.
    """
    if isinstance(quantization, PipelineQuantizationConfig):
        config = quantization._resolve_quant_config(from_diffusers, component)
    elif isinstance(quantization, Mapping):
        config = quantization.get(component)
    else:
        config = quantization if component == "transformer" else None
    if config is None:
        return {}
    if getattr(config, "quant_method", None) == QuantizationMethod.GGUF:
        raise ValueError("diffusers reads GGUF files of its own models only, not of this one")
    return {"quantization_config": config}
