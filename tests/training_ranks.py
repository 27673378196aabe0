"""Run by torchrun: a training step with accelerate's DDP against one process that does it all.

Each process writes `rank<r>.json` into the folder given: the largest relative error of each case.
"""

from __future__ import annotations

import json
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
from torch.nn.parallel import DistributedDataParallel

from pyramid_dit import PyramidDiTForVideoGeneration

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


def errors(folder: Path, name: str, accelerator: Accelerator) -> dict[str, float]:
    model = PyramidDiTForVideoGeneration(
        folder / name, "fp32", name, sample_ratios=[1, 2, 1], max_temporal_length=3
    )
    bare = model.dit
    around = accelerator.prepare(bare)
    assert isinstance(around, DistributedDataParallel)
    processes = accelerator.num_processes
    found = {}
    for number, (kind, pyramid) in enumerate(CASES):
        model.dit = around
        assert model.dit is around and model.dtype == torch.float32
        model.dit.train()
        model.accumulate_steps = 1 + number
        loss = step(model, kind, pyramid, accelerator)
        accelerator.backward(loss)
        together = {n: p.grad.clone() for n, p in bare.named_parameters() if p.grad is not None}
        around.zero_grad()

        model.dit = bare
        for rank in range(processes):
            model.accumulate_steps = 1 + number
            place: Any = SimpleNamespace(process_index=rank, num_processes=processes)
            alone = step(model, kind, pyramid, place)
            if rank == accelerator.process_index:
                found[f"{name}, loss {number}"] = relative_error(loss.detach(), alone.detach())
            (alone / processes).backward()
        expected = {n: p.grad for n, p in bare.named_parameters() if p.grad is not None}
        assert together.keys() == expected.keys()
        largest = max(float(g.abs().max()) for g in expected.values())
        found[f"{name}, gradients {number}"] = max(
            float((together[n] - g).abs().max()) / max(float(g.abs().max()), 1e-3 * largest)
            for n, g in expected.items()
        )
        around.zero_grad()

    model.dit = around.eval()
    options = {"height": 64, "width": 64, "temp": 1, "num_inference_steps": 1}
    assert len(model.generate("a red circle", **options)) == 1
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
