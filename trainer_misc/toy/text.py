"""The small text encoders of the default checkpoint: a CLIP and a T5 that know the captions' words.

Both are written in the formats of `transformers`, with fresh weights; the DiT trainer trains them
along with the transformer. Other letters and digits are known one by one, so that any prompt can
be read.
"""

from __future__ import annotations

import string
from itertools import product
from pathlib import Path

from .moving_shapes import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
)

TEXT_DIM = 64
MAX_TOKENS = 32
_OTHERS = string.ascii_lowercase + string.digits + ",.-'"


CAPTION: list[str | dict[str, list[str]]] = [
    "a",
    {"color": [*COLORS]},
    {"shape": [*SHAPES]},
    {"motion": [*MOTIONS]},
    "on a",
    {"background": [*BACKGROUNDS]},
    "background",
]
"""The form of all captions, as `GenerationDefaults.known_sentence` has it."""


def caption_words() -> list[str]:
    """All words of the captions, sorted."""
    phrases = [*COLORS, *SHAPES, *MOTIONS, *BACKGROUNDS, "a on background"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def write_text_encoders(folder: Path) -> None:
    """Write `tokenizer`, `text_encoder`, `tokenizer_2`, `text_encoder_2` into `folder`."""
    _write_clip(folder)
    _write_t5(folder)


def _word_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that build each word from its start, longer words first."""
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(words, key=lambda w: (-len(w), w)):
        letters = [*word[:-1], f"{word[-1]}</w>"]
        built = letters[0]
        for letter in letters[1:]:
            merges[(built, letter)] = None
            built += letter
    return list(merges)


def _write_clip(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    merges = _word_merges(caption_words())
    letters = [letter + end for end, letter in product(("", "</w>"), _OTHERS)]
    symbols = ["<|startoftext|>", "<|endoftext|>", *letters, *("".join(m) for m in merges)]
    vocab = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        projection_dim=TEXT_DIM,
        max_position_embeddings=MAX_TOKENS,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_factor=5.0,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def _write_t5(folder: Path) -> None:
    from tokenizers.normalizers import Lowercase
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(f"▁{word}", -1.0) for word in caption_words()]
    letters = [(letter, -9.0) for letter in _OTHERS]
    backend = T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0).backend_tokenizer
    backend.normalizer = Lowercase()
    # Loaded again, a T5Tokenizer would make its normalizer anew, without the lower case.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "tokenizer_2")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=2 * TEXT_DIM,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_2")
