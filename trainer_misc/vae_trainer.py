"""Train the causal video VAE of the default checkpoint on moving shapes.

The recipe goes from single images to clips and from small crops to whole frames. Convolutions
start with all taps of time at zero but the current frame's, so that what was learned on images
holds for clips from the first step (inflation). Three things make the latents easy for a pyramid
of resolutions: noise of a fixed size is added to them, part of them is decoded from halved and
quartered latents, and a penalty keeps their scale near 1.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

from pyramid_dit.generation.latent_codec import to_bytes, to_output
from pyramid_dit.media.figures import evenly_spaced, picture_grid
from video_vae.autoencoder import CausalVideoVAE
from video_vae.blocks import ResnetBlock, SpatialAttention, TemporalUpsample

from .checkpoints import write_folder
from .loop import TrainingLoop
from .loop_config import LoopConfig
from .optimization import Muon, muon_groups
from .runs import run_or_say
from .toy.moving_shapes import MAX_FRAMES, MovingShapes

logger = logging.getLogger(__name__)

TOY_VAE = {
    "encoder_out_channels": 8,
    "encoder_layers_per_block": (1, 1, 1, 1),
    "encoder_block_out_channels": (8, 16, 32, 64),
    "encoder_norm_num_groups": 1,
    "decoder_in_channels": 8,
    "decoder_layers_per_block": (2, 3, 4, 1),
    "decoder_block_out_channels": (16, 16, 32, 64),
    "decoder_norm_num_groups": 1,
    "sample_size": 128,
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the training with one size of clip.

    Attributes:
        name: Folder of the phase.
        frames: Frames of a clip, 8n+1; 1 means images.
        crop: Height and width of the random crops in pixels.
        batch: Clips per step and process.
        steps: Optimizer steps.
        learning_rate: Peak; cosine down to 0.
        coarse: Shares of the samples decoded from latents halved once, twice.
        decoder_only: Leave the encoder as it is, and with it all latents.
        muon: Take Muon for the kernels inside the decoder, AdamW for the rest.
    """

    name: str
    frames: int
    crop: int
    batch: int
    steps: int
    learning_rate: float
    coarse: tuple[float, float] = (0.35, 0.15)
    decoder_only: bool = False
    muon: bool = False


TOY_PHASES = (
    Phase(name="1-crops", frames=1, crop=64, batch=16, steps=1800, learning_rate=2e-3),
    Phase(name="2-clips", frames=9, crop=64, batch=4, steps=500, learning_rate=3e-4),
    Phase(
        name="3-decoder",
        frames=9,
        crop=96,
        batch=2,
        steps=1500,
        learning_rate=2e-4,
        coarse=(0.0, 0.0),
        decoder_only=True,
        muon=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class LatentPrior:
    """What keeps latents small and robust.

    Attributes:
        noise: Standard deviation of the noise added to latents.
        weight: Weight of the mean square of the latents.
    """

    noise: float = 0.1
    weight: float = 2e-4


@torch.no_grad()
def initialize(vae: CausalVideoVAE) -> None:
    """Variance-preserving start: flat colors survive the normalizations, residual branches are 0.

    The random bias of the first convolutions is what tells absolute levels apart after a
    frame-wise normalization.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            for parameter in module.parameters():
                parameter.zero_()
            taps = module.weight[:, :, -1]
            taps.normal_(std=taps[0].numel() ** -0.5)
    for half in (vae.encoder, vae.decoder):
        _, bias = half.conv_in.parameters()
        bias.normal_()
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.conv.weight.zero_()
        elif isinstance(module, SpatialAttention):
            for parameter in module.to_out.parameters():
                parameter.zero_()


@torch.no_grad()
def inflate(vae: CausalVideoVAE) -> None:
    """Give both frames that a temporal up-sampler makes what it learned to make on images."""
    for module in vae.modules():
        if isinstance(module, TemporalUpsample):
            for parameter in module.conv.parameters():
                pairs = parameter.unflatten(0, (-1, 2))
                pairs[:, 0] = pairs[:, 1]


@torch.no_grad()
def fix_posterior(vae: CausalVideoVAE, std: float) -> None:
    """Make the posterior's standard deviation the constant that the training used."""
    channels = vae.config["encoder_out_channels"]
    weight, bias = vae.quant_conv.parameters()
    weight[channels:] = 0.0
    bias[channels:] = 2.0 * float(np.log(std))


def coarsen(latents: Tensor, rng: torch.Generator, shares: tuple[float, float]) -> Tensor:
    """Replace shares of the samples by what is left after halving them once or twice.

    Args:
        latents: [b, c, t, h, w].
        rng: Draws which samples.
        shares: Of the samples halved once, halved twice.
    """
    once, twice = shares
    choice = torch.rand(len(latents), generator=rng)
    frames = latents.transpose(1, 2).flatten(0, 1)

    def blur(factor: int) -> Tensor:
        coarse = F.interpolate(F.avg_pool2d(frames, factor), scale_factor=factor, mode="nearest")
        return coarse.view(latents.transpose(1, 2).shape).transpose(1, 2)

    choice = choice.view(-1, 1, 1, 1, 1).to(latents.device)
    out = torch.where(choice < once + twice, blur(2), latents)
    return torch.where(choice < twice, blur(4), out)


class VaeObjective:
    """Loss of a batch of moving shapes.

    Args:
        vae: The autoencoder, or what accelerate made of it, called as `module(pixels, rng)`.
        phase: Size of the clips.
        seed: Of the data and of the noise.
        rank: Of this process.
        world: Number of processes.
        device: Where to compute.
    """

    def __init__(
        self,
        vae: nn.Module,
        phase: Phase,
        *,
        seed: int,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.vae, self.phase, self.device = vae, phase, device
        self.seed, self.rank, self.world = seed, rank, world
        self.data = MovingShapes(seed=seed, length=1 << 62)

    def __call__(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of batch `number`."""
        pixels = self.draw(number * self.world + self.rank).to(self.device)
        rng = torch.Generator().manual_seed(number * self.world + self.rank)
        error, scale = self.vae(pixels, rng)
        full = error.mean()
        loss = full + LatentPrior.weight * scale
        return loss, {"mse": full.item(), "latent_square": scale.item()}

    def draw(self, number: int) -> Tensor:
        """Crops [b, 3, t, s, s] of the clips of batch `number`."""
        phase = self.phase
        rng = np.random.default_rng((self.seed, number))
        crops = []
        for item in range(phase.batch):
            begin = int(rng.integers(MAX_FRAMES - phase.frames + 1))
            index = number * phase.batch + item
            video = self.data.sample(index, slice(begin, begin + phase.frames))["video"]
            top, left = (int(v) for v in rng.integers(self.data.size - phase.crop + 1, size=2))
            crops.append(video[:, :, top : top + phase.crop, left : left + phase.crop])
        return torch.stack(crops)


class TrainableVae(nn.Module):
    """The autoencoder with its training forward, so that gradients are averaged over processes."""

    def __init__(self, vae: CausalVideoVAE, coarse: tuple[float, float]) -> None:
        super().__init__()
        self.vae, self.coarse = vae, coarse

    def forward(self, pixels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squared error [b] and mean square of the latents of `pixels` [b, 3, t, h, w]."""
        latents = self.vae.encode(pixels).latent_dist.mode()
        scale = latents.square().mean()
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        noisy = latents + LatentPrior.noise * noise
        output = self.vae.decode(coarsen(noisy, rng, self.coarse)).sample
        return (output - pixels).square().mean(dim=(1, 2, 3, 4)), scale


def train_phase(
    vae: CausalVideoVAE, phase: Phase, output: Path, *, seed: int, mixed_precision: str
) -> None:
    """Train `vae` in place through one phase."""
    vae.requires_grad_(True)
    if phase.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trainable = TrainableVae(vae, phase.coarse)
    loop = TrainingLoop(
        LoopConfig(
            output=output,
            steps=phase.steps,
            learning_rate=phase.learning_rate,
            weight_decay=0.0,
            seed=seed,
            mixed_precision=mixed_precision,
            betas=(0.9, 0.99),
            save_every=250,
            sheet_every=250,
        ),
        {"vae": trainable},
        _muon(vae, phase) if phase.muon else None,
    )
    accelerator = loop.accelerator
    objective = VaeObjective(
        loop.modules["vae"],
        phase,
        seed=seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
    )
    loop.run(objective, draw_sheet=functools.partial(reconstruction_sheet, vae, phase.frames))
    loop.adopt_average()


def _muon(vae: CausalVideoVAE, phase: Phase) -> Muon:
    """Muon for the kernels between the decoder's first and last convolution."""
    blocks = (vae.decoder.mid_block, vae.decoder.up_blocks)
    hidden = [p for block in blocks for p in block.parameters() if p.ndim > 1]
    return Muon(muon_groups(hidden, [vae], weight_decay=0.0), phase.learning_rate)


@torch.no_grad()
def reconstruction_sheet(vae: CausalVideoVAE, frames: int, path: Path) -> None:
    """Draw fresh clips above their reconstructions, whole and from halved latents."""
    data = MovingShapes(seed=1_000_003, num_frames=frames)
    rows = []
    for index in range(4):
        video = data[index]["video"].unsqueeze(0).to(vae.device)
        latents = vae.encode(video).latent_dist.mode()
        rng = torch.Generator().manual_seed(0)
        coarse = coarsen(latents, rng, (1.0, 0.0))
        for pixels in (video, vae.decode(latents).sample, vae.decode(coarse).sample):
            (images,) = to_output(to_bytes(pixels), "pil")
            rows.append(evenly_spaced(images, 7))
    picture_grid(rows).save(path, "PNG")


def train_vae(
    output: Path,
    *,
    phases: Sequence[Phase] = TOY_PHASES,
    seed: int = 0,
    mixed_precision: str = "no",
) -> None:
    """Train from nothing through all phases; finished ones are not done again.

    The result is `output/causal_video_vae`, in the released layout.

    Args:
        output: Folder of the run.
        phases: What to train on, one after another.
        seed: Of weights and data.
        mixed_precision: "no", "bf16" or "fp16".
    """
    torch.manual_seed(seed)
    vae = CausalVideoVAE(**TOY_VAE)
    initialize(vae)
    for number, phase in enumerate(phases):
        done = output / phase.name / "causal_video_vae"
        if done.is_dir():
            vae = CausalVideoVAE.from_pretrained(done)
            continue
        if phase.frames > 1 and (number == 0 or phases[number - 1].frames == 1):
            inflate(vae)
        train_phase(
            vae,
            phase,
            output / phase.name,
            seed=seed + number,
            mixed_precision=mixed_precision,
        )
        _write(vae, done)
    fix_posterior(vae, LatentPrior.noise)
    _write(vae, output / "causal_video_vae")


def _write(vae: CausalVideoVAE, folder: Path) -> None:
    """Write the folder once, by the first of the processes."""
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            write_folder(folder, vae.save_pretrained)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_or_say(
        lambda: train_vae(
            options.output, seed=options.seed, mixed_precision=options.mixed_precision
        )
    )


if __name__ == "__main__":
    main()
