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


Dtype: TypeAlias = str | torch.dtype | Mapping[str, str | torch.dtype]
"""A dtype, or one by component, `default` for those that are not named."""

_NO_CODE = "code from a repository is not run"
_NO_ONNX = "there is no ONNX version"
_MEMORY = 'memory="auto" or a preset says where weights are kept (docs/memory.md)'
_NOT_TAKEN = {
    **dict.fromkeys(("custom_pipeline", "custom_revision", "trust_remote_code"), _NO_CODE),
    **dict.fromkeys(("provider", "sess_options", "provider_options", "use_onnx"), _NO_ONNX),
    **dict.fromkeys(("max_memory", "offload_folder", "offload_state_dict"), _MEMORY),
    "low_cpu_mem_usage": "weights are never held twice",
    "proxies": "the environment variable HTTPS_PROXY names one",
    "mirror": "the environment variable HF_ENDPOINT names one",
    "load_connected_pipeline": "no other pipeline is connected",
    "dduf_file": "one archive of all components is not read",
    "output_loading_info": "weights that are missing or left over are an error",
    "use_flashpack": "weights are read from safetensors, or from files of torch.save",
    "disable_mmap": "safetensors are always mapped",
}
"""Arguments of diffusers' `from_pretrained` that have no effect here, and why."""


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse components and settings that a pipeline does not have with a TypeError."""
    unknown = sorted({*given} - {*known})
    reasons = [f"{name} ({_NOT_TAKEN[name]})" for name in unknown if name in _NOT_TAKEN]
    if reasons:
        raise TypeError(f"from_pretrained does not take {', '.join(reasons)}")
    if unknown:
        raise TypeError(
            f"from_pretrained has no argument {', '.join(unknown)}; components are "
            f"{', '.join(known)}"
        )


def one_dtype(torch_dtype: Dtype | None, dtype: Dtype | None, known: Sequence[str]) -> Dtype | None:
    """What either argument says, both being the same one.

    Raises:
        ValueError: They differ, a dtype is none, or one is for a component that there is not.
    """
    if None not in (torch_dtype, dtype) and torch_dtype != dtype:
        raise ValueError(f"torch_dtype is {torch_dtype!r} and dtype {dtype!r}: give one of them")
    asked = torch_dtype if dtype is None else dtype
    if isinstance(asked, Mapping):
        unknown = sorted({*asked} - {*known, "default"})
        if unknown:
            raise ValueError(f"dtype names {', '.join(unknown)}; components are {', '.join(known)}")
    for value in asked.values() if isinstance(asked, Mapping) else [asked]:
        if value is not None:
            resolve_dtype(value)
    return asked


def load_components(
    folder_or_hub_id: str | PathLike[str] | None,
    variant: str | None,
    *,
    dtype: Dtype | None,
    given: Mapping[str, Any],
    quantization: Quantization | None,
    **options: Any,
) -> tuple[CheckpointFolder, dict[str, Any]]:
    """Load what `given` does not hold, by the names of the constructor's arguments.

    Args:
        folder_or_hub_id: What to load from, as for `open_checkpoint`.
        variant: The transformer in it.
        dtype: Dtype of the weights, by default that which the transformer's are stored in.
        given: Components and settings of the caller, which may be None.
        quantization: What to quantize, and how.
        options: Further arguments of `open_checkpoint`.

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
        transformer="transformer" not in given,
        vae="vae" not in given,
        text_encoder=not given.keys() >= TEXT_ENCODERS,
        **options,
    )
    stored = folder.model_dtype or "fp32"
    by_name = dtype if isinstance(dtype, Mapping) else {"default": dtype or stored}

    def dtype_of(name: str) -> torch.dtype:
        return resolve_dtype(by_name.get(name, by_name.get("default", stored)))

    found = dict(given)
    parts = folder.architecture.text_encoder.parts()
    wanted = {"transformer", "vae"} | {name for part in parts for name in part[:2]}
    wanted -= {*given, *folder.absent}
    folder.check_files(
        [part for part in parts if wanted.issuperset(part[:2])],
        vae="vae" in wanted,
        transformer="transformer" in wanted,
    )
    if "transformer" in wanted:
        config = _quantized(quantization, "transformer", from_diffusers=True)
        found["transformer"] = read_transformer(folder, dtype=dtype_of("transformer"), **config)
    if "vae" in wanted:
        found["vae"] = read_vae(folder, dtype=dtype_of("vae"))
    for part in parts:
        if part.encoder in wanted:
            config = _quantized(quantization, part.encoder, from_diffusers=False)
            config |= folder.which_files
            found[part.encoder] = part.load_encoder(
                folder.path, dtype=dtype_of(part.encoder), **config
            )
        if part.tokenizer in wanted:
            found[part.tokenizer] = part.load_tokenizer(folder.path)
    scheduler = PyramidFlowMatchEulerDiscreteScheduler(**folder.scheduler_config)
    found = {"scheduler": scheduler, "transformer": None} | found
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


def one_device(
    device_map: str | torch.device | Mapping[str, str | torch.device] | None,
) -> torch.device | None:
    """The device that `device_map` names; what spreads models over devices is a ValueError."""
    if device_map is None:
        return None
    try:
        if isinstance(device_map, Mapping):
            (device,) = {torch.device(device) for device in device_map.values()}
            return device
        return torch.device(device_map)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"device_map must name one device, such as cpu or cuda:1, got {device_map!r}; several "
            "GPUs share the work by inference_multigpu (docs/multi-gpu.md)"
        ) from error
