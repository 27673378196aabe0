"""The settings of `train_dit`: those of the reference's trainer, and more."""

from __future__ import annotations

from pathlib import Path

from pyramid_dit.checks import Number

from .common_options import COUNT, DATA, POSITIVE, PROCESSES, RUN, SHARE, SOURCES, STEPS
from .data.sizes import GRID, sizes_of
from .optimization import SCHEDULES
from .options import Flag
from .quantized import KINDS

VARIANTS = tuple(f"diffusion_transformer_{name}" for name in ("768p", "384p", "image"))


def numbers(text: str | list[int]) -> tuple[int, ...]:
    """`1,2,1` as whole numbers; ValueError."""
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(int(part) for part in parts)


def names(text: str | list[str]) -> tuple[str, ...]:
    """`to_q,to_k` as names; ValueError for an empty one."""
    parts = text.split(",") if isinstance(text, str) else text
    stripped = tuple(part.strip() for part in parts)
    if not all(stripped):
        raise ValueError(f"must be names with commas between, got {text!r}")
    return stripped


def resolution(name: str, value: str) -> None:
    """Reject what is not a resolution; ValueError."""
    for side in (side for size in sizes_of(value) for side in size):
        if side % GRID:
            raise ValueError(f"{name} must have sides that are multiples of {GRID}, got {side}")


GROUPS: dict[str, list[Flag]] = {
    "what is trained": [
        Flag("task", "t2v", "train on videos (t2v) or pictures (t2i)", choices=("t2v", "t2i")),
        Flag(
            "model_name",
            "pyramid_flux",
            "architecture of the checkpoint",
            choices=("pyramid_flux", "pyramid_mmdit"),
        ),
        Flag("model_path", None, "folder of the checkpoint to start from", kind=Path),
        Flag("model_variant", VARIANTS[1], "the transformer's folder in the checkpoint"),
        Flag(
            "model_dtype",
            "bf16",
            "precision of the computation; trained weights are always float32",
            choices=("bf16", "fp16", "fp32"),
        ),
        Flag(
            "half_weights",
            False,
            "keep trained weights in model_dtype, which usual learning rates do not change",
        ),
        Flag("dit_pretrained_weight", None, "file of weights for the transformer", kind=Path),
        Flag("vae_pretrained_weight", None, "file of weights for the VAE", kind=Path),
        Flag(
            "load_text_encoder",
            False,
            "encode prompts during training; otherwise their features are read",
        ),
        Flag("load_vae", False, "encode pixels during training; otherwise latents are read"),
        Flag("train_text_encoder", False, "train the text encoders too; implies load_text_encoder"),
        Flag(
            "lora_rank",
            0,
            "train adapters of this rank (LoRA), and not the weights themselves; of text encoders "
            "that are trained, only what it adds to the embeddings of tokens",
            check=COUNT,
        ),
        Flag(
            "lora_alpha",
            None,
            "they act at lora_alpha / lora_rank; by default it is the rank",
            kind=float,
            check=Number(0, 1e4, above=True),
        ),
        Flag(
            "lora_targets",
            None,
            "ends of names of linear layers that get one, as to_q,to_k; by default those of "
            "attention and feed-forward in all blocks",
            kind=names,
        ),
        Flag(
            "quantize_base",
            None,
            "keep the frozen weights under a LoRA in 4 bits (nf4), those of text encoders too",
            kind=str,
            choices=KINDS,
        ),
        Flag("use_temporal_causal", True, "frames do not attend to later frames"),
        Flag(
            "interp_condition_pos", True, "interpolate the positions of history at lower resolution"
        ),
        Flag(
            "use_temporal_pyramid",
            False,
            "train the last unit of each clip with the temporal pyramid as history; without it, "
            "all frames get the same noise level",
        ),
        Flag("frame_per_unit", 1, "latent frames of an autoregressive unit", check=POSITIVE),
        Flag("schedule_shift", 1.0, "shift of the timesteps", check=Number(0, 100, above=True)),
        Flag("corrupt_ratio", 1 / 3, "largest noise level in the history", check=SHARE),
        Flag(
            "corrupt_frames",
            False,
            "draw a noise level for each latent frame of the history, not one per clip",
        ),
        Flag(
            "whole_history",
            None,
            "train units from this number on with the history of a video without end, the first "
            "unit and the last ones; by default all see all units before them",
            kind=int,
            check=POSITIVE,
        ),
        Flag(
            "sample_ratios",
            (1, 2, 1),
            "shares of the stages in a batch, lowest resolution first",
            kind=numbers,
        ),
        Flag(
            "image_sample_ratios",
            None,
            "the same for batches of pictures; default: sample_ratios",
            kind=numbers,
        ),
        Flag(
            "video_sync_group",
            8,
            "number of processes over which clip lengths are spread",
            check=POSITIVE,
        ),
        Flag("sync_video_input", False, "processes of such a group train on the same clips"),
    ],
    "data": [
        Flag("anno_file", None, f"annotations: {SOURCES}", kind=Path),
        Flag(
            "image_anno",
            None,
            "pictures to mix in, or latents, of which the first frame is used",
            kind=Path,
        ),
        Flag("image_mix_ratio", 0.1, "share of batches from image_anno", check=SHARE),
        Flag(
            "image_batch_size",
            None,
            "batch size for image_anno; default: batch_size",
            kind=int,
            check=POSITIVE,
        ),
        Flag(
            "replay_anno",
            None,
            "annotations of what the model has learned before and is not to forget, mixed with "
            "those of anno_file",
            kind=Path,
        ),
        Flag("replay_image_anno", None, "the same for image_anno", kind=Path),
        Flag("replay_share", 0.5, "share of batches of what was learned before", check=SHARE),
        Flag("validation_file", None, "annotations of validation samples", kind=Path),
        Flag(
            "empty_text_feature",
            None,
            "features of the empty prompt, so that guidance is learned when features are read",
            kind=Path,
        ),
        Flag("batch_size", 4, "samples per batch and process", check=POSITIVE),
        Flag("max_frames", 16, "latent frames of the longest clip", check=POSITIVE),
        Flag(
            "resolution",
            "384p",
            "sizes of the pictures and videos that are encoded: 384p or 768p (each a square, a "
            "portrait and a landscape size; a sample gets the closest), 384p-any or 768p-any "
            "(sizes of many shapes), or a list such as 640x384,384x640",
            check=resolution,
        ),
        *DATA,
    ],
    "steps": [
        Flag(
            "opt",
            "adamw",
            "optimizer; adamw8bit keeps its state in 8 bits (bitsandbytes)",
            choices=("adamw", "adamw8bit", "muon"),
        ),
        Flag("opt_beta1", 0.9, "the optimizer's first beta", check=SHARE),
        Flag("opt_beta2", 0.999, "the optimizer's second beta", check=SHARE),
        Flag(
            "lr_scheduler",
            "constant_with_warmup",
            "learning rate schedule",
            choices=("constant_with_warmup", *SCHEDULES),
        ),
        Flag("warmup_epochs", 1, "epochs of warm-up, if warmup_steps is not above 0", check=COUNT),
        Flag(
            "skip_loss",
            2.0,
            "skip updates whose loss is at least this",
            check=Number(0, 1e9, above=True),
        ),
        Flag("ema_decay", 0.9999, "decay of the moving average", check=SHARE),
        Flag("ema_every", 100, "steps between updates of the moving average", check=POSITIVE),
        Flag("ema_warmup", False, "start the moving average with a lower decay"),
        Flag(
            "initial_share",
            0.0,
            "share of the weights before the training in those that are written, to forget less",
            check=SHARE,
        ),
        Flag(
            "load_ema_model", None, "file of weights that the moving average starts with", kind=Path
        ),
        Flag("load_model_ema_to_cpu", False, "keep the moving average in the CPU's memory"),
        Flag("gradient_checkpointing", False, "recompute activations instead of keeping them"),
        Flag(
            "gradient_checkpointing_ratio",
            0.75,
            "share of the blocks that recompute activations",
            check=SHARE,
        ),
        *STEPS,
    ],
    "the run": [
        Flag("logging_dir", "log", "folder in output_dir for trackers"),
        Flag("report_to", "tensorboard", "a tracker of accelerate, or none"),
        Flag("validate_steps", 0, "optimizer steps between validations", check=COUNT),
        Flag("sample_steps", 0, "optimizer steps between sample videos", check=COUNT),
        Flag("sample_prompts", None, "file with one prompt per line for sample videos", kind=Path),
        Flag("export_pipeline", False, "also write the result as a diffusers pipeline"),
        *RUN,
    ],
    "processes": [
        Flag("use_fsdp", False, "shard the trained weights across the processes (FSDP2)"),
        Flag(
            "fsdp_shard_strategy",
            "zero2",
            "zero2 keeps gathered weights until the backward pass",
            choices=("zero2", "zero3"),
        ),
        Flag("use_sequence_parallel", False, "share the tokens of a batch among processes"),
        Flag("sp_group_size", 1, "processes that share a batch", check=POSITIVE),
        Flag("sp_proc_num", -1, "processes that share batches; -1 is all"),
        Flag("use_flash_attn", False, instead="PyTorch chooses the attention kernel"),
        *PROCESSES,
    ],
}
