"""Keeping weights in the CPU's memory while the GPU does the work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

logger = logging.getLogger(__name__)


def module_device(module: nn.Module) -> torch.device:
    """Device that `module` computes on, which is not where an offloaded module's weights lie."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)  # accelerate's
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


@contextmanager
def moved_to(module: nn.Module, device: torch.device) -> Iterator[torch.device]:
    """Have `module` on `device` within the block and back where it was after it."""
    home = module_device(module)
    if home != device:
        module.to(device)
    try:
        yield device
    finally:
        if home != device:
            module.to(home)


def offload_sequentially(module: nn.Module, device: torch.device) -> None:
    """Bring the weights of each layer of `module` to `device` only while that layer runs."""
    # accelerate takes a moment to import and few need it
    from accelerate import cpu_offload

    # A module that owns parameters itself reads them in its own forward.
    cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)


def accelerator_device() -> torch.device | None:
    """The machine's accelerator, None where there is only the CPU."""
    return torch.accelerator.current_accelerator(check_available=True)
