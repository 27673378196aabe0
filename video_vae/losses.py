"""The training loss of the video VAE: reconstruction, perception, prior and a discriminator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .context_parallel import ClipShare
from .discriminator import PatchDiscriminator
from .lpips import LPIPS

logger = logging.getLogger(__name__)


class Posterior(Protocol):
    """What the loss needs of an encoder's distribution over latents ``[b, c, t, h, w]``."""

    mean: Tensor

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over latent frames and places."""
        ...


class VAELossOutput(NamedTuple):
    """Result of `VideoVAELoss`.

    Attributes:
        loss: Scalar for the optimizer of the VAE and ``logvar``.
        discriminator_loss: Scalar for the optimizer of the discriminator; None before it starts.
            No gradient of one loss reaches the parameters of the other, so that the two may be
            summed for a single backward pass.
        log: Detached scalars by name.
    """

    loss: Tensor
    discriminator_loss: Tensor | None
    log: dict[str, Tensor]


class VideoVAELoss(nn.Module):
    """Loss of a VAE-GAN (Esser et al. 2021, arXiv:2012.09841) with a learned noise level.

    With s = ``logvar``, a learned scalar, the loss is::

        (pixelloss_weight · MSE + perceptual_weight · LPIPS) / exp(s) + s
            + kl_weight · KL + adaptive · hinge loss against the discriminator

    where the last term starts at step ``disc_start`` (see `adaptive_weight`). Frames are judged
    one by one by LPIPS and by the discriminator.

    Args:
        pixelloss_weight: Factor of the mean squared error.
        perceptual_weight: Factor of LPIPS; 0 switches it off.
        kl_weight: Factor of the divergence: summed over time and space, mean over
            samples and channels.
        disc_weight: Factor inside the adaptive weight.
        disc_start: First step with the discriminator.
        add_discriminator: False leaves the discriminator out for good.
        logvar_init: Start of the learned scalar.
        lpips_ckpt: File of the LPIPS weights (``vgg_lpips.pth``). Without it the perceptual term
            is off, and a warning says so.
        in_channels: Channels of a frame.

    Raises:
        ValueError: A weight or ``disc_start`` is negative, or ``lpips_ckpt`` holds other weights.
    """

    def __init__(
        self,
        *,
        pixelloss_weight: float = 10.0,
        perceptual_weight: float = 1.0,
        kl_weight: float = 1e-12,
        disc_weight: float = 0.5,
        disc_start: int = 250_000,
        add_discriminator: bool = True,
        logvar_init: float = 0.0,
        lpips_ckpt: str | PathLike[str] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        for name, value in {
            "pixelloss_weight": pixelloss_weight,
            "perceptual_weight": perceptual_weight,
            "kl_weight": kl_weight,
            "disc_weight": disc_weight,
            "disc_start": disc_start,
        }.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.pixelloss_weight = pixelloss_weight
        self.perceptual_weight = perceptual_weight
        self.kl_weight = kl_weight
        self.disc_weight = disc_weight
        self.disc_start = disc_start
        self.logvar = nn.Parameter(torch.tensor(float(logvar_init)))
        self.perceptual_loss = _load_lpips(lpips_ckpt) if perceptual_weight > 0 else None
        self.discriminator = PatchDiscriminator(in_channels) if add_discriminator else None

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posterior: Posterior,
        *,
        step: int,
        last_layer: Tensor,
        share: ClipShare | None = None,
    ) -> VAELossOutput:
        """Compare ``reconstructions`` with ``inputs``, both ``[b, c, t, h, w]`` in [-1, 1].

        Args:
            inputs: The videos.
            reconstructions: What the decoder made of them.
            posterior: The distribution that the latents were drawn from.
            step: Global step, compared with ``disc_start``.
            last_layer: Weight of the decoder's last layer, where gradients are balanced.
            share: The part of the clips that all this is of; the mean over the ranks of what is
                returned is then what the whole clips give.
        """
        part = 1.0 if share is None else share.weight
        real, fake = _frames(at_least_float32(inputs)), _frames(at_least_float32(reconstructions))
        pixel = part * F.mse_loss(fake, real)
        perceptual = torch.zeros_like(pixel)
        if self.perceptual_loss is not None:
            perceptual = part * self.perceptual_loss(fake, real).mean()
        distortion = self.pixelloss_weight * pixel + self.perceptual_weight * perceptual
        nll = distortion / self.logvar.exp() + part * self.logvar
        kl = at_least_float32(posterior.kl()).sum() / posterior.mean.shape[:2].numel()
        kl = kl if share is None else share.ranks * kl
        loss = nll + self.kl_weight * kl
        log = {"mse": pixel, "lpips": perceptual, "nll": nll, "kl": kl, "logvar": self.logvar}

        discriminator_loss = None
        if self.discriminator is not None and step >= self.disc_start:
            adversarial = part * hinge_generator_loss(_without_gradient(self.discriminator)(fake))
            weight = adaptive_weight(
                *(nll, adversarial, last_layer),
                scale=self.disc_weight,
                mean=None if share is None else share.mean,
            )
            loss = loss + weight * adversarial
            logits_real = self.discriminator(real)
            logits_fake = self.discriminator(fake.detach())
            discriminator_loss = part * hinge_discriminator_loss(logits_real, logits_fake)
            log |= {
                "adversarial": adversarial,
                "adversarial_weight": weight,
                "discriminator": discriminator_loss,
                "logits_real": part * logits_real.mean(),
                "logits_fake": part * logits_fake.mean(),
            }
        log["loss"] = loss
        return VAELossOutput(loss, discriminator_loss, {k: v.detach() for k, v in log.items()})


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """Mean of -D(fake), scalar (Lim & Ye 2017, arXiv:1705.02894)."""
    return -logits_fake.mean()


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Half of mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)), scalar."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def adaptive_weight(
    nll: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    *,
    scale: float,
    limit: float = 1e4,
    mean: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Weight that makes the adversarial gradient ``scale`` times as large as that of ``nll``.

    min(scale · |∇nll| / (|∇adversarial| + 1e-4), limit), the gradients taken at ``last_layer``
    (Esser et al. 2021, eq. 7). Where no gradients are recorded, as in validation, it is 0. Ranks
    that share clips agree on it by the `mean` of their gradients.
    """
    if not nll.requires_grad or not adversarial.requires_grad:
        return torch.zeros_like(nll)
    (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    if mean is not None:
        nll_gradient, adversarial_gradient = mean(nll_gradient), mean(adversarial_gradient)
    ratio = at_least_float32(nll_gradient).norm() / (
        at_least_float32(adversarial_gradient).norm() + 1e-4
    )
    return (scale * ratio).clamp(max=limit).detach()


def _frames(video: Tensor) -> Tensor:
    """Lay out ``[b, c, t, h, w]`` as single frames ``[b·t, c, h, w]``."""
    return video.transpose(1, 2).flatten(0, 1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """In float32, unless it is more precise already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _without_gradient(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Give ``module`` as a function whose parameters collect no gradient."""
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda frames: functional_call(module, tensors, (frames,))


def _load_lpips(path: str | PathLike[str] | None) -> LPIPS | None:
    if path is None:
        logger.warning("no LPIPS weights given (lpips_ckpt): training without perceptual loss")
        return None
    if not Path(path).is_file():
        logger.warning("no LPIPS weights at %s: training without perceptual loss", path)
        return None
    return LPIPS.from_file(path)
