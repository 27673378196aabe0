"""Texts that are encoded once, before the training that uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyramid_dit.models.text_condition import TextCondition

_AT_A_TIME = 64


class EncodedTexts:
    """Texts in the CPU's memory, in the form that a transformer takes.

    Args:
        encoder: The text encoders.
        texts: What is encoded, each text once.
        padded: Whether the transformer reads the padding too.

    Attributes:
        numbers: Number of each text.
        lengths: Tokens of each text, by number.
    """

    @torch.no_grad()
    def __init__(self, encoder: Any, texts: Sequence[str], *, padded: bool = False) -> None:
        unique = list(dict.fromkeys(texts))
        self.numbers = {text: number for number, text in enumerate(unique)}
        parts = [
            TextCondition(*encoder(unique[start : start + _AT_A_TIME], padded=padded)).to(
                torch.device("cpu"), torch.float32
            )
            for start in range(0, len(unique), _AT_A_TIME)
        ]
        every = parts[0]
        for part in parts[1:]:
            every = every.followed_by(part)
        self._every = every
        mask = torch.ones_like if padded else torch.as_tensor
        self.lengths: list[int] = (mask(every.prompt_attention_mask) != 0).sum(dim=1).tolist()

    def rows(self, numbers: Tensor) -> TextCondition:
        """The texts of these numbers, `[b]`."""
        return TextCondition(*(tensor[numbers] for tensor in self._every))

    def of(self, texts: Sequence[str]) -> TextCondition:
        """These texts.

        Raises:
            KeyError: One of them was not encoded.
        """
        return self.rows(torch.tensor([self.numbers[text] for text in texts]))
