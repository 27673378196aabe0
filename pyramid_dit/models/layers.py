"""Layers of both transformers: norms, the residual stream, embeddings.

Where the weights are float16, whose largest number is 65504, the residual stream is kept in
float32: trained transformers have channels that grow beyond it. So what is added to it is computed
without being float16 in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn

from .token_layout import PATCH, Grid

LAYER_NORM_EPS = 1e-6
SCALE = 64.0
"""A power of two, so that scaling by it is exact but for the smallest numbers."""
SINUSOID_WIDTH = 256


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis; statistics in float32.

    `nn.RMSNorm` is the same up to rounding, not to the bit.
    """

    def __init__(self, dim: int, eps: float) -> None:
        """Make a norm over `dim` channels with unit weights."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` `[..., dim]`; the result keeps its dtype."""
        wide = x.float()
        power = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
        return (wide * torch.rsqrt(power + self.eps) * self.weight).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x)·(1 + scale) + shift; `x` `[B, L, D]`, the modulations `[B, 1, D]` and the result alike.

    The residual stream may be wider than what the layers compute in.
    """
    normed = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
    return torch.addcmul(shift, normed, 1 + scale).to(shift.dtype)


class AdaLayerNorm(nn.Module):
    """The modulations of a block, from the conditioning: a linear and a split.

    The order of the chunks is the caller's affair, for it differs between the kinds of norm.
    """

    def __init__(self, dim: int, num_chunks: int) -> None:
        """Make the linear dim → num_chunks·dim."""
        super().__init__()
        self.num_chunks = num_chunks
        self.linear = nn.Linear(dim, num_chunks * dim)

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        """Split the projection of SiLU(temb) `[B, D]` into `num_chunks` tensors `[B, 1, D]`."""
        return self.linear(conditioning)[:, None].chunk(self.num_chunks, dim=-1)


class AdaLayerNormContinuous(nn.Module):
    """LayerNorm with a scale and a shift from the conditioning (scale first in the weights)."""

    def __init__(self, dim: int) -> None:
        """Make the linear dim → 2·dim."""
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Modulate `x` `[B, L, D]` by SiLU(temb) `[B, D]`."""
        scale, shift = self.linear(conditioning)[:, None].chunk(2, dim=-1)
        return modulate(x, shift, scale)


def residual_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the residual stream of a transformer that computes in `dtype`."""
    return torch.float32 if dtype == torch.float16 else dtype


class ResidualLinear(nn.Linear):
    """A linear whose result is added to the residual stream; from float16 to float32.

    The product is computed of the input divided by 64, so that it may reach four million.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` → `[..., out]`, in the residual stream's dtype."""
        if self.weight.dtype != torch.float16:
            return super().forward(x)
        product = F.linear(x / SCALE, self.weight).float() * SCALE
        return product if self.bias is None else product + self.bias


def timestep_sinusoid(timestep: Tensor, width: int = SINUSOID_WIDTH) -> Tensor:
    """Cosines, then sines, of t·exp(-ln(10000)·i / (width/2)); `[B]` → float32 `[B, width]`."""
    return get_timestep_embedding(timestep, width, flip_sin_to_cos=True, downscale_freq_shift=0)


class TimestepTextEmbedding(nn.Module):
    """The two parts of temb = MLP(sinusoid(timestep)) + MLP(pooled text)."""

    def __init__(self, dim: int, pooled_dim: int) -> None:
        """Make both MLPs."""
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(SINUSOID_WIDTH, dim)
        self.text_embedder = TimestepEmbedding(pooled_dim, dim)

    def embed_timestep(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """Timesteps `[B]` (0..1000) → `[B, D]`; the sinusoid is computed in float32."""
        return self.timestep_embedder(timestep_sinusoid(timestep).to(dtype))


def sincos_table(dim: int, size: int, base_size: int) -> Tensor:
    """2-D sin-cos positions of a square grid of patches.

    First half of the channels for the column, second for the row; each half sines, then cosines,
    with frequencies 10000^(-i/(dim/4)). The coordinates are those of a grid of `base_size`,
    stretched over `size` patches.

    Args:
        dim: channels, a multiple of 4.
        size: patches on a side of the table.
        base_size: patches on a side of the nominal sample.

    Returns:
        float32 `[1, size², dim]`.
    """
    quarter = dim // 4
    # float64 on the CPU, for not every default device has it
    frequencies = 10_000 ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    coordinates = torch.arange(size, dtype=torch.float64, device="cpu") * (base_size / size)
    angles = coordinates[:, None] * frequencies
    half = torch.cat([angles.sin(), angles.cos()], dim=-1).float().to(torch.get_default_device())
    columns = half[None, :].expand(size, size, -1)
    rows = half[:, None].expand(size, size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, size * size, dim)


class PatchEmbed3D(nn.Module):
    """2×2 patches of every frame through a convolution, plus a spatial sin-cos table."""

    pos_embed: Tensor

    def __init__(
        self, in_channels: int, dim: int, *, sample_size: int, max_size: int, interpolate: bool
    ) -> None:
        """Make the convolution and the table.

        Args:
            in_channels: latent channels.
            dim: width.
            sample_size: latent pixels on a side of the nominal sample, the unit of the table.
            max_size: patches on a side of the table.
            interpolate: give coarser clips the last clip's positions, resized, instead of their
                own crop of the table.
        """
        super().__init__()
        self.max_size = max_size
        self.interpolate = interpolate
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=PATCH, stride=PATCH)
        table = sincos_table(dim, max_size, sample_size // PATCH)
        self.register_buffer("pos_embed", table, persistent=True)

    def positions(self, grid: Grid, last: Grid) -> Tensor:
        """Positions `[1, t·h·w, D]` of a clip's grid, beside a last clip of grid `last`."""
        source = last if self.interpolate else grid
        if max(source.height, source.width) > self.max_size:
            raise ValueError(
                f"a clip of {source.height}×{source.width} patches is larger than "
                f"pos_embed_max_size {self.max_size}"
            )
        top = (self.max_size - source.height) // 2
        left = (self.max_size - source.width) // 2
        table = self.pos_embed.unflatten(1, (self.max_size, self.max_size))
        crop = table[:, top : top + source.height, left : left + source.width]
        if (source.height, source.width) != (grid.height, grid.width):
            size = (grid.height, grid.width)
            planes = crop.permute(0, 3, 1, 2).float()
            resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
            crop = resized.permute(0, 2, 3, 1).to(table.dtype)
        return crop.flatten(1, 2).repeat(1, grid.frames, 1)

    def forward(self, clip: Tensor) -> Tensor:
        """Clip `[b, C, t, h, w]` → tokens `[b, t·h/2·w/2, D]`, without positions."""
        b, _, t, _, _ = clip.shape
        frames = self.proj(clip.transpose(1, 2).flatten(0, 1))  # [(b t), D, h/2, w/2]
        return frames.flatten(2).transpose(1, 2).unflatten(0, (b, t)).flatten(1, 2)
