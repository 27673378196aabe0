"""Normalization layers: RMSNorm of heads and the adaptive LayerNorms (AdaLN)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis; statistics in float32."""

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
