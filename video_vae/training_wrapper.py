"""The video VAE together with its training loss, and short cuts from pixels to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image
from torch import Tensor, nn

from .autoencoder import CausalVideoVAE, DecoderOutput
from .checkpoint_file import MODEL_KEY, load_strictly, read_state_dict
from .context_parallel import ClipShare
from .losses import VAELossOutput, VideoVAELoss, at_least_float32
from .posterior import DiagonalGaussian
from .training_latents import coarsen, latent_distance

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CausalVideoVAELossWrapper(nn.Module):
    """A `CausalVideoVAE` under ``.vae`` and, for training, its `VideoVAELoss` under ``.loss``.

    Args:
        model_path: Folder written by ``CausalVideoVAE.save_pretrained``, or a VAE to train.
        model_dtype: "fp32", "bf16" or "fp16". Training needs "fp32" (and autocast for speed).
        disc_start: See `VideoVAELoss`, as for all arguments down to ``add_discriminator``.
        freeze_encoder: Train the decoder only.
        load_loss_module: Build the loss too, which `forward` needs.
        lpips_ckpt: File of the LPIPS weights; without it the perceptual term is off.
        interpolate: Of old scripts; without effect, as in the configs of released checkpoints.

    Raises:
        ValueError: ``model_dtype`` or a loss weight is none of the allowed ones.
        OSError: The folder holds no VAE.
    """

    def __init__(
        self,
        model_path: str | PathLike[str] | CausalVideoVAE,
        model_dtype: str = "fp32",
        disc_start: int = 250_000,
        logvar_init: float = 0.0,
        kl_weight: float = 1e-12,
        pixelloss_weight: float = 10.0,
        perceptual_weight: float = 1.0,
        disc_weight: float = 0.5,
        *,
        add_discriminator: bool = True,
        freeze_encoder: bool = False,
        load_loss_module: bool = False,
        lpips_ckpt: str | PathLike[str] | None = None,
        interpolate: bool = False,
    ) -> None:
        super().__init__()
        if model_dtype not in DTYPES:
            raise ValueError(f"model_dtype must be one of {', '.join(DTYPES)}, got {model_dtype!r}")
        dtype = DTYPES[model_dtype]
        if isinstance(model_path, CausalVideoVAE):
            self.vae = model_path.to(dtype)
        else:
            self.vae = CausalVideoVAE.from_pretrained(model_path, torch_dtype=dtype)
        if freeze_encoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.loss: VideoVAELoss | None = None
        if load_loss_module:
            self.loss = VideoVAELoss(
                disc_start=disc_start,
                logvar_init=logvar_init,
                kl_weight=kl_weight,
                pixelloss_weight=pixelloss_weight,
                perceptual_weight=perceptual_weight,
                disc_weight=disc_weight,
                add_discriminator=add_discriminator,
                lpips_ckpt=lpips_ckpt,
            )

    def forward(
        self,
        x: Tensor,
        step: int,
        identifier: Sequence[str] = ("video",),
        *,
        generator: torch.Generator | None = None,
        group: dist.ProcessGroup | None = None,
        coarse: tuple[float, float] = (0.0, 0.0),
        former: Tensor | None = None,
        kept: Tensor | None = None,
        former_weight: float = 1.0,
        like: CausalVideoVAE | None = None,
        like_weight: float = 1.0,
    ) -> VAELossOutput:
        """Encode, draw latents, decode, and compare.

        Args:
            x: Videos ``[b, 3, 8n+1, 8h, 8w]`` or images ``[b, 3, 8h, 8w]`` in [-1, 1].
            step: Global step; the discriminator starts at ``disc_start``.
            identifier: ``["video"]``, or ``["image"]`` to take every frame as an image of its own.
            generator: Source of the posterior's noise.
            group: Ranks that share each video in time. All are handed the whole videos and draw the
                same noise; each computes a part, and gradients cross the ranks. The mean of the
                losses over the ranks, and of the gradients, is what one process gets.
            coarse: Shares of the samples that are decoded from latents halved once, twice.
            former: Latents of a former VAE, ``[b, c, n+1, h, w]``, that the posterior's means
                stay near: their mean square distance is added to the loss.
            kept: ``[b]``, the samples for which they do; by default all.
            former_weight: Weight of that distance.
            like: A VAE whose decoder makes pixels of the same latents, whose mean square distance
                is added to the loss; not with a ``group``.
            like_weight: Weight of that distance.

        Returns:
            The loss of the VAE, that of the discriminator (None before it starts), and a log.

        Raises:
            RuntimeError: The wrapper was built without ``load_loss_module=True``.
            ValueError: ``x`` has another number of dimensions, or ``identifier`` is neither; with
                a ``group``, images, videos that are too short to be shared, or ``like``.
        """
        if self.loss is None:
            raise RuntimeError("this wrapper has no loss: build it with load_loss_module=True")
        x = _as_video(x)
        if set(identifier) == {"image"}:
            x = x.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        elif set(identifier) != {"video"}:
            raise ValueError(f"identifier must be ['video'] or ['image'], got {identifier!r}")
        if group is not None and like is not None:
            raise ValueError("like does not go with a group, whose ranks decode a part each")
        share = None
        if group is None:
            posterior = self.vae.encode(x).latent_dist
            latents = posterior.sample(generator)
        else:
            self.vae.check_pixels(x)
            share = ClipShare.of(x.shape[2], self.vae.temporal_factor, group)
            x = x[:, :, share.frames]
            posterior = DiagonalGaussian(self.vae.encode_chunk(x, share.context()))
            noise = posterior.noise(generator, share.all_latents)[:, :, share.latents]
            latents = posterior.mean + posterior.std * noise
        if any(coarse):
            latents = coarsen(latents, coarse, generator)
        if share is None:
            reconstructions = self.vae.decode(latents).sample
        else:
            reconstructions = self.vae.decode_chunk(latents, share.context())
        output = self.loss(
            *(x, reconstructions, posterior),
            step=step,
            last_layer=self.get_last_layer(),
            share=share,
        )
        if like is not None:
            with torch.no_grad():
                shown = like.decode(latents).sample
            unlike = at_least_float32(reconstructions - shown).square().mean()
            output = _with_term(output, "decoder_distance", unlike, like_weight)
        if former is None:
            return output
        distance = latent_distance(
            posterior.mean, former if share is None else former[:, :, share.latents], kept
        )
        if share is not None:
            distance = share.latent_weight * distance
        return _with_term(output, "latent_distance", distance, former_weight)

    @property
    def device(self) -> torch.device:
        """Where the VAE's weights lie."""
        return self.vae.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the VAE's weights."""
        return self.vae.dtype

    def get_last_layer(self) -> Tensor:
        """`CausalVideoVAE.get_last_layer`."""
        return self.vae.get_last_layer()

    def encode(self, x: Tensor, *args: Any, **kwargs: Any) -> AutoencoderKLOutput:
        """`CausalVideoVAE.encode` of videos or images as for `forward`, with gradients."""
        return self.vae.encode(_as_video(x).to(self.dtype), *args, **kwargs)

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> DecoderOutput:
        """`CausalVideoVAE.decode`, with gradients."""
        return self.vae.decode(z.to(self.dtype), *args, **kwargs)

    @torch.no_grad()
    def encode_latent(
        self,
        x: Tensor,
        sample: bool = False,
        is_init_image: bool = True,
        temporal_chunk: bool = False,
        window_size: int = 16,
        tile_sample_min_size: int = 256,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Encode videos or images as for `forward` to latents, not normalized.

        Gives the mode of the posterior, ``[b, c, n+1, h, w]``, or with ``sample`` a draw from it.
        """
        posterior = self.encode(
            x,
            is_init_image=is_init_image,
            temporal_chunk=temporal_chunk,
            window_size=window_size,
            tile_sample_min_size=tile_sample_min_size,
        ).latent_dist
        return posterior.sample(generator=generator) if sample else posterior.mode()

    @torch.no_grad()
    def decode_latent(
        self,
        latent: Tensor,
        is_init_image: bool = True,
        temporal_chunk: bool = False,
        window_size: int = 2,
        tile_sample_min_size: int = 256,
    ) -> list[Image.Image]:
        """Decode latents ``[b, c, n+1, h, w]`` to pictures, sample after sample in one list."""
        video = self.decode(
            latent,
            is_init_image=is_init_image,
            temporal_chunk=temporal_chunk,
            window_size=window_size,
            tile_sample_min_size=tile_sample_min_size,
        ).sample
        pixels = video.float().mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
        frames = pixels.permute(0, 2, 3, 4, 1).flatten(0, 1).cpu().numpy()
        return [Image.fromarray(frame) for frame in frames]

    def reconstruct(
        self,
        x: Tensor,
        sample: bool = False,
        return_latent: bool = False,
        is_init_image: bool = True,
        temporal_chunk: bool = False,
        window_size: int = 16,
        tile_sample_min_size: int = 256,
    ) -> list[Image.Image] | tuple[list[Image.Image], Tensor]:
        """Encode and decode videos or images, with windows of ``window_size`` frames.

        Gives pictures as `decode_latent` does; with ``return_latent`` also the latents.
        """
        latent = self.encode_latent(
            x,
            sample,
            is_init_image,
            temporal_chunk=temporal_chunk,
            window_size=window_size,
            tile_sample_min_size=tile_sample_min_size,
        )
        pictures = self.decode_latent(
            latent,
            is_init_image,
            temporal_chunk,
            window_size=max(1, window_size // self.vae.temporal_factor),
            tile_sample_min_size=tile_sample_min_size,
        )
        return (pictures, latent) if return_latent else pictures

    def load_checkpoint(
        self, checkpoint_path: str | PathLike[str], model_key: str = MODEL_KEY
    ) -> None:
        """Load weights from a ``.pth`` or ``.safetensors`` file, pickles with ``weights_only``.

        The file holds either a VAE, or this wrapper (``vae.*``, ``loss.*``), whose discriminator
        and ``logvar`` are then taken too if this wrapper has a loss. LPIPS stays as it is. Files
        of trainers, which hold more, have the weights under ``model_key``.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file cannot be read safely, or its weights do not fit.
        """
        state = read_state_dict(checkpoint_path, model_key=model_key)
        load_strictly(self.vae, _under("vae.", state) or state, source=checkpoint_path)
        if self.loss is None:
            return
        if "loss.logvar" in state:
            self.loss.logvar.data.copy_(state["loss.logvar"])
        discriminator = _under("loss.discriminator.", state)
        if self.loss.discriminator is not None and discriminator:
            load_strictly(self.loss.discriminator, discriminator, source=checkpoint_path)


def _with_term(output: VAELossOutput, name: str, value: Tensor, weight: float) -> VAELossOutput:
    """A loss with one term more, which the log has under its name."""
    loss = output.loss + weight * value
    return output._replace(
        loss=loss, log=output.log | {name: value.detach(), "loss": loss.detach()}
    )


def _as_video(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x.unsqueeze(2)
    if x.ndim != 5:
        raise ValueError(
            "expected images [b, 3, h, w] or videos [b, 3, t, h, w], "
            f"got a tensor of shape {list(x.shape)}"
        )
    return x


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
