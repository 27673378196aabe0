"""Run by torchrun: encode and decode over all ranks, and compare with doing it alone.

Each rank writes `rank<r>.json` into the folder given: the largest difference of each case.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyramid_dit.generation.latent_codec import to_bytes
from video_vae import CausalVideoVAE
from video_vae.context_parallel import decode_over_ranks, encode_over_ranks
from video_vae.discriminator import PatchDiscriminator

CONFIG: dict[str, Any] = {
    "encoder_layers_per_block": [1, 1, 1, 1],
    "encoder_block_out_channels": [4, 4, 8, 8],
    "encoder_norm_num_groups": 2,
    "decoder_layers_per_block": [1, 1, 1, 1],
    "decoder_block_out_channels": [4, 4, 8, 8],
    "decoder_norm_num_groups": 2,
}
SmallDiscriminator = partial(PatchDiscriminator, base_channels=8, num_layers=2)
CASES: list[tuple[int, int | None]] = [
    (1, None), (2, None), (3, None), (4, None), (5, None), (7, None),
    (1, 1), (3, 1), (6, 1), (8, 2), (12, 2),
]  # fmt: skip
"""Latent frames, and the window of a rank."""


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def difference(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    return (got - expected).abs().max().item()


@torch.no_grad()
def differences(vae: CausalVideoVAE) -> dict[str, float]:
    found = {}
    for latents, window in CASES:
        name = f"{latents} latents, window {window}"
        z = random(2, 4, latents, 4, 6)
        x = random(1, 3, 8 * latents - 7, 16, 32)
        decoded = decode_over_ranks(vae, z, window_size=window)
        found[f"decode {name}"] = difference(decoded, vae.decode(z).sample)
        posterior = encode_over_ranks(vae, x, window_size=window and 8 * window)
        expected = vae.encode(x).latent_dist.parameters
        found[f"encode {name}"] = difference(posterior.parameters, expected)
    vae.enable_tiling()
    z, x = random(1, 4, 4, 10, 6), random(1, 3, 25, 48, 64)
    expected = vae.decode(z, tile_sample_min_size=32).sample
    found["decode tiles"] = difference(decode_over_ranks(vae, z, tile_sample_min_size=32), expected)
    expected = vae.encode(x, tile_sample_min_size=32).latent_dist.parameters
    posterior = encode_over_ranks(vae, x, tile_sample_min_size=32)
    found["encode tiles"] = difference(posterior.parameters, expected)
    vae.disable_tiling()
    z, x = random(2, 4, 3, 4, 6), random(2, 3, 17, 16, 32)
    expected, moments = vae.decode(z).sample, vae.encode(x).latent_dist.parameters
    vae.enable_slicing()
    found["decode slices"] = difference(decode_over_ranks(vae, z), expected)
    found["encode slices"] = difference(encode_over_ranks(vae, x).parameters, moments)
    vae.disable_slicing()
    return found


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    vae = CausalVideoVAE(**CONFIG).eval().requires_grad_(False)
    report: dict[str, Any] = {"differences": differences(vae)}

    # bytes, in a group of the last two ranks, whose numbers are not those of all ranks
    group = dist.new_group([ranks - 2, ranks - 1])
    if rank >= ranks - 2:
        z = random(1, 4, 3, 4, 4)
        sent = decode_over_ranks(vae, z, group, finish=lambda video: to_bytes(video).movedim(-1, 1))
        alone = to_bytes(vae.decode(z).sample).movedim(-1, 1)
        assert sent.dtype == torch.uint8
        report["differences"]["bytes"] = difference(sent.float(), alone.float()) / 255

    try:
        decode_over_ranks(vae, random(1, 4, 2 + rank, 4, 4))
    except ValueError as error:
        report["other shapes"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(Path(sys.argv[1]))
