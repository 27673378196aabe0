"""Floating point operations of training, counted by running it once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def training_flops(loss: Callable[[], Tensor]) -> float:
    """Operations of `loss` and of its gradients, a multiply-add counted as two.

    Matrix products and convolutions are counted, those of attention among them; norms, activations
    and the optimizer are not.
    """
    # Fused attention is not counted on every device, matrix products are.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss().backward()
    return float(counter.get_total_flops())
