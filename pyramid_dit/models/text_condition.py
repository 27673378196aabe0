"""Prompts in the form that a transformer takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_shape


class TextCondition(NamedTuple):
    """Encoded prompts, by the names that arguments give the three tensors."""

    prompt_embeds: Tensor
    """Token embeddings, `[b, L, d]`."""
    prompt_attention_mask: Tensor
    """1 at real tokens, 0 at padding, `[b, L]`."""
    pooled_prompt_embeds: Tensor
    """One vector per prompt, `[b, p]`."""

    @classmethod
    def checked(
        cls, embeds: Tensor | None, mask: Tensor | None, pooled: Tensor | None, *, prefix: str = ""
    ) -> TextCondition | None:
        """The caller's three tensors as one condition, None where none of them is given.

        Args:
            embeds: `<prefix>prompt_embeds`.
            mask: `<prefix>prompt_attention_mask`.
            pooled: `<prefix>pooled_prompt_embeds`.
            prefix: How the arguments' names start, for the messages.

        Raises:
            ValueError: Some are given and some not, or their shapes do not fit each other.
        """
        names = [f"{prefix}{name}" for name in cls._fields]
        if embeds is None and mask is None and pooled is None:
            return None
        if embeds is None or mask is None or pooled is None:
            given = zip(names, (embeds, mask, pooled), strict=True)
            missing = [name for name, tensor in given if tensor is None]
            raise ValueError(f"{', '.join(names)} go together; without {' and '.join(missing)}")
        if embeds.ndim != 3:
            raise ValueError(f"{names[0]} must be [b, L, d], got shape {tuple(embeds.shape)}")
        check_shape(names[1], mask, tuple(embeds.shape[:2]))
        check_shape(names[2], pooled, (embeds.shape[0], pooled.shape[-1]))
        if not mask.bool().any(dim=1).all():
            raise ValueError(f"{names[1]} has a row without a real token")
        return cls(embeds, mask, pooled)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.prompt_embeds.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> TextCondition:
        """On `device`, the embeddings in `dtype`."""
        embeds, mask, pooled = self
        return TextCondition(embeds.to(device, dtype), mask.to(device), pooled.to(device, dtype))

    def repeated(self, count: int) -> TextCondition:
        """Every sample `count` times in a row."""
        if count == 1:
            return self
        return TextCondition(*(tensor.repeat_interleave(count, dim=0) for tensor in self))

    def followed_by(self, other: TextCondition) -> TextCondition:
        """The samples of both in one batch, the shorter text padded."""
        length = max(self.prompt_embeds.shape[1], other.prompt_embeds.shape[1])
        pairs = zip(self._padded(length), other._padded(length), strict=True)
        return TextCondition(*map(torch.cat, pairs))

    def _padded(self, length: int) -> TextCondition:
        embeds, mask, pooled = self
        extra = length - embeds.shape[1]
        return TextCondition(F.pad(embeds, (0, 0, 0, extra)), F.pad(mask, (0, extra)), pooled)
