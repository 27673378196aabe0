"""`PyramidFluxTransformer`: joint blocks, then single blocks, with a 3-D rotary embedding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from video_vae.single_file import Shapes

from .attention import AttentionContext
from .blocks import JointBlock, SingleBlock
from .rope import axis_rotations, frame_positions, grid_rotations
from .token_layout import PATCH, Grid, patchify
from .transformer import PyramidTransformer

RMS_EPS = 1e-6


class PyramidFluxTransformer(PyramidTransformer):
    """The miniFLUX of Pyramid Flow.

    Args:
        patch_size: kept for released configs; patches are always 2×2.
        in_channels: 4 × latent channels.
        num_layers: joint blocks.
        num_single_layers: single blocks.
        attention_head_dim: channels of a head.
        num_attention_heads: heads; the width is heads × head channels.
        joint_attention_dim: channels of the text states.
        pooled_projection_dim: channels of the pooled text.
        axes_dims_rope: channels of a head that time, height and width own.
        use_flash_attn: kept for released configs; the attention dispatch picks the kernel.
        use_temporal_causal: a frame sees the text, itself and the frames before it.
        interp_condition_pos: coarser clips get the positions of the last clip, resampled.
        use_gradient_checkpointing: recompute activations in training from the start.
        gradient_checkpointing_ratio: share of the blocks, from the first on, that recompute.
        generation_defaults: kept for pipelines, what to do where a caller does not say.
        frame_per_unit: kept for pipelines, latent frames of an autoregressive unit.

    Raises:
        ValueError: dimensions that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 64,
        num_layers: int = 8,
        num_single_layers: int = 16,
        attention_head_dim: int = 64,
        num_attention_heads: int = 30,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        axes_dims_rope: Sequence[int] = (16, 24, 24),
        use_flash_attn: bool = False,
        use_temporal_causal: bool = True,
        interp_condition_pos: bool = True,
        use_gradient_checkpointing: bool = False,
        gradient_checkpointing_ratio: float = 1.0,
        generation_defaults: Mapping[str, Any] | None = None,
        frame_per_unit: int | None = None,
    ) -> None:
        """Make a model with fresh weights."""
        super().__init__()
        if len(axes_dims_rope) != 3 or sum(axes_dims_rope) != attention_head_dim:
            raise ValueError(
                f"axes_dims_rope must be three numbers that add up to attention_head_dim "
                f"{attention_head_dim}, not {list(axes_dims_rope)}"
            )
        if any(dim % 2 for dim in axes_dims_rope):
            raise ValueError(f"axes_dims_rope must be even, not {list(axes_dims_rope)}")
        if in_channels % PATCH**2:
            raise ValueError(f"in_channels must be a multiple of 4, not {in_channels}")
        dim = num_attention_heads * attention_head_dim
        self._make_stem(
            dim=dim,
            text_dim=joint_attention_dim,
            pooled_dim=pooled_projection_dim,
            out_channels=in_channels // PATCH**2,
        )
        self.x_embedder = nn.Linear(in_channels, dim)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(dim, num_attention_heads, eps=RMS_EPS, added_norm="norm_added")
            for _ in range(num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(dim, num_attention_heads, eps=RMS_EPS) for _ in range(num_single_layers)
        )
        self._finish()

    @classmethod
    def _config_of_shapes(cls, shapes: Shapes) -> dict[str, Any]:
        return super()._config_of_shapes(shapes) | {
            "in_channels": shapes["x_embedder.weight"][1],
            "num_single_layers": shapes.number("single_transformer_blocks"),
        }

    def _embed_clip(self, clip: Tensor) -> Tensor:
        return self.x_embedder(patchify(clip))

    def _clip_rotations(self, grid: Grid, first_frame: int, last: Grid) -> Tensor:
        resample = self.config.interp_condition_pos
        positions = (
            frame_positions(first_frame, grid.frames),
            axis_positions(grid.height, last.height if resample else grid.height),
            axis_positions(grid.width, last.width if resample else grid.width),
        )
        pairs = zip(positions, self.config.axes_dims_rope, strict=True)
        return grid_rotations([axis_rotations(p, dim) for p, dim in pairs])

    def _run_blocks(
        self,
        text: Tensor | None,
        video: Tensor,
        conditioning: Tensor,
        context: AttentionContext,
        keep: int | None,
    ) -> Tensor:
        joint, single = self.transformer_blocks, self.single_transformer_blocks
        final = len(joint) + len(single) - 1
        for index, block in enumerate(joint):
            wanted = keep if index == final else None
            text, video = self._run(index, block, video, text, conditioning, context, wanted)
        apart = self.is_cache_enabled  # then the blocks take and give text and video
        if text is not None and not apart and len(single):
            video, text = torch.cat([text, video], dim=1), None
        for index, block in enumerate(single, len(joint)):
            wanted = keep if index == final else None
            output = self._run(index, block, video, text, conditioning, context, wanted)
            text, video = output if apart else (None, output)
        return video


def axis_positions(size: int, reference: int) -> Tensor:
    """Positions of `size` patches that cover the same extent as `reference` patches.

    The ramp 0..reference-1, resampled linearly with the half-pixel convention.
    """
    ramp = torch.arange(reference, dtype=torch.float64, device="cpu")
    if size == reference:
        return ramp
    return F.interpolate(ramp[None, None], size=size, mode="linear", align_corners=False)[0, 0]
