"""`CausalVideoVAE`: video to latents, 8x8 smaller in space and 8x in time, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from .causal_conv import CausalConv3d
from .encoder_decoder import Decoder, Encoder
from .posterior import DiagonalGaussian
from .single_file import FromSingleFile, Shapes
from .temporal_context import Stream, TemporalContext, WholeClip
from .tiling import map_tiles

DOWN_BLOCK, UP_BLOCK = "DownEncoderBlockCausal3D", "UpDecoderBlockCausal3D"


@dataclass
class DecoderOutput(BaseOutput):
    """Output of `CausalVideoVAE.decode`; diffusers' own takes a second to import.

    Attributes:
        sample: Pixels [b, 3, t, h, w].
    """

    sample: Tensor


class CausalVideoVAE(ModelMixin, ConfigMixin, FromSingleFile):
    """A MAGVIT-v2-like causal autoencoder with continuous latents (paper, section 3.3 and app. B).

    A video [b, 3, 8n+1, 8h, 8w] in [-1, 1] becomes latents [b, c, n+1, h, w]. The first frame
    stands alone, so an image is a video of one frame. The arguments are the keys of the released
    `config.json`.

    Args:
        encoder_in_channels: Channels of a picture.
        encoder_out_channels: Channels of the latents.
        encoder_layers_per_block: Resnets of each encoder block.
        encoder_down_block_types: `DownEncoderBlockCausal3D` for each block, the only kind.
        encoder_block_out_channels: Channels of each encoder block.
        encoder_spatial_down_sample: Which encoder blocks halve height and width.
        encoder_temporal_down_sample: Which encoder blocks halve the frames.
        encoder_block_dropout: Dropout of each encoder block.
        encoder_act_fn: `silu`, the only one.
        encoder_norm_num_groups: Groups of the encoder's normalizations.
        encoder_double_z: True: mean and log-variance are predicted.
        encoder_type: `causal_vae_conv`, the only one.
        decoder_in_channels: Channels of the latents.
        decoder_out_channels: Channels of a picture.
        decoder_layers_per_block: Resnets of each decoder block, in the decoder's order.
        decoder_up_block_types: `UpDecoderBlockCausal3D` for each block, the only kind.
        decoder_block_out_channels: Channels of the blocks, in the encoder's order.
        decoder_spatial_up_sample: Which decoder blocks double height and width.
        decoder_temporal_up_sample: Which decoder blocks double the frames.
        decoder_patch_size: Pixels of a side that the decoder's last convolution makes of one
            place, a power of 2; 1 in released models, more in light decoders.
        decoder_block_dropout: Dropout of each decoder block.
        decoder_act_fn: `silu`, the only one.
        decoder_norm_num_groups: Groups of the decoder's normalizations.
        decoder_type: `causal_vae_conv`, the only one.
        sample_size: Extent of the training crops in pixels; informative.
        scaling_factor: Not used by Pyramid Flow, which has statistics of its own; kept for
            released configs.
        add_post_quant_conv: Kept for released configs; the convolution is always there.
        interpolate: Kept for released configs.
        downsample_scale: Pixels of a side that one latent stands for.
        latent_statistics: Kept for pipelines, the normalization of the latents.

    Raises:
        ValueError: If an option has a value that no released model uses.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DownBlock", "UpBlock", "MidBlock"]
    _single_file_prefixes = ("vae.", "first_stage_model.")

    @classmethod
    def _config_of_shapes(cls, shapes: Shapes) -> dict[str, Any]:
        colors = shapes["encoder.conv_in.conv.weight"][1]  # channels of a picture
        config: dict[str, Any] = {
            "encoder_in_channels": colors,
            "encoder_out_channels": shapes["quant_conv.conv.weight"][0] // 2,
            "decoder_in_channels": shapes["post_quant_conv.conv.weight"][0],
            "decoder_out_channels": colors,
            "decoder_patch_size": isqrt(shapes["decoder.conv_out.conv.weight"][0] // colors),
        }
        for half, way in (("encoder", "down"), ("decoder", "up")):
            stem = f"{half}.{way}_blocks"
            blocks = [f"{stem}.{index}" for index in range(shapes.number(stem))]
            kind = DOWN_BLOCK if way == "down" else UP_BLOCK
            channels = [shapes[f"{block}.resnets.0.conv2.conv.weight"][0] for block in blocks]
            config |= {
                f"{half}_{way}_block_types": [kind] * len(blocks),
                f"{half}_layers_per_block": [shapes.number(f"{b}.resnets") for b in blocks],
                f"{half}_block_out_channels": channels[:: 1 if way == "down" else -1],
                f"{half}_block_dropout": [0.0] * len(blocks),
                f"{half}_spatial_{way}_sample": [shapes.has(f"{b}.{way}samplers") for b in blocks],
                f"{half}_temporal_{way}_sample": [
                    shapes.has(f"{b}.temporal_{way}samplers") for b in blocks
                ],
            }
        return config

    @register_to_config
    def __init__(
        self,
        encoder_in_channels: int = 3,
        encoder_out_channels: int = 4,
        encoder_layers_per_block: Sequence[int] = (2, 2, 2, 2),
        encoder_down_block_types: Sequence[str] = (DOWN_BLOCK,) * 4,
        encoder_block_out_channels: Sequence[int] = (128, 256, 512, 512),
        encoder_spatial_down_sample: Sequence[bool] = (True, True, True, False),
        encoder_temporal_down_sample: Sequence[bool] = (True, True, True, False),
        encoder_block_dropout: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        encoder_act_fn: str = "silu",
        encoder_norm_num_groups: int = 32,
        encoder_double_z: bool = True,
        encoder_type: str = "causal_vae_conv",
        decoder_in_channels: int = 4,
        decoder_out_channels: int = 3,
        decoder_layers_per_block: Sequence[int] = (3, 3, 3, 3),
        decoder_up_block_types: Sequence[str] = (UP_BLOCK,) * 4,
        decoder_block_out_channels: Sequence[int] = (128, 256, 512, 512),
        decoder_spatial_up_sample: Sequence[bool] = (True, True, True, False),
        decoder_temporal_up_sample: Sequence[bool] = (True, True, True, False),
        decoder_patch_size: int = 1,
        decoder_block_dropout: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        decoder_act_fn: str = "silu",
        decoder_norm_num_groups: int = 32,
        decoder_type: str = "causal_vae_conv",
        sample_size: int = 256,
        scaling_factor: float = 0.18215,
        add_post_quant_conv: bool = True,
        interpolate: bool = False,
        downsample_scale: int = 8,
        latent_statistics: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        blocks = len(encoder_block_out_channels)
        per_block: tuple[tuple[str, Sequence[Any]], ...] = (
            ("encoder_layers_per_block", encoder_layers_per_block),
            ("encoder_spatial_down_sample", encoder_spatial_down_sample),
            ("encoder_temporal_down_sample", encoder_temporal_down_sample),
            ("encoder_block_dropout", encoder_block_dropout),
            ("decoder_block_out_channels", decoder_block_out_channels),
            ("decoder_layers_per_block", decoder_layers_per_block),
            ("decoder_spatial_up_sample", decoder_spatial_up_sample),
            ("decoder_temporal_up_sample", decoder_temporal_up_sample),
            ("decoder_block_dropout", decoder_block_dropout),
        )
        for name, value in per_block:
            if len(value) != blocks:
                raise ValueError(
                    f"{name} is {list(value)}; {blocks} values are wanted, one per block"
                )
        fixed: tuple[tuple[str, Any, Any], ...] = (
            ("encoder_act_fn", encoder_act_fn, "silu"),
            ("decoder_act_fn", decoder_act_fn, "silu"),
            ("encoder_type", encoder_type, "causal_vae_conv"),
            ("decoder_type", decoder_type, "causal_vae_conv"),
            ("encoder_double_z", encoder_double_z, True),
            ("encoder_down_block_types", set(encoder_down_block_types), {DOWN_BLOCK}),
            ("decoder_up_block_types", set(decoder_up_block_types), {UP_BLOCK}),
        )
        for option, given, only in fixed:
            if given != only:
                raise ValueError(f"{option} is {given!r}; only {only!r} is supported")
        if decoder_patch_size < 1 or decoder_patch_size.bit_count() != 1:
            raise ValueError(f"decoder_patch_size must be a power of 2, got {decoder_patch_size}")
        self.encoder = Encoder(
            encoder_in_channels,
            2 * encoder_out_channels,
            block_channels=encoder_block_out_channels,
            layers=encoder_layers_per_block,
            halve_space=encoder_spatial_down_sample,
            halve_time=encoder_temporal_down_sample,
            groups=encoder_norm_num_groups,
            dropout=encoder_block_dropout,
        )
        self.decoder = Decoder(
            decoder_in_channels,
            decoder_out_channels,
            block_channels=decoder_block_out_channels,
            layers=decoder_layers_per_block,
            double_space=decoder_spatial_up_sample,
            double_time=decoder_temporal_up_sample,
            patch_size=decoder_patch_size,
            groups=decoder_norm_num_groups,
            dropout=decoder_block_dropout,
        )
        self.quant_conv = CausalConv3d(
            2 * encoder_out_channels, 2 * encoder_out_channels, kernel_size=1
        )
        self.post_quant_conv = CausalConv3d(decoder_in_channels, decoder_in_channels, kernel_size=1)
        self.spatial_factor = 2 ** sum(encoder_spatial_down_sample)
        self.temporal_factor = 2 ** sum(encoder_temporal_down_sample)
        self.use_tiling = False
        self.force_tiling = False
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True, *, force: bool = False) -> None:
        """Work in overlapping tiles where a picture exceeds the tile's extent: less memory.

        `encode` and `decode` obey. A pipeline takes it for a permission, and works on whole
        pictures where they fit in the memory that is free: faster, and without seams.

        Args:
            use_tiling: Whether to work in tiles.
            force: A pipeline has to obey too.
        """
        self.use_tiling = use_tiling
        self.force_tiling = use_tiling and force

    def disable_tiling(self) -> None:
        """Work on whole pictures (the default)."""
        self.enable_tiling(False)

    def enable_slicing(self) -> None:
        """Work on one video of a batch at a time: less memory, the same result."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Work on all videos of a batch at once (the default)."""
        self.use_slicing = False

    def map_slices(self, clips: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """`step` of a batch `[b, ...]`: of one video after another with slicing, else of all."""
        if not self.use_slicing or len(clips) < 2:
            return step(clips)
        return torch.cat([step(clip) for clip in clips.split(1)])

    def encode(
        self,
        x: Tensor,
        is_init_image: bool = True,
        temporal_chunk: bool = False,
        window_size: int = 16,
        tile_sample_min_size: int | None = 256,
        *,
        return_dict: bool = True,
    ) -> AutoencoderKLOutput:
        """Encode a video.

        Args:
            x: Pixels [b, 3, t, h, w] in [-1, 1]; h and w are multiples of 8, t is 8n+1 (anything
                where `is_init_image` is False).
            is_init_image: The video starts with a frame that stands alone.
            temporal_chunk: Encode `window_size` frames at a time; the result is the same, in less
                memory.
            window_size: Frames of a chunk, a multiple of 8; the first has one more.
            tile_sample_min_size: Extent of a tile in pixels, where tiling is enabled; None works
                on whole pictures all the same.
            return_dict: False returns a tuple of the one result.

        Returns:
            `.latent_dist`, the posterior over latents [b, c, n+1, h/8, w/8].

        Raises:
            ValueError: If a size does not fit.
        """
        self.check_pixels(x, is_init_image)
        if temporal_chunk:
            self.latent_window(window_size)

        def run(tile: Tensor) -> Tensor:
            return self._run(
                self.encode_chunk, tile, is_init_image, window_size if temporal_chunk else None
            )

        tile = self._tile(x.shape, tile_sample_min_size)

        def whole(clip: Tensor) -> Tensor:
            if tile is None:
                return run(clip)
            return map_tiles(clip, run, tile=tile, out_tile=tile // self.spatial_factor)

        moments = self.map_slices(x, whole)
        output = AutoencoderKLOutput(latent_dist=DiagonalGaussian(moments))
        return output if return_dict else output.to_tuple()

    def decode(
        self,
        z: Tensor,
        is_init_image: bool = True,
        temporal_chunk: bool = False,
        window_size: int = 2,
        tile_sample_min_size: int | None = 256,
        *,
        return_dict: bool = True,
    ) -> DecoderOutput:
        """Decode latents.

        Args:
            z: Latents [b, c, n+1, h, w], not normalized.
            is_init_image: The first latent is a frame that stands alone: it becomes one frame,
                every other latent eight.
            temporal_chunk: Decode `window_size` latents at a time; the result is the same, in less
                memory.
            window_size: Latents of a chunk; the first has one more.
            tile_sample_min_size: Extent of a tile in pixels, where tiling is enabled; None works
                on whole pictures all the same.
            return_dict: False returns a tuple of the one result.

        Returns:
            `.sample`, pixels [b, 3, 8n+1, 8h, 8w] (about [-1, 1], not clamped).

        Raises:
            ValueError: If `z` has the wrong number of axes or channels, or a window or tile does
                not fit.
        """
        self.check_latents(z)

        def run(tile: Tensor) -> Tensor:
            return self._run(
                self.decode_chunk, tile, is_init_image, window_size if temporal_chunk else None
            )

        size = [side * self.spatial_factor for side in z.shape[-2:]]
        tile = self._tile(size, tile_sample_min_size)

        def whole(clip: Tensor) -> Tensor:
            if tile is None:
                return run(clip)
            return map_tiles(clip, run, tile=tile // self.spatial_factor, out_tile=tile)

        output = DecoderOutput(sample=self.map_slices(z, whole))
        return output if return_dict else output.to_tuple()

    def get_last_layer(self) -> Tensor:
        """The weight of the decoder's last convolution, where a GAN's gradients are balanced."""
        return self.decoder.conv_out.conv.weight

    def _tile(self, size: Sequence[int], wanted: int | None) -> int | None:
        """Extent in pixels of the tiles for a picture whose size ends `size`, None for no tiles."""
        if wanted is None:
            return None
        tile = self.tile_extent(wanted)
        return tile if self.use_tiling and max(size[-2:]) > tile else None

    def encode_chunk(self, x: Tensor, context: TemporalContext) -> Tensor:
        """Encode the next frames [b, 3, t, h, w] of the clip that `context` belongs to.

        Returns:
            Moments [b, 2c, t', h/8, w/8].
        """
        x = x.contiguous(memory_format=torch.channels_last_3d)  # the fast layout of convolutions
        return self.quant_conv(self.encoder(x, context), context)

    def decode_chunk(self, z: Tensor, context: TemporalContext) -> Tensor:
        """Decode the next latents [b, c, t, h, w] of the clip that `context` belongs to.

        With a `Stream`, call `context.advance()` after each chunk: so a video can be decoded
        latent by latent as the latents are made.

        Returns:
            Pixels [b, 3, t', 8h, 8w].
        """
        z = z.contiguous(memory_format=torch.channels_last_3d)
        return self.decoder(self.post_quant_conv(z, context), context)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = True,
        generator: torch.Generator | None = None,
        is_init_image: bool = True,
    ) -> tuple[DiagonalGaussian, Tensor]:
        """Encode and decode pixels `sample` [b, 3, t, h, w], for training.

        Returns:
            The posterior, and the reconstruction of a draw from it (of its mean without
            `sample_posterior`), [b, 3, t, h, w].
        """
        posterior = self.encode(sample, is_init_image=is_init_image).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return posterior, self.decode(z, is_init_image=is_init_image).sample

    @staticmethod
    def _run(
        step: Callable[[Tensor, TemporalContext], Tensor],
        clip: Tensor,
        is_init_image: bool,
        window: int | None,
    ) -> Tensor:
        """Run `step` over `clip` whole, or in chunks of `window` frames."""
        if window is None:
            return step(clip, WholeClip(starts_video=is_init_image))
        if window < 1:
            raise ValueError(f"window_size is {window}; it must be at least 1")
        stream = Stream(starts_video=is_init_image)
        chunks = []
        start, stop = 0, window + int(is_init_image)
        while start < clip.shape[2]:
            chunks.append(step(clip[:, :, start:stop], stream))
            stream.advance()
            start, stop = stop, stop + window
        return torch.cat(chunks, dim=2)

    # ---- checks of what is handed in ------------------------------------------------------

    def tile_extent(self, tile_sample_min_size: int) -> int:
        """The extent of a tile in pixels, of which a quarter must be a whole number of latents.

        Raises:
            ValueError: It is not.
        """
        quarter = 4 * self.spatial_factor
        if tile_sample_min_size < quarter or tile_sample_min_size % quarter:
            raise ValueError(
                f"tile_sample_min_size is {tile_sample_min_size}; "
                f"it must be a positive multiple of {quarter}"
            )
        return tile_sample_min_size

    def latent_window(self, window_size: int) -> int:
        """Latents that a window of `window_size` frames is.

        Raises:
            ValueError: It is no multiple of 8.
        """
        if window_size % self.temporal_factor:
            raise ValueError(
                f"window_size is {window_size}; it must be a multiple of {self.temporal_factor}"
            )
        return window_size // self.temporal_factor

    def check_pixels(self, x: Tensor, is_init_image: bool = True) -> None:
        """Check the shape of a video that is to be encoded.

        Raises:
            ValueError: It does not fit.
        """
        channels = self.config["encoder_in_channels"]
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(
                f"the video has shape {list(x.shape)}; [batch, {channels}, frames, height, width] "
                "is wanted"
            )
        frames, height, width = x.shape[2:]
        if height % self.spatial_factor or width % self.spatial_factor:
            raise ValueError(
                f"the video is {height}x{width} pixels; height and width must be multiples of "
                f"{self.spatial_factor}"
            )
        if frames < 1 or (is_init_image and (frames - 1) % self.temporal_factor):
            raise ValueError(f"the video has {frames} frames; {self.temporal_factor}n+1 are wanted")

    def check_latents(self, z: Tensor) -> None:
        """Check the shape of latents that are to be decoded.

        Raises:
            ValueError: It does not fit.
        """
        channels = self.config["decoder_in_channels"]
        if z.ndim != 5 or z.shape[1] != channels or not z.numel():
            raise ValueError(
                f"latents have shape {list(z.shape)}; [batch, {channels}, frames, height, width] "
                "is wanted"
            )
