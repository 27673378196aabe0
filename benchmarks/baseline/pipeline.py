"""A whole run in the reference's way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyramid_dit.flow.latents import latent_pyramid, noise_pyramid
from pyramid_dit.flow.temporal_pyramid import gather_history, history_plan
from pyramid_dit.generation.components import Components
from pyramid_dit.generation.latent_codec import to_bytes, to_output

from .transformer import baseline_transformer
from .vae import BaselineDecoder

if TYPE_CHECKING:
    from PIL.Image import Image

Text = tuple[Tensor, Tensor, Tensor]
"""Token embeddings, mask and pooled embedding."""
BlockNoise = Callable[[Sequence[int]], Tensor]
RIDGE = 1e-6
"""Added to the diagonal of the covariance: at gamma 1/3 it is singular and has no Cholesky
factor, for which today's PyTorch rejects the reference's distribution."""


def block_noise(shape: Sequence[int], gamma: float) -> Tensor:
    """The noise of a jump `[b, c, t, h, w]`, on the CPU, drawn one 2x2 block after another."""
    *rest, height, width = shape
    covariance = (1 + gamma + RIDGE) * torch.eye(4) - gamma * torch.ones(4, 4)
    distribution = MultivariateNormal(torch.zeros(4), covariance)
    count = torch.Size(rest).numel() * (height // 2) * (width // 2)
    blocks = torch.stack([distribution.sample() for _ in range(count)])
    blocks = blocks.view(*rest, height // 2, width // 2, 2, 2)
    return blocks.transpose(-3, -2).reshape(*shape)


class BaselinePipeline:
    """Text to video in the reference's way, one video at a time.

    Args:
        model: The models; VAE and text encoder are needed.
        draw_block_noise: Source of the noise of the jumps, instead of `block_noise`.
    """

    def __init__(self, model: Components, draw_block_noise: BlockNoise | None = None) -> None:
        assert model.vae is not None and model.text_encoder is not None
        self.model = model
        self.transformer = baseline_transformer(model.dit)
        self.decoder = BaselineDecoder(model.vae)
        self.draw_block_noise = draw_block_noise or self._draw_block_noise

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        height: int,
        width: int,
        temp: int,
        *,
        num_inference_steps: Sequence[int],
        video_num_inference_steps: Sequence[int],
        guidance_scale: float,
        video_guidance_scale: float,
        negative_prompt: str,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> list[Image] | Tensor:
        """A video; the arguments are those of `PyramidDiTForVideoGeneration.generate`.

        Returns:
            With "pil" its frames, with "latent" its normalized latents `[1, c, temp, h/8, w/8]`.
        """
        stages = self.model.stages
        shape = (1, self.model.latent_channels, temp, height // 8, width // 8)
        device = self.model.device
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        text = self.encode_text([negative_prompt, prompt + self.model.defaults.prompt_suffix])
        lowest = noise_pyramid(noise, stages)[0]
        units: list[Tensor] = []
        for unit in range(temp):
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            history = latent_pyramid(torch.cat(units, dim=2), stages) if units else []
            units.append(
                self._generate_unit(
                    lowest[:, :, unit : unit + 1],
                    history,
                    text,
                    video_num_inference_steps if units else num_inference_steps,
                    video_guidance_scale if units else guidance_scale,
                )
            )
        latents = torch.cat(units, dim=2)
        return latents if output_type == "latent" else self.decode(latents)

    def encode_text(self, texts: Sequence[str]) -> Text:
        """Token embeddings `[2, T, d]`, mask `[2, T]` and pooled `[2, p]`."""
        assert self.model.text_encoder is not None
        embeds, mask, pooled = self.model.text_encoder(list(texts))
        device, dtype = self.model.device, self.model.dtype
        return embeds.to(device, dtype), mask.to(device), pooled.to(device, dtype)

    def _generate_unit(
        self,
        latents: Tensor,
        history: Sequence[Tensor],
        text: Text,
        steps: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        scheduler, dtype = self.model.scheduler, self.model.dtype
        past_frames = history[-1].shape[2] if history else 0
        for stage, count in enumerate(steps):
            if stage:
                *rest, height, width = latents.shape
                noise = self.draw_block_noise((*rest, 2 * height, 2 * width))
                latents = scheduler.jump(latents, stage, noise.to(latents.device))
            plan = history_plan(past_frames, stage)
            past = [torch.cat([clip] * 2).to(dtype) for clip in gather_history(history, plan)]
            scheduler.set_timesteps(count, stage, latents.device)
            for timestep in scheduler.timesteps:
                clips = [*past, torch.cat([latents] * 2).to(dtype)]
                timesteps = torch.as_tensor(timestep, device=latents.device).expand(2)
                velocity = self.transformer.predict(clips, *text, timesteps).float()
                negative, positive = velocity.chunk(2)
                velocity = negative + guidance_scale * (positive - negative)
                (latents,) = scheduler.step(velocity, timestep, latents, return_dict=False)
        return latents

    def _draw_block_noise(self, shape: Sequence[int]) -> Tensor:
        return block_noise(shape, self.model.scheduler.config.gamma)

    def decode(self, latents: Tensor) -> list[Image]:
        """Normalized latents `[1, c, t, h, w]` to frames."""
        vae = self.model.vae
        assert vae is not None
        latents = self.model.statistics.denormalize(latents).to(vae.device, vae.dtype)
        frames = to_output(to_bytes(self.decoder.decode(latents)), "pil")
        assert isinstance(frames, list)
        return frames[0]
