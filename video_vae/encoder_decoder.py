"""The two halves of the causal video VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import (
    NORM_EPS,
    MidBlock,
    ResnetBlock,
    SpatialDownsample,
    SpatialUpsample,
    TemporalDownsample,
    TemporalUpsample,
)
from .causal_conv import CausalConv3d, FrameGroupNorm
from .temporal_context import Stream, TemporalContext

PIECE_VALUES = 2**25
"""Most values that a block of the decoder is handed at a time, if that is more than a frame."""


def piece_frames(values: int) -> int:
    """Frames of `values` values each that a block is handed at a time."""
    return max(1, PIECE_VALUES // values)


class _ResnetStack(nn.Module):
    """The resnets of one resolution; subclasses add what changes the resolution after them."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        if not layers and in_channels != out_channels:
            raise ValueError(
                f"a block of 0 resnets cannot make {out_channels} channels of {in_channels}"
            )
        self.resnets = nn.ModuleList(
            ResnetBlock(
                in_channels if j == 0 else out_channels,
                out_channels,
                groups=groups,
                dropout=dropout,
            )
            for j in range(layers)
        )

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']: resnets, then what changes the resolution."""
        for layers in self._modules.values():  # in order of construction
            for layer in cast(nn.ModuleList, layers):
                x = layer(x, context)
        return x


class DownBlock(_ResnetStack):
    """Resnets, then halve space, then halve time, where asked."""

    def __init__(
        self, in_channels: int, out_channels: int, *, space: bool, time: bool, **resnets: Any
    ) -> None:
        super().__init__(in_channels, out_channels, **resnets)
        if space:
            self.downsamplers = nn.ModuleList([SpatialDownsample(out_channels)])
        if time:
            self.temporal_downsamplers = nn.ModuleList([TemporalDownsample(out_channels)])


class UpBlock(_ResnetStack):
    """Resnets, then double space, then double time, where asked."""

    def __init__(
        self, in_channels: int, out_channels: int, *, space: bool, time: bool, **resnets: Any
    ) -> None:
        super().__init__(in_channels, out_channels, **resnets)
        if space:
            self.upsamplers = nn.ModuleList([SpatialUpsample(out_channels)])
        if time:
            self.temporal_upsamplers = nn.ModuleList([TemporalUpsample(out_channels)])


class _Half(nn.Module):
    """What encoder and decoder share: blocks whose activations may be recomputed in training."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def _run(self, block: nn.Module, x: Tensor, context: TemporalContext) -> Tensor:
        # A stream is changed by the first pass, so that a second one would see another past.
        if self.gradient_checkpointing and torch.is_grad_enabled() and not context.carries:
            return self._gradient_checkpointing_func(block, x, context)
        return block(x, context)


class Encoder(_Half):
    """Pixels [b, in, t, h, w] to features [b, out, t', h', w'].

    Args:
        in_channels: Channels of a picture.
        out_channels: Channels of the result (mean and log-variance together).
        block_channels: Channels of each block, from the full resolution down.
        layers: Resnets of each block.
        halve_space: Whether each block ends by halving height and width.
        halve_time: Whether each block ends by halving the frames after the first.
        groups: Groups of the normalizations.
        dropout: Dropout of each block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        block_channels: Sequence[int],
        layers: Sequence[int],
        halve_space: Sequence[bool],
        halve_time: Sequence[bool],
        groups: int,
        dropout: Sequence[float],
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(in_channels, block_channels[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(
                block_channels[max(i - 1, 0)],
                channels,
                layers=layers[i],
                groups=groups,
                dropout=dropout[i],
                space=halve_space[i],
                time=halve_time[i],
            )
            for i, channels in enumerate(block_channels)
        )
        last = block_channels[-1]
        self.mid_block = MidBlock(last, groups=groups, dropout=dropout[-1])
        self.conv_norm_out = FrameGroupNorm(groups, last, eps=NORM_EPS)
        self.conv_out = CausalConv3d(last, out_channels)

    def forward(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Encode `x` [b, in, t, h, w]."""
        x = self.conv_in(x, context)
        for block in self.down_blocks:
            x = self._run(block, x, context)
        x = self._run(self.mid_block, x, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)), context)


class Decoder(_Half):
    """Latents [b, in, t, h, w] to pixels [b, out, t', h', w'].

    Args:
        in_channels: Channels of the latents.
        out_channels: Channels of a picture.
        block_channels: Channels of each block in the encoder's order, from the full resolution
            down; the decoder goes through them backwards.
        layers: Resnets of each block, in the decoder's own order.
        double_space: Whether each block ends by doubling height and width (decoder's order).
        double_time: Whether each block ends by doubling the frames (decoder's order).
        patch_size: Pixels of a side that the last convolution makes of one place, as channels that
            are turned into space.
        groups: Groups of the normalizations.
        dropout: Dropout of each block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        block_channels: Sequence[int],
        layers: Sequence[int],
        double_space: Sequence[bool],
        double_time: Sequence[bool],
        patch_size: int,
        groups: int,
        dropout: Sequence[float],
    ) -> None:
        super().__init__()
        upwards = list(reversed(block_channels))
        self.conv_in = CausalConv3d(in_channels, upwards[0])
        self.mid_block = MidBlock(upwards[0], groups=groups, dropout=dropout[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(
                upwards[max(i - 1, 0)],
                channels,
                layers=layers[i],
                groups=groups,
                dropout=dropout[i],
                space=double_space[i],
                time=double_time[i],
            )
            for i, channels in enumerate(upwards)
        )
        self.conv_norm_out = FrameGroupNorm(groups, upwards[-1], eps=NORM_EPS)
        self.patch_size = patch_size
        self.conv_out = CausalConv3d(upwards[-1], out_channels * patch_size**2)

    def forward(self, z: Tensor, context: TemporalContext) -> Tensor:
        """Decode `z` [b, in, t, h, w]."""
        z = self.conv_in(z, context)
        z = self._run(self.mid_block, z, context)
        return self._upwards(z, context, 0)

    def _upwards(self, x: Tensor, context: TemporalContext, index: int) -> Tensor:
        """What comes from the block `index` on.

        Blocks make more of each frame the further up they are. Of a stream, which carries over
        what convolutions need of the frames before, a few are taken all the way up at a time: the
        numbers are the same, and only their activations are in memory.
        """
        frames = piece_frames(x[:, :, 0].numel())
        if frames < x.shape[2] and isinstance(context, Stream) and not torch.is_grad_enabled():
            pixels = []
            for piece in x.split(frames, dim=2):
                pixels.append(self._upwards(piece, context, index))
                context.advance()  # what is still to come of this chunk is higher up
            return torch.cat(pixels, dim=2)
        if index < len(self.up_blocks):
            x = self._run(self.up_blocks[index], x, context)
            return self._upwards(x, context, index + 1)
        x = self.conv_out(F.silu(self.conv_norm_out(x)), context)
        p = self.patch_size
        return rearrange(x, "b (c p q) t h w -> b c t (h p) (w q)", p=p, q=p) if p > 1 else x
