"""Where the weights of a VAE start, and which of them Muon trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from video_vae.autoencoder import CausalVideoVAE
from video_vae.blocks import ResnetBlock, SpatialAttention, TemporalUpsample

DECODER_SIZES = (
    "decoder_block_out_channels",
    "decoder_layers_per_block",
    "decoder_spatial_up_sample",
    "decoder_temporal_up_sample",
    "decoder_patch_size",
    "decoder_norm_num_groups",
)


def with_new_decoder(vae: CausalVideoVAE, sizes: Mapping[str, Any]) -> CausalVideoVAE:
    """A VAE with the encoder of `vae`, and so with its latents, and a decoder of other sizes.

    What the two decoders have of the same name and shape starts as in `vae`, the rest anew.

    Args:
        vae: Whose encoder it gets.
        sizes: Entries `decoder_*` of the config that replace those of `vae`.

    Raises:
        ValueError: An entry is not one of the decoder's sizes, or has another number of values than
            there are blocks; or the decoder does not make the pixels and frames of the encoder.
    """
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    for name in sizes:
        if name not in DECODER_SIZES:
            allowed = ", ".join(DECODER_SIZES)
            raise ValueError(f"{name} is no size of a decoder; there are {allowed}")
    new = CausalVideoVAE.from_config(config | dict(sizes))
    for name in ("spatial", "temporal"):
        down, up = config[f"encoder_{name}_down_sample"], new.config[f"decoder_{name}_up_sample"]
        patch = new.decoder.patch_size if name == "spatial" else 1
        if 2 ** sum(up) * patch != 2 ** sum(down):
            patches = f", with decoder_patch_size {patch}" if patch > 1 else ""
            raise ValueError(
                f"decoder_{name}_up_sample doubles {sum(up)} times what the encoder halves "
                f"{sum(down)} times{patches}"
            )
    initialize(new)
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    own = {
        name: value for name, value in vae.state_dict().items() if shapes.get(name) == value.shape
    }
    new.load_state_dict(own, strict=False)
    return new


@torch.no_grad()
def initialize(vae: CausalVideoVAE) -> None:
    """Variance-preserving start: flat colors survive the normalizations, residual branches are 0.

    Convolutions start with all taps of time at zero but the current frame's, so that what is
    learned on pictures holds for clips (see `inflate`). The random bias of the first convolutions
    is what tells absolute levels apart after a frame-wise normalization.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            for parameter in module.parameters():
                parameter.zero_()
            taps = module.weight[:, :, -1]
            taps.normal_(std=taps[0].numel() ** -0.5)
    for half in (vae.encoder, vae.decoder):
        _, bias = half.conv_in.parameters()
        bias.normal_()
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.conv.weight.zero_()
        elif isinstance(module, SpatialAttention):
            for parameter in module.to_out.parameters():
                parameter.zero_()


@torch.no_grad()
def inflate(vae: CausalVideoVAE) -> None:
    """Give both frames that a temporal up-sampler makes what it learned to make on pictures."""
    for module in vae.modules():
        if isinstance(module, TemporalUpsample):
            for parameter in module.conv.parameters():
                pairs = parameter.unflatten(0, (-1, 2))
                pairs[:, 0] = pairs[:, 1]


def hidden_kernels(vae: CausalVideoVAE) -> list[nn.Parameter]:
    """Trained matrices and kernels between the first and the last convolution of each half."""
    encoder, decoder = vae.encoder, vae.decoder
    blocks: list[nn.Module] = [encoder.down_blocks, encoder.mid_block]
    blocks += [decoder.mid_block, decoder.up_blocks]
    return [p for block in blocks for p in block.parameters() if p.ndim > 1 and p.requires_grad]
