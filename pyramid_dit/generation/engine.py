"""Carrying out a run: text, noise, units, frames."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from tqdm import tqdm

from ..devices.memory import free_memory
from ..devices.offload import (
    accelerator_device,
    module_device,
    moved_to,
    offloaded_in_parts,
    stays_on,
)
from ..flow.latents import Generators
from ..sampling.prompts import GuidedText
from ..sampling.unit_sampler import Interrupted, Step, Unit, UnitSampler
from .arguments import NextPrompt
from .latent_codec import (
    DecodeSizes,
    FrameDecoder,
    can_stream,
    decode_latents,
    encode_clip,
    pixels_for,
)
from .memory_estimates import step_memory, unit_tokens
from .request import next_prompts
from .run import Run


@torch.no_grad()
def sample(run: Run) -> Generator[Tensor, None, None]:
    """Normalized latents `[b, c, t, h, w]` of each unit, first of all those that are given.

    The iteration ends early if the run is stopped.
    """
    request, model, parallel = run.request, run.model, run.parallel
    generator = parallel.common_generator(run.request.generator)
    device = _working_device(run, model.dit)
    noise_of = _noise_of_units(run, generator, device)
    past = _past(run, generator, device)
    texts = _encode_texts(run, device)
    if past is not None:
        past = parallel.common(past)
        run.add(past)
    run.generator_states = _generator_states(generator, device)
    if past is not None:
        yield past
    bar_options = run.progress_bar if parallel.is_main else {"disable": True}
    total = None if request.endless else request.total_steps
    with _at_work(run, model.dit), tqdm(total=total, **bar_options) as bar:

        def on_step(step: Step) -> Step:
            bar.update()
            step = _step_callback(run, step)
            run.steps_done += 1
            if parallel.any(run.stopped):
                raise Interrupted
            return step

        def on_unit(index: int) -> None:
            if request.arguments.callback is not None:
                request.arguments.callback(index, request.num_units)
            if (text := _next_text(run, index, texts[0], device)) is not None:
                sampler.texts[0] = text
            if parallel.any(run.stopped):
                raise Interrupted

        sampler = UnitSampler(
            model.dit,
            model.scheduler,
            texts=texts,
            frame_per_unit=model.frame_per_unit,
            generator=generator,
            batched_guidance=not parallel.any(not _batches_guidance(run)),
            fast_mode=run.fast_mode,
            parallel=parallel,
            on_step=on_step,
        )
        try:
            for latents in sampler.run(noise_of, request.every_unit(), past=past, on_unit=on_unit):
                run.units_made += 1
                run.add(latents)
                run.generator_states = _generator_states(generator, device)
                yield latents
        except Interrupted:
            return


@torch.no_grad()
def make_frames(run: Run, *, as_they_come: bool) -> Generator[Tensor, None, None]:
    """Make the video, and decode it to frames `[b, t, h, w, 3]`, a piece at a time.

    Args:
        run: The run.
        as_they_come: Decode each unit when it is there, in tiles where memory is short. Otherwise
            decoding may wait for the end: where processes share it, where there is but one unit,
            where weights are moved for each part of the work, and where memory is short.
    """
    vae, parallel = run.model.vae, run.parallel
    assert vae is not None  # the request was checked
    decoder = _decoder(run, as_they_come=as_they_come)
    for latents in sample(run):
        if decoder is not None:
            with _at_work(run, vae):
                frames = decoder.push(latents)
            yield frames
    if decoder is None and run.latents is not None:
        with _at_work(run, vae) as device:
            yield decode_latents(
                vae,
                run.model.statistics,
                run.latents,
                device=device,
                sizes=_decode_sizes(run),
                parallel=parallel,
                finish=pixels_for(run.request.arguments.output_type),
            )


def _decoder(run: Run, *, as_they_come: bool) -> FrameDecoder | None:
    """What decodes each unit as it comes; None where decoding waits for the end."""
    vae, sizes = run.model.vae, _decode_sizes(run)
    assert vae is not None
    device = _working_device(run, vae)
    shape = run.request.noise_shape(run.model)
    fits = can_stream(vae, shape, device=device, sizes=sizes)
    alone = run.parallel.size == 1 and run.request.num_units > 1 and stays_on(vae, device)
    if not as_they_come and not (alone and fits):
        return None
    tile = sizes.tile if vae.use_tiling and not fits else None
    return FrameDecoder(
        vae,
        run.model.statistics,
        device=device,
        window=sizes.window,
        tile=tile,
        finish=pixels_for(run.request.arguments.output_type),
    )


def _decode_sizes(run: Run) -> DecodeSizes:
    return DecodeSizes.of(save_memory=run.request.arguments.save_memory)


def _step_callback(run: Run, step: Step) -> Step:
    callback = run.request.arguments.callback_on_step_end
    if callback is None:
        return step
    values = step.values()
    changed = callback(run.caller, run.steps_done, step.timestep, values)
    return step.changed(values | {**(changed or {})})


def _noise_of_units(
    run: Run, generator: Generators | None, device: torch.device
) -> Callable[[Unit], Tensor]:
    """What gives the noise of each unit `[b, c, t, h/8, w/8]`, float32.

    All of it is drawn before the first unit; without an end, that of a unit right before it.
    """
    request, common = run.request, run.parallel.common
    batch, channels, temp, *size = request.noise_shape(run.model)

    def drawn(frames: int) -> Tensor:
        shape = (batch, channels, frames, *size)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    if request.endless:
        run.noise = torch.empty(batch, channels, 0, *size, device=device)
        return lambda unit: common(drawn(unit.stop - unit.start))
    given = None if request.latents is None else request.latents.to(device, torch.float32)
    noise = run.noise = common(drawn(temp) if given is None else given)
    return lambda unit: noise[:, :, unit.start : unit.stop]


def _past(run: Run, generator: Generators | None, device: torch.device) -> Tensor | None:
    """Normalized latents `[b, c, t, h, w]` that the videos start with, float32, if any."""
    request, vae = run.request, run.model.vae
    if request.past is not None:
        return request.past.to(device, torch.float32)
    if request.arguments.image_latents is not None:
        latents = _one_a_video(run, request.arguments.image_latents.to(device, torch.float32))
    elif request.clip is not None:
        assert vae is not None  # the request was checked
        with _at_work(run, vae) as vae_device:
            posterior = encode_clip(vae, request.clip, device=vae_device)
        mean = _one_a_video(run, posterior.mean.to(device, torch.float32))
        std = _one_a_video(run, posterior.std.to(device, torch.float32))
        noise = randn_tensor(mean.shape, generator=generator, device=device, dtype=torch.float32)
        latents = mean + std * noise
    else:
        return None
    return run.model.statistics.normalize(latents)


def _one_a_video(run: Run, images: Tensor) -> Tensor:
    """One row per video from one row per prompt, or from one row for all."""
    per_prompt = images.expand(run.request.texts[0].batch, *images.shape[1:])
    return per_prompt.repeat_interleave(run.request.samples_each, dim=0)


def _encode_texts(run: Run, device: torch.device) -> list[GuidedText]:
    encoder, request = run.model.text_encoder, run.request
    length = request.arguments.max_sequence_length
    with nullcontext() if encoder is None else _at_work(run, encoder):
        texts = [prompts.encode(encoder, length) for prompts in request.texts]
    return [text.to(device, run.model.dtype).repeated(request.samples_each) for text in texts]


def _next_text(run: Run, unit: int, before: GuidedText, device: torch.device) -> GuidedText | None:
    """The text that `next_prompt` has for a unit, if it is another one."""
    source, encoder = run.request.arguments.next_prompt, run.model.text_encoder
    if source is None:
        return None
    said = run.parallel.common_object(_asked(source, unit) if run.parallel.is_main else None)
    if said is None:
        return None
    assert encoder is not None  # the request was checked
    run.texts[0] = next_prompts(said, run.texts[0], run.request, run.model)
    positive = replace(run.texts[0], negative=None)
    with _at_work(run, encoder):
        text = positive.encode(encoder, run.request.arguments.max_sequence_length)
    text = text.to(device, run.model.dtype).repeated(run.request.samples_each)
    return replace(text, negative=before.negative)


def _asked(source: NextPrompt, unit: int) -> str | Sequence[str] | None:
    """The prompt from a function, or the newest one from a queue."""
    if callable(source):
        return source(unit)
    newest = None
    with suppress(queue.Empty):
        while True:
            newest = source.get_nowait()
    return newest


def _batches_guidance(run: Run) -> bool:
    """Whether both branches of the guidance go in one batch, which takes more memory."""
    if run.batched_guidance is not None:
        return run.batched_guidance
    request, model = run.request, run.model
    if not request.units:  # the video is its first image, and nothing is to be made
        return True
    last = request.units[-1]
    height, width = request.latent_size
    tokens = unit_tokens(
        run.fast_mode.most_units if request.endless else last.index,
        last.stop - last.start,
        frame_per_unit=model.frame_per_unit,
        stages=model.stages,
        height=height,
        width=width,
    )
    needed = step_memory(model.dit, tokens=tokens, batch=2 * request.batch)
    return needed <= free_memory(_working_device(run, model.dit))


def _generator_states(generator: Generators | None, device: torch.device) -> list[Tensor]:
    """States of the sources of random numbers; without any, of the global one of `device`."""
    if generator is None and device.type == "cpu":
        return [torch.get_rng_state()]
    if generator is None:
        return [torch.get_device_module(device).get_rng_state(device)]
    sources = [generator] if isinstance(generator, torch.Generator) else generator
    return [source.get_state() for source in sources]


def _working_device(run: Run, module: nn.Module) -> torch.device:
    """Device of `module` while it works, the accelerator if weights are to be moved there."""
    moves = run.request.arguments.cpu_offloading and not offloaded_in_parts(module)
    return (accelerator_device() if moves else None) or module_device(module)


def _at_work(run: Run, module: nn.Module) -> AbstractContextManager[torch.device]:
    return moved_to(module, _working_device(run, module))
