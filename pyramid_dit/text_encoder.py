"""The text encoders: prompts to token embeddings, their mask, and one pooled vector.

Both released models pool CLIP and read the tokens of T5. The tokenizers and the encoders are
those of `transformers`, imported only where one is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .offload import module_device

T5_LENGTH = 128


class TextEncoding(NamedTuple):
    """What the transformer is told about a batch of prompts."""

    prompt_embeds: Tensor
    """Token embeddings, `[b, L, d]`."""
    prompt_attention_mask: Tensor
    """1 at real tokens, 0 at padding, `[b, L]`."""
    pooled_prompt_embeds: Tensor
    """One vector a prompt, `[b, p]`."""


class _TextEncoderWithMask(nn.Module):
    """CLIP encoders in `text_encoder`, ..., followed by a T5 encoder, each with its tokenizer.

    Args:
        model_path: Folder that holds `text_encoder`, `tokenizer`, `text_encoder_2`, ...
        torch_dtype: Dtype of the weights.

    Raises:
        OSError: A folder is missing or incomplete.
    """

    num_clip: int
    clip_class: str

    def __init__(
        self, model_path: str | PathLike[str], torch_dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        import transformers

        names = _names(self.num_clip + 1)
        classes = [self.clip_class] * self.num_clip + ["T5EncoderModel"]
        self.tokenizers: dict[str, Any] = {}
        for (encoder_name, tokenizer_name), class_name in zip(names, classes, strict=True):
            encoder_class = getattr(transformers, class_name)
            encoder = encoder_class.from_pretrained(
                Path(model_path, encoder_name), dtype=torch_dtype, local_files_only=True
            )
            self.add_module(encoder_name, encoder.eval())
            self.tokenizers[encoder_name] = transformers.AutoTokenizer.from_pretrained(
                Path(model_path, tokenizer_name), local_files_only=True
            )

    def forward(
        self, input_prompts: str | Sequence[str], device: torch.device | str | None = None
    ) -> TextEncoding:
        """Encode `input_prompts`; the results lie on `device`, by default the encoder's own."""
        prompts = [input_prompts] if isinstance(input_prompts, str) else list(input_prompts)
        *clips, t5 = (name for name, _ in _names(self.num_clip + 1))
        pooled = torch.cat([self._pool(name, prompts) for name in clips], dim=-1)
        embeds, mask = self._read_tokens(t5, prompts)
        return TextEncoding(*(tensor.to(device) for tensor in (embeds, mask, pooled)))

    def _pool(self, name: str, prompts: list[str]) -> Tensor:
        tokenizer, encoder = self.tokenizers[name], getattr(self, name)
        # a tokenizer that does not know its length says 10^30
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = _tokenize(tokenizer, prompts, length)
        return self._pooled_output(encoder(tokens["input_ids"].to(module_device(encoder))))

    def _pooled_output(self, output: Any) -> Tensor:
        raise NotImplementedError

    def _read_tokens(self, name: str, prompts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = _tokenize(self.tokenizers[name], prompts, T5_LENGTH)
        encoder = getattr(self, name)
        device = module_device(encoder)
        mask = tokens["attention_mask"].to(device)
        output = encoder(tokens["input_ids"].to(device), attention_mask=mask)
        return output.last_hidden_state, mask


class FluxTextEncoderWithMask(_TextEncoderWithMask):
    """Text side of miniFLUX: `text_encoder` is CLIP, pooled, and `text_encoder_2` is T5."""

    num_clip = 1
    clip_class = "CLIPTextModel"

    def _pooled_output(self, output: Any) -> Tensor:
        return output.pooler_output


class SD3TextEncoderWithMask(_TextEncoderWithMask):
    """Text side of SD3: two CLIPs with projection, pooled side by side, `text_encoder_3` is T5."""

    num_clip = 2
    clip_class = "CLIPTextModelWithProjection"

    def _pooled_output(self, output: Any) -> Tensor:
        return output.text_embeds


TEXT_ENCODERS = {"pyramid_flux": FluxTextEncoderWithMask, "pyramid_mmdit": SD3TextEncoderWithMask}


def text_folders(model_name: str) -> list[tuple[str, str]]:
    """Folders (encoder, tokenizer) of a checkpoint of architecture `model_name`."""
    return _names(TEXT_ENCODERS[model_name].num_clip + 1)


def _names(count: int) -> list[tuple[str, str]]:
    suffixes = [""] + [f"_{number}" for number in range(2, count + 1)]
    return [(f"text_encoder{suffix}", f"tokenizer{suffix}") for suffix in suffixes]


def _tokenize(tokenizer: Any, prompts: list[str], length: int) -> Any:
    return tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
