"""The models that make a video together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from video_vae import CausalVideoVAE

from ..checkpoints.defaults import GenerationDefaults
from ..devices.offload import module_device
from ..flow.latents import LatentStatistics
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..flow.sizes import size_multiple
from ..models.flux import PyramidFluxTransformer
from ..models.mmdit import PyramidDiffusionMMDiT


@dataclass(eq=False)
class Components:
    """A transformer, a VAE and a text encoder that work together.

    Raises:
        ValueError: The VAE has other latents than the transformer.
    """

    dit: PyramidFluxTransformer | PyramidDiffusionMMDiT
    scheduler: PyramidFlowMatchEulerDiscreteScheduler
    """The mathematics of the stages; a run reads it, and writes nothing on it."""
    statistics: LatentStatistics
    """The normalization of the VAE's latents."""
    vae: CausalVideoVAE | None = None
    """Without it, ask for `output_type="latent"`."""
    text_encoder: nn.Module | None = None
    """Without it, pass encoded prompts (`prompt_embeds` etc.)."""
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    """What is done where a caller does not say."""
    frame_per_unit: int = 1
    """Latent frames of an autoregressive unit."""
    name: str = ""
    """Which transformer it is, for people; empty where that is not known."""

    def __post_init__(self) -> None:
        if self.vae is not None and self.vae.config.decoder_in_channels != self.latent_channels:
            raise ValueError(
                f"the VAE has {self.vae.config.decoder_in_channels} latent channels, "
                f"the transformer {self.latent_channels}"
            )

    @property
    def device(self) -> torch.device:
        """Device that the transformer computes on."""
        return module_device(self.dit)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the transformer computes in."""
        return self.dit.dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        channels = self.dit.config.in_channels
        return channels // 4 if isinstance(self.dit, PyramidFluxTransformer) else channels

    @property
    def stages(self) -> int:
        """Stages of the pyramid."""
        return self.scheduler.config.stages

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: 64 for three stages."""
        return size_multiple(self.stages)
