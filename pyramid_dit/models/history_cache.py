"""Keys and values of text and history, kept over the Euler steps of a stage (approximate).

The history of a unit is clean and does not change within a stage, and by causality neither text
nor history sees the clip that is being made. Their tokens still change a little from step to
step, through the timestep in the modulations. Whoever accepts that may compute them every n-th
step only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HistoryCache:
    """Keys and values of one stage.

    Args:
        every: Steps from one computation of the history to the next; 1 computes it at each step.
        last_tokens: Tokens of the last clip, which are always computed.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, *, every: int, last_tokens: int) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.last_tokens = last_tokens
        self.reusing = False
        self._step = 0
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def begin_step(self) -> None:
        """Decide for the step that begins whether what is kept will serve (`reusing`)."""
        self.reusing = self._step % self.every != 0
        self._step += 1

    def complete(self, attention: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens `[B, L, H, D]`.

        Args:
            attention: Whose keys and values they are.
            k: Keys of the last clip where the cache is `reusing`, else of all tokens.
            v: Values of the same tokens.
        """
        if self.reusing:
            past_k, past_v = self._kept[attention]
            return torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
        past = k.shape[1] - self.last_tokens
        # Copies, lest the keys of the last clip stay alive too.
        self._kept[attention] = (k[:, :past].clone(), v[:, :past].clone())
        return k, v
