"""Causal 3-D convolution and frame-wise group normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .temporal_context import TemporalContext


class _Conv3d(nn.Conv3d):
    """A convolution that spares a lone frame the taps that would meet only zeros."""

    def forward(self, frames: Tensor, *, alone: bool = False) -> Tensor:
        """Convolve `frames` [b, c, t, h, w]; `alone`: the last one, after nothing but zeros."""
        if not alone:
            return super().forward(frames)
        taps = self.weight[:, :, -1]
        out = F.conv2d(frames[:, :, -1], taps, self.bias, self.stride[1:], self.padding[1:])
        return out.unsqueeze(2)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # PyTorch takes a naive loop for a small batch of one on a CPU, forward and backward.
        # oneDNN called by name is 5x faster, but PyTorch's backward of it is the naive one.
        if (
            len(input) == 1
            and input.device.type == "cpu"
            and input.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
            and not torch.is_autocast_enabled("cpu")
        ):
            if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
                return self._as_two(input, weight, bias)
            return torch.ops.aten.mkldnn_convolution(
                input, weight, bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super()._conv_forward(input, weight, bias)

    def _as_two(self, clip: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve the halves of `clip` [1, c, t, h, w] as a batch of two, which is not naive."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        frames = (clip.shape[2] - kernel) // stride + 1
        half = (frames + 1) // 2
        start, length = half * stride, (half - 1) * stride + kernel
        clip = F.pad(clip, (0, 0, 0, 0, 0, max(0, start + length - clip.shape[2])))
        halves = torch.cat([clip[:, :, :length], clip[:, :, start : start + length]])
        first, second = super()._conv_forward(halves, weight, bias).split(1)
        return torch.cat([first, second[:, :, : frames - half]], dim=2)


class CausalConv3d(nn.Module):
    """A 3-D convolution that sees the current frame and earlier ones only.

    Time is extended in front by the context's frames, space by zeros on each side; with kernel 3 a
    clip [b, c, t, h, w] becomes [b, c', ceil(t / s_t), ceil(h / s_h), ceil(w / s_w)].

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Extent in time, height and width, 3 or 1.
        stride: Steps in time, height and width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.conv = _Conv3d(
            in_channels, out_channels, kernel_size, stride=stride, padding=(0, pad, pad)
        )

    def forward(self, frames: Tensor, context: TemporalContext) -> Tensor:
        """Convolve `frames` [b, c, t, h, w]; what came before them is the context's."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        alone = frames.shape[2] == 1 and context.begins(self)
        if kernel > 1 and (context.carries or not alone):
            frames = context.extend(self, frames, kernel=kernel, stride=stride)
        return self.conv(frames, alone=alone)


class FrameGroupNorm(nn.GroupNorm):
    """Group normalization with statistics of each frame alone, so that time stays causal."""

    def forward(self, frames: Tensor) -> Tensor:
        """Normalize `frames` [b, c, t, h, w], each frame by itself."""
        b, c, t, h, w = frames.shape
        images = frames.transpose(1, 2).reshape(b * t, c, h, w)
        return super().forward(images).view(b, t, c, h, w).transpose(1, 2)
