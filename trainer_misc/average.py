"""The moving average of the weights (EMA), in float32 whatever the weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .checkpoints import Tensors, full_precision


class MovingAverage:
    """Exponential moving average of parameters, divided among processes as they are.

    Args:
        parameters: What is averaged, by name.
        decay: Largest decay.
        warm_up: Let the decay of update t be at most `1 - (1 + t)^(-2/3)`, so that the start is
            soon forgotten.
        on_cpu: Keep the average in the CPU's memory.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float,
        *,
        warm_up: bool = True,
        on_cpu: bool = False,
    ) -> None:
        self.decay, self.warm_up = decay, warm_up
        self.updates = 0
        self._parameters = dict(parameters)
        self._averages = {
            name: self._copy(p.detach(), on_cpu=on_cpu) for name, p in parameters.items()
        }

    @staticmethod
    def _copy(value: Tensor, *, on_cpu: bool) -> Tensor:
        return value.to("cpu" if on_cpu else value.device, torch.float32, copy=True)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the average."""
        decay = self.decay
        if self.warm_up:
            decay = min(decay, 1 - (1 + self.updates) ** (-2 / 3))
        self.updates += 1
        averages = self._averages
        now = [self._parameters[name].detach().to(a) for name, a in averages.items()]
        if now:
            torch._foreach_lerp_(list(averages.values()), now, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the place of the weights for the time of a `with` block."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.adopt()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self._parameters[name].copy_(value)

    @torch.no_grad()
    def adopt(self) -> None:
        """Put the average in the place of the weights for good."""
        for name, average in self._averages.items():
            self._parameters[name].copy_(average)

    def state(self) -> Tensors:
        """Whole averages by name; all processes have to ask together."""
        return {name: full_precision(average) for name, average in self._averages.items()}

    @torch.no_grad()
    def load(self, tensors: Tensors, updates: int) -> None:
        """Go on from what `state` gave after so many updates.

        Raises:
            ValueError: It is the state of other parameters.
        """
        if tensors.keys() != self._averages.keys():
            odd = sorted(tensors.keys() ^ self._averages.keys())[:3]
            raise ValueError(f"the moving average has other weights: {', '.join(odd)}")
        self.updates = updates
        for name, average in self._averages.items():
            average.copy_(_like(tensors[name], average))


def _like(whole: Tensor, divided: Tensor) -> Tensor:
    """The part of `whole` that this process has of `divided`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(divided, DTensor):
        return whole
    mesh, placements = divided.device_mesh, divided.placements
    return distribute_tensor(whole.to(mesh.device_type), mesh, placements)
