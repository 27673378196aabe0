"""Dividing the weights of a model among processes (FSDP2), from outside the model.

Each process keeps an equal part of every block; a block's weights are gathered just before it
runs, the next block's meanwhile, and dropped after it. The numbers do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method


def shard_weights(
    module: nn.Module, mesh: DeviceMesh, device: torch.device, *, methods: Sequence[str] = ()
) -> None:
    """Divide the weights of `module` among the processes of `mesh`, block by block.

    A block is an entry of a `ModuleList`, as the blocks of the transformers and of the text
    encoders are. From now on all processes must run the module together.

    Args:
        module: Its weights may lie on the CPU; one block at a time is brought to `device`.
        mesh: The processes, in one dimension.
        device: What this process computes on.
        methods: Names of methods, beside `forward`, that use weights.
    """
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    inner = {id(part) for entry in lists for part in entry.modules() if part is not entry}
    for blocks in lists:
        if id(blocks) in inner:
            continue  # a part of a block
        for block in blocks:
            block.to(device)
            fully_shard(block, mesh=mesh)
    module.to(device)
    fully_shard(module, mesh=mesh)
    for name in methods:
        register_fsdp_forward_method(module, name)
