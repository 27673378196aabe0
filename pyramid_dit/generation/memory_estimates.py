"""How much memory a step of the transformer takes: estimates."""

from __future__ import annotations

from ..flow.temporal_pyramid import history_plan
from ..models.token_layout import PATCH
from ..models.transformer import PyramidTransformer

# In a single block, per token and in widths: the token, its normalized form, q, k, v, their
# rotated forms, two float32 copies on the way there, the attention's output, the MLP's four,
# and the five that the last linear takes; rounded up.
STEP_WIDTHS = 24


def step_memory(dit: PyramidTransformer, *, tokens: int, batch: int) -> int:
    """Bytes of activations in one step of a transformer without gradients, an estimate.

    Args:
        dit: The transformer, for its width and dtype.
        tokens: Of the video, history included.
        batch: Number of samples.
    """
    config = dit.config
    width = config.num_attention_heads * config.attention_head_dim
    itemsize = dit.dtype.itemsize
    return STEP_WIDTHS * width * itemsize * tokens * batch


def unit_tokens(
    unit: int,
    frames: int,
    *,
    frame_per_unit: int,
    stages: int,
    height: int,
    width: int,
) -> int:
    """Video tokens at the last stage of a unit, history included.

    Args:
        unit: Position of the unit in the video.
        frames: Latent frames of the unit.
        frame_per_unit: Latent frames of every unit but unit 0.
        stages: Number of stages.
        height: Of the latents.
        width: Of the latents.
    """
    past = unit and 1 + (unit - 1) * frame_per_unit
    plan = history_plan(past, stages - 1, frame_per_unit=frame_per_unit)
    area = height * width // PATCH**2
    seen = sum((clip.stop - clip.start) * area // 4 ** (stages - 1 - clip.stage) for clip in plan)
    return area * frames + seen
