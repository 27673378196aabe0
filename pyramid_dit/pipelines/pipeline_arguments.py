"""The arguments of a `PyramidFlowPipeline`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, field
from typing import Any, TypeVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from ..checks import FLAG, STEPS, Kind, OneOf, OneOrMore
from ..generation.arguments import OPTIONS, KeywordArguments, option, record
from ..media.images import Images, Video

T = TypeVar("T")
StepEnd = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]

_NOT_OURS = Kind("anything", lambda value: True)
CALLBACK_TENSORS = ("latents",)


@record
class PipelineArguments(KeywordArguments):
    """Arguments of a call, in the order of diffusers' video pipelines."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | Sequence[int] | None = None
    guidance_scale: float | None = None
    num_videos_per_prompt: int = field(
        default=1, metadata={"option": OPTIONS["num_images_per_prompt"]}
    )
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    prompt_attention_mask: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    output_type: str = "pil"
    return_dict: bool = option(
        "Return a `PyramidFlowPipelineOutput`, not a tuple.", FLAG, default=True
    )
    callback_on_step_end: StepEnd | PipelineCallback | MultiPipelineCallbacks | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = option(
        'What the callback is handed: "latents".',
        OneOrMore(OneOf(CALLBACK_TENSORS)),
        default=CALLBACK_TENSORS,
    )
    _: KW_ONLY
    image: Images | None = option(
        "What the video starts with, one for all or one a prompt: images, arrays `[h, w, 3]` "
        "or tensors `[3, h, w]` (floats in [0, 1]). They are scaled and cropped to the size.",
        _NOT_OURS,
        default=None,
    )
    video: Video | None = option(
        "What to go on with: images, an array `[t, h, w, 3]` of bytes, or a file; scaled and "
        "cropped where a size is given. Only the new frames are returned.",
        _NOT_OURS,
        default=None,
    )
    pyramid_num_inference_steps_list: Sequence[int] | None = option(
        "Steps, one number a stage, as of `HeliosPyramidPipeline`; the same as a list in "
        "`num_inference_steps`.",
        OneOrMore(STEPS),
        default=None,
    )
    video_num_inference_steps: int | Sequence[int] | None = None
    video_guidance_scale: float | None = None
    save_memory: bool = True

    def _check_pairs(self) -> None:
        starts = [n for n in ("image", "image_latents", "video") if getattr(self, n) is not None]
        if len(starts) > 1:
            raise ValueError(f"give only one of {' and '.join(starts)}")
        if None not in (self.num_inference_steps, self.pyramid_num_inference_steps_list):
            raise ValueError("give either num_inference_steps or pyramid_num_inference_steps_list")

    @property
    def steps(self) -> int | Sequence[int] | None:
        """Steps of each stage."""
        return first(self.pyramid_num_inference_steps_list, self.num_inference_steps)


def first(value: T | None, otherwise: T) -> T:
    """`value`, or `otherwise` where it is None."""
    return otherwise if value is None else value
