"""The settings of `train_vae`: those of the reference's trainer, and more."""

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
        Flag("model_path", None, "folder of the VAE to start from", kind=Path),
        Flag(
            "model_dtype",
            "bf16",
            "precision of the computation; weights are always float32",
            choices=("bf16", "fp16", "fp32"),
        ),
        Flag("pretrained_vae_weight", None, "file of weights to start from", kind=Path),
        Flag("fresh", False, "start from new weights; only the sizes are taken from model_path"),
        Flag(
            "inflate",
            False,
            "convert a VAE trained on pictures for clips, by inflating its convolutions in time",
        ),
        Flag("freeze_encoder", False, "train only the decoder, so that latents do not change"),
        Flag(
            "new_decoder",
            None,
            "JSON file of decoder_* entries that replace those of the config: a decoder of these "
            "sizes starts from new weights, beside the encoder as it is; needs freeze_encoder",
            kind=Path,
        ),
        Flag(
            "full_decoder_weight",
            0.0,
            "with new_decoder, weight of the squared distance from what the decoder of model_path "
            "makes of the same latents",
            check=_WEIGHT,
        ),
        Flag(
            "lpips_ckpt",
            None,
            "file of LPIPS weights; without it there is no perceptual loss",
            kind=Path,
        ),
        Flag("add_discriminator", False, "train against a discriminator"),
        Flag("disc_start", 0, "first step with the discriminator", check=COUNT),
        Flag("disc_weight", 0.1, "weight of the discriminator's loss", check=_WEIGHT),
        Flag(
            "logvar_init", 0.0, "initial value of the learned log-variance", check=Number(-30, 30)
        ),
        Flag("kl_weight", 1e-6, "weight of the KL divergence", check=_WEIGHT),
        Flag("learn_logvar", True, "learn the log-variance"),
        Flag("pixelloss_weight", 1.0, "weight of the squared error", check=_WEIGHT),
        Flag("perceptual_weight", 1.0, "weight of LPIPS", check=_WEIGHT),
    ],
    "latents": [
        Flag(
            "posterior_std",
            None,
            "constant standard deviation of the posterior; by default the encoder predicts it",
            kind=float,
            check=Number(0, 10, above=True),
        ),
        Flag(
            "coarse",
            (0.0, 0.0),
            "shares of the samples decoded from latents at 1/2 and at 1/4 of the resolution",
            kind=pair,
            check=_shares,
        ),
        Flag("former_vae", None, "folder of a VAE whose latents are to be kept", kind=Path),
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
        Flag(
            "drawn_shapes",
            False,
            "train on moving shapes, drawn on the fly, instead of annotations",
        ),
        Flag("any_color", 0.0, "share of the drawn clips with arbitrary colors", check=SHARE),
        Flag("any_outline", 0.0, "share of the drawn clips with arbitrary stars", check=SHARE),
        Flag("use_image_video_mixed_training", False, "mix pictures with the videos"),
        Flag("image_mix_ratio", 0.1, "share of picture batches", check=SHARE),
        Flag("resolution", 256, "height and width of a clip in pixels", check=POSITIVE),
        Flag("max_frames", 24, "frames of a clip, of which 8n + 1 are used", check=POSITIVE),
        Flag("batch_size", 64, "clips per batch and process", check=POSITIVE),
        *DATA,
    ],
    "steps": [
        Flag("opt", "adamw", "optimizer", choices=("adamw", "muon")),
        Flag("opt_betas", (0.9, 0.95), "the optimizer's betas", kind=pair),
        Flag("weight_decay_end", None, instead="the decay is always weight_decay", kind=float),
        Flag("lr_disc", 1e-5, "learning rate of the discriminator", check=RATE),
        Flag("lr_scheduler", "cosine", "learning rate schedule", choices=SCHEDULES),
        Flag("warmup_epochs", 5, "epochs of warm-up, if warmup_steps is not above 0", check=COUNT),
        Flag("ema_decay", 0.99, "decay of the moving average", check=SHARE),
        *STEPS,
    ],
    "the run": [
        Flag("report_to", "none", "a tracker of accelerate, or none"),
        Flag("sheet_steps", 0, "optimizer steps between pictures of reconstructions", check=COUNT),
        Flag("dist_eval", True, instead="python -m trainer_misc.evaluation measures a checkpoint"),
        Flag("disable_eval", False, instead="training does not evaluate"),
        Flag("eval", False, instead="python -m trainer_misc.evaluation measures a checkpoint"),
        *RUN,
    ],
    "processes": [
        Flag("use_context_parallel", False, "divide the frames of a clip among processes"),
        Flag("context_size", 2, "processes that share a clip", check=POSITIVE),
        *PROCESSES,
    ],
}
