"""The settings of `train_dit`: those of the reference's trainer, and what goes beyond it."""

from __future__ import annotations

from pathlib import Path

from pyramid_dit.checks import Number

from .common_options import COUNT, DATA, POSITIVE, PROCESSES, RUN, SHARE, SOURCES, STEPS
from .data.sizes import GRID, sizes_of
from .optimization import SCHEDULES
from .options import Flag

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
    """Refuse what is no resolution; ValueError."""
    for side in (side for size in sizes_of(value) for side in size):
        if side % GRID:
            raise ValueError(f"{name} must have sides that are multiples of {GRID}, got {side}")


GROUPS: dict[str, list[Flag]] = {
    "what is trained": [
        Flag("task", "t2v", "videos (t2v) or pictures (t2i)", choices=("t2v", "t2i")),
        Flag(
            "model_name",
            "pyramid_flux",
            "architecture in the folder",
            choices=("pyramid_flux", "pyramid_mmdit"),
        ),
        Flag("model_path", None, "folder of the checkpoint to train on", kind=Path),
        Flag("model_variant", VARIANTS[1], "folder of the transformer in it"),
        Flag(
            "model_dtype",
            "bf16",
            "what the models compute in; trained weights are float32 whatever this says",
            choices=("bf16", "fp16", "fp32"),
        ),
        Flag(
            "half_weights",
            False,
            "train weights in model_dtype, which steps of usual size do not move",
        ),
        Flag("dit_pretrained_weight", None, "file of weights for the transformer", kind=Path),
        Flag("vae_pretrained_weight", None, "file of weights for the VAE", kind=Path),
        Flag("load_text_encoder", False, "encode the prompts here, else their features are read"),
        Flag("load_vae", False, "encode pixels here, else latents are read"),
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
        Flag("use_temporal_causal", True, "frames see no later frames"),
        Flag("interp_condition_pos", True, "positions of coarse history are those of the finest"),
        Flag(
            "use_temporal_pyramid",
            False,
            "train the last unit of clips with the temporal pyramid as history; without it, all "
            "frames alike",
        ),
        Flag("frame_per_unit", 1, "latent frames of an autoregressive unit", check=POSITIVE),
        Flag("schedule_shift", 1.0, "shift of the timesteps", check=Number(0, 100, above=True)),
        Flag("corrupt_ratio", 1 / 3, "greatest share of noise in the history", check=SHARE),
        Flag(
            "sample_ratios",
            (1, 2, 1),
            "columns of each stage in a batch, lowest resolution first",
            kind=numbers,
        ),
        Flag(
            "image_sample_ratios",
            None,
            "the same in batches of pictures; by default as the others",
            kind=numbers,
        ),
        Flag("video_sync_group", 8, "ranks among which the lengths are spread", check=POSITIVE),
        Flag("sync_video_input", False, "the ranks of such a group see the same clips"),
    ],
    "data": [
        Flag("anno_file", None, f"annotations: {SOURCES}", kind=Path),
        Flag(
            "image_anno",
            None,
            "annotations of pictures, or of latents whose first frame is taken, to mix in",
            kind=Path,
        ),
        Flag("image_mix_ratio", 0.1, "share of batches of these", check=SHARE),
        Flag(
            "image_batch_size",
            None,
            "samples of these; by default batch_size",
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
        Flag("validation_file", None, "annotations of held-back samples", kind=Path),
        Flag(
            "empty_text_feature",
            None,
            "features of the empty prompt, for guidance where features are read",
            kind=Path,
        ),
        Flag("batch_size", 4, "samples of a batch and process", check=POSITIVE),
        Flag("max_frames", 16, "latent frames of the longest clip", check=POSITIVE),
        Flag(
            "resolution",
            "384p",
            "of pictures and videos that are encoded here: 384p or 768p, each for a square, a tall "
            "and a wide size, of which a sample gets the closest to its own; 384p-any or 768p-any "
            "for sizes of many shapes; or sizes, as 640x384,384x640",
            check=resolution,
        ),
        *DATA,
    ],
    "steps": [
        Flag("opt", "adamw", "optimizer", choices=("adamw", "muon")),
        Flag("opt_beta1", 0.9, "the optimizer's first beta", check=SHARE),
        Flag("opt_beta2", 0.999, "the optimizer's second beta", check=SHARE),
        Flag(
            "lr_scheduler",
            "constant_with_warmup",
            "course of the learning rate",
            choices=("constant_with_warmup", *SCHEDULES),
        ),
        Flag(
            "warmup_epochs", 1, "epochs of warm-up, where warmup_steps is not above 0", check=COUNT
        ),
        Flag("cooldown_steps", 1000, "steps of the trapezoid's descent", check=COUNT),
        Flag(
            "skip_loss",
            2.0,
            "leave out an update whose loss is at least this",
            check=Number(0, 1e9, above=True),
        ),
        Flag("ema_decay", 0.9999, "its decay", check=SHARE),
        Flag("ema_every", 100, "steps between its updates", check=POSITIVE),
        Flag("ema_warmup", False, "let it forget the start soon"),
        Flag("load_ema_model", None, "file of weights that it starts with", kind=Path),
        Flag("load_model_ema_to_cpu", False, "keep it in the CPU's memory"),
        Flag("gradient_checkpointing", False, "compute activations again instead of keeping them"),
        Flag("gradient_checkpointing_ratio", 0.75, "share of the blocks that do so", check=SHARE),
        *STEPS,
    ],
    "the run": [
        Flag("logging_dir", "log", "folder in it for trackers"),
        Flag("report_to", "tensorboard", "tracker of accelerate, or none"),
        Flag("validate_steps", 0, "optimizer steps between validations", check=COUNT),
        Flag("sample_steps", 0, "optimizer steps between sample videos", check=COUNT),
        Flag("sample_prompts", None, "file with a prompt for a sample in each line", kind=Path),
        Flag("export_pipeline", False, "write the result as a pipeline of diffusers too"),
        *RUN,
    ],
    "processes": [
        Flag("use_fsdp", False, "divide the trained weights among the processes (FSDP2)"),
        Flag(
            "fsdp_shard_strategy",
            "zero2",
            "zero2 keeps gathered weights until the backward pass",
            choices=("zero2", "zero3"),
        ),
        Flag("use_sequence_parallel", False, "processes share the tokens of a batch"),
        Flag("sp_group_size", 1, "how many share one", check=POSITIVE),
        Flag("sp_proc_num", -1, "how many of all processes do so, -1 all"),
        Flag("use_flash_attn", False, instead="PyTorch picks the kernel of the attention"),
        *PROCESSES,
    ],
}
