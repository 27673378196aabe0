"""The components of a `PyramidFlowPipeline`, loaded from a folder in either layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, TypeAlias

import torch
from diffusers.quantizers import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import QuantizationConfigMixin, QuantizationMethod

from video_vae import CausalVideoVAE

from ..checkpoints.folder import CheckpointFolder
from ..checkpoints.hub import open_checkpoint
from ..checkpoints.settings import Settings, Source
from ..checkpoints.weights import read_transformer, read_vae, resolve_dtype
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..models.flux import PyramidFluxTransformer
from ..models.mmdit import PyramidDiffusionMMDiT

TEXT_ENCODERS = {"text_encoder", "text_encoder_2", "text_encoder_3"}

Quantization: TypeAlias = PipelineQuantizationConfig | Mapping[str, Any] | QuantizationConfigMixin
"""What to quantize: diffusers' choice for a pipeline, one by the name of the component, or that
of the transformer. Tested on a CPU with torchao's int8 weights, written and read again;
bitsandbytes takes a GPU and is not tested."""


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse components and settings that a pipeline does not have with a TypeError."""
    unknown = sorted({*given} - {*known})
    if unknown:
        raise TypeError(
            f"from_pretrained has no argument {', '.join(unknown)}; components are "
            f"{', '.join(known)}"
        )


def load_components(
    folder_or_hub_id: str | PathLike[str] | None,
    variant: str | None,
    *,
    dtype: str | torch.dtype | None,
    given: Mapping[str, Any],
    quantization: Quantization | None,
    revision: str | None,
    cache_dir: str | PathLike[str] | None,
) -> tuple[CheckpointFolder, dict[str, Any]]:
    """Load what `given` does not hold, by the names of the constructor's arguments.

    Args:
        folder_or_hub_id: What to load from, as for `open_checkpoint`.
        variant: The transformer in it.
        dtype: Dtype of the weights, by default that which they are stored in.
        given: Components and settings of the caller, which may be None.
        quantization: What to quantize, and how.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where to keep what is fetched from the hub.

    Returns:
        The folder, and the arguments.

    Raises:
        FileNotFoundError: A folder or a file is missing.
        ConnectionError: The hub cannot be reached.
        ValueError: The variant is ambiguous, a file is damaged, or its weights do not fit.
    """
    folder = open_checkpoint(
        folder_or_hub_id,
        variant,
        revision=revision,
        cache_dir=cache_dir,
        vae="vae" not in given,
        text_encoder=not given.keys() >= TEXT_ENCODERS,
    )
    dtype = resolve_dtype(dtype or folder.model_dtype or "fp32")
    found = dict(given)
    parts = folder.architecture.text_encoder.parts()
    wanted = {"transformer", "vae"} | {name for part in parts for name in part[:2]}
    wanted -= {*given, *folder.absent}
    folder.check_files([part for part in parts if wanted.issuperset(part[:2])], vae="vae" in wanted)
    if "transformer" in wanted:
        options = _quantized(quantization, "transformer", from_diffusers=True)
        found["transformer"] = read_transformer(folder, dtype=dtype, **options)
    if "vae" in wanted:
        found["vae"] = read_vae(folder, dtype=dtype)
    for part in parts:
        if part.encoder in wanted:
            options = _quantized(quantization, part.encoder, from_diffusers=False)
            options["variant"] = folder.file_variant
            found[part.encoder] = part.load_encoder(folder.path, dtype=dtype, **options)
        if part.tokenizer in wanted:
            found[part.tokenizer] = part.load_tokenizer(folder.path)
    scheduler = PyramidFlowMatchEulerDiscreteScheduler(**folder.scheduler_config)
    found.setdefault("scheduler", scheduler)
    settings = Settings.of(
        (given, "the arguments"),
        *component_settings(given.get("vae"), given.get("transformer")),
        (folder.settings.of_vae() | folder.settings.of_transformer(), folder.path),
    )
    defaults = settings.generation_defaults  # a length that is not said is a still elsewhere
    settings = replace(
        settings, generation_defaults=replace(defaults, num_frames=defaults.frames())
    )
    return folder, found | settings.of_vae() | settings.of_transformer()


def component_settings(
    vae: CausalVideoVAE | None,
    transformer: PyramidFluxTransformer | PyramidDiffusionMMDiT | None,
) -> list[Source]:
    """What the configs of components say that changes a video."""
    parts = {"the VAE's config": vae, "the transformer's config": transformer}
    return [(part.config, name) for name, part in parts.items() if part is not None]


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
        raise ValueError("diffusers reads GGUF files only for its own models, not for this one")
    return {"quantization_config": config}


def one_device(device_map: str | torch.device | None) -> torch.device | None:
    """The device that `device_map` names; what spreads models over devices is a ValueError."""
    if device_map is None:
        return None
    try:
        return torch.device(device_map)
    except RuntimeError as error:
        raise ValueError(
            f"device_map must name one device, such as cpu or cuda:1, got {device_map!r}; several "
            "GPUs share the work by inference_multigpu (docs/multi-gpu.md)"
        ) from error
