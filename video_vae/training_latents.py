"""What training does to latents: noise of a fixed size, coarser ones, those of a former VAE."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .autoencoder import CausalVideoVAE
from .losses import at_least_float32


@torch.no_grad()
def fix_posterior(vae: CausalVideoVAE, std: float) -> None:
    """Make the posterior's standard deviation a constant, and leave it so in training.

    The divergence from the standard normal is then half the squared latents, and a constant.

    Raises:
        ValueError: `std` is not above 0.
    """
    if not std > 0:
        raise ValueError(f"std must be above 0, got {std}")
    channels = vae.config["encoder_out_channels"]
    for parameter, value in zip(
        vae.quant_conv.parameters(), (0.0, 2.0 * math.log(std)), strict=True
    ):
        parameter[channels:] = value
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: _first_rows(gradient, channels))


def coarsen(
    latents: Tensor, shares: tuple[float, float], generator: torch.Generator | None = None
) -> Tensor:
    """Replace shares of the samples by what is left after halving them once or twice.

    So a decoder learns to make pictures of the lower resolutions of a pyramid.

    Args:
        latents: [b, c, t, h, w], h and w multiples of 4.
        shares: Of the samples halved once, halved twice.
        generator: Draws which samples, on the CPU.
    """
    once, twice = shares
    choice = torch.rand(len(latents), generator=generator)
    frames = latents.transpose(1, 2).flatten(0, 1)

    def blur(factor: int) -> Tensor:
        coarse = F.interpolate(F.avg_pool2d(frames, factor), scale_factor=factor, mode="nearest")
        return coarse.view(latents.transpose(1, 2).shape).transpose(1, 2)

    choice = choice.view(-1, 1, 1, 1, 1).to(latents.device)
    out = torch.where(choice < once + twice, blur(2), latents)
    return torch.where(choice < twice, blur(4), out)


def latent_distance(latents: Tensor, former: Tensor, kept: Tensor | None = None) -> Tensor:
    """Mean square distance, scalar, of latents [b, c, t, h, w] from `former` ones.

    Args:
        latents: Of the VAE in training.
        former: Of the one before, of the same pixels.
        kept: [b], which samples count; by default all. Where none does, the distance is 0.
    """
    distance = (
        (at_least_float32(latents) - at_least_float32(former)).square().mean(dim=(1, 2, 3, 4))
    )
    if kept is None:
        return distance.mean()
    share = kept.to(distance)
    return (distance * share).sum() / share.sum().clamp(min=1)


def _first_rows(gradient: Tensor, count: int) -> Tensor:
    """`gradient` with 0 after the first `count` rows."""
    rows = torch.arange(len(gradient), device=gradient.device) < count
    return gradient * rows.view(-1, *[1] * (gradient.ndim - 1))
