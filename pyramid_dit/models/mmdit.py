"""`PyramidDiffusionMMDiT`: the SD3 kind, joint blocks only, sin-cos in space, rotary in time."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from video_vae.single_file import Shapes

from .attention import AttentionContext
from .blocks import JointBlock
from .layers import PatchEmbed3D
from .rope import axis_rotations, frame_positions
from .token_layout import PATCH, Grid
from .transformer import PyramidTransformer

RMS_EPS = 1e-5


class PyramidDiffusionMMDiT(PyramidTransformer):
    """The SD3-based transformer of Pyramid Flow.

    Args:
        sample_size: latent pixels on a side of the nominal sample, the unit of the positions.
        patch_size: 2.
        in_channels: latent channels.
        num_layers: joint blocks; the last one only reads the text.
        attention_head_dim: channels of a head.
        num_attention_heads: heads; the width is heads × head channels.
        caption_projection_dim: the width again.
        pooled_projection_dim: channels of the pooled text.
        pos_embed_max_size: patches on a side of the position table, the largest clip.
        max_num_frames: kept for released configs; the rotary embedding has no limit.
        qk_norm: "rms_norm".
        pos_embed_type: "sincos".
        temp_pos_embed_type: "rope".
        joint_attention_dim: channels of the text states.
        use_gradient_checkpointing: recompute activations in training from the start.
        use_flash_attn: kept for released configs; the attention dispatch picks the kernel.
        use_temporal_causal: a frame sees the text, itself and the frames before it.
        use_t5_mask: leave padded text out; without it, padding counts as text.
        add_temp_pos_embed: True.
        interp_condition_pos: coarser clips get the positions of the last clip, resized.
        gradient_checkpointing_ratio: share of the blocks, from the first on, that recompute.
        generation_defaults: kept for pipelines, what to do where a caller does not say.
        frame_per_unit: kept for pipelines, latent frames of an autoregressive unit.

    Raises:
        ValueError: options that no released model uses, or dimensions that do not fit.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 24,
        attention_head_dim: int = 64,
        num_attention_heads: int = 24,
        caption_projection_dim: int = 1536,
        pooled_projection_dim: int = 2048,
        pos_embed_max_size: int = 192,
        max_num_frames: int = 200,
        qk_norm: str = "rms_norm",
        pos_embed_type: str = "sincos",
        temp_pos_embed_type: str = "rope",
        joint_attention_dim: int = 4096,
        use_gradient_checkpointing: bool = False,
        use_flash_attn: bool = False,
        use_temporal_causal: bool = True,
        use_t5_mask: bool = True,
        add_temp_pos_embed: bool = True,
        interp_condition_pos: bool = True,
        gradient_checkpointing_ratio: float = 1.0,
        generation_defaults: Mapping[str, Any] | None = None,
        frame_per_unit: int | None = None,
    ) -> None:
        """Make a model with fresh weights."""
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        _require("patch_size", patch_size, PATCH)
        _require("qk_norm", qk_norm, "rms_norm")
        _require("pos_embed_type", pos_embed_type, "sincos")
        _require("temp_pos_embed_type", temp_pos_embed_type, "rope")
        _require("add_temp_pos_embed", add_temp_pos_embed, True)
        _require("caption_projection_dim", caption_projection_dim, dim)
        if dim % 4 or attention_head_dim % 2:
            raise ValueError(
                "attention_head_dim must be even and the width a multiple of 4, not "
                f"{attention_head_dim} and {dim}"
            )
        self._make_stem(
            dim=dim,
            text_dim=joint_attention_dim,
            pooled_dim=pooled_projection_dim,
            out_channels=in_channels,
        )
        self.pos_embed = PatchEmbed3D(
            in_channels,
            dim,
            sample_size=sample_size,
            max_size=pos_embed_max_size,
            interpolate=interp_condition_pos,
        )
        self.transformer_blocks = nn.ModuleList(
            JointBlock(
                dim,
                num_attention_heads,
                eps=RMS_EPS,
                added_norm="norm_add",
                context_pre_only=index == num_layers - 1,
            )
            for index in range(num_layers)
        )
        self._finish()

    @classmethod
    def _config_of_shapes(cls, shapes: Shapes) -> dict[str, Any]:
        return super()._config_of_shapes(shapes) | {
            "in_channels": shapes["pos_embed.proj.weight"][1],
            "caption_projection_dim": shapes["context_embedder.weight"][0],
            "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        }

    def _embed_clip(self, clip: Tensor) -> Tensor:
        return self.pos_embed(clip)

    def _clip_positions(self, grid: Grid, last: Grid) -> Tensor | None:
        return self.pos_embed.positions(grid, last)

    def _clip_rotations(self, grid: Grid, first_frame: int, last: Grid) -> Tensor:
        frames = frame_positions(first_frame, grid.frames)
        rotations = axis_rotations(frames, self.config.attention_head_dim)
        return rotations.repeat_interleave(grid.height * grid.width, dim=0)

    def _run_blocks(
        self,
        text: Tensor | None,
        video: Tensor,
        conditioning: Tensor,
        context: AttentionContext,
        keep: int | None,
    ) -> Tensor:
        # In training the last block makes its text queries all the same: distributed training
        # wants a gradient for every weight.
        final = None if torch.is_grad_enabled() else len(self.transformer_blocks) - 1
        for index, block in enumerate(self.transformer_blocks):
            wanted = keep if index == final else None
            text, video = self._run(index, block, video, text, conditioning, context, wanted)
        return video


def _require(name: str, value: object, supported: object) -> None:
    if value != supported:
        raise ValueError(f"{name} must be {supported!r}, not {value!r}")
