"""Embeddings of timestep, pooled text, and (MMDiT) patches with their sin-cos positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .token_layout import PATCH, Grid

SINUSOID_WIDTH = 256


def timestep_sinusoid(timestep: Tensor, width: int = SINUSOID_WIDTH) -> Tensor:
    """Cosines, then sines, of t·exp(-ln(10000)·i / (width/2)); `[B]` → float32 `[B, width]`."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class EmbedderMLP(nn.Module):
    """Linear → SiLU → Linear."""

    def __init__(self, in_dim: int, dim: int) -> None:
        """Make the two linears in_dim → dim → dim."""
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_dim]` → `[B, dim]`."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TimestepTextEmbedding(nn.Module):
    """The two parts of temb = MLP(sinusoid(timestep)) + MLP(pooled text)."""

    def __init__(self, dim: int, pooled_dim: int) -> None:
        """Make both MLPs."""
        super().__init__()
        self.timestep_embedder = EmbedderMLP(SINUSOID_WIDTH, dim)
        self.text_embedder = EmbedderMLP(pooled_dim, dim)

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
