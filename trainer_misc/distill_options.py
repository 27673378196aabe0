"""The settings of `distill`: its own, and those that it has in common with `train_dit`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from pyramid_dit.checks import GUIDANCE, SIDE, OneOf
from pyramid_dit.checks import STEPS as STEP_COUNT
from pyramid_dit.flow.solvers import SOLVERS

from .common_options import COUNT, POSITIVE, SHARE
from .dit_options import GROUPS as OF_TRAIN_DIT
from .dit_options import numbers
from .options import Flag

_KNOWN = {flag.name: flag for flags in OF_TRAIN_DIT.values() for flag in flags}


def _steps(name: str, value: tuple[int, ...]) -> None:
    """Check numbers of steps; ValueError."""
    for count in value:
        STEP_COUNT(name, count)


def _same(*flags: str, **defaults: Any) -> list[Flag]:
    """Flags of `train_dit`, some of them with another default."""
    found = []
    for name in flags:
        flag = _KNOWN[name]
        values = vars(flag) | ({"default": defaults[name]} if name in defaults else {})
        found.append(Flag(**values))
    return found


GROUPS: dict[str, list[Flag]] = {
    "what is distilled": [
        *_same("model_path"),
        Flag("model_variant", None, "the transformer's folder; default: the checkpoint's", str),
        *_same("model_dtype", "lora_rank", "lora_alpha", "lora_targets", "quantize_base"),
        Flag(
            "student",
            None,
            "weights that the student starts from, a student.safetensors of another run; default: "
            "the teacher's",
            kind=Path,
        ),
        Flag(
            "light_vae",
            None,
            "folder of a VAE with a light decoder (train_vae --new_decoder) that goes into the "
            "checkpoint with the student",
            kind=Path,
        ),
        *_same("gradient_checkpointing", "gradient_checkpointing_ratio"),
    ],
    "the teacher": [
        Flag(
            "teacher_solver",
            None,
            "its solver; default: the checkpoint's",
            str,
            check=OneOf(SOLVERS),
        ),
        Flag(
            "teacher_steps",
            None,
            "its steps in each stage of the first unit, one number or one a stage, as 6,6,6; "
            "default: the checkpoint's",
            kind=numbers,
            check=_steps,
        ),
        Flag(
            "teacher_video_steps",
            None,
            "the same for the other units",
            kind=numbers,
            check=_steps,
        ),
        Flag(
            "teacher_guidance",
            None,
            "its guidance in the first unit; default: the checkpoint's",
            kind=float,
            check=GUIDANCE,
        ),
        Flag(
            "teacher_video_guidance",
            None,
            "the same for the other units",
            kind=float,
            check=GUIDANCE,
        ),
        Flag(
            "negative_prompt", None, "what it is guided away from; default: the checkpoint's", str
        ),
    ],
    "the student": [
        Flag(
            "student_steps",
            (2,),
            "its evaluations in each stage of the first unit",
            numbers,
            check=_steps,
        ),
        Flag("student_video_steps", (1,), "the same for the other units", numbers, check=_steps),
    ],
    "rollouts": [
        Flag("prompts", None, "file with one prompt per line", kind=Path),
        Flag("drawn_shapes", False, "take the sentences of moving shapes instead of prompts"),
        Flag(
            "rounds",
            2,
            "how often rollouts are made and learned from: from the second time on, and from the "
            "first with --student, the student goes its own way",
            check=POSITIVE,
        ),
        Flag("first_units", 5000, "rollouts of a first unit alone, in each round", check=COUNT),
        Flag("videos", 300, "rollouts of whole videos, in each round", check=COUNT),
        Flag("max_frames", 7, "their latent frames", check=POSITIVE),
        Flag("height", None, "pixels; default: the checkpoint's", int, check=SIDE),
        Flag("width", None, "pixels; default: the checkpoint's", int, check=SIDE),
        Flag(
            "change_share", 0.0, "share of the videos whose prompt changes on the way", check=SHARE
        ),
        Flag(
            "image_share",
            0.0,
            "share of the videos that start with a picture: of image_anno, or a drawn one",
            check=SHARE,
        ),
        *_same("image_anno"),
        Flag("load_vae", False, "encode the pictures of image_anno; otherwise latents are read"),
        Flag("rollout_batch", 32, "rollouts that are made at a time", check=POSITIVE),
        Flag("held_back", 0.05, "share of the rollouts that is kept for validation", check=SHARE),
    ],
    "data": [
        Flag("batch_size", 32, "later units per batch and process", check=POSITIVE),
        Flag("first_batch_size", 48, "first units per batch and process", check=POSITIVE),
        Flag("first_share", 0.45, "share of batches of first units", check=SHARE),
        *_same("max_skipped", "num_workers", "pin_mem", "no_pin_mem", num_workers=2),
    ],
    "steps": [
        Flag("steps", 500, "optimizer steps of each round", check=POSITIVE),
        *_same(
            *("opt", "opt_beta1", "opt_beta2", "opt_eps", "lr", "lr_scheduler", "cooldown_steps"),
            *("warmup_steps", "warmup_lr", "min_lr", "weight_decay", "clip_grad", "skip_loss"),
            *("gradient_accumulation_steps", "ema_update", "ema_decay", "ema_every", "ema_warmup"),
            "load_model_ema_to_cpu",
            lr=5e-4,
            lr_scheduler="trapezoid",
            warmup_steps=20,
        ),
    ],
    "the run": [
        *_same("output_dir", "print_freq", "save_steps", "keep", "auto_resume", "max_minutes"),
        *_same("seed", "logging_dir", "report_to", "validate_steps"),
    ],
    "processes": _same("device", "dist_on_itp"),
}


def completed(options: Namespace) -> Namespace:
    """`options` with the defaults of those settings of `train_dit` that are not offered here."""
    others = {name: flag.default for name, flag in _KNOWN.items()}
    others["sample_ratios"] = (1,)  # all stages are in every batch, of any size
    return Namespace(**others | vars(options))
