"""A checkpoint folder in the released layout of miniFLUX, with random weights in bfloat16."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from pyramid_dit import PyramidFluxTransformer
from pyramid_dit.checkpoints.folder import VAE_FOLDER, CheckpointFolder, full_variant_name
from pyramid_dit.files import write_folder
from trainer_misc.toy.text import write_text_encoders
from video_vae import CausalVideoVAE

from .setups import FLUX_CONFIGS, TEXT_CONFIGS, VAE_CONFIGS

logger = logging.getLogger(__name__)

SHARD = "2GB"
"""What is in memory at most while weights are written."""
VARIANT = full_variant_name("384p")


@dataclass(frozen=True)
class Part:
    """A model and where it lies in the folder; its weights are `meta`."""

    folder: str
    model: nn.Module
    stem: str
    """Of the names of its files."""
    prefix: str = ""
    """Of the released keys, where those of the library have none."""

    def weights(self) -> dict[str, Tensor]:
        """By the released keys, each weight once."""
        return {f"{self.prefix}{name}": value for name, value in self.model.named_parameters()}

    def write(self, folder: Path) -> None:
        """Write config and random weights, one file of `SHARD` at a time."""
        target = folder / self.folder
        model: Any = self.model
        if hasattr(model, "save_config"):  # diffusers
            model.save_config(target)
        else:
            model.config.save_pretrained(target)
        weights, pattern = self.weights(), f"{self.stem}{{suffix}}.safetensors"
        shards = split_torch_state_dict_into_shards(
            weights, filename_pattern=pattern, max_shard_size=SHARD
        )
        for name, keys in shards.filename_to_tensors.items():
            logger.info("writing %s/%s", self.folder, name)
            tensors = {key: _random(key, weights[key].shape) for key in keys}
            save_file(tensors, target / name, metadata={"format": "pt"})
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            path = target / f"{self.stem}.safetensors.index.json"
            path.write_text(json.dumps(index), encoding="utf-8")


def checkpoint_parts(size: str) -> list[Part]:
    """Transformer, VAE, CLIP and T5 of one of the sizes in `setups`."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip, t5 = TEXT_CONFIGS[size]
    with torch.device("meta"):
        parts = [
            Part(VARIANT, PyramidFluxTransformer(**FLUX_CONFIGS[size]), "diffusion_pytorch_model"),
            Part(VAE_FOLDER, CausalVideoVAE(**VAE_CONFIGS[size]), "diffusion_pytorch_model"),
            Part("text_encoder", CLIPTextModel(CLIPTextConfig(**clip)), "model", "text_model."),
            Part("text_encoder_2", T5EncoderModel(T5Config(**t5)), "model"),
        ]
    for part in parts:
        nn.Module.to(part.model, torch.bfloat16)  # diffusers' own warns of the dtype
    return parts


def size_on_disk(parts: list[Part]) -> int:
    """Bytes of the weights."""
    return sum(value.nbytes for part in parts for value in part.weights().values())


def write_random_checkpoint(folder: Path, parts: list[Part]) -> None:
    """Write all `parts` to `folder`, and tokenizers that know a few words, and letters.

    Raises:
        OSError: The disk has not the room.
    """
    size, there = size_on_disk(parts), folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < 1.01 * size:
        raise OSError(
            f"{folder} takes {size / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left"
        )
    write_folder(folder, partial(_fill, parts))


def check_whole(folder: Path) -> None:
    """Look whether a checkpoint of any transformer is whole.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or does not fit its config.
    """
    found = CheckpointFolder.open(folder)
    found.check_files(found.architecture.text_encoder.parts(), vae=True)


def _fill(parts: list[Part], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as small:
        write_text_encoders(Path(small))
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(Path(small, name), folder / name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in parts:
            part.write(folder)


def _random(name: str, shape: torch.Size) -> Tensor:
    """Values with which activations keep their size from layer to layer."""
    if len(shape) == 1:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.bfloat16)
    inputs = shape[1:].numel()
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=inputs**-0.5)
