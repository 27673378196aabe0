"""Loading weights strictly, with the dtypes by the names that the reference's scripts use."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from video_vae import CausalVideoVAE
from video_vae.checkpoint_file import MODEL_KEY, load_strictly, part_of, read_state_dict

from ..models.flux import PyramidFluxTransformer
from ..models.mmdit import PyramidDiffusionMMDiT
from .folder import CheckpointFolder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_OTHER_PARTS = ("vae.", "text_encoder.")

Model = TypeVar("Model", bound=nn.Module)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """`bf16`, `fp16` or `fp32`, or the dtype itself, as a dtype.

    Raises:
        ValueError: It is none of these.
    """
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"model_dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return resolved


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the VAE beside a transformer in `dtype`: float16 holds no large activations."""
    return torch.float32 if dtype == torch.float16 else dtype


def read_transformer(
    folder: CheckpointFolder, *, dtype: torch.dtype, **options: Any
) -> PyramidFluxTransformer | PyramidDiffusionMMDiT:
    """Load the transformer, with what the checkpoint says of its generation in its config.

    Args:
        folder: The checkpoint.
        dtype: Dtype of the weights.
        options: Entries that replace those of the config, and further ones of `from_pretrained`.

    Raises:
        ValueError: Weights are missing, left over, or of another shape.
    """
    path, kind = folder.path / folder.variant, folder.architecture.transformer
    model = load_model(kind, path, dtype=dtype, **folder.which_files, **options)
    model.register_to_config(**folder.settings.of_transformer())
    return model


def read_vae(folder: CheckpointFolder, *, dtype: torch.dtype) -> CausalVideoVAE:
    """Load the VAE, with the statistics that the checkpoint states in its config.

    Args:
        folder: The checkpoint.
        dtype: Dtype of the transformer beside it; float16 holds no large activations.

    Raises:
        ValueError: Weights are missing, left over, or of another shape.
    """
    path = folder.path / folder.vae_folder
    model = load_model(CausalVideoVAE, path, dtype=vae_dtype(dtype), **folder.which_files)
    model.register_to_config(**folder.settings.of_vae())
    return model


def load_model(
    model_class: type[Model],
    folder: Path,
    *,
    dtype: torch.dtype,
    use_safetensors: bool | None = None,
    **overrides: Any,
) -> Model:
    """Load a diffusers model from `folder`, frozen, every key of its weights matching.

    Args:
        model_class: Class of the model.
        folder: Where `config.json` and the weights lie.
        dtype: Dtype of the weights.
        use_safetensors: Whether to read safetensors; None does where there are any.
        overrides: Entries that replace those of the config.

    Raises:
        ValueError: Weights are missing, left over, or of another shape.
    """
    if use_safetensors is None:  # diffusers finds shards of the other kind only when asked
        use_safetensors = any(folder.glob("diffusion_pytorch_model*.safetensors"))
    try:
        model, info = model_class.from_pretrained(  # type: ignore[attr-defined]
            folder,
            torch_dtype=dtype,
            use_safetensors=use_safetensors,
            output_loading_info=True,
            local_files_only=True,
            **overrides,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"cannot load {model_class.__name__} from {folder}: {error}") from error
    problems = {name: sorted(keys)[:5] for name, keys in info.items() if keys}
    if problems:
        raise ValueError(f"the weights in {folder} do not fit {model_class.__name__}: {problems}")
    return model.eval()


def load_weights(
    module: nn.Module, path: str | PathLike[str], *, part: str, model_key: str = MODEL_KEY
) -> None:
    """Load a file of weights into `module`, every key matching.

    Args:
        module: Where the weights go.
        path: `.safetensors` or a file of `torch.save`, of the module alone or of a whole
            training wrapper in which it is called `part`.
        part: Name of the module in such a wrapper.
        model_key: Where a file that holds more, an optimizer for example, has the weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or its weights do not fit.
        RuntimeError: The module's weights are offloaded.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        raise RuntimeError("load weights before sequential offload is enabled")
    state = read_state_dict(path, model_key=model_key)
    own = part_of(state, f"{part}.")
    if not own:
        own = {key: v for key, v in state.items() if not key.startswith(_OTHER_PARTS)}
    load_strictly(module, own, source=path)
