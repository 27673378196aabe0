"""How much memory a training of the transformer takes: `python -m trainer_misc.memory`.

It takes the flags of `train_dit`, so you can reuse the command line of a training. It does not read
any weights. Without `--model_path`, it computes the memory for a released model. The bytes of
weights, gradients, optimizer and moving average are exact; what is kept for the backward pass is
counted (`saved_activations`); the working memory of a block and of the VAE is estimated.
"""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.checkpoints.sizes import without_memory
from pyramid_dit.checkpoints.weights import resolve_dtype, vae_dtype
from pyramid_dit.flow.objective import FlowObjective, unit_counts
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.flow.sizes import SPATIAL_FACTOR, frames_of, temp_of
from pyramid_dit.generation.memory_estimates import step_memory, unit_tokens
from pyramid_dit.generation.memory_presets import released_models, weights
from pyramid_dit.json_files import read_json
from pyramid_dit.models.lora_text import TrainedTokens
from pyramid_dit.models.text_encoder import T5_LENGTH
from video_vae.memory import decode_memory, encode_memory

from .data.sizes import sizes_of
from .dit_options import GROUPS
from .lora import adapt_transformer
from .options import parse
from .quantized import bytes_saved, state_bytes
from .runs import run_or_say
from .saved_activations import (
    WHOLE_BLOCKS,
    Activations,
    AutocastOfGpus,
    Shapes,
    saved_by_blocks,
    saved_bytes,
    without_values,
)
from .train_dit import (
    LIMIT_FRAMES,
    check_settings,
    image_batches,
    new_optimizer,
    whole_masters,
)

STAGES = 3
LAYERS = ("num_layers", "num_single_layers")
"""Entries of a transformer's config that say how many blocks of each kind it has."""


@dataclass(frozen=True)
class Models:
    """The models of a training, without their weights."""

    dit: Any
    vae: Any
    text_encoders: Sequence[Any]

    @classmethod
    def of(cls, options: Namespace) -> Models:
        """Those of the folder that is named, else the released ones.

        Raises:
            FileNotFoundError: A folder or a file is missing.
            ValueError: The folder holds another model, or a config cannot be understood.
        """
        if options.model_path is None:
            return cls(*released_models(options.model_name))
        folder = CheckpointFolder.open(options.model_path, options.model_variant)
        if folder.architecture.name != options.model_name:
            raise ValueError(
                f"{options.model_path} holds a {folder.architecture.name}, "
                f"not a {options.model_name}"
            )
        from video_vae import CausalVideoVAE

        def model(name: str, kind: type[Any]) -> Any:
            return without_memory(kind, read_json(folder.path / name / "config.json"))

        parts = folder.architecture.text_encoder.parts()
        return cls(
            model(folder.variant, folder.architecture.transformer),
            model(folder.vae_folder, CausalVideoVAE),
            [model(part.encoder, part.model_class) for part in parts],
        )


@dataclass(frozen=True)
class Batch:
    """Sizes of a batch.

    Attributes:
        size: Samples.
        ratios: Columns of each stage that they are dealt to.
        frames: Latent frames of a clip.
        height, width: Of the latents.
        units: Units of a clip that each stage trains on; None noises all frames alike.
        frame_per_unit: Latent frames of a unit.
    """

    size: int
    ratios: Sequence[int]
    frames: int
    height: int
    width: int
    units: Sequence[int] | None
    frame_per_unit: int

    @property
    def tokens(self) -> int:
        """Tokens of all its videos, history included."""
        columns = self.size // sum(self.ratios)
        return sum(ratio * columns * self._of_stage(k) for k, ratio in enumerate(self.ratios))

    def _of_stage(self, stage: int) -> int:
        unit = self.units[stage] - 1 if self.units else 0
        frames = self.frame_per_unit if unit else 1
        shrunk = 2 ** (STAGES - 1 - stage)
        return unit_tokens(
            unit,
            frames if self.units else self.frames,
            frame_per_unit=self.frame_per_unit,
            stages=stage + 1,
            height=self.height // shrunk,
            width=self.width // shrunk,
        )

    @classmethod
    def worst(cls, options: Namespace) -> Batch:
        """The one with the most tokens among those that a training by these options has."""
        kinds: list[tuple[int, Sequence[int], int]] = []
        if options.task == "t2v":
            kinds.append((options.batch_size, options.sample_ratios, options.max_frames))
        if options.task == "t2i" or options.image_anno is not None:
            kinds.append((*image_batches(options), 1))
        batches: list[Batch] = []
        for width, height in sizes_of(options.resolution):
            sides = height // SPATIAL_FACTOR, width // SPATIAL_FACTOR
            for size, ratios, frames in kinds:
                batches += [
                    cls(size, ratios, frames, *sides, units, options.frame_per_unit)
                    for units in _lengths(options, frames)
                ]
        return max(batches, key=lambda batch: batch.tokens)


def _lengths(options: Namespace, frames: int) -> list[Sequence[int] | None]:
    """Units that the stages train on, in each of a round of steps."""
    if not options.use_temporal_pyramid or frames == 1:
        return [None]
    units = 1 + (frames - 1) // options.frame_per_unit
    alone = {"rank": 0, "world_size": 1, "max_units": units, "sync_group": 1}
    return [unit_counts(STAGES, step=step, **alone) for step in range(1, units + 1)]


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a process of a training takes.

    Attributes:
        always: What is there all the time, by name.
        at_times: What is there beside it at one time or another, by name.
        checkpointing: What is kept for the backward pass, without and with gradient
            checkpointing.
        batch: The batch that takes most.
    """

    always: Mapping[str, int]
    at_times: Mapping[str, int]
    checkpointing: tuple[int, int]
    batch: Batch

    @property
    def peak(self) -> int:
        """The most at any time."""
        return sum(self.always.values()) + max(self.at_times.values())

    @classmethod
    def of(cls, options: Namespace, worst: Batch | None = None) -> TrainingMemory:
        """Of a training by these options, as `parse` gives them.

        Args:
            options: Those of `train_dit`.
            worst: The batch that takes most; by default the one that `train_dit` has.

        Raises:
            FileNotFoundError: A folder or a file is missing.
            ImportError: `peft` is missing for a LoRA.
            ValueError: Settings do not fit each other, or a config cannot be understood.
        """
        check_settings(options)
        models = Models.of(options)
        worst = worst or Batch.worst(options)
        activations = _activations(models, options, worst)
        texts = _kept_of_texts(models, options, worst.size)
        shares = 0.0, options.gradient_checkpointing_ratio
        without, with_it = (activations.kept(share) + texts for share in shares)
        share = shares[options.gradient_checkpointing]

        computing = resolve_dtype(options.model_dtype)
        dit = _as_trained(models.dit, options)
        encoders = models.text_encoders if options.load_text_encoder else []
        for encoder in encoders:
            _encoder_as_trained(encoder, options)
        trained = [p for m in (dit, *encoders) for p in m.parameters() if p.requires_grad]
        own = sum(map(_bytes, trained))
        average = 4 * sum(p.numel() for p in trained) if options.ema_update else 0
        vae = nn.Module.to(models.vae, vae_dtype(computing)) if options.load_vae else None
        tokens = worst.tokens + worst.size * T5_LENGTH
        at_times = {
            "the backward pass": activations.peak(share) + texts,
            "a step of the optimizer": own,  # a second copy, for what is divided by
        }
        at_times["the backward pass"] += step_memory(dit, tokens=tokens, batch=1)
        if vae is not None:
            at_times["the VAE's work"] = _work_of_vae(vae, worst)
        return cls(
            {
                "trained weights": own,
                "frozen weights of the transformer": _frozen(dit, options),
                "frozen weights of text encoders": sum(_frozen(e, options) for e in encoders),
                "weights of the VAE": 0 if vae is None else weights(vae),
                "weights in the dtype that is computed in": _copies(dit, options),
                "gradients": own,
                "state of the optimizer": _state(dit, encoders, options),
                "moving average": 0 if options.load_model_ema_to_cpu else average,
            },
            at_times,
            (without, with_it),
            worst,
        )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes_of(module: nn.Module) -> int:
    """Bytes of the weights that are trained."""
    return sum(_bytes(p) for p in module.parameters() if p.requires_grad)


def _frozen(model: nn.Module, options: Namespace) -> int:
    """Bytes of the weights that are not trained."""
    whole = weights(model) - _bytes_of(model)
    return whole - bytes_saved(model) if options.quantize_base else whole


def _as_trained(dit: Any, options: Namespace) -> Any:
    """The transformer with weights and adapters as the trainer has them."""
    dtype = torch.float32 if whole_masters(options) else resolve_dtype(options.model_dtype)
    nn.Module.to(dit, dtype)  # diffusers' own warns of the dtype
    dit.requires_grad_(True)
    return adapt_transformer(dit, options) if options.lora_rank else dit


def _encoder_as_trained(encoder: Any, options: Namespace) -> Any:
    """The same of a text encoder."""
    trained = options.train_text_encoder
    whole = trained and not options.lora_rank
    nn.Module.to(encoder, torch.float32 if whole else resolve_dtype(options.model_dtype))
    encoder.requires_grad_(whole)
    if trained and not whole:
        TrainedTokens(encoder)
    return encoder


def _state(dit: Any, encoders: Sequence[nn.Module], options: Namespace) -> int:
    """Bytes of the optimizer's state: AdamW has two values for each weight, Muon one."""
    parts = {"dit": dit} | {str(number): encoder for number, encoder in enumerate(encoders)}
    if options.opt == "adamw8bit":
        trained = {p for part in parts.values() for p in part.parameters() if p.requires_grad}
        return sum(map(state_bytes, trained))
    muon = new_optimizer(options, parts)
    if muon is None:
        return 2 * sum(map(_bytes_of, parts.values()))
    values = [(1 if g["muon"] else 2, g["params"]) for g in muon.param_groups]
    return sum(count * _bytes(p) for count, params in values for p in params)


def _computes_in_half(options: Namespace) -> bool:
    """Whether autocast is at work."""
    return options.model_dtype != "fp32" and not options.half_weights


def _copies(dit: nn.Module, options: Namespace) -> int:
    """Bytes of the copies that autocast makes of trained weights, and keeps during a batch."""
    if not _computes_in_half(options):
        return 0
    layers = [m for m in dit.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    trained = {p for layer in layers for p in layer.parameters(recurse=False) if p.requires_grad}
    itemsize = resolve_dtype(options.model_dtype).itemsize
    return itemsize * sum(p.numel() for p in trained if p.dtype == torch.float32)


def _work_of_vae(vae: Any, batch: Batch) -> int:
    """Bytes of encoding a clip in windows, or of seeing one through the VAE and back."""
    sides = {"height": SPATIAL_FACTOR * batch.height, "width": SPATIAL_FACTOR * batch.width}
    frames = frames_of(min(batch.frames, temp_of(LIMIT_FRAMES)))
    encoding = encode_memory(vae.config, frames=frames, dtype=vae.dtype, **sides)
    sides = {"height": batch.height, "width": batch.width}
    decoding = decode_memory(vae.config, latents=temp_of(frames), dtype=vae.dtype, **sides)
    return max(encoding, decoding)


# ---- what is kept for the backward pass -------------------------------------------------------


def _counting(options: Namespace) -> ExitStack:
    """Tensors without values, in the precision of the training."""
    stack = ExitStack()
    stack.enter_context(Shapes(T5_LENGTH))
    if _computes_in_half(options):
        dtype = resolve_dtype(options.model_dtype)
        stack.enter_context(torch.autocast("cpu", dtype))
        if options.device != "cpu":
            stack.enter_context(AutocastOfGpus())
    return stack


def _activations(models: Models, options: Namespace, batch: Batch) -> Activations:
    """What the transformer keeps of the batch."""
    config = dict(models.dit.config)
    layers = {name: config[name] for name in LAYERS if name in config}
    objective = FlowObjective(
        PyramidFlowMatchEulerDiscreteScheduler(),
        sample_ratios=batch.ratios,
        frame_per_unit=batch.frame_per_unit,
        max_temporal_length=batch.frames,
    )
    channels = models.vae.config.encoder_out_channels
    shape = batch.size, channels, batch.frames, batch.height, batch.width
    fewer = {name: min(count, WHOLE_BLOCKS) for name, count in layers.items()}
    causal = {
        "use_temporal_causal": options.use_temporal_causal,
        "interp_condition_pos": options.interp_condition_pos,
        "use_gradient_checkpointing": False,
    }
    dit = _as_trained(without_memory(type(models.dit), {**config, **fewer, **causal}), options)
    with _counting(options):
        without_values(dit.train())
        noised = objective.prepare(
            torch.zeros(shape), units=batch.units, use_temporal_pyramid=batch.units is not None
        )

        def run() -> None:
            predictions = dit(
                sample=noised.samples,
                encoder_hidden_states=torch.zeros(
                    batch.size, T5_LENGTH, config["joint_attention_dim"], dtype=dit.dtype
                ),
                encoder_attention_mask=torch.ones(batch.size, T5_LENGTH),
                pooled_projections=torch.zeros(
                    batch.size, config["pooled_projection_dim"], dtype=dit.dtype
                ),
                timestep_ratio=noised.timesteps,
            )
            objective.loss(predictions, noised.targets)

        return saved_by_blocks(dit, list(layers.values()), run)


def _kept_of_texts(models: Models, options: Namespace, size: int) -> int:
    """What text encoders that are trained keep of so many prompts."""
    kept = 0
    for encoder in models.text_encoders if options.train_text_encoder else ():
        config = encoder.config
        length = min(getattr(config, "max_position_embeddings", T5_LENGTH), T5_LENGTH)
        with torch.device("meta"):
            encoder = type(encoder)(config)
        _encoder_as_trained(encoder, options)
        with _counting(options):
            without_values(encoder)
            ids = torch.zeros(size, length, dtype=torch.long)
            kept += saved_bytes(encoder, functools.partial(encoder, ids))
    return kept


# ---- the command ------------------------------------------------------------------------------


def table(memory: TrainingMemory, options: Namespace) -> str:
    """What a training takes, as Markdown."""
    batch = memory.batch
    source = options.model_path.name if options.model_path else options.model_name
    pixels = f"{SPATIAL_FACTOR * batch.width}x{SPATIAL_FACTOR * batch.height}"
    frames = frames_of(batch.frames)
    of_what = f"{source}, {batch.size} samples of {frames} frames of {pixels}"
    lines = [
        f"Computed, not measured: {of_what}, {batch.tokens:,} tokens in a batch.",
        "",
        "| | GB |",
        "|---|--:|",
        *(f"| {name} | {_gb(size)} |" for name, size in memory.always.items() if size),
        *(f"| at times: {name} | {_gb(size)} |" for name, size in memory.at_times.items()),
        f"| **most at any time** | **{_gb(memory.peak)}** |",
    ]
    without, with_it = map(_gb, memory.checkpointing)
    share = options.gradient_checkpointing_ratio
    lines += [
        "",
        f"Without --gradient_checkpointing the batch keeps {without} GB, with it {with_it} GB "
        f"({share:.0%} of the blocks).",
    ]
    if options.use_fsdp or options.use_sequence_parallel:
        lines.append("Of one process: several divide weights (FSDP) or tokens among them.")
    return "\n".join(lines)


def _gb(size: int) -> str:
    return f"{size / 1e9:.{1 if size >= 1e8 else 3}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = parse(__doc__, GROUPS, arguments)
    run_or_say(lambda: print(table(TrainingMemory.of(options), options)))


if __name__ == "__main__":
    main()
