"""Keeping weights elsewhere while they are not at work: in the CPU's memory, or in files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from .mapped import forget_pages, map_weights

logger = logging.getLogger(__name__)


def module_device(module: nn.Module) -> torch.device:
    """Device that `module` computes on, which is not where an offloaded module's weights lie."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)  # accelerate's
        device = getattr(hook, "execution_device", None)
        group = _group_offloading(part)
        if group is not None:
            device = group.config.onload_device
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def offloaded_in_parts(module: nn.Module) -> bool:
    """Whether hooks of accelerate or diffusers bring parts of `module` to where they compute."""
    if any(parameter.is_meta for parameter in module.parameters()):
        return True
    return any(
        _group_offloading(part) is not None or (part is not module and hasattr(part, "_hf_hook"))
        for part in module.modules()
    )


def stays_on(module: nn.Module, device: torch.device) -> bool:
    """Whether the weights of `module` lie on `device`, whether it is at work or not."""
    if module in _LEAVING or offloaded_in_parts(module):
        return False
    return next(module.parameters()).device == device


@contextmanager
def moved_to(module: nn.Module, device: torch.device) -> Iterator[torch.device]:
    """Have `module` on `device` within the block and back where it was after it.

    Several threads may be in such blocks of one module; the last one out moves it back.

    What is offloaded in parts is left to its hooks. They wait for calls of `forward`, which a
    transformer or a VAE at work does not get: what the hook of the whole module would bring over
    is brought over here.
    """
    with _LOCK:
        visit = _VISITS.get(module)
        if visit is None:
            visit = _VISITS[module] = _Visit(module, device)
        visit.guests += 1
    try:
        yield device
    finally:
        with _LOCK:
            visit.guests -= 1
            if not visit.guests:
                del _VISITS[module]
                visit.end()


class _Visit:
    """A module on the device that it computes on, for as long as any thread works with it."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.guests = 0
        self._module, self._whole = module, _group_offloading(module)
        self._home = next(module.parameters()).device
        self._moves = not offloaded_in_parts(module) and self._home != device
        if self._whole is not None:
            self._whole.pre_forward(module)
        elif self._moves:
            module.to(device)

    def end(self) -> None:
        """Back to where it was."""
        if self._whole is not None:
            self._whole.post_forward(self._module, None)
        elif self._moves:
            self._module.to(self._home)
        at_work = {part for module in _VISITS for part in module.modules()}
        for part in self._module.modules():
            if part in _LEAVING and part not in at_work:
                forget_pages(part)


_LOCK = threading.RLock()
_VISITS: dict[nn.Module, _Visit] = {}
_LEAVING = WeakSet[nn.Module]()


def _group_offloading(module: nn.Module) -> Any:
    """The hook of diffusers' group offloading on `module`, if there is one."""
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook("group_offloading")


def offload_whole(module: nn.Module, device: torch.device) -> None:
    """Have `module` on `device` only while it is at work, else in the CPU's memory."""
    # accelerate takes a moment to import and few need it
    from accelerate.hooks import CpuOffload, add_hook_to_module

    module.to("cpu")
    add_hook_to_module(module, CpuOffload(device))


def leave_after_work(module: nn.Module) -> None:
    """Have the weights of `module` in files, and in the CPU's memory only while it is at work."""
    module.to("cpu")
    map_weights(module)
    forget_pages(module)
    _LEAVING.add(module)


def stay_after_work(module: nn.Module) -> None:
    """Take back `leave_after_work`."""
    _LEAVING.discard(module)


def offload_sequentially(module: nn.Module, device: torch.device) -> None:
    """Bring the weights of each layer of `module` to `device` only while that layer runs."""
    # accelerate takes a moment to import and few need it
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(module, recurse=True)  # of an earlier call; brings the weights back
    # A module that owns parameters itself reads them in its own forward.
    cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)


def accelerator_device() -> torch.device | None:
    """The machine's accelerator, None where there is only the CPU."""
    return torch.accelerator.current_accelerator(check_available=True)


def chosen_device(name: str, index: int = 0) -> torch.device:
    """The machine's accelerator of an index for "auto" and "cuda"; without one, the CPU."""
    found = accelerator_device() if name != "cpu" else None
    return torch.device("cpu") if found is None else torch.device(found.type, index)
