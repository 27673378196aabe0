"""Frozen weights in 4 bits, and an optimizer with a state of 8 bits, by `bitsandbytes`.

The base of a LoRA takes little over a quarter of its memory this way (QLoRA, arXiv 2305.14314).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

KINDS = ("nf4",)
"""4 bits at the quantiles of a normal distribution, with a scale for each 64 weights that is itself
of 8 bits."""


def require_bitsandbytes() -> Any:
    """The package.

    Raises:
        ImportError: It is missing.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            "--quantize_base and --opt adamw8bit need bitsandbytes: pip install bitsandbytes"
        ) from error
    return bitsandbytes


def frozen_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Names and linear layers, inside the blocks of a model, whose weights are not trained."""
    for name, module in model.named_modules():
        inside = isinstance(module, nn.Linear) and "block" in name
        if inside and not module.weight.requires_grad:
            yield name, module


def quantize_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the frozen linear layers in a model's blocks.

    Args:
        model: On the CPU, with what is trained already marked so.
        dtype: That is computed in.

    Raises:
        ImportError: `bitsandbytes` is missing.
    """
    layers = require_bitsandbytes().nn
    for name, layer in list(frozen_layers(model)):
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        quantized = layers.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
        quantized.load_state_dict(layer.state_dict())
        quantized.to(layer.weight.device).requires_grad_(False)
        quantized.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, quantized)


def adamw8bit(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """AdamW with a state of 8 bits (arXiv 2110.02861), of parameters with 4,096 values or more.

    Raises:
        ImportError: `bitsandbytes` is missing.
    """
    optimizer: torch.optim.Optimizer = require_bitsandbytes().optim.AdamW8bit(groups, **options)
    return optimizer


def state_bytes(parameter: torch.Tensor) -> int:
    """What `adamw8bit` keeps of a parameter: of each block of 256 values two scales as well."""
    count = parameter.numel()
    if count < 4096:
        return 8 * count
    return 2 * (count + 4 * (-(-count // 256)) + 4 * 256)


def bytes_saved(model: nn.Module) -> int:
    """How much less memory the frozen linear layers in a model's blocks take."""
    weights = [layer.weight for _, layer in frozen_layers(model)]
    return int(sum(w.numel() * (w.element_size() - 1 / 2 - 1 / 64) for w in weights))
