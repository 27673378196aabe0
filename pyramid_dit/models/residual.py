"""The residual stream where the weights are float16, whose largest number is 65504.

Trained transformers have channels that grow beyond it. So the stream is kept in float32 there, and
what is added to it is computed without being float16 in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 64.0
"""A power of two, so that scaling by it is exact but for the smallest numbers."""


def residual_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the residual stream of a transformer that computes in `dtype`."""
    return torch.float32 if dtype == torch.float16 else dtype


class ResidualLinear(nn.Linear):
    """A linear whose result is added to the residual stream; from float16 to float32.

    The product is computed of the input divided by 64, so that it may reach four million.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` → `[..., out]`, in the residual stream's dtype."""
        if self.weight.dtype != torch.float16:
            return super().forward(x)
        product = F.linear(x / SCALE, self.weight).float() * SCALE
        return product if self.bias is None else product + self.bias
