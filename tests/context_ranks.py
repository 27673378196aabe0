"""Run by torchrun: the loss of clips whose time the ranks share, against that of one process.

Each rank writes `rank<r>.json` into the folder given: the largest relative difference of each
value and gradient, by case.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from vae_ranks import CONFIG, SmallDiscriminator

from video_vae import CausalVideoVAE, CausalVideoVAELossWrapper
from video_vae.losses import VAELossOutput

CASES = {
    "without a discriminator": {"add_discriminator": False},
    "with one": {"disc_start": 0},
    "frozen encoder": {"disc_start": 0, "freeze_encoder": True},
}
FRAMES = {1: 17, 2: 33, 3: 57}  # of which ranks have 16 or more, not all as many


def new_wrapper(**settings: object) -> CausalVideoVAELossWrapper:
    torch.manual_seed(0)
    wrapper = CausalVideoVAELossWrapper(
        CausalVideoVAE(**CONFIG), load_loss_module=True, kl_weight=1e-3, **settings
    )
    assert wrapper.loss is not None
    if wrapper.loss.discriminator is not None:
        wrapper.loss.discriminator = SmallDiscriminator()
    return wrapper.double().train()


def values(
    wrapper: CausalVideoVAELossWrapper, x: Tensor, group: dist.ProcessGroup | None
) -> dict[str, Tensor]:
    """Figures and gradients."""
    wrapper.zero_grad()
    noise = torch.Generator().manual_seed(5)
    former = torch.zeros(1, wrapper.vae.config["encoder_out_channels"], 1 + x.shape[2] // 8, 3, 4)
    output: VAELossOutput = wrapper(x, 1, generator=noise, group=group, former=former)
    loss = output.loss
    found = {f"log {name}": value for name, value in output.log.items()}
    if output.discriminator_loss is not None:
        loss = loss + output.discriminator_loss
    loss.backward()
    gradients = {n: p.grad for n, p in wrapper.named_parameters() if p.grad is not None}
    return found | gradients


def compare(settings: dict[str, object], group: dist.ProcessGroup, seed: int) -> dict[str, float]:
    ranks = dist.get_world_size(group)
    shape = (1, 3, FRAMES[ranks], 24, 32)
    x = (
        torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
        - 1
    )
    wrapper = new_wrapper(**settings)
    alone = values(wrapper, x, None)
    alone = {name: value.clone() for name, value in alone.items()}
    shared = values(wrapper, x, group)
    assert shared.keys() == alone.keys()
    largest = max(value.abs().max().item() for value in alone.values())
    differences = {}
    for name, value in shared.items():
        dist.all_reduce(value, group=group)
        # Gradients of keys' biases are nothing but rounding: all keys may move alike.
        scale = alone[name].abs().max().clamp(min=1e-5 * largest)
        differences[name] = ((value / ranks - alone[name]).abs().max() / scale).item()
    return differences


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    rank = dist.get_rank()
    group = dist.group.WORLD
    assert group is not None
    report: dict[str, object] = {
        name: compare(settings, group, 3) for name, settings in CASES.items()
    }
    wrapper = new_wrapper(add_discriminator=False)
    for name, frames, identifier in (("short", 25, "video"), ("picture", 33, "image")):
        try:
            wrapper(torch.zeros(1, 3, frames, 16, 16), 0, [identifier], group=group)
        except ValueError as error:
            report[name] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(Path(sys.argv[1]))
