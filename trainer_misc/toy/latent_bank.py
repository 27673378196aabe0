"""A bank of latents: the VAE encodes once, the DiT trainer reads many times."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.flow.latents import FrameStatistics, LatentStatistics
from video_vae.autoencoder import CausalVideoVAE

from .moving_shapes import MovingShapes

logger = logging.getLogger(__name__)

IMAGE_SEED, CLIP_SEED = 10_000, 20_000


@dataclass(frozen=True)
class LatentBank:
    """Latents of moving shapes, as the VAE gives them.

    Attributes:
        images: First frames [n, c, 1, h, w].
        image_combinations: What they show, [n].
        clips: Whole clips [m, c, t, h, w].
        clip_combinations: What they show, [m].
    """

    images: Tensor
    image_combinations: Tensor
    clips: Tensor
    clip_combinations: Tensor

    def statistics(self) -> LatentStatistics:
        """Mean and standard deviation of each channel, first frames and later frames apart."""
        return LatentStatistics(
            first_frame=_statistics(self.images), later_frames=_statistics(self.clips[:, :, 1:])
        )

    def save(self, path: Path) -> None:
        """Write all tensors to one safetensors file."""
        temporary = path.with_name(f".{path.name}.tmp")
        save_file({name: t.contiguous() for name, t in vars(self).items()}, temporary)
        temporary.rename(path)

    @classmethod
    def load(cls, path: Path) -> LatentBank:
        """Read what `save` wrote."""
        return cls(**load_file(path))


def _statistics(latents: Tensor) -> FrameStatistics:
    std, mean = torch.std_mean(latents.float(), dim=(0, 2, 3, 4))
    return FrameStatistics(shift=mean.tolist(), scale=(1 / std).tolist())


@torch.no_grad()
def encode_part(
    vae: CausalVideoVAE, count: int, *, frames: int, seed: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Encode `count` clips of `frames` frames: latents [count, c, t, h, w], combinations."""
    data = MovingShapes(seed=seed, num_frames=frames)
    latents, combinations = [], []
    for start in tqdm(range(0, count, batch), desc=f"{frames} frames", mininterval=10):
        items = [data[index] for index in range(start, min(count, start + batch))]
        video = torch.stack([item["video"] for item in items]).to(vae.device)
        z = vae.encode(video, temporal_chunk=frames > 17).latent_dist.mode()
        latents.append(z.half().cpu())
        combinations += [item["combination"] for item in items]
    return torch.cat(latents), torch.tensor(combinations)


def encode_bank(vae: CausalVideoVAE, *, images: int, clips: int, frames: int = 97) -> LatentBank:
    """Encode `images` first frames and `clips` clips of `frames` frames."""
    firsts, image_combinations = encode_part(vae, images, frames=1, seed=IMAGE_SEED, batch=32)
    videos, clip_combinations = encode_part(vae, clips, frames=frames, seed=CLIP_SEED, batch=2)
    return LatentBank(firsts, image_combinations, videos, clip_combinations)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and encode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--images", type=int, default=16_000, help="first frames")
    parser.add_argument("--clips", type=int, default=1_000, help="clips of 97 frames")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    vae = CausalVideoVAE.from_pretrained(options.vae).requires_grad_(False).eval()
    encode_bank(vae, images=options.images, clips=options.clips).save(options.output)


if __name__ == "__main__":
    main()
