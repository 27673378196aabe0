"""Captions of moving shapes as a transformer reads them, without a text encoder.

Each of the four attributes is a token. A word's embedding is a fixed random vector, and the empty
prompt is four tokens of zeros; so all texts have one length, and nothing about them is trained but
the transformer's own layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyramid_dit.models.text_condition import TextCondition

from ..toy.moving_shapes import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    NUM_COMBINATIONS,
    SHAPES,
    attributes_of,
)
from ..toy.text import TEXT_DIM

LENGTH = 4
_SEED = 0


def word_table(device: torch.device) -> Tensor:
    """Embeddings of all captions, by the number of the combination: `[504, 4, d]`."""
    words = [*COLORS, *SHAPES, *MOTIONS, *BACKGROUNDS]
    rng = torch.Generator().manual_seed(_SEED)
    vectors = dict(zip(words, torch.randn(len(words), TEXT_DIM, generator=rng), strict=True))
    rows = []
    for number in range(NUM_COMBINATIONS):
        what = attributes_of(number)
        tokens = (what.color, what.shape, what.motion, what.background)
        rows.append(torch.stack([vectors[word] for word in tokens]))
    return torch.stack(rows).to(device)


def condition(table: Tensor, combinations: Tensor, dropped: Tensor | None = None) -> TextCondition:
    """The texts of `combinations` `[b]`, empty where `dropped` `[b]` is true."""
    embeds = table[combinations]
    if dropped is not None:
        embeds = embeds.masked_fill(dropped[:, None, None], 0)
    mask = embeds.new_ones(embeds.shape[:2])
    return TextCondition(embeds, mask, embeds.sum(dim=1) / LENGTH**0.5)


def empty_condition(table: Tensor, count: int) -> TextCondition:
    """`count` empty prompts."""
    numbers = torch.zeros(count, dtype=torch.long, device=table.device)
    return condition(table, numbers, torch.ones_like(numbers, dtype=torch.bool))
