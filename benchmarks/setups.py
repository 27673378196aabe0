"""Models with random weights, and inputs of the right shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyramid_dit import PyramidFluxTransformer
from pyramid_dit.flow.temporal_pyramid import history_plan
from pyramid_dit.models.text_condition import TextCondition
from video_vae import CausalVideoVAE

from .flops import (
    SPATIAL_FACTOR,
    STAGES,
    Tokens,
    unit_tokens,
)

SIZES = {"384p": (384, 640), "768p": (768, 1280)}
"""Height and width of the released models."""
TINY_SIZES = {"384p": (64, 64), "768p": (64, 128)}
TEXT_LENGTH = 128
TEXT_TOKENS = (48, 60)
"""Real tokens of the negative and of the positive prompt, of `TEXT_LENGTH`."""

REFERENCE_STEPS: dict[str, Any] = {
    "num_inference_steps": [8, 8, 8],
    "video_num_inference_steps": [4, 4, 4],
}
"""Steps that the bundled checkpoint needs with the reference's solver, `euler`."""

FLUX_CONFIGS: dict[str, dict[str, Any]] = {
    "released": {},  # the defaults of the class
    "narrow": {
        "num_layers": 2,
        "num_single_layers": 4,
        "num_attention_heads": 6,
        "joint_attention_dim": 256,
        "pooled_projection_dim": 64,
    },
    "tiny": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 16,
        "axes_dims_rope": [4, 6, 6],
    },
}
VAE_CONFIGS: dict[str, dict[str, Any]] = {
    "released": {
        "encoder_out_channels": 16,
        "decoder_in_channels": 16,
        "decoder_layers_per_block": [3, 3, 3, 3],
    },
    "narrow": {
        "encoder_out_channels": 16,
        "encoder_block_out_channels": [32, 64, 128, 128],
        "decoder_in_channels": 16,
        "decoder_block_out_channels": [32, 64, 128, 128],
        "decoder_layers_per_block": [3, 3, 3, 3],
    },
    "tiny": {
        "encoder_out_channels": 4,
        "encoder_layers_per_block": [1, 1, 1, 1],
        "encoder_block_out_channels": [8, 8, 8, 8],
        "encoder_norm_num_groups": 4,
        "decoder_in_channels": 4,
        "decoder_layers_per_block": [1, 1, 1, 1],
        "decoder_block_out_channels": [8, 8, 8, 8],
        "decoder_norm_num_groups": 4,
    },
}


def random_flux(size: str, device: torch.device, dtype: torch.dtype) -> PyramidFluxTransformer:
    """A transformer of one of `FLUX_CONFIGS`; a fresh model's zeros are random too."""
    return _random(PyramidFluxTransformer, FLUX_CONFIGS[size], device, dtype)


def random_vae(size: str, device: torch.device, dtype: torch.dtype) -> CausalVideoVAE:
    """A VAE of one of `VAE_CONFIGS`."""
    return _random(CausalVideoVAE, VAE_CONFIGS[size], device, dtype)


def _random(
    model_class: type[Any], config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = model_class(**config)
        nn.Module.to(model, dtype)  # diffusers' own warns of the dtype
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class StepInputs:
    """What a velocity is computed from, for a batch of two, negative and positive."""

    history: list[Tensor]
    latents: Tensor
    """The noisy clip, once."""
    text: TextCondition
    timestep: Tensor
    rows: list[Tokens]
    """Real tokens of both samples."""
    padded_rows: list[Tokens]
    """The same with the padding of the text."""

    @property
    def guided_latents(self) -> Tensor:
        """The noisy clip for both samples."""
        return torch.cat([self.latents] * 2)


def step_inputs(
    dit: PyramidFluxTransformer, height: int, width: int, *, unit: int, stage: int = STAGES - 1
) -> StepInputs:
    """Random inputs of a step in unit `unit` of a video of the size in pixels."""
    config, device, dtype = dit.config, dit.device, dit.dtype
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    def clip(batch: int, frames: int, level: int) -> Tensor:
        side = SPATIAL_FACTOR * 2 ** (STAGES - 1 - level)
        return draw(batch, config.in_channels // 4, frames, height // side, width // side)

    mask = torch.zeros(2, TEXT_LENGTH, dtype=torch.long, device=device)
    for row, count in zip(mask, TEXT_TOKENS, strict=True):
        row[:count] = 1
    padded = unit_tokens(height, width, unit=unit, stage=stage, text=TEXT_LENGTH)
    return StepInputs(
        history=[clip(2, c.stop - c.start, c.stage) for c in history_plan(unit, stage)],
        latents=clip(1, 1, stage),
        text=TextCondition(
            draw(2, TEXT_LENGTH, config.joint_attention_dim),
            mask,
            draw(2, config.pooled_projection_dim),
        ),
        timestep=torch.full((2,), 500.0, device=device),
        rows=[Tokens(count, padded.frames) for count in TEXT_TOKENS],
        padded_rows=[padded] * 2,
    )
