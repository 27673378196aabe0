"""The temporal pyramid: at which resolution each past frame is seen (section 3.3 of the paper).

The rule is integers only and written once; sampling and training both ask `history_plan`.
A unit is what one autoregressive round generates: latent frame 0 alone, then `frame_per_unit`
latent frames at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class HistoryClip(NamedTuple):
    """Latent frames `start` (included) to `stop` (excluded), seen at pyramid level `stage`."""

    start: int
    stop: int
    stage: int


def history_plan(
    num_history_frames: int, stage: int, *, frame_per_unit: int = 1
) -> tuple[HistoryClip, ...]:
    """Clips of history for the unit that follows `num_history_frames` latent frames.

    From the newest back: the last unit at the resolution of `stage`, then one unit each at
    `stage - 1`, ..., 1, and all older frames together at stage 0, the lowest resolution.

    Returns:
        The clips, oldest first; together they are frames 0 to `num_history_frames`, each once.

    Raises:
        ValueError: `stage` is negative, `frame_per_unit` is below 1, or `num_history_frames` is
            neither 0 nor 1 plus a multiple of `frame_per_unit`.
    """
    if stage < 0:
        raise ValueError(f"stage must be at least 0, got {stage}")
    if frame_per_unit < 1:
        raise ValueError(f"frame_per_unit must be at least 1, got {frame_per_unit}")
    whole_units = num_history_frames >= 1 and (num_history_frames - 1) % frame_per_unit == 0
    if num_history_frames != 0 and not whole_units:
        raise ValueError(
            f"num_history_frames must be 0 or 1 plus a multiple of {frame_per_unit}, "
            f"got {num_history_frames}"
        )

    newest_first = []
    stop = num_history_frames
    lowest_single = min(stage, 1)
    for level in range(stage, lowest_single - 1, -1):
        if stop == 0:
            break
        start = max(stop - frame_per_unit, 0)  # unit 0 has one frame
        newest_first.append(HistoryClip(start, stop, level))
        stop = start
    if stop > 0:
        newest_first.append(HistoryClip(0, stop, 0))
    return tuple(reversed(newest_first))


def gather_history(pyramid: Sequence[Tensor], plan: Sequence[HistoryClip]) -> list[Tensor]:
    """Views of the clean latents that `plan` names, oldest first.

    Args:
        pyramid: Clean latents `[b, c, t, h_k, w_k]`, lowest resolution first.
        plan: What `history_plan` returned.
    """
    return [pyramid[clip.stage][:, :, clip.start : clip.stop] for clip in plan]
