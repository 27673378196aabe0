"""What the encoder and the decoder are built of: resnets, 2x resamplers, the middle block."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .causal_conv import CausalConv3d, FrameGroupNorm
from .temporal_context import TemporalContext

NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, twice, beside a shortcut: [b, c, t, h, w] -> [b, c', t, h, w].

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; where they differ, the shortcut is a 1x1x1 conv.
        groups: Groups of the normalizations.
        dropout: Share of values dropped before the second convolution, 0 to 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = FrameGroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = FrameGroupNorm(groups, out_channels, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = (
            CausalConv3d(in_channels, out_channels, kernel_size=1)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Add the residual branch to `x` [b, c, t, h, w]."""
        residual = self.conv1(F.silu(self.norm1(x)), context)
        residual = self.conv2(self.dropout(F.silu(self.norm2(residual))), context)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x, context)
        return x + residual


class SpatialDownsample(nn.Module):
    """[b, c, t, h, w] -> [b, c, t, h/2, w/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=(1, 2, 2))

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Halve height and width."""
        return self.conv(x, context)


class TemporalDownsample(nn.Module):
    """[b, c, 2t+1, h, w] -> [b, c, t+1, h, w], the first frame by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=(2, 1, 1))

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Halve the number of frames after the first."""
        return self.conv(x, context)


class SpatialUpsample(nn.Module):
    """[b, c, t, h, w] -> [b, c, t, 2h, 2w], channels turned into space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 4 * channels)

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Double height and width."""
        return rearrange(
            self.conv(x, context), "b (c p1 p2) t h w -> b c t (h p1) (w p2)", p1=2, p2=2
        )


class TemporalUpsample(nn.Module):
    """[b, c, t, h, w] -> [b, c, 2t-1, h, w] at the start of a video, 2t frames later on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 2 * channels)

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Double the frames; where a video starts, its first frame stays one frame."""
        x = rearrange(self.conv(x, context), "b (c p) t h w -> b c (t p) h w", p=2)
        return x[:, :, 1:] if context.starts_video else x


class SpatialAttention(nn.Module):
    """Single-head self-attention within each frame, with residual: shape is kept."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.group_norm = FrameGroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the h*w places of each frame of `x` [b, c, t, h, w]."""
        b, _, _, h, w = x.shape
        places = rearrange(self.group_norm(x), "b c t h w -> (b t) 1 (h w) c")
        mixed = F.scaled_dot_product_attention(
            self.to_q(places), self.to_k(places), self.to_v(places)
        )
        mixed = self.to_out[0](mixed)
        return x + rearrange(mixed, "(b t) 1 (h w) c -> b c t h w", b=b, h=h, w=w)


class MidBlock(nn.Module):
    """resnet, attention, resnet at the lowest resolution."""

    def __init__(self, channels: int, *, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups=groups, dropout=dropout) for _ in range(2)
        )
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups=groups)])

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Keep the shape of `x` [b, c, t, h, w]."""
        x = self.resnets[0](x, context)
        x = self.attentions[0](x)
        return self.resnets[1](x, context)
