"""Running a request with the models at hand: text, noise, units, frames."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import check_count, check_generator, check_output_type, check_shape, check_size
from ..devices.memory import free_memory, step_memory, unit_tokens
from ..devices.offload import (
    accelerator_device,
    module_device,
    moved_to,
    offloaded_in_parts,
    stays_on,
)
from ..distributed.parallel import SERIAL, Serial, processes_at_work
from ..flow.sizes import SPATIAL_FACTOR, frames_of
from ..sampling.prompts import GuidedText
from ..sampling.unit_sampler import Generators, Interrupted, UnitSampler
from .components import Models
from .latent_codec import (
    DecodeSizes,
    FrameDecoder,
    can_stream,
    decode_latents,
    encode_clip,
    to_output,
)
from .request import Progress, Request


class GenerationEngine(Models):
    """Models that carry out requests."""

    @torch.no_grad()
    def _run(self, request: Request) -> Any:
        """The whole result; of an interrupted run what is complete."""
        self._check(request)
        parallel = self._processes(request)
        decoder = self._frame_decoder(request) if parallel.size == 1 else None
        progress, frames = Progress(), []
        for latents in self._latents(request, progress, parallel):
            if decoder is not None:
                frames.append(decoder.push(latents))
        made = progress.latents
        if made is None:  # interrupted before a unit was complete
            made = torch.empty((*self._noise_shape(request)[:2], 0, *self._latent_size(request)))
        if request.output_type == "latent":
            return made
        if made.shape[2] == 0:
            video = made.new_empty((request.batch, 0, request.height, request.width, 3))
            return output_of(video.to(torch.uint8), request)
        if decoder is not None:
            video = torch.cat(frames, dim=1)
        else:
            video = self._decode(made, request, parallel)
        return output_of(video[:, given_frames(request) :], request)

    @torch.no_grad()
    def _latents(
        self, request: Request, progress: Progress, parallel: Serial
    ) -> Generator[Tensor, None, None]:
        """Normalized latents `[b, c, t, h, w]` of each unit, first of all those that are given.

        The iteration ends early when `stop` was called here or on `progress`.
        """
        self._interrupt = False
        generator = check_generator(request.generator, request.batch)
        generator = parallel.common_generator(generator)
        device = self._working_device(self.dit, request)
        noise = progress.noise = parallel.common(self._initial_noise(request, generator, device))
        past = self._past(request, generator, device)
        texts = self._encode_texts(request, device)
        if past is not None:
            past = parallel.common(past)
            progress.add(past)
        progress.generator_states = generator_states(generator, device)
        if past is not None:
            yield past
        with self._at_work(self.dit, request), self._progress_bar(request, parallel) as bar:

            def on_step(timestep: float, latents: Tensor) -> Tensor:
                bar.update()
                latents = self._step_callback(request, progress, timestep, latents)
                progress.steps_done += 1
                if parallel.any(self._interrupt or progress.stopped):
                    raise Interrupted
                return latents

            def on_unit(index: int) -> None:
                if request.callback is not None:
                    request.callback(index, request.num_units)
                if parallel.any(self._interrupt or progress.stopped):
                    raise Interrupted

            sampler = UnitSampler(
                self.dit,
                self.scheduler,
                texts=texts,
                frame_per_unit=self.frame_per_unit,
                generator=generator,
                batched_guidance=not parallel.any(not self._batches_guidance(request)),
                fast_mode=self.fast_mode,
                parallel=parallel,
                on_step=on_step,
            )
            units = sampler.run(noise, request.units, past=past, on_unit=on_unit)
            try:
                for latents in units:
                    progress.add(latents)
                    progress.frames_made += latents.shape[2]
                    progress.generator_states = generator_states(generator, device)
                    yield latents
            except Interrupted:
                return

    def _step_callback(
        self, request: Request, progress: Progress, timestep: float, latents: Tensor
    ) -> Tensor:
        if request.callback_on_step_end is None:
            return latents
        tensors = {"latents": latents}
        changed = request.callback_on_step_end(self, progress.steps_done, timestep, tensors)
        return (changed or tensors)["latents"]

    def _processes(self, request: Request) -> Serial:
        """The processes that make the video together.

        Raises:
            ValueError: There are more of them than the transformer has heads for.
        """
        if not request.inference_multigpu:
            return SERIAL
        scales = {unit.guidance_scale for unit in request.units}
        parallel = processes_at_work(guided=scales != {1.0})
        parallel.check_heads(self.dit.config.num_attention_heads)
        return parallel

    def _check(self, request: Request) -> None:
        """Check what takes the models to check, and the parts of the request together.

        Raises:
            ValueError: Something does not fit, or a model is missing.
        """
        config = self.dit.config
        check_size(request.height, request.width, self.size_multiple)
        check_output_type(request.output_type)
        check_count("num_images_per_prompt", request.samples_each)
        if request.latents is not None:
            check_shape("latents", request.latents, self._noise_shape(request))
        for prompts in request.texts:
            prompts.check_widths(config.joint_attention_dim, config.pooled_projection_dim)
            for given in (request.clip, request.image_latents):
                if given is not None and given.shape[0] not in (1, prompts.batch):
                    raise ValueError(f"{given.shape[0]} images for {prompts.batch} prompts")
            if prompts.need_encoder and self.text_encoder is None:
                raise ValueError(
                    "no text encoder is loaded: pass prompt_embeds, prompt_attention_mask and "
                    "pooled_prompt_embeds, and with guidance their negative_ twins"
                )
        if self.vae is None and (request.clip is not None or request.output_type != "latent"):
            raise ValueError(
                'no VAE is loaded: ask for output_type="latent", and pass image_latents, '
                "not input_image"
            )

    def _latent_size(self, request: Request) -> tuple[int, int]:
        return request.height // SPATIAL_FACTOR, request.width // SPATIAL_FACTOR

    def _noise_shape(self, request: Request) -> tuple[int, ...]:
        return (request.batch, self.latent_channels, request.temp, *self._latent_size(request))

    def _initial_noise(
        self, request: Request, generator: Generators, device: torch.device
    ) -> Tensor:
        if request.latents is not None:
            return request.latents.to(device, torch.float32)
        shape = self._noise_shape(request)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    def _past(self, request: Request, generator: Generators, device: torch.device) -> Tensor | None:
        """Normalized latents `[b, c, t, h, w]` that the videos start with, float32, if any."""
        if request.past is not None:
            return request.past.to(device, torch.float32)
        if request.image_latents is not None:
            latents = _one_a_video(request.image_latents.to(device, torch.float32), request)
        elif request.clip is not None:
            assert self.vae is not None  # checked at the door
            with self._at_work(self.vae, request) as vae_device:
                posterior = encode_clip(self.vae, request.clip, device=vae_device)
            mean = _one_a_video(posterior.mean.to(device, torch.float32), request)
            std = _one_a_video(posterior.std.to(device, torch.float32), request)
            noise = randn_tensor(
                mean.shape, generator=generator, device=device, dtype=torch.float32
            )
            latents = mean + std * noise
        else:
            return None
        return self.statistics.normalize(latents)

    def _encode_texts(self, request: Request, device: torch.device) -> list[GuidedText]:
        encoder = self.text_encoder
        with nullcontext() if encoder is None else self._at_work(encoder, request):
            texts = [prompts.encode(encoder) for prompts in request.texts]
        return [text.to(device, self.dtype).repeated(request.samples_each) for text in texts]

    def _batches_guidance(self, request: Request) -> bool:
        """Whether both branches of the guidance go in one batch, which takes more memory."""
        if self.batched_guidance is not None:
            return self.batched_guidance
        if not request.units:  # the video is its first image, and nothing is to be made
            return True
        last = request.units[-1]
        height, width = self._latent_size(request)
        tokens = unit_tokens(
            last.index,
            last.stop - last.start,
            frame_per_unit=self.frame_per_unit,
            stages=self.scheduler.config.stages,
            height=height,
            width=width,
        )
        needed = step_memory(self.dit, tokens=tokens, batch=2 * request.batch)
        return needed <= free_memory(self._working_device(self.dit, request))

    def _frame_decoder(self, request: Request) -> FrameDecoder | None:
        """What decodes while the transformer works; None where that waits for the end.

        It waits where there is but one unit, where weights are moved for each part of the work,
        and where memory is short.
        """
        if self.vae is None or request.output_type == "latent" or request.num_units < 2:
            return None
        device = self._working_device(self.vae, request)
        if not stays_on(self.vae, device):
            return None
        sizes = DecodeSizes.of(save_memory=request.save_memory)
        if not can_stream(self.vae, self._noise_shape(request), device=device, sizes=sizes):
            return None
        return FrameDecoder(self.vae, self.statistics, device=device, window=sizes.window)

    def _stream_decoder(self, request: Request) -> Callable[[Tensor], Tensor]:
        """What decodes each unit as it comes, in tiles where memory is short."""
        vae = self.vae
        assert vae is not None  # checked at the door
        sizes = DecodeSizes.of(save_memory=request.save_memory)
        device = self._working_device(vae, request)
        fits = can_stream(vae, self._noise_shape(request), device=device, sizes=sizes)
        tile = sizes.tile if vae.use_tiling and not fits else None
        decoder = FrameDecoder(vae, self.statistics, device=device, window=sizes.window, tile=tile)

        def decode(latents: Tensor) -> Tensor:
            with self._at_work(vae, request):
                return decoder.push(latents)

        return decode

    def _decode(self, latents: Tensor, request: Request, parallel: Serial) -> Tensor:
        """Bytes `[b, t, h, w, 3]` of normalized latents."""
        assert self.vae is not None  # checked at the door
        sizes = DecodeSizes.of(save_memory=request.save_memory)
        with self._at_work(self.vae, request) as device:
            return decode_latents(
                self.vae, self.statistics, latents, device=device, sizes=sizes, parallel=parallel
            )

    # ---- where the work is done -----------------------------------------------------------

    def _working_device(self, module: nn.Module, request: Request) -> torch.device:
        """Device of `module` while it works, the accelerator if weights are to be moved there."""
        moves = request.cpu_offloading and not offloaded_in_parts(module)
        return (accelerator_device() if moves else None) or module_device(module)

    def _at_work(self, module: nn.Module, request: Request) -> AbstractContextManager[torch.device]:
        return moved_to(module, self._working_device(module, request))

    def _progress_bar(self, request: Request, parallel: Serial) -> tqdm:
        options = self._progress_bar_config if parallel.is_main else {"disable": True}
        return tqdm(total=request.total_steps, **options)


def output_of(video: Tensor, request: Request) -> Any:
    """What the caller asked for, of bytes `[b, t, h, w, 3]`."""
    output = to_output(video, request.output_type)
    if isinstance(output, list) and len(output) == 1 and not request.nested:
        return output[0]
    return output


def given_frames(request: Request) -> int:
    """How many frames at the start are not to be shown, for they were given."""
    return 0 if request.shows_given else frames_of(request.given_frames)


def generator_states(generator: Generators, device: torch.device) -> list[Tensor]:
    """States of the sources of random numbers; without any, of the global one of `device`."""
    if generator is None and device.type == "cpu":
        return [torch.get_rng_state()]
    if generator is None:
        return [torch.get_device_module(device).get_rng_state(device)]
    sources = [generator] if isinstance(generator, torch.Generator) else generator
    return [source.get_state() for source in sources]


def _one_a_video(images: Tensor, request: Request) -> Tensor:
    """One row a video from one row a prompt, or from one row for all."""
    per_prompt = images.expand(request.texts[0].batch, *images.shape[1:])
    return per_prompt.repeat_interleave(request.samples_each, dim=0)
