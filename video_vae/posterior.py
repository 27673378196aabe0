"""The diagonal Gaussian that the encoder predicts."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class DiagonalGaussian:
    """Posterior over latents [b, c, t, h, w].

    Args:
        moments: Mean and log-variance stacked on the channels, [b, 2c, t, h, w]. The log-variance
            is clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        self.parameters = moments
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation, [b, c, t, h, w]."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Draw latents [b, c, t, h, w]; a list of generators has one for each sample."""
        return self.mean + self.std * self.noise(generator)

    def noise(
        self,
        generator: torch.Generator | list[torch.Generator] | None = None,
        frames: int | None = None,
    ) -> Tensor:
        """Standard normal noise [b, c, t, h, w] to draw with, for t or as many `frames`."""
        b, c, t, h, w = self.mean.shape
        shape = (b, c, t if frames is None else frames, h, w)
        return randn_tensor(
            shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )

    def mode(self) -> Tensor:
        """Return the most likely latents, which are the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from the standard normal in nats, summed over t, h, w: [b, c]."""
        divergence = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * divergence.sum(dim=(2, 3, 4))
