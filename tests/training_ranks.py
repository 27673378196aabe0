"""Run by torchrun: training steps with accelerate's DDP, and FSDP, against one process alone.

Each process writes `rank<r>.json` into the folder given: the largest relative error of each case.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from golden import relative_error
from tiny_checkpoint import DIT_CONFIGS
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from pyramid_dit import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
    JointTransformerBlock,
    PyramidDiTForVideoGeneration,
)

CASES = [("video", True), ("video", True), ("video", False), ("image", True)]
"""Kind of the batch, and whether it has a history; the lengths of the first two differ."""


def step(model: PyramidDiTForVideoGeneration, kind: str, pyramid: bool, place: Any) -> Tensor:
    """The loss of the process at `place`, with numbers that are its own."""
    rng = torch.Generator().manual_seed(place.process_index)
    shape = (4, 3, 17, 64, 64) if kind == "video" else (4, 3, 64, 64)
    loss, _ = model(
        torch.rand(shape, generator=rng) * 2 - 1,
        ["a red circle", "a blue square", "black", "white"],
        [kind],
        pyramid,
        place,
        generator=rng,
    )
    return loss


def alone(
    model: PyramidDiTForVideoGeneration, case: tuple[str, bool], rank: int, processes: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of process `rank`, and the mean of all processes' gradients, all computed here."""
    losses, steps = [], model.accumulate_steps
    for index in range(processes):
        model.accumulate_steps = steps
        place: Any = SimpleNamespace(process_index=index, num_processes=processes)
        losses.append(step(model, *case, place))
        (losses[-1] / processes).backward()
    return losses[rank].detach(), taken_gradients(model.dit)


def taken_gradients(dit: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients by name, which are then cleared."""
    found = {n: p.grad.clone() for n, p in dit.named_parameters() if p.grad is not None}
    dit.zero_grad()
    return {name.removeprefix("module."): gradient for name, gradient in found.items()}


def gradient_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert got.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    return max(
        # a key's bias changes nothing: its gradient is rounding
        float((got[n] - g).abs().max()) / max(float(g.abs().max()), 1e-3 * largest)
        for n, g in expected.items()
    )


def errors(folder: Path, name: str, accelerator: Accelerator) -> dict[str, float]:
    model = PyramidDiTForVideoGeneration(
        folder / name, "fp32", name, sample_ratios=[1, 2, 1], max_temporal_length=3
    )
    bare, place = model.dit, (accelerator.process_index, accelerator.num_processes)
    around = accelerator.prepare(bare)
    assert isinstance(around, DistributedDataParallel)
    found = {}
    for number, case in enumerate(CASES):
        model.dit = around
        assert model.dit is around and model.dtype == torch.float32
        model.dit.train()
        model.accumulate_steps = 1 + number
        loss = step(model, *case, accelerator)
        accelerator.backward(loss)
        together = taken_gradients(around)
        model.dit = bare
        model.accumulate_steps = 1 + number
        expected, gradients = alone(model, case, *place)
        found[f"{name}, loss {number}"] = relative_error(loss.detach(), expected)
        found[f"{name}, gradients {number}"] = gradient_error(together, gradients)

    model.dit = around.eval()
    options = {"height": 64, "width": 64, "temp": 1, "num_inference_steps": 1}
    assert len(model.generate("a red circle", **options)) == 1

    model.dit = bare.train()
    model.accumulate_steps = 1
    expected, gradients = alone(model, CASES[0], *place)
    blocks = {JointTransformerBlock, FluxTransformerBlock, FluxSingleTransformerBlock}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=blocks)
    model.dit = sharded = FullyShardedDataParallel(
        bare, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
    )
    parts = [m for m in sharded.modules() if isinstance(m, FullyShardedDataParallel)]
    assert len(parts) == 3  # the two blocks, and the rest
    model.accumulate_steps = 1
    loss = step(model, *CASES[0], accelerator)
    loss.backward()
    found[f"{name}, loss with FSDP"] = relative_error(loss.detach(), expected)
    with FullyShardedDataParallel.summon_full_params(sharded, with_grads=True):
        found[f"{name}, gradients with FSDP"] = gradient_error(taken_gradients(sharded), gradients)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found: dict[str, float] = {}
    for name in DIT_CONFIGS:
        found |= errors(folder, name, accelerator)
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # threads of Gloo can outlive Python's own end, which then aborts
