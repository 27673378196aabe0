"""The settings of `train_vae`: those of the reference's trainer, and what goes beyond it."""

from __future__ import annotations

from pathlib import Path

from pyramid_dit.checks import Number

from .common_options import COUNT, DATA, POSITIVE, PROCESSES, RATE, RUN, SHARE, SOURCES, STEPS
from .optimization import SCHEDULES
from .options import Flag

_WEIGHT = Number(0, 1e6)


def pair(text: str | list[float]) -> tuple[float, float]:
    """`0.9,0.95` as two numbers; ValueError."""
    parts = text.replace(",", " ").split() if isinstance(text, str) else text
    first, second = (float(part) for part in parts)
    return first, second


def _shares(name: str, value: tuple[float, float]) -> None:
    """Check shares of samples; ValueError."""
    if min(value) < 0 or sum(value) > 1:
        raise ValueError(f"{name} must be two shares, together at most 1, got {value}")


GROUPS: dict[str, list[Flag]] = {
    "what is trained": [
        Flag("model_path", None, "folder of the VAE to train on", kind=Path),
        Flag(
            "model_dtype",
            "bf16",
            "what the VAE computes in; its weights are float32 whatever this says",
            choices=("bf16", "fp16", "fp32"),
        ),
        Flag("pretrained_vae_weight", None, "file of weights to start from", kind=Path),
        Flag("fresh", False, "new weights; model_path gives the sizes alone"),
        Flag("inflate", False, "go from pictures to clips: each pair of frames starts as one"),
        Flag("freeze_encoder", False, "train the decoder alone, and leave all latents as they are"),
        Flag(
            "lpips_ckpt", None, "file of the LPIPS weights; without it that term is off", kind=Path
        ),
        Flag("add_discriminator", False, "train against a discriminator"),
        Flag("disc_start", 0, "step that it starts at", check=COUNT),
        Flag("disc_weight", 0.1, "its weight beside the reconstruction", check=_WEIGHT),
        Flag("logvar_init", 0.0, "start of the learned noise level", check=Number(-30, 30)),
        Flag("kl_weight", 1e-6, "weight of the divergence", check=_WEIGHT),
        Flag("learn_logvar", True, "learn the noise level"),
        Flag("pixelloss_weight", 1.0, "weight of the squared error", check=_WEIGHT),
        Flag("perceptual_weight", 1.0, "weight of LPIPS", check=_WEIGHT),
    ],
    "latents": [
        Flag(
            "posterior_std",
            None,
            "the posterior's deviation, a constant; by default the encoder says it",
            kind=float,
            check=Number(0, 10, above=True),
        ),
        Flag(
            "coarse",
            (0.0, 0.0),
            "shares of the samples decoded from latents halved once, twice",
            kind=pair,
            check=_shares,
        ),
        Flag("former_vae", None, "folder of a VAE whose latents stay where they are", kind=Path),
        Flag(
            "former_weight",
            1.0,
            "weight of the mean square distance from its latents",
            check=_WEIGHT,
        ),
    ],
    "data": [
        Flag("image_anno", None, f"pictures: {SOURCES}", kind=Path),
        Flag("video_anno", None, f"videos: {SOURCES}", kind=Path),
        Flag("drawn_shapes", False, "moving shapes, drawn on the fly, in place of annotations"),
        Flag("any_color", 0.0, "share of the drawn clips in colors of the whole cube", check=SHARE),
        Flag("use_image_video_mixed_training", False, "pictures among the videos"),
        Flag("image_mix_ratio", 0.1, "share of the batches that are of pictures", check=SHARE),
        Flag("resolution", 256, "height and width of a clip in pixels", check=POSITIVE),
        Flag("max_frames", 24, "frames of a clip; 8n + 1 of them are taken", check=POSITIVE),
        Flag("batch_size", 64, "clips of a batch and process", check=POSITIVE),
        *DATA,
    ],
    "steps": [
        Flag("opt", "adamw", "optimizer", choices=("adamw", "muon")),
        Flag("opt_betas", (0.9, 0.95), "the optimizer's betas", kind=pair),
        Flag("weight_decay_end", None, instead="the decay is weight_decay throughout", kind=float),
        Flag("lr_disc", 1e-5, "the discriminator's", check=RATE),
        Flag("lr_scheduler", "cosine", "course of the learning rate", choices=SCHEDULES),
        Flag("warmup_epochs", 5, "epochs of warm-up, unless warmup_steps is above 0", check=COUNT),
        Flag("ema_decay", 0.99, "its decay", check=SHARE),
        *STEPS,
    ],
    "the run": [
        Flag("report_to", "none", "tracker of accelerate, or none"),
        Flag("sheet_steps", 0, "optimizer steps between pictures of reconstructions", check=COUNT),
        Flag("dist_eval", True, instead="python -m trainer_misc.evaluation measures a checkpoint"),
        Flag("disable_eval", False, instead="a training does not measure"),
        Flag("eval", False, instead="python -m trainer_misc.evaluation measures a checkpoint"),
        *RUN,
    ],
    "processes": [
        Flag("use_context_parallel", False, "processes share the time of a clip"),
        Flag("context_size", 2, "how many share one", check=POSITIVE),
        *PROCESSES,
    ],
}
