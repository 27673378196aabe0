"""Floating point operations that the arithmetic needs, counted from the token layout.

Needed are: linear layers for the tokens that are real, attention between the pairs that see each
other, and in the last block only what leads to the clip that is predicted. A multiply-add is two
operations. Norms, activations and rotations are not counted, nor what is computed once a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pyramid_dit.flow.temporal_pyramid import history_plan
from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.models.token_layout import PATCH
from video_vae import CausalVideoVAE

STAGES = 3
SPATIAL_FACTOR = 8


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sample at one step."""

    text: int
    frames: tuple[int, ...]
    """Of every frame, oldest first; the last frame is predicted."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.text + sum(self.frames)

    @property
    def pairs(self) -> int:
        """Pairs (query, key) of which the query sees the key: text is as early as frame 0."""
        first, *later = self.frames
        seen = self.text + first
        count = seen * seen
        for tokens in later:
            seen += tokens
            count += tokens * seen
        return count


def unit_tokens(height: int, width: int, *, unit: int, stage: int, text: int) -> Tokens:
    """Tokens of unit `unit` (one latent frame) at `stage`, for a video of the size in pixels."""

    def frame_tokens(level: int) -> int:
        side = SPATIAL_FACTOR * PATCH * 2 ** (STAGES - 1 - level)
        return (height // side) * (width // side)

    frames: list[int] = []
    for clip in history_plan(unit, stage):
        frames += [frame_tokens(clip.stage)] * (clip.stop - clip.start)
    return Tokens(text, (*frames, frame_tokens(stage)))


def step_flops(dit: PyramidFluxTransformer, rows: Sequence[Tokens]) -> float:
    """Operations of one velocity for a batch of samples."""
    config = dit.config
    width = config.num_attention_heads * config.attention_head_dim
    blocks = config.num_layers + config.num_single_layers
    total = 0.0
    for row in rows:
        last = row.frames[-1]
        # Either kind of block has 12 D^2 weights for each token, 2 D^2 of them for keys and values.
        block = 24 * width**2 * row.total + 4 * width * row.pairs
        last_block = 20 * width**2 * last + 4 * width**2 * row.total + 4 * width * last * row.total
        ends = 4 * config.in_channels * width * last
        total += (blocks - 1) * block + last_block + ends
    return total


def baseline_step_flops(dit: PyramidFluxTransformer, rows: Sequence[Tokens]) -> float:
    """Operations of the baseline: each row as `rows`, with its padding, all pairs, all blocks."""
    config = dit.config
    width = config.num_attention_heads * config.attention_head_dim
    blocks = config.num_layers + config.num_single_layers
    total = 0.0
    for row in rows:
        block = 24 * width**2 * row.total + 4 * width * row.total**2
        ends = 4 * config.in_channels * width * (row.total - row.text)
        text = 2 * config.joint_attention_dim * width * row.text
        total += blocks * block + ends + text
    return total


def video_flops(
    dit: PyramidFluxTransformer,
    height: int,
    width: int,
    *,
    temp: int,
    first_steps: Sequence[int],
    later_steps: Sequence[int],
    texts: Sequence[int],
) -> float:
    """Operations of the transformer for a whole video of `temp` latents.

    Args:
        dit: The transformer.
        height: Pixels.
        width: Pixels.
        temp: Latent frames, one per unit.
        first_steps: Steps of each stage in the first unit.
        later_steps: Steps of each stage in the others.
        texts: Real text tokens of each sample of the batch.
    """
    total = 0.0
    for unit in range(temp):
        for stage, count in enumerate(later_steps if unit else first_steps):
            rows = [unit_tokens(height, width, unit=unit, stage=stage, text=n) for n in texts]
            total += count * step_flops(dit, rows)
    return total


def decoder_flops(vae: CausalVideoVAE, frames: int, height: int, width: int) -> float:
    """Operations of decoding `frames` latents of a video of the size in pixels, in one piece."""
    with torch.device("meta"):
        twin = CausalVideoVAE(**{k: v for k, v in vae.config.items() if not k.startswith("_")})
        shape = (height // vae.spatial_factor, width // vae.spatial_factor)
        latents = torch.empty(1, vae.config.decoder_in_channels, frames, *shape)
    # fused attention is not counted on every device, matrix products are
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        twin.decode(latents)
    return float(counter.get_total_flops())
