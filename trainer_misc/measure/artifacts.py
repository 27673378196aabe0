"""What can be seen in a video without a reference: flicker, and the edges of blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from .similarity import luma

BLOCKS = (8, 16)
"""Sides in pixels of a latent's and of a token's block, whose edges are looked at."""


def flicker(frames: np.ndarray) -> float:
    """How far the luma of a pixel leaves the range of its frame before and after, on average.

    ``mean |x[t] - median(x[t-1], x[t], x[t+1])|`` in levels of 0 to 255. It is 0 where pixels keep
    their brightness or change it in one direction, as when light fades or an edge passes; a pixel
    that alternates between two levels counts with their difference. Detail that moves counts
    too: compare with a reference of the same motion.

    Args:
        frames: Bytes `[t, h, w, 3]`.

    Raises:
        ValueError: There are fewer than three frames.
    """
    if len(frames) < 3:
        raise ValueError(f"flicker takes at least 3 frames, got {len(frames)}")
    bright = luma(frames)
    before, now = next(bright), next(bright)
    values = []
    for after in bright:
        median = torch.stack((before, now, after)).median(0).values
        values.append(float((now - median).abs().mean()))
        before, now = now, after
    return float(np.mean(values))


def block_edges(frames: np.ndarray, side: int) -> float:
    """Energy at the edges of blocks over the energy elsewhere: 1 for none that stand out.

    The mean square of the difference of neighboring pixels, across and down, where the second one
    begins a block, over that of all other neighbors. A video without any differences has 1.

    Args:
        frames: `[t, h, w, c]` of any numbers, such as bytes or latents; blocks begin at the top
            left.
        side: Of a block in pixels.

    Raises:
        ValueError: `side` is below 2, or the frames hold no edge of a block.
    """
    if side < 2 or max(frames.shape[1:3]) <= side:
        height, width = frames.shape[1:3]
        raise ValueError(f"blocks of {side} have no edge in frames of {width}x{height}")
    total, count = np.zeros(2), np.zeros(2)
    for squares in _squares(frames):
        at_edge = np.arange(1, len(squares) + 1) % side == 0
        for kind, rows in enumerate((squares[at_edge], squares[~at_edge])):
            total[kind] += rows.sum()
            count[kind] += rows.size
    edges, elsewhere = (float(value) for value in total / count)
    if elsewhere == 0:
        return math.inf if edges else 1.0
    return edges / elsewhere


def _squares(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Squared differences of neighbors in each frame, down and across, the axis first."""
    for frame in frames:
        values = frame.astype(np.float64)
        for axis in (0, 1):
            yield np.moveaxis(np.diff(values, axis=axis) ** 2, axis, 0)
