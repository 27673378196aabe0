"""Batches of moving shapes, drawn on the fly, for the trainer of the VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyramid_dit.checks import SEED, Number, Whole

from .moving_shapes import (
    MAX_FRAMES,
    REFERENCE_SIZE,
    MovingShapes,
    random_colors,
    random_outline,
    render,
)


class ShapeBatches:
    """Random crops, in space and time, of clips of moving shapes.

    A batch is ``{"video": float32 [b, 3, frames, crop, crop] in [-1, 1], "kept": bool [b], whether
    the colors are those of the captions, "identifier": "video"}``, a function of its number, the
    seed and the process.

    Args:
        batch_size: Clips in a batch.
        frames: Of a clip, 8n + 1, at most 97; 1 for pictures.
        crop: Height and width in pixels, at most 128.
        any_color: Share of the clips whose colors are drawn from the whole cube.
        any_outline: Share of the clips that show a star of any kind in place of a known shape.
        seed: Of every draw.
        rank: Which process this is.
        world: How many there are, each with batches of its own.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        frames: int,
        crop: int,
        any_color: float = 0.0,
        any_outline: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        Whole(1)("batch_size", batch_size)
        Whole(1, MAX_FRAMES)("frames", frames)
        Whole(8, REFERENCE_SIZE)("crop", crop)
        Number(0, 1)("any_color", any_color)
        Number(0, 1)("any_outline", any_outline)
        SEED("seed", seed)
        Whole(1)("world", world)
        Whole(0, world - 1)("rank", rank)
        self.batch_size, self.frames, self.crop = batch_size, frames, crop
        self.any_color, self.any_outline = any_color, any_outline
        self.seed, self.rank, self.world = seed, rank, world
        self._clips = MovingShapes(seed=seed, length=1 << 62)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The batch of a number."""
        number = number * self.world + self.rank
        source = np.random.default_rng((self.seed, number))
        outlines = np.random.default_rng((self.seed, number, 1))
        videos, kept = [], []
        for item in range(self.batch_size):
            clip = self._clips.clip(number * self.batch_size + item)
            begin = int(source.integers(MAX_FRAMES - self.frames + 1))
            top, left = (int(v) for v in source.integers(clip.size - self.crop + 1, size=2))
            known = source.random() >= self.any_color
            colors = None if known else random_colors(source)
            named = outlines.random() >= self.any_outline
            outline = None if named else random_outline(outlines)
            video = render(clip, range(begin, begin + self.frames), colors, outline)
            videos.append(video[:, :, top : top + self.crop, left : left + self.crop])
            kept.append(known)
        return {
            "video": torch.from_numpy(np.stack(videos)),
            "kept": torch.tensor(kept),
            "identifier": "video",
        }
