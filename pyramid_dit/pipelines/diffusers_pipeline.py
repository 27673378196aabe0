"""`PyramidFlowPipeline`: Pyramid Flow with the conventions of diffusers' video pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL.Image import Image
from torch import Tensor

from ..checkpoints.folder import RELEASED_NUM_FRAMES, Steps
from ..checkpoints.hub import open_checkpoint
from ..checkpoints.weights import resolve_dtype
from ..generation.engine import GenerationEngine
from ..generation.memory_presets import check_preset
from ..generation.request import Generators
from ..media.images import (
    Images,
    Video,
    fit_images,
    fit_video,
)
from ..media.video_files import HISTORY_FRAMES
from .pipeline_components import PyramidFlowComponents
from .pipeline_loading import Quantization, load_components

T = TypeVar("T")
StepEnd = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass
class PyramidFlowPipelineOutput(BaseOutput):
    """What a `PyramidFlowPipeline` returns.

    Attributes:
        frames: Videos: a list of images for each ("pil"), an array `[b, t, h, w, 3]` ("np") or a
            tensor `[b, t, 3, h, w]` ("pt"), float32 in [0, 1]; or normalized latents
            `[b, c, t, h/8, w/8]` ("latent").
    """

    frames: list[list[Image]] | np.ndarray | Tensor


class PyramidFlowPipeline(PyramidFlowComponents):
    """Text, images and videos to videos by pyramidal flow matching.

    The work is done by a `VideoGenerator`, the same that `PyramidDiTForVideoGeneration` is; as
    `video_generator` it is at hand, for what diffusers has no convention for, such as streams.

    Args:
        transformer: The transformer.
        scheduler: The mathematics of the stages.
        vae: The VAE; without it, ask for `output_type="latent"`.
        text_encoder: CLIP. Without text encoders, pass `prompt_embeds` and their twins.
        tokenizer: Its tokenizer.
        text_encoder_2: T5 of miniFLUX, the second CLIP of SD3.
        tokenizer_2: Its tokenizer.
        text_encoder_3: T5 of SD3.
        tokenizer_3: Its tokenizer.
        latent_statistics: Normalization of the VAE's latents, `first_frame` and `later_frames`,
            each with `shift` and `scale`; by default that of the released models.
        generation_defaults: What to do where a caller does not say, as in `GenerationDefaults`.
        frame_per_unit: Latent frames of an autoregressive unit.

    Attributes:
        fast_mode: Approximations, see `enable_fast_mode`.
        batched_guidance: Whether both branches of the guidance are computed as one batch; None
            decides by the memory that is free.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None = None,
        variant: str | None = None,
        *,
        torch_dtype: str | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        memory: str | None = None,
        quantization_config: Quantization | None = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        **components: Any,
    ) -> PyramidFlowPipeline:
        """Load a pipeline from a folder or the hub, in the released layout or in diffusers' own.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the hub such as
                `rain1011/pyramid-flow-miniflux`, of which only what is needed is fetched. None is
                the small checkpoint that comes with this package.
            variant: In the released layout the transformer, `diffusion_transformer_768p` or in
                short `768p`; by default what `model_index.json` names, else `768p`, else the only
                one there is.
            torch_dtype: `bf16`, `fp16`, `fp32` or a dtype; by default what the weights of the
                transformer are stored in.
            dtype: The same, as diffusers calls it of late.
            device_map: One device, where all models are put; by default the CPU. With `memory`
                what they compute on, by default the accelerator.
            memory: `auto`, `max-speed`, `12GB`, `8GB` or `6GB`: where the weights are kept
                while they are not at work, see `memory_presets`.
            quantization_config: A `PipelineQuantizationConfig`, or a dictionary of configs by
                component (of diffusers for the transformer, of transformers for text encoders),
                or a config for the transformer alone. Tested on a CPU with torchao's int8
                weights, written and read again; bitsandbytes takes a GPU and is not tested; GGUF
                files diffusers reads of its own models only.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where to keep what is fetched from the hub.
            components: Arguments of the constructor, in place of what the checkpoint has; None
                leaves a component out.

        Raises:
            TypeError: There is no such argument.
            FileNotFoundError: No such folder, repository, variant or file.
            ConnectionError: The hub cannot be reached.
            ValueError: The variant is ambiguous, or a file is damaged or does not fit.
        """
        expected, optional = cls._get_signature_keys(cls)
        unknown = sorted(components.keys() - {*expected, *optional})
        if unknown:
            raise TypeError(
                f"from_pretrained has no argument {', '.join(unknown)}; components are "
                f"{', '.join([*expected, *optional])}"
            )
        device = _one_device(device_map)
        if memory is not None:
            check_preset(memory)
        texts = [name for name in expected if name.startswith("text_encoder")]
        folder = open_checkpoint(
            pretrained_model_name_or_path,
            variant,
            revision=revision,
            cache_dir=cache_dir,
            vae="vae" not in components,
            text_encoder=not all(name in components for name in texts),
        )
        asked = dtype or torch_dtype or folder.model_dtype or "fp32"
        loaded = load_components(
            folder, dtype=resolve_dtype(asked), given=components, quantization=quantization_config
        )
        pipeline = cls(**loaded)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path or folder.path))
        if memory is not None:
            pipeline.enable_memory_preset(memory, device)
            return pipeline
        return pipeline if device is None else pipeline.to(device)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: Steps | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        image: Images | None = None,
        image_latents: Tensor | None = None,
        video: Video | None = None,
        history_frames: int = HISTORY_FRAMES,
        pyramid_num_inference_steps_list: Sequence[int] | None = None,
        video_num_inference_steps: Steps | None = None,
        video_guidance_scale: float | None = None,
        prompts: Mapping[int, str | Sequence[str]] | None = None,
        guidance_scales: Mapping[int, float] | None = None,
        prompt_suffix: str | None = None,
        save_memory: bool = True,
    ) -> PyramidFlowPipelineOutput | tuple[Any]:
        """Generate videos, or with `num_frames=1` images.

        Where an argument is None, the checkpoint's `generation_defaults` decide.

        Args:
            prompt: One prompt or a list of them; a suffix is appended, see `prompt_suffix`. With
                an image or a video it may be empty.
            negative_prompt: What to guide away from, one for all or one a prompt.
            height: Pixels, a multiple of 64. An image is scaled and cropped to the size; a video
                keeps its own where no size is given.
            width: Pixels, a multiple of 64.
            num_frames: Length of the video, 8n + 1; that which is added to `video`, 8n.
            num_inference_steps: Steps of each stage, one number or one a stage.
            guidance_scale: Guidance; 1 is none.
            num_videos_per_prompt: Videos of each prompt.
            generator: Source of all random numbers, one for all or a list with one a video.
            latents: Initial white noise `[b, c, n + 1, height/8, width/8]`.
            prompt_embeds: Encoded prompts `[b, L, d]`, as `encode_prompt` returns them.
            prompt_attention_mask: `[b, L]`, 1 at real tokens.
            pooled_prompt_embeds: `[b, p]`.
            negative_prompt_embeds: Encoded negative prompts `[b or 1, L', d]`.
            negative_prompt_attention_mask: `[b or 1, L']`.
            negative_pooled_prompt_embeds: `[b or 1, p]`.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: Return a `PyramidFlowPipelineOutput`, not a tuple.
            callback_on_step_end: Called as `callback(pipeline, step, timestep, tensors)` after
                each Euler step; steps are counted over the whole video, and the latents are those
                of the unit at work `[b, c, t, h_k, w_k]`. It may return changed tensors, and end
                the call by `pipeline._interrupt = True`: then what is complete is returned.
            callback_on_step_end_tensor_inputs: What it is handed: "latents".
            image: What the video starts with, one for all or one a prompt: images, arrays
                `[h, w, 3]` or tensors `[3, h, w]` (floats in [0, 1]).
            image_latents: The same as latents of the VAE `[b or 1, c, 1, h/8, w/8]`.
            video: What to go on with: images, an array `[t, h, w, 3]` of bytes, or a file. Only
                the new frames are returned.
            history_frames: So many of its last frames are looked at, at most.
            pyramid_num_inference_steps_list: Steps, one number a stage, as of
                `HeliosPyramidPipeline`; the same as a list in `num_inference_steps`.
            video_num_inference_steps: Steps of all units after the first frame, where they differ.
            video_guidance_scale: Guidance of all units after the first frame, where it differs.
            prompts: A storyboard in place of `prompt`, by unit as in `options.Options`.
            guidance_scales: Guidance by unit.
            prompt_suffix: What is appended to the prompts; by default that of the checkpoint,
                for the released models ", hyper quality, Ultra HD, 8K".
            save_memory: Decode in small pieces: less memory, same frames.

        Returns:
            The videos as `.frames`, or in a tuple.

        Raises:
            TypeError: An argument is of the wrong kind.
            FileNotFoundError: There is no such file.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        starts = {"image": image, "image_latents": image_latents, "video": video}
        starts = {name: value for name, value in starts.items() if value is not None}
        if len(starts) > 1:
            raise ValueError(f"give only one of {' and '.join(starts)}")
        if pyramid_num_inference_steps_list is not None:
            if num_inference_steps is not None:
                raise ValueError(
                    "give either num_inference_steps or pyramid_num_inference_steps_list"
                )
            num_inference_steps = list(pyramid_num_inference_steps_list)
        common: dict[str, Any] = {
            "prompt": _as_list(prompt),
            "prompts": prompts and {unit: _as_list(text) for unit, text in prompts.items()},
            "prompt_suffix": prompt_suffix,
            "negative_prompt": negative_prompt,
            "guidance_scale": guidance_scale,
            "video_guidance_scale": _first(video_guidance_scale, guidance_scale),
            "guidance_scales": guidance_scales,
            "num_images_per_prompt": num_videos_per_prompt,
            "generator": generator,
            "output_type": output_type,
            "save_memory": save_memory,
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
            "latents": latents,
            "callback_on_step_end": self._step_callback(
                callback_on_step_end, callback_on_step_end_tensor_inputs
            ),
        }
        later_steps = _first(video_num_inference_steps, num_inference_steps)
        engine, defaults = self.video_generator, self.defaults
        self._guidance_scale = _first(guidance_scale, defaults.guidance_scale)
        self._interrupt, self._num_timesteps = False, 0
        length = _first(defaults.num_frames, RELEASED_NUM_FRAMES)
        try:
            if video is not None:
                frames = engine.generate_v2v(
                    video=fit_video(video, height, width, history_frames),
                    num_frames=_first(num_frames, length - 1),
                    num_inference_steps=later_steps,
                    history_frames=history_frames,
                    **common,
                )
            elif image is not None or image_latents is not None:
                frames = engine.generate_i2v(
                    input_image=None
                    if image is None
                    else fit_images(image, height, width, defaults),
                    image_latents=image_latents,
                    num_frames=_first(num_frames, length),
                    num_inference_steps=later_steps,
                    **common,
                )
            else:
                frames = engine.generate(
                    height=height,
                    width=width,
                    num_frames=_first(num_frames, length),
                    num_inference_steps=num_inference_steps,
                    video_num_inference_steps=later_steps,
                    **common,
                )
        finally:
            self._current_timestep = None
            self.maybe_free_model_hooks()
        if isinstance(frames, list) and not (frames and isinstance(frames[0], list)):
            frames = [frames]  # encoded prompts of a single video
        return PyramidFlowPipelineOutput(frames=frames) if return_dict else (frames,)

    def _step_callback(
        self, callback: StepEnd | None, tensor_inputs: Sequence[str]
    ) -> Callable[..., dict[str, Tensor]]:
        """What a `VideoGenerator` calls after each step, for a callback of diffusers' kind."""
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = callback.tensor_inputs
        unknown = sorted({*tensor_inputs} - {*self._callback_tensor_inputs})
        if unknown:
            raise ValueError(
                "callback_on_step_end_tensor_inputs must be among "
                f"{', '.join(self._callback_tensor_inputs)}, got {', '.join(unknown)}"
            )

        def on_step(
            engine: GenerationEngine, step: int, timestep: float, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            self._num_timesteps, self._current_timestep = step + 1, timestep
            if callback is not None:
                handed = {name: tensors[name] for name in tensor_inputs}
                tensors = tensors | (callback(self, step, timestep, handed) or {})
            if self._interrupt:
                engine.stop()
            return tensors

        return on_step


def _first(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _as_list(prompt: str | Sequence[str] | None) -> Sequence[str] | None:
    return [prompt] if isinstance(prompt, str) else prompt


def _one_device(device_map: str | torch.device | None) -> torch.device | None:
    """The device that `device_map` names; what spreads models over devices is a ValueError."""
    if device_map is None:
        return None
    try:
        return torch.device(device_map)
    except RuntimeError as error:
        raise ValueError(
            f"device_map must name one device, such as cpu or cuda:1, got {device_map!r}; several "
            "GPUs share the work by inference_multigpu (docs/multi-gpu.md)"
        ) from error
