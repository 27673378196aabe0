"""From arguments to a request: checked against the models, and complete."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from ..checkpoints.defaults import Mode
from ..checks import (
    FRAMES,
    LATENT_FRAMES,
    TEXT,
    OneOrMore,
    check_shape,
    check_size,
    check_temp,
    steps_per_stage,
)
from ..distributed.parallel import processes_at_work, speaks
from ..flow.latents import Generators
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..flow.sizes import (
    SPATIAL_FACTOR,
    TEMPORAL_FACTOR,
    added_temp_of,
    frames_of,
    temp_of,
    temp_of_seconds,
)
from ..media.images import image_pixels, video_pixels
from ..models.lora_text import words_taught
from ..sampling.guidance import GuidanceSchedule
from ..sampling.prompts import Prompts
from ..sampling.unit_sampler import Unit, plan_units
from .arguments import Arguments, ImageToVideo, TextToVideo, VideoToVideo
from .components import Components
from .saved_latents import SavedLatents

logger = logging.getLogger(__name__)
logger.addFilter(speaks)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be made, decided in every respect."""

    arguments: Arguments
    """What was asked for."""
    texts: Sequence[Prompts]
    """Prompts; each unit says which of them it follows."""
    units: Sequence[Unit]
    height: int
    width: int
    temp: int
    """Latent frames of the noise; without an end, of a unit's."""
    endless: bool = False
    """Whether the last of `units` is followed by others like it, without end."""
    clip: Tensor | None = None
    """Pixels `[b or 1, 3, 8n + 1, h, w]` in [-1, 1] that the videos start with."""
    past: Tensor | None = None
    """The same as normalized latents `[b, c, t, h/8, w/8]`."""
    given_frames: int = 0
    """Latent frames of what the videos start with."""
    shows_given: bool = True
    """Whether the result has the frames that the videos start with."""
    nested: bool
    """Whether a single video comes as a list of one."""
    samples_each: int
    generator: Generators | None
    latents: Tensor | None
    """Initial noise, if it is given."""

    @property
    def batch(self) -> int:
        """Number of videos."""
        return self.texts[0].batch * self.samples_each

    @property
    def num_units(self) -> float:
        """Units of the video, those that it starts with among them; infinity without an end."""
        if self.endless:
            return math.inf
        if self.units:
            return self.units[-1].index + 1
        return self.given_frames  # an image alone

    @property
    def total_steps(self) -> float:
        """Steps of all units together; infinity without an end."""
        return math.inf if self.endless else sum(sum(unit.steps) for unit in self.units)

    def every_unit(self) -> Iterator[Unit]:
        """The units in order, those that follow `units` without end too."""
        yield from self.units
        if self.endless:
            last = self.units[-1]
            yield from (replace(last, index=index) for index in itertools.count(last.index + 1))

    @property
    def hidden_frames(self) -> int:
        """How many frames at the start are not to be shown, for they were given."""
        return 0 if self.shows_given else frames_of(self.given_frames)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR

    def noise_shape(self, model: Components) -> tuple[int, ...]:
        """Shape of the initial noise `(b, c, temp, h/8, w/8)`."""
        return (self.batch, model.latent_channels, self.temp, *self.latent_size)


def make_request(arguments: Arguments, model: Components) -> Request:
    """What `model` is to do for these arguments; what is not given is as its checkpoint prefers.

    Raises:
        TypeError: An argument is of the wrong kind.
        FileNotFoundError: There is no such file.
        ValueError: An argument is outside its range, two do not fit each other, or a model that
            is needed is missing.
    """
    if arguments.inference_multigpu:
        processes_at_work(guided=True)  # from now on one of them warns
    if not isinstance(model.scheduler, PyramidFlowMatchEulerDiscreteScheduler):
        raise TypeError(
            f"the scheduler must be a {PyramidFlowMatchEulerDiscreteScheduler.__name__}, whose "
            f"`solver` says how to step, got a {type(model.scheduler).__name__}"
        )
    make = _new if arguments.resume is None else _resumed
    request = make(arguments, model)
    _check(request, model)
    return request


def next_prompts(
    said: str | Sequence[str], before: Prompts, request: Request, model: Components
) -> Prompts:
    """Prompts to go on with in place of `before`; the negative ones stay.

    Raises:
        TypeError: A prompt is no string.
        ValueError: A prompt is empty, or they are not as many as before.
    """
    OneOrMore(TEXT)("what next_prompt gives", said)
    defaults, given = model.defaults, request.arguments.prompt_suffix
    prompts = Prompts.checked(
        [said] * before.batch if isinstance(said, str) else said,
        "",
        suffix=_either(given, defaults.prompt_suffix),
        guided=False,
        allow_empty=request.given_frames > 0,
    )
    if prompts.batch != before.batch:
        raise ValueError(
            f"next_prompt must give one prompt, or one for each of {before.batch} videos, got "
            f"{prompts.batch}"
        )
    _warn_of_unknown_words([prompts], model)
    return replace(prompts, negative=before.negative)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a video starts from, and how long it gets."""

    height: int
    width: int
    temp: int
    clip: Tensor | None = None
    given_frames: int = 0
    first_index: int = 0
    """Of the units that are made."""
    made_frames: int
    """Latent frames of the noise that units are made of."""


def _warn_of_unknown_words(texts: Sequence[Prompts], model: Components) -> None:
    prompts = [p for text in texts if isinstance(text.positive, list) for p in text.positive]
    defaults = model.defaults.with_words(words_taught(model.dit))
    if unknown := defaults.unknown_words(prompts):
        known = " ".join(defaults.known_words or ())
        logger.warning(
            "the checkpoint never learned the words: %s (it knows: %s)",
            *(" ".join(unknown), known),
        )


def _refuse_guidance(arguments: Arguments, model: Components) -> None:
    """Refuse guidance for a model that has it in its weights (ValueError)."""
    steered = {
        "guidance_scale": arguments.guidance_scale,
        "video_guidance_scale": arguments.video_guidance_scale,
        "use_linear_guidance": arguments.use_linear_guidance,
        "guidance_scales": any((arguments.guidance_scales or {}).values()),
        "negative_prompt": arguments.negative_prompt,
        "negative_prompt_embeds": arguments.negative_prompt_embeds is not None,
    }
    for name, value in steered.items():
        if value:
            raise ValueError(
                f"{name} does not go with {model.name or 'this model'}: its guidance and what it "
                "is guided away from are in its weights"
            )


def _new(arguments: Arguments, model: Components) -> Request:
    defaults, unit = model.defaults, model.frame_per_unit
    if defaults.guidance_in_weights:
        _refuse_guidance(arguments, model)
    match arguments:
        case ImageToVideo():
            start = _from_image(arguments, model)
        case VideoToVideo():
            start = _from_video(arguments, model)
        case _:
            height, width = arguments.height, arguments.width
            if height is None or width is None:
                preferred = defaults.size()
                width, height = _either(width, preferred[0]), _either(height, preferred[1])
            temp = _length(arguments, model)
            check_temp(temp, unit, from_image=False)
            start = _Start(
                height=height,
                width=width,
                temp=temp,
                made_frames=temp,
            )
    of_text = isinstance(arguments, TextToVideo)
    mode: Mode = "image" if isinstance(arguments, ImageToVideo) else "extend"
    if of_text:
        mode = "text"
    guidance = GuidanceSchedule(
        first=_either(arguments.guidance_scale, defaults.guidance_scale),
        later=_either(arguments.video_guidance_scale, defaults.video_guidance(mode)),
        slope=arguments.alpha if arguments.use_linear_guidance else None,
        lower_bound=arguments.min_guidance_scale,
    )
    first, later = arguments.num_inference_steps, arguments.video_num_inference_steps
    usual = defaults.num_inference_steps if of_text else defaults.video_num_inference_steps
    first_steps = steps_per_stage("num_inference_steps", _either(first, usual), model.stages)
    later_steps = first_steps
    if of_text:
        later_steps = steps_per_stage(
            "video_num_inference_steps",
            _either(later, defaults.video_num_inference_steps),
            model.stages,
        )
    units = plan_units(
        start.made_frames,
        frame_per_unit=unit,
        first_index=start.first_index,
        first_steps=first_steps,
        later_steps=later_steps,
        guidance=guidance,
    )
    solver = _either(arguments.solver, model.scheduler.config.solver)
    last = units[-1].index if units else start.given_frames - 1
    for name in ("prompts", "guidance_scales"):
        late = [unit for unit in getattr(arguments, name) or () if unit > last]
        if late:
            raise ValueError(
                f"{name} begin at unit {late[0]}, after the end: the last unit is {last}"
            )
    story = arguments.storyboard
    texts = [
        Prompts.checked(
            "" if text is None and start.given_frames and arguments.prompt_embeds is None else text,
            _either(arguments.negative_prompt, defaults.negative_prompt),
            encoded=arguments.encoded,
            encoded_negative=arguments.encoded_negative,
            suffix=_either(arguments.prompt_suffix, defaults.prompt_suffix),
            guided=guidance.on or bool(arguments.guidance_scales),
            allow_empty=start.given_frames > 0,
        )
        for text in story.values()
    ]
    if len({text.batch for text in texts}) > 1:
        raise ValueError(
            f"prompts must be as many in every unit, got {[text.batch for text in texts]}"
        )
    _warn_of_unknown_words(texts, model)
    starts = list(story)
    return Request(
        arguments=arguments,
        texts=texts,
        units=[
            replace(
                unit,
                text=sum(start <= unit.index for start in starts) - 1,
                guidance_scale=arguments.guidance_at(unit.index, unit.guidance_scale),
                solver=solver,
            )
            for unit in units
        ],
        height=start.height,
        width=start.width,
        temp=unit if arguments.endless else start.temp,
        endless=arguments.endless,
        clip=start.clip,
        given_frames=start.given_frames,
        shows_given=mode != "extend" or arguments.output_type == "latent",
        nested=not all(text is None or isinstance(text, str) for text in story.values()),
        samples_each=arguments.num_images_per_prompt,
        generator=arguments.sources(),
        latents=arguments.latents,
    )


def _from_image(arguments: ImageToVideo, model: Components) -> _Start:
    unit, latents = model.frame_per_unit, arguments.image_latents
    clip = None
    if latents is None:
        clip = image_pixels(arguments.input_image)
        height, width = clip.shape[-2:]
    elif latents.ndim != 5 or latents.shape[1:3] != (model.latent_channels, 1):
        raise ValueError(
            f"image_latents must be [b, {model.latent_channels}, 1, h, w], "
            f"got shape {tuple(latents.shape)}"
        )
    else:
        height, width = (side * SPATIAL_FACTOR for side in latents.shape[3:])
    # the image makes frames of the noise idle
    temp = _either(arguments.temp, _length(arguments, model) + unit - 1)
    check_temp(temp, unit, from_image=True)
    return _Start(
        height=height,
        width=width,
        temp=temp,
        clip=clip,
        given_frames=1,
        first_index=1,
        made_frames=temp - unit,
    )


def _from_video(arguments: VideoToVideo, model: Components) -> _Start:
    unit = model.frame_per_unit
    temp = _added_length(arguments, model)
    check_temp(temp, unit, from_image=True)
    rate = model.defaults.frames_per_second
    clip = video_pixels(arguments.video, arguments.history_frames, unit, rate)
    past = (clip.shape[2] - 1) // TEMPORAL_FACTOR
    return _Start(
        height=clip.shape[3],
        width=clip.shape[4],
        temp=temp,
        clip=clip,
        given_frames=past + 1,
        first_index=past // unit + 1,
        made_frames=temp,
    )


def _length(arguments: Arguments, model: Components) -> int:
    """Latent frames of a whole video."""
    if arguments.temp is not None:
        return arguments.temp
    if arguments.num_frames is not None:
        return temp_of(arguments.num_frames)
    if arguments.endless:
        return 1 + model.frame_per_unit * _planned_units(arguments, model)
    if arguments.seconds is not None:
        return _temp_of_seconds(arguments.seconds, model)
    preferred = temp_of(model.defaults.frames())
    return preferred - (preferred - 1) % model.frame_per_unit


def _added_length(arguments: Arguments, model: Components) -> int:
    """Latent frames by which a video goes on."""
    if arguments.num_frames is not None:
        return added_temp_of(arguments.num_frames)
    if arguments.endless:
        return model.frame_per_unit * _planned_units(arguments, model)
    if arguments.seconds is not None:
        first = 1 / model.defaults.frames_per_second  # of a whole video, it is a frame alone
        longer = _temp_of_seconds(arguments.seconds + first, model)
        return max(model.frame_per_unit, longer - 1)
    if arguments.temp is not None:
        return arguments.temp
    return max(model.frame_per_unit, _length(arguments, model) - 1)


def _planned_units(arguments: Arguments, model: Components) -> int:
    """How many units of a video without end are planned: until nothing changes any more."""
    changes = [1, *(arguments.guidance_scales or ())]
    if arguments.use_linear_guidance and arguments.alpha > 0:
        first = _either(arguments.guidance_scale, model.defaults.guidance_scale)
        changes.append(math.ceil(first / arguments.alpha))
    return min(max(changes) + 1, LATENT_FRAMES.most // model.frame_per_unit - 1)


def _temp_of_seconds(seconds: float, model: Components) -> int:
    rate = model.defaults.frames_per_second
    temp = temp_of_seconds(seconds, rate, frame_per_unit=model.frame_per_unit)
    FRAMES(f"the number of frames in {seconds:g} seconds", frames_of(temp))
    return temp


def _resumed(arguments: Arguments, model: Components) -> Request:
    """The request to do what a run that was saved has left."""
    saved = arguments.resume
    if not isinstance(saved, SavedLatents):
        assert saved is not None
        saved = SavedLatents.load(saved)
    batch, channels, frames, height, width = saved.latents.shape
    if channels != model.latent_channels:
        raise ValueError(
            f"the saved latents have {channels} channels, the model {model.latent_channels}"
        )
    if "" not in (saved.model, model.name) and saved.model != model.name:
        logger.warning(
            "the latents were made with %s, and the video is continued with %s",
            saved.model,
            model.name,
        )
    guided = any(unit.guidance_scale != 1 for unit in saved.units)
    if guided and model.defaults.guidance_in_weights:
        raise ValueError(
            f"the run was guided, and the guidance of {model.name or 'this model'} is in its "
            "weights: resume it with the model that it was made with"
        )
    given = arguments.negative_prompt_embeds is not None
    for text in saved.texts:
        if guided and given and text.negative_prompts is not None:
            raise ValueError(
                "a resumed run keeps its own negative prompts, so negative_prompt_embeds cannot "
                "be given"
            )
        if guided and not given and text.negative_prompts is None:
            raise ValueError("the run was made with negative_prompt_embeds: pass them again")
    texts = [
        Prompts.checked(
            text.prompts,
            text.negative_prompts or "",
            encoded=arguments.encoded,
            encoded_negative=arguments.encoded_negative,
            suffix="",
            guided=guided,
            allow_empty=True,
        )
        for text in saved.texts
    ]
    return Request(
        arguments=arguments.with_kept(saved.kept),
        texts=texts,
        units=saved.units,
        height=height * SPATIAL_FACTOR,
        width=width * SPATIAL_FACTOR,
        temp=model.frame_per_unit if saved.endless else saved.noise.shape[2],
        past=saved.latents,
        given_frames=frames,
        endless=saved.endless,
        shows_given=not saved.endless,
        nested=batch > saved.samples_each,
        samples_each=saved.samples_each,
        generator=saved.generators(),
        latents=None if saved.endless else saved.noise,
    )


def _check(request: Request, model: Components) -> None:
    """Check what takes the models to check."""
    arguments, config = request.arguments, model.dit.config
    check_size(request.height, request.width, model.size_multiple)
    if request.latents is not None:
        check_shape("latents", request.latents, request.noise_shape(model))
    for prompts in request.texts:
        prompts.check_widths(config.joint_attention_dim, config.pooled_projection_dim)
        for given in (request.clip, arguments.image_latents):
            if given is not None and given.shape[0] not in (1, prompts.batch):
                raise ValueError(f"{given.shape[0]} images for {prompts.batch} prompts")
        if prompts.need_encoder or arguments.next_prompt is not None:
            _check_text_encoder(request, model)
    pixels_in = request.clip is not None
    if model.vae is None and (pixels_in or arguments.output_type != "latent"):
        raise ValueError(
            'no VAE is loaded: ask for output_type="latent", and pass image_latents, '
            "not input_image"
        )
    if isinstance(request.generator, list) and len(request.generator) != request.batch:
        raise ValueError(f"{len(request.generator)} generators for a batch of {request.batch}")


def _check_text_encoder(request: Request, model: Components) -> None:
    if model.text_encoder is None:
        raise ValueError(
            "no text encoder is loaded: pass prompt_embeds, prompt_attention_mask and "
            "pooled_prompt_embeds, and with guidance their negative_ counterparts"
        )
    most: Any = getattr(model.text_encoder, "max_sequence_length", None)
    asked = request.arguments.max_sequence_length
    if most is not None and asked > most:
        raise ValueError(
            f"max_sequence_length must be at most {most}, what the text encoder reads, got {asked}"
        )


def _either(value: T | None, default: T) -> T:
    return default if value is None else value
