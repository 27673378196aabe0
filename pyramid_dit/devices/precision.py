"""Models with activations beyond the range of float16."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def float32_for_float16(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Make float32 of what becomes float16 within the block, with the values from before it."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    before = [tensor.data for tensor in tensors]
    yield
    for tensor, data in zip(tensors, before, strict=True):
        if tensor.dtype == torch.float16:
            tensor.data = data.to(tensor.device, torch.float32)


def float32_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that a model of `transformers` keeps in float32."""
    names = model._keep_in_fp32_modules or ()
    return [part for name, part in model.named_modules() if name.rpartition(".")[2] in names]
