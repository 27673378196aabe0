"""Write the checkpoint that the training of the toy transformer starts from.

It has the released layout: a transformer and text encoders with fresh weights, the trained VAE, and
the statistics of its latents. `train_dit --model_path` starts from it, as from any other
checkpoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyramid_dit.checkpoints.defaults import GenerationDefaults
from pyramid_dit.checkpoints.folder import INDEX_NAME, VAE_FOLDER
from pyramid_dit.files import write_folder
from pyramid_dit.flow.latents import FrameStatistics, LatentStatistics
from pyramid_dit.models.flux import PyramidFluxTransformer
from video_vae.autoencoder import CausalVideoVAE

from ..data.annotations import Annotations
from ..data.tensor_files import read_tensor
from .latents import CLIPS, PICTURES
from .text import CAPTION, TEXT_DIM, caption_words, write_text_encoders

VARIANT = "diffusion_transformer_128p"
TOY_DIT = {
    "num_layers": 3,
    "num_single_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT_DIM,
    "pooled_projection_dim": TEXT_DIM,
    "axes_dims_rope": (8, 12, 12),
}
SOLVER = "ab2"
DEFAULTS = GenerationDefaults(
    prompt_suffix="",
    negative_prompt="",
    height=128,
    width=128,
    num_frames=97,
    num_inference_steps=(3, 3, 3),
    video_num_inference_steps=(2, 2, 2),
    guidance_scale=3.0,
    video_guidance_scale=2.0,
    known_words=caption_words(),
    known_sentence=CAPTION,
)


def new_dit(latent_channels: int, **changes: Any) -> PyramidFluxTransformer:
    """A fresh toy transformer, `TOY_DIT` with `changes`, whose text embedders start at full size.

    The usual deviation of 0.02 is meant for widths in the thousands; at 128 it would leave the
    text without effect for long.
    """
    dit = PyramidFluxTransformer(in_channels=4 * latent_channels, **TOY_DIT | changes)
    embed = dit.time_text_embed
    for linear in (
        embed.text_embedder.linear_1,
        embed.text_embedder.linear_2,
        embed.timestep_embedder.linear_2,
        dit.context_embedder,
    ):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return dit


def measured_statistics(latents: Path) -> LatentStatistics:
    """Mean and deviation of each channel of what `write_latents` wrote, first frames apart.

    Raises:
        FileNotFoundError: It did not.
        ValueError: A file is damaged.
    """
    return LatentStatistics(
        first_frame=_statistics(latents / PICTURES, 0), later_frames=_statistics(latents / CLIPS, 1)
    )


def _statistics(annotations: Path, skipped: int) -> FrameStatistics:
    """Of all frames but the first `skipped` of each clip."""
    lines = Annotations.read(annotations)
    files = [lines.find(lines[number]["latent"]) for number in range(len(lines))]
    latents = torch.cat([read_tensor(path, "latent")[:, :, skipped:] for path in files])
    std, mean = torch.std_mean(latents.float(), dim=(0, 2, 3, 4))
    return FrameStatistics(shift=mean.tolist(), scale=(1 / std).tolist())


def model_index(statistics: LatentStatistics) -> dict[str, Any]:
    """`model_index.json` of the checkpoint."""
    return {
        "_class_name": "PyramidDiTForVideoGeneration",
        "model_name": "pyramid_flux",
        "model_variant": VARIANT,
        "model_dtype": "fp32",
        "latent_statistics": asdict(statistics),
        "solver": SOLVER,
        **asdict(DEFAULTS),
    }


def write_start(
    folder: Path, vae: CausalVideoVAE, statistics: LatentStatistics, *, seed: int = 0
) -> None:
    """Write the whole checkpoint or nothing, with fresh weights drawn by `seed`."""
    torch.manual_seed(seed)

    def write(target: Path) -> None:
        write_text_encoders(target)
        new_dit(vae.config["encoder_out_channels"]).save_pretrained(target / VARIANT)
        vae.register_to_config(_name_or_path="")  # else the config names the trainer's folder
        vae.save_pretrained(target / VAE_FOLDER)
        text = json.dumps(model_index(statistics), indent=2)
        (target / INDEX_NAME).write_text(text + "\n")

    write_folder(folder, write)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--latents", type=Path, required=True, help="folder of its latents")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    options = parser.parse_args(arguments)
    vae = CausalVideoVAE.from_pretrained(options.vae)
    statistics = measured_statistics(options.latents)
    write_start(options.output, vae, statistics, seed=options.seed)


if __name__ == "__main__":
    main()
