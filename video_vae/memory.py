"""How much memory encoding and decoding take, from the shapes alone.

The estimates follow the forward and add up the tensors that are alive at the same time: while a
convolution runs, its input, the same with the frames before in front, its output, a copy of these
two in the layout of the kernel, and what the callers hold (the input of the resnet and of the
block); while a resampler moves channels into space or time, both sides of the copy. To the
largest such sum they add what a stream carries over, two frames of the input of every
convolution. Left out are the weights, the result, and kernels that want yet more; attention is
taken to run without a matrix of scores. Where the decoder takes its frames up in pieces, what is
held below a piece is added to what is above. Values are counted in the dtype given. On the CPU a
process takes what is estimated to within a quarter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .encoder_decoder import piece_frames

CARRIED_FRAMES = 2
"""Frames that a convolution of kernel 3 and stride 1 needs of what came before."""


def decode_memory(
    config: Mapping[str, Any],
    *,
    latents: int,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that `CausalVideoVAE.decode_chunk` takes in the middle of a stream.

    Args:
        config: Of the VAE.
        latents: Latent frames a chunk.
        height: Of a latent frame, or of a tile of it.
        width: The same.
        batch: Number of videos.
        dtype: Of the activations.
    """
    channels = list(reversed(config["decoder_block_out_channels"]))
    walk = _Walk(channels[0], frames=latents, area=height * width)
    walk.convolve(config["decoder_in_channels"], channels[0])
    walk.mid_block()
    for index, layers in enumerate(config["decoder_layers_per_block"]):
        walk.take_pieces(batch)
        walk.block(channels[index], layers)
        if config["decoder_spatial_up_sample"][index]:
            walk.up_sample(4)
            walk.area *= 4
        if config["decoder_temporal_up_sample"][index]:
            walk.up_sample(2)
            walk.frames *= 2
    walk.take_pieces(batch)
    walk.end(config["decoder_out_channels"])
    return batch * dtype.itemsize * (walk.peak + walk.carried)


def encode_memory(
    config: Mapping[str, Any],
    *,
    frames: int,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that `CausalVideoVAE.encode_chunk` takes in the middle of a stream.

    Args:
        config: Of the VAE.
        frames: Frames a chunk.
        height: Of a frame in pixels, or of a tile of it.
        width: The same.
        batch: Number of videos.
        dtype: Of the activations.
    """
    channels: Sequence[int] = config["encoder_block_out_channels"]
    walk = _Walk(channels[0], frames=frames, area=height * width)
    walk.convolve(config["encoder_in_channels"], channels[0])
    for index, layers in enumerate(config["encoder_layers_per_block"]):
        walk.block(channels[index], layers)
        if config["encoder_spatial_down_sample"][index]:
            walk.convolve(walk.channels, walk.channels, shrinks=4)
            walk.area //= 4
        if config["encoder_temporal_down_sample"][index]:
            walk.convolve(walk.channels, walk.channels, shrinks=2)
            walk.frames = -(-walk.frames // 2)
    walk.mid_block()
    walk.end(2 * config["encoder_out_channels"])
    return batch * dtype.itemsize * (walk.peak + walk.carried)


class _Walk:
    """Goes through the layers of an encoder or decoder and counts values, not bytes."""

    def __init__(self, channels: int, *, frames: int, area: int) -> None:
        self.channels, self.frames, self.area = channels, frames, area
        self.peak = 0
        self.carried = 0
        self._block_input = 0
        self._held = 0

    def take_pieces(self, batch: int) -> None:
        """Go on with some of the frames where they are many; the others wait."""
        frames = piece_frames(batch * self.channels * self.area)
        if frames < self.frames:
            self._held += self._values(self.channels)
            self.frames = frames

    def convolve(
        self, in_channels: int, out_channels: int, *, beside: int = 0, shrinks: int = 1
    ) -> None:
        """A causal convolution of kernel 3; tensors of `beside` channels live beside its own."""
        self.carried += CARRIED_FRAMES * in_channels * self.area
        extended = in_channels * (self.frames + CARRIED_FRAMES) * self.area
        out = self._values(out_channels) // shrinks
        self._alive(self._values(beside + in_channels) + 2 * (extended + out))

    def block(self, channels: int, layers: int) -> None:
        """The resnets of a block."""
        block_input, self._block_input = self._values(self.channels), 0
        for _ in range(layers):
            self.convolve(self.channels, channels, beside=self.channels)
            self.convolve(channels, channels, beside=self.channels + channels)
            self.channels, self._block_input = channels, block_input

    def mid_block(self) -> None:
        """Two resnets, and attention: x, its norm, q, k, v, their mixture and its projection."""
        self.block(self.channels, layers=2)
        self._alive(self._values(7 * self.channels))

    def up_sample(self, factor: int) -> None:
        """A convolution to `factor` times the channels, which are copied into space or time."""
        wide = factor * self.channels
        self.convolve(self.channels, wide)
        self._alive(self._values(self.channels + 2 * wide))

    def end(self, out_channels: int) -> None:
        """The last convolution."""
        self._block_input = 0
        self.convolve(self.channels, out_channels, beside=self.channels)

    def _values(self, channels: int) -> int:
        return channels * self.frames * self.area

    def _alive(self, values: int) -> None:
        self.peak = max(self.peak, self._held + self._block_input + values)
