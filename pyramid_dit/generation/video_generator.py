"""`generate` and its kin: the arguments of a caller, checked and made into a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..checkpoints.folder import Steps
from ..checks import check_steps, check_temp
from ..flow.sizes import SPATIAL_FACTOR, TEMPORAL_FACTOR, added_temp_of, temp_of, temp_of_seconds
from ..media.images import image_pixels, video_pixels
from ..media.video_files import HISTORY_FRAMES
from ..sampling.guidance import GuidanceSchedule
from ..sampling.prompts import Prompts
from ..sampling.unit_sampler import Unit, plan_units
from .arguments import Options, carried_out
from .engine import GenerationEngine
from .request import Callback, Generators, Request
from .saved_latents import SavedLatents
from .stream import VideoStream

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

T = TypeVar("T")

T2V_VIDEO_GUIDANCE = 7.0
I2V_VIDEO_GUIDANCE = 4.0


class VideoGenerator(GenerationEngine):
    """Text, images and videos to videos, and text to images, with models that are at hand.

    `generate`, `generate_i2v` and `generate_v2v` return a video; `stream`, `stream_i2v` and
    `stream_v2v` take the same arguments and return a `VideoStream`, which hands out its frames
    as they are made.
    """

    def _text_to_video(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        temp: int | None = None,
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
        **options: Any,
    ) -> Request:
        """Generate a video, or with `temp=1` an image, from a prompt.

        Where an argument is None, `defaults` decides: what `model_index.json` of the checkpoint
        says, else the values of the released models, which are given below.

        Args:
            prompt: One prompt or a list of them; the prompt suffix is appended.
            height: Pixels, a multiple of `size_multiple`.
            width: Pixels, a multiple of `size_multiple`.
            temp: Latent frames, 1 plus a multiple of `frame_per_unit`; the video has
                8 (temp - 1) + 1 frames. 1, an image.
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
            callback: Called as `callback(unit_index, num_units)` before each unit; to end the
                run it calls `stop`.
            options: As the attributes of `options.Options`.

        Returns:
            With "pil" a list of images for a single prompt, and a list of such lists for a list
            of prompts or several samples. With "np" an array `[b, t, h, w, 3]` and with "pt" a
            tensor `[b, t, 3, h, w]`, float32 in [0, 1]. With "latent" the normalized latents
            `[b, c, temp, h/8, w/8]`, float32. Of a run that was stopped, what is complete.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        given, defaults = Options(**options), self.defaults
        height, width = _either(height, defaults.height), _either(width, defaults.width)
        if height is None or width is None:
            raise ValueError("height and width are needed, in pixels")
        length = given.length(temp, of_frames=temp_of, of_seconds=self._temp_of_seconds)
        temp = _either(length, 1)
        check_temp(temp, self.frame_per_unit, from_image=False)
        guidance = GuidanceSchedule(
            first=_either(guidance_scale, defaults.guidance_scale),
            later=_either(
                video_guidance_scale, _either(defaults.video_guidance_scale, T2V_VIDEO_GUIDANCE)
            ),
            slope=alpha if use_linear_guidance else None,
            lower_bound=min_guidance_scale,
        )
        steps = _either(num_inference_steps, defaults.num_inference_steps)
        later_steps = _either(video_num_inference_steps, defaults.video_num_inference_steps)
        units = plan_units(
            temp,
            frame_per_unit=self.frame_per_unit,
            first_steps=self._steps("num_inference_steps", steps),
            later_steps=self._steps("video_num_inference_steps", later_steps),
            guidance=guidance,
        )
        return self._request(
            prompt,
            negative_prompt,
            given,
            units,
            guided=guidance.on,
            height=height,
            width=width,
            temp=temp,
            samples_each=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            save_memory=save_memory,
            cpu_offloading=cpu_offloading,
            inference_multigpu=inference_multigpu,
            callback=callback,
        )

    def _image_to_video(
        self,
        prompt: str | Sequence[str] | None = "",
        input_image: Image | Sequence[Image] | None = None,
        temp: int | None = None,
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
        image_latents: Tensor | None = None,
        **options: Any,
    ) -> Request:
        """Generate a video that starts with an image.

        The arguments that are not described here are those of `generate`.

        Args:
            prompt: One prompt or a list of them; it may be empty.
            input_image: An image, or a list with one a prompt, of a size that `generate` takes;
                `fit_image` brings any image there. What is transparent shows white.
            temp: Latent frames of the noise, a multiple of `frame_per_unit`; the video has
                temp - frame_per_unit + 1 latent frames, the image's among them.
            num_inference_steps: Steps of every unit, one number or one a stage; those that
                `defaults` has for later units, 28.
            guidance_scale: There is guidance where it is above 0; start of linear guidance.
            video_guidance_scale: Guidance of every unit; 4.
            image_latents: Latents of the image `[b or 1, c, 1, h/8, w/8]`, not normalized,
                instead of a draw from the VAE's posterior.
            options: As the attributes of `options.Options`.

        Returns:
            As `generate`.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        given = Options(**options)
        clip = None
        if image_latents is None:
            clip = image_pixels(input_image)
            height, width = clip.shape[-2:]
        else:
            if input_image is not None:
                raise ValueError("give either input_image or image_latents, not both")
            height, width = self._check_image_latents(image_latents)
        unused = self.frame_per_unit - 1  # frames of noise that the image makes idle
        length = given.length(
            temp,
            of_frames=lambda count: temp_of(count) + unused,
            of_seconds=lambda seconds: self._temp_of_seconds(seconds) + unused,
        )
        temp = _either(length, self.frame_per_unit)
        check_temp(temp, self.frame_per_unit, from_image=True)
        units, guidance = self._later_units(
            temp - self.frame_per_unit,
            1,
            num_inference_steps,
            first=guidance_scale,
            later=video_guidance_scale,
            slope=alpha if use_linear_guidance else None,
            lower_bound=min_guidance_scale,
        )
        return self._request(
            prompt,
            negative_prompt,
            given,
            units,
            guided=guidance.on,
            height=height,
            width=width,
            temp=temp,
            clip=clip,
            image_latents=image_latents,
            given_frames=1,
            samples_each=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            save_memory=save_memory,
            cpu_offloading=cpu_offloading,
            inference_multigpu=inference_multigpu,
            callback=callback,
        )

    def _video_to_video(
        self,
        prompt: str | Sequence[str] | None = "",
        video: str | PathLike[str] | Sequence[Image] | np.ndarray | None = None,
        temp: int | None = None,
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
        history_frames: int = HISTORY_FRAMES,
        resume: SavedLatents | str | PathLike[str] | None = None,
        **options: Any,
    ) -> Request:
        """Go on where a video ends, or where a run was stopped.

        The end of the video, encoded by the VAE, is the history of what is made. The arguments
        that are not described here are those of `generate_i2v`.

        Args:
            prompt: One prompt or a list of them, which may be empty. A run that is resumed has
                its own.
            video: Frames as images or as an array `[t, h, w, 3]` of bytes, or the name of a
                file, of a size that `generate` takes; `fit_image` brings any frame there.
            temp: Latent frames to add, a multiple of `frame_per_unit`: 8 frames each. A run that
                is resumed does what was left of it.
            history_frames: So many frames of the video are looked at, at most; of fewer or more,
                the last 8n + 1 that make whole units.
            resume: What `VideoStream.save_latents` wrote, in place of `video`. The result is then
                the whole video, to the bit what it would have been without the stop; prompts,
                steps, guidance and the state of the random numbers are those of that run.
            options: As the attributes of `options.Options`, of which `num_frames` and `seconds`
                are the length that is added, and `prompts` and `guidance_scales` count the
                history's units.

        Returns:
            As `generate`, the new frames only; with "latent" the history's latents too.

        Raises:
            TypeError: An argument is of the wrong kind.
            FileNotFoundError: There is no such file.
            ValueError: An argument is outside its range, or two do not fit each other.
        """
        given = Options(**options)
        rest: dict[str, Any] = {
            "output_type": output_type,
            "save_memory": save_memory,
            "cpu_offloading": cpu_offloading,
            "inference_multigpu": inference_multigpu,
            "callback": callback,
        }
        if resume is not None:
            given.refuse_but_embeds(
                "a run that is resumed has its own",
                prompt=prompt or None,
                video=video,
                temp=temp,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                video_guidance_scale=video_guidance_scale,
                negative_prompt=negative_prompt,
                generator=generator,
            )
            saved = resume if isinstance(resume, SavedLatents) else SavedLatents.load(resume)
            return saved.request(given, self.latent_channels, **rest)
        length = given.length(temp, of_frames=added_temp_of, of_seconds=self._added_temp_of_seconds)
        if length is None:
            raise ValueError("how much to add is needed: temp, num_frames or seconds")
        check_temp(length, self.frame_per_unit, from_image=True)
        clip = video_pixels(video, history_frames, self.frame_per_unit)
        past = (clip.shape[2] - 1) // TEMPORAL_FACTOR
        units, guidance = self._later_units(
            length,
            past // self.frame_per_unit + 1,
            num_inference_steps,
            first=guidance_scale,
            later=video_guidance_scale,
            slope=alpha if use_linear_guidance else None,
            lower_bound=min_guidance_scale,
        )
        return self._request(
            prompt,
            negative_prompt,
            given,
            units,
            guided=guidance.on,
            height=clip.shape[3],
            width=clip.shape[4],
            temp=length,
            clip=clip,
            given_frames=past + 1,
            shows_given=output_type == "latent",
            samples_each=num_images_per_prompt,
            generator=generator,
            **rest,
        )

    generate = carried_out(GenerationEngine._run)(_text_to_video)
    generate_i2v = carried_out(GenerationEngine._run)(_image_to_video)
    generate_v2v = carried_out(GenerationEngine._run)(_video_to_video)
    stream = carried_out(VideoStream)(_text_to_video)
    stream_i2v = carried_out(VideoStream)(_image_to_video)
    stream_v2v = carried_out(VideoStream)(_video_to_video)

    # ---- parts of the above ---------------------------------------------------------------

    def _request(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        options: Options,
        units: Sequence[Unit],
        *,
        guided: bool,
        generator: Generators | None,
        **rest: Any,
    ) -> Request:
        """The request of these arguments, once the prompts are checked."""
        storyboard = options.storyboard(prompt)
        texts = [
            Prompts.checked(
                text,
                _either(negative_prompt, self.defaults.negative_prompt),
                encoded=options.encoded,
                encoded_negative=options.encoded_negative,
                suffix=_either(options.prompt_suffix, self.defaults.prompt_suffix),
                guided=guided or bool(options.guidance_scales),
                allow_empty=rest.get("given_frames", 0) > 0,
            )
            for text in storyboard.values()
        ]
        if len({text.batch for text in texts}) > 1:
            raise ValueError(
                f"prompts must be as many in every unit, got {[text.batch for text in texts]}"
            )
        starts = list(storyboard)
        planned = [
            replace(
                unit,
                text=sum(start <= unit.index for start in starts) - 1,
                guidance_scale=options.guidance_at(unit.index, unit.guidance_scale),
            )
            for unit in units
        ]
        return Request(
            texts=texts,
            units=planned,
            nested=not all(text is None or isinstance(text, str) for text in storyboard.values()),
            generator=options.generators(generator),
            latents=options.latents,
            callback_on_step_end=options.callback_on_step_end,
            **rest,
        )

    def _later_units(
        self,
        temp: int,
        first_index: int,
        steps: Steps | None,
        *,
        first: float | None,
        later: float | None,
        slope: float | None,
        lower_bound: float,
    ) -> tuple[list[Unit], GuidanceSchedule]:
        """Units after what a video starts with, and their guidance; None is the default."""
        defaults = self.defaults
        guidance = GuidanceSchedule(
            first=_either(first, defaults.guidance_scale),
            later=_either(later, _either(defaults.video_guidance_scale, I2V_VIDEO_GUIDANCE)),
            slope=slope,
            lower_bound=lower_bound,
        )
        checked = self._steps(
            "num_inference_steps", _either(steps, defaults.video_num_inference_steps)
        )
        units = plan_units(
            temp,
            frame_per_unit=self.frame_per_unit,
            first_index=first_index,
            first_steps=checked,
            later_steps=checked,
            guidance=guidance,
        )
        return units, guidance

    def _steps(self, name: str, steps: Steps) -> list[int]:
        return check_steps(name, steps, self.scheduler.config.stages)

    def _temp_of_seconds(self, seconds: float) -> int:
        """Latent frames of a whole video of about so many seconds."""
        rate = self.defaults.frames_per_second
        return temp_of_seconds(seconds, rate, frame_per_unit=self.frame_per_unit)

    def _added_temp_of_seconds(self, seconds: float) -> int:
        """Latent frames that are about so many seconds more."""
        rate = self.defaults.frames_per_second
        frame = 1 / rate  # the first latent frame is one frame
        whole = temp_of_seconds(seconds + frame, rate, frame_per_unit=self.frame_per_unit)
        return max(self.frame_per_unit, whole - 1)

    def _check_image_latents(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of `[b, c, 1, h/8, w/8]`; another shape is a ValueError."""
        if latents.ndim != 5 or latents.shape[1:3] != (self.latent_channels, 1):
            raise ValueError(
                f"image_latents must be [b, {self.latent_channels}, 1, h, w], "
                f"got shape {tuple(latents.shape)}"
            )
        return latents.shape[3] * SPATIAL_FACTOR, latents.shape[4] * SPATIAL_FACTOR


def _either(value: T | None, default: T) -> T:
    return default if value is None else value
