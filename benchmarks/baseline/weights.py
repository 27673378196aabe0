"""The parameters of a model by their names in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


class Weights:
    """Parameters as seen from the place of one module.

    Args:
        tensors: What `state_dict()` of the whole model returned.
        prefix: Name of the place, with its dot.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def at(self, name: str) -> Weights:
        """The parameters of the submodule `name`."""
        return Weights(self._tensors, f"{self._prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Apply the linear layer `name` to `x` `[..., in]`."""
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])
