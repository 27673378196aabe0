"""Is a model whole, do its parts fit, and does it compute? Each part is looked at by itself."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from video_vae.round_trip import psnr

from ..checkpoints.defaults import GenerationDefaults
from ..checkpoints.folder import CheckpointFolder
from ..checkpoints.sizes import stored_dtypes
from ..checkpoints.weights import read_transformer, read_vae, resolve_dtype
from ..devices.memory import free_memory
from ..devices.offload import module_device, moved_to
from ..flow.latents import FrameStatistics, LatentStatistics
from ..flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from ..flow.sizes import TEMPORAL_FACTOR
from ..generation.components import Components
from ..generation.latent_codec import DecodeSizes, decode_latents, encode_clip
from ..generation.memory_presets import apply_preset, choose_preset
from ..generation.video_generator import VideoGenerator
from ..models.text_encoder import TextPart
from .model import dtype_name
from .report import Report

LEAST_PSNR = 20.0
"""In dB. VAEs that fit give 28 and more of a drawn circle, foreign or untrained ones 5 to 12."""
LARGEST_MEAN, DEVIATIONS = 2.0, (0.25, 4.0)
"""Of normalized latents, which over many videos have the mean 0 and the deviation 1."""
PICTURE_SIDE = 256  # pixels, at most
VOCABULARY_PADDING = 128
"""A text encoder may have up to so many tokens more than its tokenizer, fewer by one."""
PROMPT = "a red circle on a white background"


def check_model(
    report: Report, options: Namespace, folder: CheckpointFolder, device: torch.device
) -> None:
    """Look at every part of the model in `folder`, as far as it can be loaded."""
    report.say("model", _title(options, folder))
    name = dtype_name(options.dtype, folder, device.type)
    dtype = resolve_dtype(name)
    parts = folder.architecture.text_encoder.parts()
    found = _load(report, folder, parts, dtype)
    report.say("dtype", name)
    modules = {key: part for key, part in found.items() if isinstance(part, nn.Module)}
    sound = {key for key, module in modules.items() if _is_finite(report, key, module)}
    sizes = (f"{key} {_millions(module)}" for key, module in modules.items())
    report.say("parameters", ", ".join(sizes) or "none that can be loaded")
    fitting = [_fits(report, part, found) for part in parts]
    wanted = {key for part in parts for key in part[:2]} - folder.absent
    reads = all(fitting) and found.keys() >= wanted and not wanted & folder.absent
    encoder = None
    if reads and sound >= {part.encoder for part in parts}:
        pairs = [(found[part.encoder], found[part.tokenizer]) for part in parts]
        encoder = folder.architecture.text_encoder.of(pairs)
    transformer = found.get("transformer") if "transformer" in sound else None
    vae = found.get("vae") if "vae" in sound else None
    if transformer is not None:
        generator = None
        with report.trying("the parts together"):
            scheduler = PyramidFlowMatchEulerDiscreteScheduler(**folder.scheduler_config)
            components = Components(
                transformer,
                scheduler,
                folder.statistics,
                vae=vae,
                text_encoder=encoder,
                defaults=folder.defaults,
                frame_per_unit=folder.settings.frame_per_unit,
            )
            suggested = choose_preset(components, device)
            generator = VideoGenerator(components)
            taken = apply_preset(generator, options.memory or "max-speed", device)
            asked = "" if taken == suggested else f"; {suggested} by --memory auto"
            report.say("memory preset", f"{taken}{asked}")
        if generator is not None and encoder is not None:
            with report.trying("the steps"):
                _check_steps(report, generator)
    if transformer is None or encoder is None:
        report.say("steps", "not checked: the transformer or a text encoder cannot be used")
    if vae is None:
        report.say("VAE", "not checked: it cannot be used")
    else:
        if transformer is None:
            vae.to(device)
        with report.trying("a picture through the VAE"):
            _check_vae(report, vae, folder.statistics, folder.defaults)


def _title(options: Namespace, folder: CheckpointFolder) -> str:
    source = options.model or "the bundled checkpoint"
    variant = folder.transformer_title or folder.architecture.name
    return f"{source}: {variant}"


def _load(
    report: Report, folder: CheckpointFolder, parts: Sequence[TextPart], dtype: torch.dtype
) -> dict[str, Any]:
    """The parts that are whole, by the names of a pipeline's components."""
    path, files_read = folder.path, folder.which_files
    loaders: dict[str, tuple[str, Callable[[], Any]]] = {
        folder.variant: ("transformer", partial(read_transformer, folder, dtype=dtype)),
        folder.vae_folder: ("vae", partial(read_vae, folder, dtype=dtype)),
    }
    for part in parts:
        loaders[part.encoder] = (
            part.encoder,
            partial(part.load_encoder, path, dtype=dtype, **files_read),
        )
        loaders[part.tokenizer] = (part.tokenizer, partial(part.load_tokenizer, path))
    whole: list[str] = []
    files: list[Path] = []
    for place, (name, _) in loaders.items():
        if name in folder.absent:
            continue
        with report.trying(name):
            files += folder.check_part(place)
            whole.append(place)
    left_out = ", ".join(sorted(folder.absent & {name for name, _ in loaders.values()}))
    complete = len(whole) + len(folder.absent) >= len(loaders)
    size = f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB of weights"
    state = "complete" if complete else f"only {', '.join(whole) or 'nothing'} complete"
    report.say("files", f"{state}, {size}" + (f"; saved without {left_out}" if left_out else ""))
    needed, free = _bytes_in(files, dtype), free_memory(torch.device("cpu"))
    if needed > free:
        report.wrong(
            f"the weights take {needed / 1e9:.1f} GB of the computer's memory to be loaded, "
            f"{free / 1e9:.1f} GB are free: they were not"
        )
        return {}
    found: dict[str, Any] = {}
    for place in whole:
        name, load = loaders[place]
        with report.trying(name):
            found[name] = load()
    return found


def _bytes_in(files: Iterable[Path], dtype: torch.dtype) -> float:
    """Bytes that the weights in `files` take in `dtype`."""
    total = 0.0
    for path in files:
        stored = (stored_dtypes(path) or {""}) if path.suffix == ".safetensors" else {""}
        itemsize = {"F32": 4, "F16": 2, "BF16": 2}.get("".join(stored), dtype.itemsize)
        total += path.stat().st_size * dtype.itemsize / itemsize
    return total


def _millions(module: nn.Module) -> str:
    number = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    return f"{number:.1f} M"


def _is_finite(report: Report, name: str, module: nn.Module) -> bool:
    """Whether all weights are numbers."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    bad = [key for key, x in tensors if x.is_floating_point() and not x.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        report.wrong(f"{name}: weights that are not finite: {', '.join(bad[:3])}{more}")
    return not bad


def _fits(report: Report, part: TextPart, found: dict[str, Any]) -> bool:
    """Whether the tokenizer of `part` is one for its encoder."""
    tokenizer, encoder = found.get(part.tokenizer), found.get(part.encoder)
    if tokenizer is None or encoder is None:
        return False
    before = len(report.problems)
    with report.trying(f"{part.tokenizer} and {part.encoder}"):
        config = encoder.config
        pair = f"{part.tokenizer} does not fit {part.encoder}: "
        known, room = len(tokenizer), config.vocab_size
        if not 0 <= room - known < VOCABULARY_PADDING:
            report.wrong(f"{pair}it has {known} tokens, the encoder {room}")
        is_clip = part.class_name.startswith("CLIP")
        if is_clip != (tokenizer.bos_token_id is not None):
            kind = "CLIP starts prompts with a token, it does not" if is_clip else "it is CLIP's"
            report.wrong(f"{pair}{kind}")
        # of CLIP, whose released configs have another number in these places, it is never read
        for token in () if is_clip else ("eos_token_id", "pad_token_id"):
            own, other = getattr(tokenizer, token), getattr(config, token, None)
            if own != other:
                report.wrong(f"{pair}its {token} is {own}, the encoder's {other}")
    return len(report.problems) == before


def _prompt(defaults: GenerationDefaults) -> str:
    choices = {name: texts[0] for name, texts in defaults.choices().items()}
    return defaults.sentence(choices) or PROMPT


def _check_steps(report: Report, generator: VideoGenerator) -> None:
    """Two steps in each stage of a first frame, of which the second is timed."""
    model = generator.components
    tokenizers: dict[str, Any] = getattr(model.text_encoder, "tokenizers", {})
    prompt = _prompt(model.defaults)
    if model.defaults.known_sentence:
        for name, tokenizer in tokenizers.items():
            if tokenizer.unk_token_id in tokenizer(prompt)["input_ids"][1:-1]:
                report.wrong(f"the tokenizer of {name} does not know the words of {prompt!r}")
    seconds: list[float] = []
    last = time.perf_counter()

    def on_step(_: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Any]:
        nonlocal last
        tensors["latents"].sum().item()  # waits for the device
        seconds.append(time.perf_counter() - last)
        last = time.perf_counter()
        return tensors

    width, height = _size(model.defaults)
    generator.set_progress_bar_config(disable=True)
    generator.generate(
        prompt,
        height=height,
        width=width,
        num_frames=1,
        num_inference_steps=2,
        seed=0,
        output_type="latent",
        callback_on_step_end=on_step,
    )
    timed = ", ".join(f"{second:.3f}" for second in seconds[1::2])
    report.say("steps", f"finite, {timed} s each in the stages of a frame of {width}x{height}")


def _size(defaults: GenerationDefaults) -> tuple[int, int]:
    """Width and height of the checkpoint's videos, of a small one where it says none."""
    said = defaults.width is not None and defaults.height is not None
    return defaults.size() if said else (PICTURE_SIDE, PICTURE_SIDE)


def _check_vae(
    report: Report, vae: Any, statistics: LatentStatistics, defaults: GenerationDefaults
) -> None:
    """Encode a drawn clip, decode its first frame, and compare."""
    width, height = (min(side, PICTURE_SIDE) for side in _size(defaults))
    clip = _drawn_clip(1 + TEMPORAL_FACTOR, height, width)
    pixels = torch.from_numpy(clip).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
    with moved_to(vae, module_device(vae)) as device:
        latents = encode_clip(vae, pixels, device=device).mean.float()
        normalized = statistics.normalize(latents)
        again = decode_latents(
            vae,
            statistics,
            normalized[:, :, :1],
            device=device,
            sizes=DecodeSizes.of(save_memory=True),
        )
    quality = psnr(again[0, 0].cpu().numpy(), clip[0])
    report.say("VAE", f"encodes and decodes a picture of {width}x{height} at {quality:.1f} dB PSNR")
    if not quality >= LEAST_PSNR:
        report.wrong(
            f"a picture comes back from the VAE at {quality:.1f} dB PSNR, "
            f"{LEAST_PSNR:g} and more are usual"
        )
    kinds = {
        "first frame": (slice(0, 1), statistics.first_frame),
        "later frames": (slice(1, None), statistics.later_frames),
    }
    texts = []
    for kind, (frames, stated) in kinds.items():
        own, unit = latents[:, :, frames], normalized[:, :, frames]
        mean, deviation = _overall(stated)
        texts.append(
            f"{kind} mean {own.mean():.2f}, deviation {own.std():.2f} "
            f"(checkpoint: {mean:.2f}, {deviation:.2f})"
        )
        low, high = DEVIATIONS
        if not (abs(unit.mean()) <= LARGEST_MEAN and low <= unit.std() <= high):
            report.wrong(
                f"latents of the {kind} do not fit the checkpoint's statistics: normalized by them "
                f"they have the mean {unit.mean():.2f} and the deviation {unit.std():.2f}, "
                "not about 0 and 1"
            )
    report.say("latents", "; ".join(texts))


def _overall(stated: FrameStatistics) -> tuple[float, float]:
    """Mean and deviation of all channels together."""
    shift = np.atleast_1d(np.asarray(stated.shift, dtype=np.float64))
    deviation = 1 / np.atleast_1d(np.asarray(stated.scale, dtype=np.float64))
    return float(shift.mean()), float(np.sqrt((deviation**2).mean() + shift.var()))


def _drawn_clip(frames: int, height: int, width: int) -> np.ndarray:
    """A red circle that moves slowly over white, bytes `[t, h, w, 3]`."""
    fine = 4  # drawn larger by this, for smooth edges
    radius, pictures = fine * min(height, width) // 5, []
    for index in range(frames):
        picture = Image.new("RGB", (width * fine, height * fine), "white")
        x, y = width * fine // 2 + 2 * index, height * fine // 2
        corners = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(picture).ellipse(corners, fill=(220, 30, 30))
        pictures.append(np.asarray(picture.resize((width, height), Image.Resampling.BOX)))
    return np.stack(pictures)
