"""What a VAE makes of clips that go through it and come back, and how near that is to them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .autoencoder import CausalVideoVAE

WINDOW = 16
"""Frames that the VAE takes at a time."""


@torch.no_grad()
def through_vae(vae: CausalVideoVAE, pixels: Tensor) -> Tensor:
    """Clips `[b, 3, 8n + 1, h, w]` in [-1, 1] as they come back, in the same range and dtype.

    Args:
        vae: It; of the posterior the mean is taken.
        pixels: The clips; sides are multiples of 8.
    """
    back = []
    for clip in pixels.split(1):  # one at a time: decoding takes more than training does
        given = clip.to(vae.device, vae.dtype)
        latents = vae.encode(given, temporal_chunk=True, window_size=WINDOW).latent_dist.mode()
        decoded = vae.decode(latents, temporal_chunk=True, window_size=WINDOW // 8).sample
        back.append(decoded.clamp(-1, 1).to(pixels))
    return torch.cat(back)


def psnr(actual: np.ndarray, expected: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(peak^2 / mean squared error)``.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"shape {actual.shape} is not the expected shape {expected.shape}")
    pairs = zip(actual, expected, strict=True)  # one at a time, for videos are large
    error = float(np.mean([np.mean(np.subtract(a, e, dtype=np.float64) ** 2) for a, e in pairs]))
    return 10 * math.log10(peak**2 / error) if error else math.inf
