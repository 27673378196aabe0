"""The models of a pipeline: what there is, where it is, and how it is to work."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checkpoints.folder import GenerationDefaults
from ..devices.offload import accelerator_device, module_device, offload_sequentially
from ..distributed.parallel import Parallel, processes_at_work
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..flow.sizes import SPATIAL_FACTOR
from ..models.flux import PyramidFluxTransformer
from ..models.mmdit import PyramidDiffusionMMDiT
from ..sampling.fast_mode import EXACT, FastMode
from .latent_codec import LatentStatistics

if TYPE_CHECKING:
    from video_vae import CausalVideoVAE

logger = logging.getLogger(__name__)


class Models:
    """A transformer, a VAE and a text encoder that work together, and how they do.

    Args:
        dit: The transformer.
        scheduler: The mathematics of the stages.
        statistics: The normalization of the VAE's latents.
        vae: The VAE; without it, ask for `output_type="latent"`.
        text_encoder: The text encoder; without it, pass `prompt_embeds` and their twins.
        defaults: What to do where a caller does not say.
        frame_per_unit: Latent frames of an autoregressive unit.

    Attributes:
        fast_mode: Approximations, see `enable_fast_mode`.
        batched_guidance: Whether both branches of the guidance are computed as one batch; None
            decides by the memory that is free.
    """

    def __init__(
        self,
        dit: PyramidFluxTransformer | PyramidDiffusionMMDiT,
        scheduler: PyramidFlowMatchEulerDiscreteScheduler,
        statistics: LatentStatistics,
        *,
        vae: CausalVideoVAE | None = None,
        text_encoder: nn.Module | None = None,
        defaults: GenerationDefaults | None = None,
        frame_per_unit: int = 1,
    ) -> None:
        self.dit = dit
        self.scheduler = scheduler
        self.statistics = statistics
        self.vae = vae
        self.text_encoder = text_encoder
        self.defaults = defaults or GenerationDefaults()
        self.frame_per_unit = frame_per_unit
        self.fast_mode = EXACT
        self.batched_guidance: bool | None = None
        self._interrupt = False
        self._progress_bar_config: dict[str, Any] = {"disable": None}  # shown on a terminal
        if vae is not None and vae.config.decoder_in_channels != self.latent_channels:
            raise ValueError(
                f"the VAE has {vae.config.decoder_in_channels} latent channels, "
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
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: 64 for three stages."""
        halvings = self.scheduler.config.stages - 1
        return 2 * 2**halvings * SPATIAL_FACTOR

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments of the `tqdm` bar over all Euler steps, for example `disable=True`."""
        self._progress_bar_config = kwargs

    @property
    def interrupt(self) -> bool:
        """Whether the work on the video being made is to end, in diffusers' convention."""
        return self._interrupt

    def stop(self) -> None:
        """Have the work on the video being made end after the step that is being computed.

        `generate` then returns what is complete. Callbacks may call this, and other threads.
        """
        self._interrupt = True

    def enable_fast_mode(self, **options: Any) -> None:
        """Trade some quality for speed, as the arguments of `FastMode` say.

        Raises:
            TypeError: There is no such option.
            ValueError: A value is outside its range.
        """
        self.fast_mode = FastMode(**options)

    def disable_fast_mode(self) -> None:
        """Compute everything exactly (the default)."""
        self.fast_mode = EXACT

    def compile(self, **options: Any) -> None:
        """Compile the transformer's repeated blocks, for all shapes of a video at once.

        The first video takes the time to compile, the following ones are faster.

        Args:
            options: Arguments of `torch.compile`; `dynamic=True` is set for you.
        """
        self.dit.compile_repeated_blocks(**{"dynamic": True} | options)

    def enable_sequential_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keep all weights in the CPU's memory and bring each layer over only while it runs.

        Slow, and fits where there is little memory. Without an accelerator nothing is done.

        Args:
            device: The device to compute on, by default the accelerator.
        """
        target = torch.device(device) if device is not None else accelerator_device()
        if target is None:
            logger.warning("no accelerator found, sequential offload has no effect")
            return
        for module in (self.text_encoder, self.dit, self.vae):
            if module is not None:
                offload_sequentially(module, target)

    def shard_weights(self, device: str | torch.device) -> None:
        """Keep only a part of the weights of transformer and text encoders in each process.

        Call it on all processes that `inference_multigpu` lets work on a video; from then on
        they must all generate together. The numbers do not change.

        Args:
            device: What this process computes on; the models may still lie on the CPU.

        Raises:
            RuntimeError: There is only one process.
        """
        from ..distributed.sharding import shard_weights

        parallel = processes_at_work(guided=False)
        if not isinstance(parallel, Parallel):
            raise RuntimeError("weights are divided among processes, and this one is alone")
        shard_weights(self.dit, parallel.line, torch.device(device), methods=("prepare", "denoise"))
        if self.text_encoder is not None:
            shard_weights(self.text_encoder, parallel.line, torch.device(device))
        if self.vae is not None:
            self.vae.to(device)
