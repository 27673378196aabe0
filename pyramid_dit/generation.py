"""`generate` and `generate_i2v`: the arguments of a caller, checked and made into a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from . import inputs
from .conditioning import Prompts
from .engine import Callback, GenerationEngine, Generators, Request
from .folder import Steps
from .guidance import GuidanceSchedule
from .latent_codec import images_to_pixels
from .sampler import plan_units

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

T2V_VIDEO_GUIDANCE = 7.0
I2V_VIDEO_GUIDANCE = 4.0


class VideoGenerator(GenerationEngine):
    """Text-to-video, text-to-image and image-to-video with models that are at hand."""

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        temp: int = 1,
        num_inference_steps: Steps | None = None,
        video_num_inference_steps: Steps | None = None,
        guidance_scale: float | None = None,
        video_guidance_scale: float | None = None,
        min_guidance_scale: float = 2.0,
        use_linear_guidance: bool = False,
        alpha: float = 0.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        output_type: str = "pil",
        save_memory: bool = True,
        cpu_offloading: bool = False,
        inference_multigpu: bool = False,
        callback: Callback | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        latents: Tensor | None = None,
    ) -> Any:
        """Generate a video, or with `temp=1` an image, from a prompt.

        Where an argument is None, `defaults` decides: what `model_index.json` of the checkpoint
        says, else the values of the released models, which are given below.

        Args:
            prompt: One prompt or a list of them; the prompt suffix of `defaults`
                (", hyper quality, Ultra HD, 8K") is appended.
            height: Pixels, a multiple of `size_multiple`.
            width: Pixels, a multiple of `size_multiple`.
            temp: Latent frames, 1 plus a multiple of `frame_per_unit`; the video has
                8 (temp - 1) + 1 frames.
            num_inference_steps: Steps of the first unit, one number or one a stage; 28.
            video_num_inference_steps: Steps of the later units; 28.
            guidance_scale: Guidance of the first unit; 7. There is guidance where it is above 0.
            video_guidance_scale: Guidance of the later units; 7.
            min_guidance_scale: Lower bound of linear guidance.
            use_linear_guidance: Guide unit i by max(guidance_scale - alpha i, min_guidance_scale).
            alpha: Slope of linear guidance.
            negative_prompt: What to guide away from, one for all or one a prompt.
            num_images_per_prompt: Samples of each prompt.
            generator: Source of all random numbers, one for all or a list with one a sample.
            output_type: "pil", "np", "pt" or "latent".
            save_memory: Decode in small pieces: less memory, same frames.
            cpu_offloading: Move each model to the accelerator only for its part of the work.
            inference_multigpu: Share the work with the other processes that torchrun started
                (docs/multi-gpu.md); all of them call this with the same arguments, and all get
                the result. A process that is alone does all of it.
            callback: Called as `callback(unit_index, num_units)` before each unit.
            prompt_embeds: Encoded prompts `[b, L, d]`, instead of `prompt`.
            prompt_attention_mask: `[b, L]`, 1 at real tokens.
            pooled_prompt_embeds: `[b, p]`.
            negative_prompt_embeds: Encoded negative prompts `[b or 1, L', d]`.
            negative_prompt_attention_mask: `[b or 1, L']`.
            negative_pooled_prompt_embeds: `[b or 1, p]`.
            latents: Initial white noise `[b, c, temp, height/8, width/8]`. It is not modified.

        Returns:
            With "pil" a list of images for a single prompt, and a list of such lists for a list
            of prompts or several samples. With "np" an array `[b, t, h, w, 3]` and with "pt" a
            tensor `[b, t, 3, h, w]`, float32 in [0, 1]. With "latent" the normalized latents
            `[b, c, temp, h/8, w/8]`, float32.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        defaults = self.defaults
        height, width = _either(height, defaults.height), _either(width, defaults.width)
        if height is None or width is None:
            raise ValueError("height and width are needed, in pixels")
        inputs.check_temp(temp, self.frame_per_unit, from_image=False)
        steps = _either(num_inference_steps, defaults.num_inference_steps)
        video_steps = _either(video_num_inference_steps, defaults.video_num_inference_steps)
        guidance = GuidanceSchedule(
            first=_either(guidance_scale, defaults.guidance_scale),
            later=_either(
                video_guidance_scale, _either(defaults.video_guidance_scale, T2V_VIDEO_GUIDANCE)
            ),
            slope=alpha if use_linear_guidance else None,
            lower_bound=min_guidance_scale,
        )
        units = plan_units(
            temp,
            frame_per_unit=self.frame_per_unit,
            from_image=False,
            first_steps=self._steps("num_inference_steps", steps),
            later_steps=self._steps("video_num_inference_steps", video_steps),
            guidance=guidance,
        )
        prompts = Prompts.checked(
            prompt,
            _either(negative_prompt, defaults.negative_prompt),
            encoded=(prompt_embeds, prompt_attention_mask, pooled_prompt_embeds),
            encoded_negative=(
                negative_prompt_embeds,
                negative_prompt_attention_mask,
                negative_pooled_prompt_embeds,
            ),
            suffix=defaults.prompt_suffix,
            guided=guidance.on,
        )
        request = Request(
            prompts=prompts,
            units=units,
            height=height,
            width=width,
            temp=temp,
            nested=not (prompt is None or isinstance(prompt, str)),
            samples_each=num_images_per_prompt,
            generator=generator,
            latents=latents,
            output_type=output_type,
            save_memory=save_memory,
            cpu_offloading=cpu_offloading,
            inference_multigpu=inference_multigpu,
            callback=callback,
        )
        return self._run(request)

    @torch.no_grad()
    def generate_i2v(
        self,
        prompt: str | Sequence[str] = "",
        input_image: Image | Sequence[Image] | None = None,
        temp: int = 1,
        num_inference_steps: Steps | None = None,
        guidance_scale: float | None = None,
        video_guidance_scale: float | None = None,
        min_guidance_scale: float = 2.0,
        use_linear_guidance: bool = False,
        alpha: float = 0.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        output_type: str = "pil",
        save_memory: bool = True,
        cpu_offloading: bool = False,
        inference_multigpu: bool = False,
        callback: Callback | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        latents: Tensor | None = None,
        image_latents: Tensor | None = None,
    ) -> Any:
        """Generate a video that starts with an image.

        The arguments that are not described here are those of `generate`.

        Args:
            prompt: One prompt or a list of them; it may be empty.
            input_image: An image, or a list with one a prompt, of a size that `generate` takes;
                `inputs.fit_image` brings any image there. What is transparent shows white.
            temp: Latent frames of the noise, a multiple of `frame_per_unit`; the video has
                temp - frame_per_unit + 1 latent frames, the image's among them.
            num_inference_steps: Steps of every unit, one number or one a stage; those that
                `defaults` has for later units, 28.
            guidance_scale: There is guidance where it is above 0; start of linear guidance.
            video_guidance_scale: Guidance of every unit; 4.
            image_latents: Latents of the image `[b or 1, c, 1, h/8, w/8]`, not normalized,
                instead of a draw from the VAE's posterior.

        Returns:
            As `generate`.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        defaults = self.defaults
        pixels = None
        if image_latents is None:
            pixels = _check_images(input_image)
            height, width = pixels.shape[-2:]
        else:
            if input_image is not None:
                raise ValueError("give either input_image or image_latents, not both")
            height, width = self._check_image_latents(image_latents)
        inputs.check_temp(temp, self.frame_per_unit, from_image=True)
        steps = self._steps(
            "num_inference_steps", _either(num_inference_steps, defaults.video_num_inference_steps)
        )
        guidance = GuidanceSchedule(
            first=_either(guidance_scale, defaults.guidance_scale),
            later=_either(
                video_guidance_scale, _either(defaults.video_guidance_scale, I2V_VIDEO_GUIDANCE)
            ),
            slope=alpha if use_linear_guidance else None,
            lower_bound=min_guidance_scale,
        )
        units = plan_units(
            temp,
            frame_per_unit=self.frame_per_unit,
            from_image=True,
            first_steps=steps,
            later_steps=steps,
            guidance=guidance,
        )
        prompts = Prompts.checked(
            prompt,
            _either(negative_prompt, defaults.negative_prompt),
            encoded=(prompt_embeds, prompt_attention_mask, pooled_prompt_embeds),
            encoded_negative=(
                negative_prompt_embeds,
                negative_prompt_attention_mask,
                negative_pooled_prompt_embeds,
            ),
            suffix=defaults.prompt_suffix,
            guided=guidance.on,
            allow_empty=True,
        )
        request = Request(
            prompts=prompts,
            units=units,
            height=height,
            width=width,
            temp=temp,
            pixels=pixels,
            image_latents=image_latents,
            nested=not isinstance(prompt, str),
            samples_each=num_images_per_prompt,
            generator=generator,
            latents=latents,
            output_type=output_type,
            save_memory=save_memory,
            cpu_offloading=cpu_offloading,
            inference_multigpu=inference_multigpu,
            callback=callback,
        )
        return self._run(request)

    def _steps(self, name: str, steps: Steps) -> list[int]:
        return inputs.check_steps(name, steps, self.scheduler.config.stages)

    def _check_image_latents(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of `[b, c, 1, h/8, w/8]`; another shape is a ValueError."""
        if latents.ndim != 5 or latents.shape[1:3] != (self.latent_channels, 1):
            raise ValueError(
                f"image_latents must be [b, {self.latent_channels}, 1, h, w], "
                f"got shape {tuple(latents.shape)}"
            )
        return latents.shape[3] * inputs.SPATIAL_FACTOR, latents.shape[4] * inputs.SPATIAL_FACTOR


def _check_images(images: Image | Sequence[Image] | None) -> Tensor:
    """The images as pixels `[b, 3, 1, h, w]`.

    Raises:
        TypeError: One is no PIL image.
        ValueError: There is none, one has a mode that does not fit, or the sizes differ.
    """
    if images is None:
        raise ValueError("an input_image is needed, or image_latents")
    given = list(images) if isinstance(images, Sequence) else [images]
    if not given:
        raise ValueError("the list of images is empty")
    converted = [inputs.rgb_image(image) for image in given]
    sizes = {image.size for image in converted}
    if len(sizes) > 1:
        raise ValueError(f"the images must have one size, got {sorted(sizes)}")
    return images_to_pixels(converted)


def _either(value: T | None, default: T) -> T:
    return default if value is None else value
