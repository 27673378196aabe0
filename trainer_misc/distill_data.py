"""What a distillation starts from and leaves: its settings, models, prompts, pictures, weights."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.files import replacing

from .checkpoints import check_finite
from .data import Batches, ImageBatches, LatentBatches
from .toy.drawn_pictures import DrawnPictures, trained_captions
from .train_dit import check_settings, whole_masters

STUDENT = "student.safetensors"


def check(options: Namespace) -> None:
    """Refuse settings that do not fit each other, before anything is loaded (ValueError)."""
    for name in ("model_path", "output_dir"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is needed")
    if (options.prompts is None) != options.drawn_shapes:
        raise ValueError("--prompts or --drawn_shapes is needed, and not both")
    if options.first_units + options.videos == 0:
        raise ValueError("--first_units or --videos must be above 0: there is nothing to learn")
    if options.image_share and options.image_anno is None and not options.drawn_shapes:
        raise ValueError("--image_share needs --image_anno, the pictures that videos start with")
    for name in ("prompts", "student", "image_anno", "light_vae"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            raise FileNotFoundError(f"--{name}: there is no {path}")
    check_settings(options)


def load_model(options: Namespace) -> PyramidDiTForVideoGeneration:
    """The checkpoint, its transformer to be trained.

    Raises:
        FileNotFoundError: A file or a folder is missing.
        ValueError: A file is damaged.
    """
    drawn = options.drawn_shapes and options.image_anno is None and options.image_share > 0
    return PyramidDiTForVideoGeneration.from_pretrained(
        options.model_path,
        options.model_variant,
        model_dtype=options.model_dtype,
        use_mixed_training=whole_masters(options),
        use_gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_ratio=options.gradient_checkpointing_ratio,
        load_vae=options.load_vae or drawn,
    )


def read_prompts(options: Namespace) -> list[str]:
    """What the rollouts show.

    Raises:
        ValueError: There is none.
    """
    if options.drawn_shapes:
        return trained_captions()
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{options.prompts} has no prompt")
    return prompts


def open_pictures(options: Namespace, model: PyramidDiTForVideoGeneration) -> Batches | None:
    """What some videos start with, if some do.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line cannot be understood.
    """
    if not options.image_share:
        return None
    width, height = options.width, options.height
    if width is None or height is None:
        width, height = model.defaults.size()
    size, seed = options.rollout_batch, options.seed
    if options.image_anno is None:
        if width != height:
            raise ValueError(f"drawn pictures are squares, not {width}x{height}")
        return DrawnPictures(size, size=width, seed=seed)
    common: dict[str, Any] = {"batch_size": size, "seed": seed, "max_skipped": options.max_skipped}
    if options.load_vae:
        return ImageBatches(options.image_anno, resolution=f"{width}x{height}", **common)
    channels = model.latent_channels
    return LatentBatches(
        options.image_anno, max_frames=1, text_features=False, channels=channels, **common
    )


def write_trained(module: nn.Module, path: Path) -> None:
    """Write the weights that are trained, in float32.

    Raises:
        FloatingPointError: One is not finite.
    """
    weights = {
        name: parameter.detach().float().cpu().contiguous()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    check_finite(weights, STUDENT)
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


@torch.no_grad()
def load_trained(module: nn.Module, path: Path) -> None:
    """Load what `write_trained` wrote.

    Raises:
        ValueError: The file is of a student with other weights.
    """
    weights = load_file(path)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    fits = own.keys() == weights.keys() and all(own[n].shape == weights[n].shape for n in own)
    if not fits:
        raise ValueError(f"{path} is of a student with other weights")
    for name, parameter in own.items():
        parameter.copy_(weights[name])
