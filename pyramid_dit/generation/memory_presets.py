"""Ways to live with little memory, by name or by a size, and what each of them takes.

On an accelerator, weights that are not at work lie in the CPU's memory; on the CPU they lie in
files, mapped, and take no memory.

`python -m pyramid_dit.memory_presets` prints what the released models take. The figures are
computed, not measured: bytes of the weights, and the estimates of `memory_estimates` and of
`video_vae.memory` for the activations.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import nn

from video_vae.memory import decode_memory

from ..checkpoints.architectures import ARCHITECTURES
from ..checkpoints.defaults import RELEASED_NUM_FRAMES, RELEASED_SIZES
from ..checks import memory_size
from ..devices.cpu import keep_freed_memory
from ..devices.memory import free_memory, limit_memory, resident_memory
from ..devices.offload import (
    leave_after_work,
    offload_sequentially,
    offload_whole,
    stay_after_work,
)
from ..flow.sizes import SPATIAL_FACTOR, temp_of
from .latent_codec import DecodeSizes
from .memory_estimates import step_memory, unit_tokens

if TYPE_CHECKING:
    from video_vae import CausalVideoVAE

    from ..models.transformer import PyramidTransformer
    from .components import Components
    from .video_generator import VideoGenerator

logger = logging.getLogger(__name__)

AUTO = "auto"
HEADROOM = 0.9
"""Share of the memory that a preset may take; the rest is for what no estimate counts."""


class Placement(Enum):
    """Where the weights of a model are."""

    ON_DEVICE = "on the device"
    MOVED = "moved there for its work"
    LAYER_BY_LAYER = "moved there layer by layer"
    IN_FILES = "read from files for its work"


@dataclass(frozen=True)
class MemoryPreset:
    """Where weights are, and whether guidance takes two passes.

    The VAE may take tiles in all of them, which it does where whole pictures do not fit.
    """

    text_encoders: Placement
    transformer: Placement
    vae: Placement
    batched_guidance: bool | None
    """As of `VideoGenerator`."""
    float8: bool = False
    """Whether the transformer's large layers are stored in 8 bits, which changes the videos."""


_THERE, _MOVED, _BY_LAYER, _IN_FILES = Placement
PRESETS = {
    "max-speed": MemoryPreset(_THERE, _THERE, _THERE, batched_guidance=None),
    "12GB": MemoryPreset(_MOVED, _MOVED, _MOVED, batched_guidance=None),
    "8GB": MemoryPreset(_BY_LAYER, _MOVED, _MOVED, batched_guidance=False),
    "6GB": MemoryPreset(_BY_LAYER, _MOVED, _MOVED, batched_guidance=False, float8=True),
}
"""Of accelerators, the fastest first."""
ON_CPU = torch.device("cpu")
MAX_SPEED = "max-speed"
ONE_AT_A_TIME = MemoryPreset(_IN_FILES, _IN_FILES, _IN_FILES, batched_guidance=None)
"""Of the CPU, where a size is asked for that all models together do not fit in."""


@dataclass(frozen=True)
class Needs:
    """Bytes that the models and their work take, for a video of a certain size."""

    text_encoders: Sequence[int]
    """Weights of each of them, which work one after another."""
    largest_layer: int
    """Weights of the largest layer of a text encoder."""
    transformer: int
    transformer_float8: int
    """The same with the large layers in 8 bits."""
    step: int
    """Activations of a step of the transformer in the last unit, without guidance."""
    vae: int
    decode: int
    """Activations of decoding whole pictures."""
    decode_tiles: int
    frames: int
    """The decoded video, as bytes, twice: its pieces are put together."""

    @classmethod
    def of(
        cls,
        dit: PyramidTransformer,
        vae: CausalVideoVAE | None,
        text_encoders: Sequence[nn.Module],
        *,
        height: int,
        width: int,
        num_frames: int,
        frame_per_unit: int = 1,
        stages: int = 3,
    ) -> Needs:
        """Of these models, for one video; their weights may lie anywhere, or be `meta`.

        Args:
            dit: The transformer.
            vae: The VAE, if there is one.
            text_encoders: The text encoders.
            height: Of the video in pixels.
            width: Of the video in pixels.
            num_frames: Of the video.
            frame_per_unit: Latent frames of an autoregressive unit.
            stages: Of the pyramid.
        """
        rows, columns = height // SPATIAL_FACTOR, width // SPATIAL_FACTOR
        temp = temp_of(num_frames)
        unit = -(-(temp - 1) // frame_per_unit)
        tokens = unit_tokens(
            unit,
            frame_per_unit if unit else 1,
            frame_per_unit=frame_per_unit,
            stages=stages,
            height=rows,
            width=columns,
        )
        leaves = [part for encoder in text_encoders for part in encoder.modules()]
        sizes = DecodeSizes.of(save_memory=True)
        tile = sizes.tile // SPATIAL_FACTOR
        return cls(
            text_encoders=[weights(encoder) for encoder in text_encoders],
            largest_layer=max((weights(leaf, recurse=False) for leaf in leaves), default=0),
            transformer=weights(dit),
            transformer_float8=_weights_in_float8(dit),
            step=step_memory(dit, tokens=tokens, batch=1),
            vae=0 if vae is None else weights(vae),
            decode=_decode(vae, sizes.window, rows, columns),
            decode_tiles=_decode(vae, sizes.window, min(rows, tile), min(columns, tile)),
            frames=2 * 3 * num_frames * height * width,
        )

    def peak(self, preset: MemoryPreset, *, whole_pictures: bool = False) -> int:
        """Bytes on the device at the worst moment of making a video with guidance.

        Args:
            preset: Where the weights are.
            whole_pictures: Count decoding without tiles.
        """
        encoders = {
            Placement.ON_DEVICE: (sum(self.text_encoders), 0),
            Placement.MOVED: (0, max(self.text_encoders, default=0)),
            Placement.IN_FILES: (0, sum(self.text_encoders)),
            Placement.LAYER_BY_LAYER: (0, self.largest_layer),
        }
        always, reading = encoders[preset.text_encoders]
        sampling = self.step * (1 if preset.batched_guidance is False else 2)
        if preset.transformer is Placement.ON_DEVICE:
            always += self._transformer(preset)
        else:
            sampling += self._transformer(preset)
        decoding = self.frames + (self.decode if whole_pictures else self.decode_tiles)
        if preset.vae is Placement.ON_DEVICE:
            always += self.vae
        else:
            decoding += self.vae
        return always + max(reading, sampling, decoding)

    def moved(self, preset: MemoryPreset) -> int:
        """Bytes of weights that are brought to the device for a video with guidance."""
        moved = 0
        if preset.text_encoders is not Placement.ON_DEVICE:
            prompts = 2  # the negative one by itself
            moved += prompts * sum(self.text_encoders)
        if preset.transformer is not Placement.ON_DEVICE:
            moved += self._transformer(preset)
        if preset.vae is not Placement.ON_DEVICE:
            moved += self.vae
        return moved

    def _transformer(self, preset: MemoryPreset) -> int:
        return self.transformer_float8 if preset.float8 else self.transformer


def apply_preset(generator: VideoGenerator, name: str, device: torch.device) -> str:
    """Place the models of `generator` as `name` says, to compute on `device`.

    Args:
        generator: Whose models' weights lie in the CPU's memory or on `device`.
        name: `auto`, one of `PRESETS`, or a size such as `16GB`: the first of them that fits into
            the memory that is free, or into that size, for the size and length of video that are
            the checkpoint's defaults. On the CPU other sizes than the presets' have one model in
            memory at a time where all of them do not fit.
        device: What to compute on.

    Returns:
        The name of the preset; on the CPU `max-speed`, or the size that is kept to.

    Raises:
        ValueError: There is no such preset.
    """
    check_preset(name)
    model = generator.components
    if device.type == "cpu":
        keep_freed_memory()
        limit_memory(None)  # an earlier one
    if name in PRESETS:
        preset = PRESETS[name]
    elif device.type == "cpu":
        name, preset = _choose_for_cpu(model, name)
        limit_memory(None if name == MAX_SPEED else memory_size(name))
    else:
        name = choose_preset(model, device, most=None if name == AUTO else memory_size(name))
        preset = PRESETS[name]
    for encoder in _text_encoders(model):
        _place(encoder, preset.text_encoders, device)
    if preset.float8 and not _in_float8(model.dit):
        model.dit.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dit.dtype
        )
    _place(model.dit, preset.transformer, device)
    if model.vae is not None:
        _place(model.vae, preset.vae, device)
        model.vae.enable_tiling()
    generator.batched_guidance = preset.batched_guidance
    return name


def check_preset(name: str) -> None:
    """Refuse with a ValueError what names no preset and is no size."""
    if name == AUTO or name in PRESETS:
        return
    try:
        memory_size(name)
    except ValueError as error:
        names = ", ".join([AUTO, *PRESETS])
        raise ValueError(
            f"memory must be one of {names}, or a size such as 16GB, got {name!r}"
        ) from error


def choose_preset(model: Components, device: torch.device, *, most: float | None = None) -> str:
    """Name of the fastest preset that fits into the free memory of `device`, else the smallest.

    Args:
        model: The models.
        device: The accelerator; on the CPU nothing has to be moved.
        most: Bytes to keep to where more are free.
    """
    if device.type == "cpu":
        return MAX_SPEED
    needs = _needs(model)
    free = free_memory(device)
    if most is not None:
        free = min(free, most)
    for name, preset in PRESETS.items():
        if needs.peak(preset) <= HEADROOM * free:
            return name
    _warn_of_too_little(free, device, name, needs.peak(preset))
    return name


def _choose_for_cpu(model: Components, name: str) -> tuple[str, MemoryPreset]:
    """`max-speed` where all models fit at once, else a size and one model at a time."""
    fastest = PRESETS[MAX_SPEED]
    used, free = resident_memory(), free_memory(ON_CPU)
    size = used + free if name == AUTO else memory_size(name)
    left = HEADROOM * max(0.0, min(free, size - used))
    needs = _needs(model)
    if needs.peak(fastest) <= left:
        return (MAX_SPEED if name == AUTO else name), fastest
    if needs.peak(ONE_AT_A_TIME) > left:
        _warn_of_too_little(left, ON_CPU, "one model at a time", needs.peak(ONE_AT_A_TIME))
    return f"{size / 1e9:.4f}GB" if name == AUTO else name, ONE_AT_A_TIME


def _warn_of_too_little(free: float, device: torch.device, name: str, peak: float) -> None:
    logger.warning(
        "%.1f GB are free on %s, the preset %s takes %.1f GB: a smaller or shorter video may fit",
        *(free / 1e9, device, name, peak / 1e9),
    )


def _needs(model: Components) -> Needs:
    """Of the size and length that are the checkpoint's defaults."""
    defaults = model.defaults
    said = defaults.width is not None and defaults.height is not None
    width, height = defaults.size() if said else RELEASED_SIZES["768p"]
    return Needs.of(
        model.dit,
        model.vae,
        _text_encoders(model),
        height=height,
        width=width,
        num_frames=defaults.frames(),
        frame_per_unit=model.frame_per_unit,
        stages=model.stages,
    )


def weights(module: nn.Module, *, recurse: bool = True) -> int:
    """Bytes of the parameters and buffers of `module`."""
    tensors = [*module.parameters(recurse), *module.buffers(recurse)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _weights_in_float8(dit: PyramidTransformer) -> int:
    """Bytes of the weights once `enable_layerwise_casting` has stored large layers in 8 bits."""
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    saved = sum(
        weights(layer) - sum(parameter.numel() for parameter in layer.parameters())
        for name, layer in dit.named_modules()
        if isinstance(layer, nn.Linear)
        and not any(re.search(pattern, name) for pattern in DEFAULT_SKIP_MODULES_PATTERN)
    )
    return weights(dit) - saved


def _in_float8(dit: PyramidTransformer) -> bool:
    return any(parameter.dtype == torch.float8_e4m3fn for parameter in dit.parameters())


def _decode(vae: CausalVideoVAE | None, latents: int, height: int, width: int) -> int:
    if vae is None:
        return 0
    return decode_memory(vae.config, latents=latents, height=height, width=width, dtype=vae.dtype)


def _text_encoders(model: Components) -> list[nn.Module]:
    return [] if model.text_encoder is None else list(model.text_encoder.children())


def _place(module: nn.Module, placement: Placement, device: torch.device) -> None:
    # accelerate takes a moment to import and few need it
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(module, recurse=True)
    stay_after_work(module)
    if placement is Placement.IN_FILES:
        leave_after_work(module)
    elif placement is Placement.MOVED:
        offload_whole(module, device)
    elif placement is Placement.LAYER_BY_LAYER:
        module.to("cpu")
        offload_sequentially(module, device)
    else:
        module.to(device)


# ---- the table --------------------------------------------------------------------------------


def released_models(model_name: str) -> tuple[PyramidTransformer, CausalVideoVAE, list[nn.Module]]:
    """The released models without their weights: transformer, VAE, text encoders, in bfloat16.

    Args:
        model_name: `pyramid_flux` or `pyramid_mmdit`.
    """
    import transformers
    from transformers import CLIPTextConfig, T5Config

    from video_vae import CausalVideoVAE

    clip_l = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    clip_g = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
    )
    t5_xxl = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    architecture = ARCHITECTURES[model_name]
    parts = architecture.text_encoder.parts()
    clips = [clip_l, clip_g][: len(parts) - 1]
    with torch.device("meta"):
        dit = architecture.transformer()
        vae = CausalVideoVAE(
            encoder_out_channels=16, decoder_in_channels=16, decoder_layers_per_block=[3] * 4
        )
        encoders: list[nn.Module] = [
            getattr(transformers, part.class_name)(config)
            for part, config in zip(parts, [*clips, t5_xxl], strict=True)
        ]
    for model in (dit, vae, *encoders):
        nn.Module.to(model, torch.bfloat16)  # diffusers' own warns of the dtype
    return dit, vae, encoders


def table(num_frames: int = RELEASED_NUM_FRAMES) -> str:
    """What the presets take for the released models, as Markdown."""
    lines = [
        f"Computed, not measured: peak memory of one video of {num_frames} frames with guidance, "
        "in bfloat16, GB.",
        "",
        "| model | size | preset | peak | peak, whole pictures decoded | weights moved per video |",
        "|---|---|---|--:|--:|--:|",
    ]
    for model_name in ARCHITECTURES:
        models = released_models(model_name)
        for width, height in (RELEASED_SIZES["384p"], RELEASED_SIZES["768p"]):
            needs = Needs.of(*models, height=height, width=width, num_frames=num_frames)
            for name, preset in PRESETS.items():
                sizes = (
                    needs.peak(preset),
                    needs.peak(preset, whole_pictures=True),
                    needs.moved(preset),
                )
                figures = " | ".join(f"{size / 1e9:.1f}" for size in sizes)
                lines.append(f"| {model_name} | {width}x{height} | {name} | {figures} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m pyramid_dit.memory_presets",
        description="Peak memory of the presets for the released models, computed.",
    )
    parser.add_argument("--num-frames", type=int, default=RELEASED_NUM_FRAMES, help="8n + 1")
    options = parser.parse_args(arguments)
    try:
        print(table(options.num_frames))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
