"""Dividing trained weights among processes (FSDP2), as the reference's zero2 and zero3."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def divide_weights(module: nn.Module, device: torch.device, *, gather_again: bool) -> None:
    """Divide the weights of `module`, its gradients and its optimizer's state, block by block.

    A block is an entry of a `ModuleList`. All processes of the group divide, and from now on run
    the module together.

    Args:
        module: On `device` already, with weights in float32.
        device: What this process computes on.
        gather_again: Drop the gathered weights of a block after its forward pass and gather them
            for the backward pass again (zero3); else they are kept meanwhile (zero2).
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    inner = {id(part) for entry in lists for part in entry.modules() if part is not entry}
    for blocks in lists:
        for block in () if id(blocks) in inner else blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=gather_again)
    fully_shard(module, mesh=mesh, reshard_after_forward=gather_again)
