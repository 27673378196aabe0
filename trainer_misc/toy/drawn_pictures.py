"""First frames of moving shapes with their captions, drawn on the fly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pyramid_dit.checks import SEED, Whole

from .moving_shapes import REFERENCE_SIZE, SPLITS, MovingShapes, caption_of


def trained_captions() -> list[str]:
    """All captions that are not held out."""
    return [caption_of(number) for number in SPLITS["train"]]


class DrawnPictures:
    """Batches `{"video": float32 [b, 3, 1, h, w] in [-1, 1], "text": captions}`, by number.

    Args:
        batch_size: Pictures in a batch.
        size: Height and width in pixels.
        seed: Of every draw.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is out of range.
    """

    def __init__(self, batch_size: int, *, size: int = REFERENCE_SIZE, seed: int = 0) -> None:
        Whole(1)("batch_size", batch_size)
        SEED("seed", seed)
        self.batch_size = batch_size
        self._clips = MovingShapes(seed, num_frames=1, size=size, length=1 << 62)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The batch of a number."""
        begin = number * self.batch_size
        items = [self._clips[index] for index in range(begin, begin + self.batch_size)]
        return {
            "video": torch.stack([item["video"] for item in items]),
            "text": [item["text"] for item in items],
            "identifier": "image",
        }

    def texts(self) -> Iterator[str]:
        """All captions that there are."""
        yield from trained_captions()
