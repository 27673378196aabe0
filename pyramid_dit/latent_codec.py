"""Between pixels and the latents the transformer works on.

The VAE's latents are normalized, `(z - shift) * scale`, with statistics of their own for the
first frame, which the VAE encodes as an image, and for all later ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

    from video_vae import CausalVideoVAE

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


_LATER = FrameStatistics(shift=-0.2343, scale=1 / 3.0986)
RELEASED_STATISTICS = {
    "pyramid_flux": LatentStatistics(FrameStatistics(shift=-0.04, scale=1 / 1.8726), _LATER),
    "pyramid_mmdit": LatentStatistics(FrameStatistics(shift=0.1490, scale=1 / 1.8415), _LATER),
}


def images_to_pixels(images: Sequence[Image]) -> Tensor:
    """RGB images of one size as videos of one frame, `[b, 3, 1, h, w]`, float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return (pixels.float() / 127.5 - 1).permute(0, 3, 1, 2).unsqueeze(2)


def decode_latents(vae: CausalVideoVAE, latents: Tensor, *, save_memory: bool) -> Tensor:
    """Decode VAE latents `[b, c, t, h, w]` to bytes `[b, 8(t-1)+1, 8h, 8w, 3]`.

    With `save_memory` one latent frame at a time and, where tiling is enabled, in tiles of 256
    pixels; else two frames and 512 pixels.
    """
    windows = {"window_size": 1, "tile_sample_min_size": 256}
    if not save_memory:
        windows = {"window_size": 2, "tile_sample_min_size": 512}
    return to_bytes(vae.decode(latents, temporal_chunk=True, **windows).sample)


def to_bytes(video: Tensor) -> Tensor:
    """Pixels `[b, 3, t, h, w]` in [-1, 1] to bytes `[b, t, h, w, 3]`, truncated, not rounded."""
    # a few frames at a time: a long clip in float32 takes gigabytes
    pieces = [
        frames.float().mul(127.5).add_(127.5).clamp_(0, 255).to(torch.uint8)
        for frames in video.split(16, dim=2)
    ]
    return torch.cat(pieces, dim=2).permute(0, 2, 3, 4, 1)


def to_output(video: Tensor, output_type: str) -> list[list[Image]] | np.ndarray | Tensor:
    """Bytes `[b, t, h, w, 3]` as "pil" (one list of images a sample), "np" or "pt".

    Arrays are `[b, t, h, w, 3]` and tensors `[b, t, 3, h, w]`, float32 in [0, 1].
    """
    if output_type == "pt":
        return video.movedim(-1, 2).float() / 255
    frames = video.cpu().numpy()
    if output_type == "np":
        return frames.astype(np.float32) / 255

    from PIL import Image

    return [[Image.fromarray(frame) for frame in sample] for sample in frames]
