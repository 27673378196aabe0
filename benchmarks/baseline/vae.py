"""Decoding in the reference's low-memory way: tiles of 256 pixels, one latent at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_vae import CausalVideoVAE
from video_vae.tiling import map_tiles

from .weights import Weights

NORM_EPS = 1e-6
TILE = 256
"""Extent of a tile in pixels."""


class BaselineDecoder:
    """The decoder of a `CausalVideoVAE` in the reference's way.

    Args:
        vae: Whose parameters are used, as they are at the time.
    """

    def __init__(self, vae: CausalVideoVAE) -> None:
        self.weights = Weights(vae.state_dict())
        self.config = vae.config
        self.spatial_factor = vae.spatial_factor

    def decode(self, z: Tensor) -> Tensor:
        """Latents `[b, c, n+1, h, w]` to pixels `[b, 3, 8n+1, 8h, 8w]`."""
        tile = TILE // self.spatial_factor
        if max(z.shape[-2:]) > tile:
            return map_tiles(z, self._decode_tile, tile=tile, out_tile=TILE)
        return self._decode_tile(z)

    def _decode_tile(self, z: Tensor) -> Tensor:
        carried: dict[str, Tensor] = {}
        frames = [self._decode_chunk(z[:, :, :2], carried, first=True)]
        for index in range(2, z.shape[2]):
            frames.append(self._decode_chunk(z[:, :, index : index + 1], carried, first=False))
        return torch.cat(frames, dim=2)

    def _decode_chunk(self, z: Tensor, carried: dict[str, Tensor], *, first: bool) -> Tensor:
        z = self._conv("post_quant_conv", z, carried)
        z = self._conv("decoder.conv_in", z, carried)
        z = self._resnet("decoder.mid_block.resnets.0", z, carried)
        z = self._attention("decoder.mid_block.attentions.0", z)
        z = self._resnet("decoder.mid_block.resnets.1", z, carried)
        for index, layers in enumerate(self.config.decoder_layers_per_block):
            block = f"decoder.up_blocks.{index}"
            for layer in range(layers):
                z = self._resnet(f"{block}.resnets.{layer}", z, carried)
            if self.config.decoder_spatial_up_sample[index]:
                z = self._conv(f"{block}.upsamplers.0.conv", z, carried)
                z = rearrange(z, "b (c p1 p2) t h w -> b c t (h p1) (w p2)", p1=2, p2=2)
            if self.config.decoder_temporal_up_sample[index]:
                z = self._conv(f"{block}.temporal_upsamplers.0.conv", z, carried)
                z = rearrange(z, "b (c p) t h w -> b c (t p) h w", p=2)
                z = z[:, :, 1:] if first else z
        z = F.silu(self._norm("decoder.conv_norm_out", z))
        return self._conv("decoder.conv_out", z, carried)

    def _conv(self, name: str, x: Tensor, carried: dict[str, Tensor]) -> Tensor:
        weights = self.weights.at(f"{name}.conv")
        if weights["weight"].shape[2] == 1:
            return F.conv3d(x, weights["weight"], weights["bias"])
        before = carried.get(name)
        x = F.pad(x, (0, 0, 0, 0, 2, 0)) if before is None else torch.cat([before, x], dim=2)
        carried[name] = x[:, :, -2:].clone()
        return F.conv3d(x, weights["weight"], weights["bias"], padding=(0, 1, 1))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weights = self.weights.at(name)
        images = rearrange(x, "b c t h w -> (b t) c h w")
        groups = self.config.decoder_norm_num_groups
        images = F.group_norm(images, groups, weights["weight"], weights["bias"], NORM_EPS)
        return rearrange(images, "(b t) c h w -> b c t h w", b=len(x))

    def _resnet(self, name: str, x: Tensor, carried: dict[str, Tensor]) -> Tensor:
        residual = self._conv(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", x)), carried)
        residual = F.silu(self._norm(f"{name}.norm2", residual))
        residual = self._conv(f"{name}.conv2", residual, carried)
        if f"{name}.conv_shortcut.conv.weight" in self.weights:
            x = self._conv(f"{name}.conv_shortcut", x, carried)
        return x + residual

    def _attention(self, name: str, x: Tensor) -> Tensor:
        weights = self.weights.at(name)
        b, _, _, h, w = x.shape
        places = rearrange(self._norm(f"{name}.group_norm", x), "b c t h w -> (b t) 1 (h w) c")
        q, k, v = (weights.linear(f"to_{n}", places) for n in "qkv")
        mixed = weights.linear("to_out.0", F.scaled_dot_product_attention(q, k, v))
        return x + rearrange(mixed, "(b t) 1 (h w) c -> b c t h w", b=b, h=h, w=w)
