"""How much memory there is, and how much a step of the transformer takes: estimates."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..flow.temporal_pyramid import history_plan
from ..models.token_layout import PATCH

if TYPE_CHECKING:
    from ..models.transformer import PyramidTransformer

MEMINFO, CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

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


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated on `device`.

    On an accelerator what PyTorch has reserved but not given out counts as free; on the CPU it is
    what the system calls available, within the limit of the control group (version 2) if there is
    one, as in a container.
    """
    if device.type in ("cuda", "xpu"):
        backend = torch.get_device_module(device)
        free, _ = backend.mem_get_info(device)
        idle = backend.memory_reserved(device) - backend.memory_allocated(device)
        return free + idle
    system = min(_available_to_the_system(), _left_to_the_group())
    if device.type == "mps":  # which has a share of the system's memory
        return min(system, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    # of other devices' memory is not told in one way
    return system if device.type == "cpu" else system / 2


def _available_to_the_system() -> int:
    try:
        lines = MEMINFO.read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        # no Linux: all there is, of which the other half is taken to be in use
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_to_the_group() -> float:
    try:
        limit, used = (
            (CONTROL_GROUP / f"memory.{name}").read_text() for name in ("max", "current")
        )
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no group, or its limit is "max"
        return math.inf
