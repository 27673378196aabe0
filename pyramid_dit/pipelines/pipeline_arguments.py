"""The arguments of a `PyramidFlowPipeline`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, field, fields
from typing import Any, TypeVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from ..checkpoints.defaults import GenerationDefaults
from ..checks import FLAG, STEPS, Kind, OneOf, OneOrMore
from ..generation.arguments import (
    OPTIONS,
    Arguments,
    ImageToVideo,
    KeywordArguments,
    StepCallback,
    TextToVideo,
    VideoToVideo,
    option,
    record,
)
from ..media.images import Images, Video, fit_image, fit_video, pictures_of
from ..models.lora import check_attention_kwargs
from ..models.text_condition import TextCondition

T = TypeVar("T")
StepEnd = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]

_NOT_OURS = Kind("anything", lambda value: True)
CALLBACK_TENSORS = (
    "latents",
    *TextCondition._fields,
    *(f"negative_{name}" for name in TextCondition._fields),
)
"""What a callback may be handed, and may change."""
_HANDED = OneOrMore(OneOf(CALLBACK_TENSORS))


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
        "What the callback gets and may change: `latents` of the current unit, and its "
        "encoded prompts by the names of these arguments.",
        _HANDED,
        default=("latents",),
    )
    _: KW_ONLY
    attention_kwargs: Mapping[str, Any] | None = option(
        '`{"scale": s}` makes all LoRAs s times as strong for this call.',
        check_attention_kwargs,
        default=None,
    )
    image: Images | None = option(
        "What the video starts with, one for all or one per prompt: images, arrays `[h, w, 3]` "
        "or tensors `[3, h, w]` (floats in [0, 1]). They are scaled and cropped to the size.",
        _NOT_OURS,
        default=None,
    )
    video: Video | None = option(
        "The video to extend: images, an array `[t, h, w, 3]` of bytes, or a file; scaled and "
        "cropped if a size is given. Only the new frames are returned.",
        _NOT_OURS,
        default=None,
    )
    pyramid_num_inference_steps_list: Sequence[int] | None = option(
        "Steps, one number per stage, as of `HeliosPyramidPipeline`; the same as a list in "
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
        _HANDED("the callback's tensor_inputs", self.callback_tensors)

    @property
    def callback_tensors(self) -> Sequence[str]:
        """Names of the tensors that the callback is handed."""
        callback = self.callback_on_step_end
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            return callback.tensor_inputs
        return self.callback_on_step_end_tensor_inputs

    @property
    def steps(self) -> int | Sequence[int] | None:
        """Steps of each stage."""
        return _first(self.pyramid_num_inference_steps_list, self.num_inference_steps)

    def translated(self, defaults: GenerationDefaults, on_step: StepCallback) -> Arguments:
        """The arguments by a `VideoGenerator`'s names, with its callback `on_step`.

        Steps and guidance hold for all frames where those of later ones are not said. Images are
        scaled and cropped to the size that is given, else to that of `defaults`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        own: dict[str, Any] = {}
        kind: type[Arguments] = TextToVideo
        steps = self.steps
        later_steps = _first(self.video_num_inference_steps, steps)
        height, width = self.height, self.width
        if self.video is not None:
            kind, steps = VideoToVideo, later_steps
            rate = defaults.frames_per_second
            own["video"] = fit_video(self.video, height, width, self.history_frames, rate)
        elif self.image is not None or self.image_latents is not None:
            kind, steps = ImageToVideo, later_steps
            if self.image is not None:
                pictures = pictures_of(self.image)
                if width is None or height is None:
                    chosen = width is not None or height is not None
                    size = defaults.size(None if chosen else pictures[0].size)
                    width, height = _first(width, size[0]), _first(height, size[1])
                own["input_image"] = [fit_image(picture, width, height) for picture in pictures]
        own |= {
            "prompt": _as_list(self.prompt),
            "prompts": self.prompts
            and {unit: _as_list(text) or () for unit, text in self.prompts.items()},
            "num_inference_steps": steps,
            "video_num_inference_steps": later_steps,
            "video_guidance_scale": _first(self.video_guidance_scale, self.guidance_scale),
            "num_images_per_prompt": self.num_videos_per_prompt,
            "callback_on_step_end": on_step,
        }
        taken = {entry.name for entry in fields(kind) if entry.init}
        same = {entry.name for entry in fields(self)} & taken - own.keys()
        own |= {name: getattr(self, name) for name in same}
        return kind(**{name: value for name, value in own.items() if name in taken})


def _first(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _as_list(prompt: str | Sequence[str] | None) -> Sequence[str] | None:
    return [prompt] if isinstance(prompt, str) else prompt
