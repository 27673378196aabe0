"""A checkpoint folder in the released layout with tiny random weights, made in a second.

The text encoders are real CLIPs and T5s of `transformers` with real tokenizers of their own.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

LATENT_CHANNELS = 4
POOLED_DIM, TEXT_DIM = 16, 24
WORDS = "a red blue circle square moves left right on white black background".split()

DIT_CONFIGS: dict[str, dict[str, Any]] = {
    "pyramid_flux": {
        "in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED_DIM,
        "axes_dims_rope": [4, 6, 6],
    },
    "pyramid_mmdit": {
        "sample_size": 16,
        "in_channels": LATENT_CHANNELS,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 2 * POOLED_DIM,
        "pos_embed_max_size": 16,
        "joint_attention_dim": TEXT_DIM,
    },
}
VAE_CONFIG: dict[str, Any] = {
    "encoder_out_channels": LATENT_CHANNELS,
    "encoder_layers_per_block": [1, 1, 1, 1],
    "encoder_block_out_channels": [8, 8, 8, 8],
    "encoder_norm_num_groups": 4,
    "decoder_in_channels": LATENT_CHANNELS,
    "decoder_layers_per_block": [1, 1, 1, 1],
    "decoder_block_out_channels": [8, 8, 8, 8],
    "decoder_norm_num_groups": 4,
}
# Small and quick, as the bundled checkpoint's model_index.json is.
QUICK_INDEX: dict[str, Any] = {
    "_class_name": "PyramidDiTForVideoGeneration",
    "model_dtype": "fp32",
    "prompt_suffix": "",
    "negative_prompt": "",
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": [1, 1, 1],
    "video_num_inference_steps": [1, 1, 1],
    "guidance_scale": 2.0,
    "video_guidance_scale": 2.0,
}


def write_tiny_checkpoint(
    folder: Path,
    model_name: str = "pyramid_flux",
    *,
    variant: str = "diffusion_transformer_768p",
    index: dict[str, Any] | None = None,
    dit_config: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write DiT, VAE, text encoders and tokenizers to `folder` and return it.

    Args:
        folder: Made if it is not there.
        model_name: `pyramid_flux` or `pyramid_mmdit`.
        variant: Name of the transformer's folder.
        index: Contents of `model_index.json`; released folders have none.
        dit_config: Entries that replace those of `DIT_CONFIGS`.
        seed: Of the weights.
    """
    from pyramid_dit import PyramidDiffusionMMDiT, PyramidFluxTransformer
    from video_vae import CausalVideoVAE

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dit_class = {
            "pyramid_flux": PyramidFluxTransformer,
            "pyramid_mmdit": PyramidDiffusionMMDiT,
        }[model_name]
        dit = dit_class(**DIT_CONFIGS[model_name] | (dit_config or {}))
        for parameter in dit.parameters():  # what starts at zero would hide mistakes
            torch.nn.init.normal_(parameter, std=0.1)
        dit.save_pretrained(folder / variant)
        CausalVideoVAE(**VAE_CONFIG).save_pretrained(folder / "causal_video_vae")
        if model_name == "pyramid_flux":
            write_clip(folder, "")
            write_t5(folder, "_2")
        else:
            write_clip(folder, "", projection=True)
            write_clip(folder, "_2", projection=True)
            write_t5(folder, "_3")
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_clip(folder: Path, suffix: str, *, projection: bool = False) -> None:
    """Write `text_encoder` and `tokenizer`: a CLIP that reads letters."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    letters = [*string.ascii_lowercase, *string.digits, *",.-_"]
    symbols = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=POOLED_DIM,
        intermediate_size=2 * POOLED_DIM,
        projection_dim=POOLED_DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model_class = CLIPTextModelWithProjection if projection else CLIPTextModel
    model_class(config).save_pretrained(folder / f"text_encoder{suffix}")


def write_t5(folder: Path, suffix: str, *, feed_forward: int = 32, layers: int = 1) -> None:
    """Write `text_encoder` and `tokenizer`: a T5 that reads a few words, and letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(f"▁{word}", -1.0) for word in WORDS]
    letters = [(letter, -5.0) for letter in string.ascii_letters + string.digits + ",.-"]
    tokenizer = T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0)
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=feed_forward,
        num_layers=layers,
        num_heads=2,
    )
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{suffix}")
