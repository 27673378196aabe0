"""The spatial pyramid of latents and of noise (section 3.2 of arXiv 2410.05954).

Everything works on video latents `[b, c, t, h, w]`; frames are independent of each other, so a
slice in time commutes with every function here. No function modifies its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Generators: TypeAlias = torch.Generator | list[torch.Generator]
"""Sources of random numbers as diffusers takes them: one for all samples or one for each."""


def halve_latents(x: Tensor) -> Tensor:
    """Halve height and width: `[b, c, t, h, w]` -> `[b, c, t, h/2, w/2]`, bilinear, no antialias.

    Raises:
        ValueError: `x` is not 5-D, or its height or width is odd.
    """
    height, width = _video_size(x)
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even to be halved, got {height}x{width}")
    return _resize(x, height // 2, width // 2, mode="bilinear")


def halve_noise(x: Tensor) -> Tensor:
    """Halve white noise `[b, c, t, h, w]` in space and keep its variance.

    Each result is the mean of four independent values, whose standard deviation is half of
    theirs, hence the factor 2.

    Raises:
        ValueError: `x` is not 5-D, or its height or width is odd.
    """
    return 2.0 * halve_latents(x)


def upsample_nearest(x: Tensor) -> Tensor:
    """Double height and width, each value repeated over a 2x2 block (`Up` of the paper).

    Raises:
        ValueError: `x` is not 5-D.
    """
    height, width = _video_size(x)
    return _resize(x, 2 * height, 2 * width, mode="nearest")


def latent_pyramid(x: Tensor, stages: int) -> list[Tensor]:
    """Clean latents `[b, c, t, h, w]` at the `stages` resolutions, lowest first, `x` itself last.

    Raises:
        ValueError: `stages` is below 1, or the size does not survive `stages - 1` halvings.
    """
    return _pyramid(x, stages, halve_latents)


def noise_pyramid(x: Tensor, stages: int) -> list[Tensor]:
    """White noise `[b, c, t, h, w]` at the `stages` resolutions, lowest first, `x` itself last.

    Raises:
        ValueError: `stages` is below 1, or the size does not survive `stages - 1` halvings.
    """
    return _pyramid(x, stages, halve_noise)


def _pyramid(x: Tensor, stages: int, halve: Callable[[Tensor], Tensor]) -> list[Tensor]:
    if stages < 1:
        raise ValueError(f"stages must be at least 1, got {stages}")
    levels = [x]
    for _ in range(stages - 1):
        levels.insert(0, halve(levels[0]))
    return levels


def _video_size(x: Tensor) -> tuple[int, int]:
    if x.ndim != 5:
        raise ValueError(f"expected latents [b, c, t, h, w], got shape {tuple(x.shape)}")
    return x.shape[3], x.shape[4]


def _resize(x: Tensor, height: int, width: int, *, mode: str) -> Tensor:
    frames = x.flatten(1, 2)  # each frame of each channel is an image of its own
    return F.interpolate(frames, size=(height, width), mode=mode).unflatten(1, x.shape[1:3])


Statistic = float | Sequence[float]


@dataclass(frozen=True)
class FrameStatistics:
    """Normalization `(z - shift) * scale` of one kind of frame, for all channels or for each."""

    shift: Statistic = 0.0
    scale: Statistic = 1.0

    def normalize(self, z: Tensor) -> Tensor:
        """VAE latents `[b, c, t, h, w]` to model latents."""
        return (z - _column(self.shift, z)) * _column(self.scale, z)

    def denormalize(self, x: Tensor) -> Tensor:
        """Model latents `[b, c, t, h, w]` to VAE latents."""
        return x / _column(self.scale, x) + _column(self.shift, x)


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of the first latent frame and of the later ones."""

    first_frame: FrameStatistics
    later_frames: FrameStatistics

    def normalize(self, z: Tensor) -> Tensor:
        """VAE latents `[b, c, t, h, w]`, frame 0 the start of the video, to model latents."""
        first, later = z[:, :, :1], z[:, :, 1:]
        parts = [self.first_frame.normalize(first), self.later_frames.normalize(later)]
        return torch.cat(parts, dim=2)

    def denormalize(self, x: Tensor) -> Tensor:
        """Model latents `[b, c, t, h, w]` back to VAE latents."""
        first, later = x[:, :, :1], x[:, :, 1:]
        parts = [self.first_frame.denormalize(first), self.later_frames.denormalize(later)]
        return torch.cat(parts, dim=2)


def _column(statistic: Statistic, latents: Tensor) -> Tensor:
    """`statistic` to be broadcast against `latents` `[b, c, t, h, w]`."""
    values = torch.as_tensor(statistic, dtype=latents.dtype, device=latents.device)
    if values.ndim and values.shape != (latents.shape[1],):
        raise ValueError(
            f"latent statistics of {values.numel()} channels for latents of {latents.shape[1]}"
        )
    return values.view(-1, 1, 1, 1)
