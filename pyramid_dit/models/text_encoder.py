"""The text encoders: prompts to token embeddings, their mask, and one pooled vector.

Both released models pool CLIP and read the tokens of T5. The tokenizers and the encoders are
those of `transformers`, imported only where one is loaded.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..devices.offload import module_device, moved_to
from ..distributed.parallel import speaks
from .text_condition import TextCondition

logger = logging.getLogger(__name__)
logger.addFilter(speaks)

T5_LENGTH = 128


class TextPart(NamedTuple):
    """One of the encoders of a model, and where it is in a checkpoint folder."""

    encoder: str
    """Folder of the encoder, and name of the module."""
    tokenizer: str
    """Folder of its tokenizer."""
    class_name: str
    """Class of the encoder in `transformers`."""

    @property
    def model_class(self) -> Any:
        """Class of the encoder."""
        import transformers

        return getattr(transformers, self.class_name)

    def load_encoder(
        self, model_path: str | PathLike[str], *, dtype: torch.dtype, **options: Any
    ) -> nn.Module:
        """Load the encoder; `options` go to its `from_pretrained`.

        Raises:
            OSError: Files are missing.
            ValueError: Weights are missing, of another shape, or damaged.
        """
        folder = Path(model_path, self.encoder)
        try:
            encoder, info = self.model_class.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True, **options
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"cannot load {self.class_name} from {folder}: {reason}") from error
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"the weights in {folder} do not fit {self.class_name}: they lack {missing[:5]}"
            )
        return encoder.eval()

    def load_tokenizer(self, model_path: str | PathLike[str]) -> Any:
        """Load the tokenizer; code that its folder may hold is never run.

        Raises:
            OSError: Files are missing.
            ValueError: It cannot be loaded, for example as it needs such code.
        """
        import transformers

        folder = Path(model_path, self.tokenizer)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if not isinstance(tokenizer.model_max_length, int | float):
                raise ValueError(f"model_max_length is {tokenizer.model_max_length!r}")
            return tokenizer
        except OSError:
            raise
        except Exception as error:  # the library of tokenizers has no class for what it refuses
            reason = str(error).strip().split("\n")[0]
            if not isinstance(error, ValueError):
                reason = f"{type(error).__name__}: {reason}"
            if "trust_remote_code" in str(error):
                reason = "it asks for code of its own, which is not run"
            raise ValueError(f"cannot load the tokenizer in {folder}: {reason}") from error


class TextEncoderWithMask(nn.Module):
    """CLIP encoders in `text_encoder`, ..., followed by a T5 encoder, each with its tokenizer.

    Args:
        model_path: Folder that holds `text_encoder`, `tokenizer`, `text_encoder_2`, ...
        torch_dtype: Dtype of the weights.
        variant: Of the files of weights, as of `from_pretrained` of `transformers`.

    Raises:
        OSError: A folder is missing or incomplete.
    """

    num_clip: int
    clip_class: str
    tokenizers: dict[str, Any]

    def __init__(
        self,
        model_path: str | PathLike[str],
        torch_dtype: torch.dtype = torch.float32,
        *,
        variant: str | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"dtype": torch_dtype, "variant": variant}
        self._hold(
            (part.load_encoder(model_path, **options), part.load_tokenizer(model_path))
            for part in self.parts()
        )

    @classmethod
    def of(cls, loaded: Iterable[tuple[nn.Module, Any]]) -> TextEncoderWithMask:
        """Put encoders and tokenizers that are loaded together, in the order of `parts`."""
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        encoder._hold(loaded)
        return encoder

    @classmethod
    def parts(cls) -> list[TextPart]:
        """The encoders, CLIP before T5."""
        classes = [cls.clip_class] * cls.num_clip + ["T5EncoderModel"]
        suffixes = [""] + [f"_{number}" for number in range(2, len(classes) + 1)]
        return [
            TextPart(f"text_encoder{suffix}", f"tokenizer{suffix}", class_name)
            for suffix, class_name in zip(suffixes, classes, strict=True)
        ]

    def _hold(self, loaded: Iterable[tuple[nn.Module, Any]]) -> None:
        self.tokenizers = {}
        for part, (encoder, tokenizer) in zip(self.parts(), loaded, strict=True):
            self.add_module(part.encoder, encoder)
            self.tokenizers[part.encoder] = tokenizer

    @property
    def max_sequence_length(self) -> int:
        """Most tokens that T5 may read of a prompt."""
        name = self.parts()[-1].encoder
        limits = (
            self.tokenizers[name].model_max_length,
            getattr(getattr(self, name).config, "n_positions", None),
        )
        # a tokenizer that does not know its length says 10^30
        return min((limit for limit in limits if limit and limit < 10**6), default=512)

    def forward(
        self,
        input_prompts: str | Sequence[str],
        device: torch.device | str | None = None,
        *,
        max_sequence_length: int = T5_LENGTH,
        padded: bool = True,
    ) -> TextCondition:
        """Encode `input_prompts`.

        Args:
            input_prompts: One prompt or several.
            device: Where the results lie, by default on the encoder's own.
            max_sequence_length: Tokens that T5 reads of a prompt, padded where it has fewer; a
                warning says what is cut.
            padded: Without it, T5 reads no more than the longest prompt has, which is faster; the
                mask leaves out what is between.
        """
        prompts = [input_prompts] if isinstance(input_prompts, str) else list(input_prompts)
        *clips, t5 = (part.encoder for part in self.parts())
        pooled = torch.cat([self._pool(name, prompts) for name in clips], dim=-1)
        embeds, mask = self._read_tokens(t5, prompts, max_sequence_length, padded=padded)
        return TextCondition(*(tensor.to(device) for tensor in (embeds, mask, pooled)))

    def _pool(self, name: str, prompts: list[str]) -> Tensor:
        tokenizer, encoder = self.tokenizers[name], getattr(self, name)
        # a tokenizer that does not know its length says 10^30
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = _tokenize(tokenizer, prompts, length)
        with moved_to(encoder, module_device(encoder)) as device:
            return self._pooled_output(encoder(tokens["input_ids"].to(device)))

    def _pooled_output(self, output: Any) -> Tensor:
        raise NotImplementedError

    def _read_tokens(
        self, name: str, prompts: list[str], length: int, *, padded: bool
    ) -> tuple[Tensor, Tensor]:
        tokens = _tokenize(self.tokenizers[name], prompts, length)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        _warn_of_cuts(self.tokenizers[name], prompts, mask)
        if not padded:
            used = mask.any(dim=0)
            ids, mask = ids[:, used], mask[:, used]
        encoder = getattr(self, name)
        with moved_to(encoder, module_device(encoder)) as device:
            mask = mask.to(device)
            output = encoder(ids.to(device), attention_mask=mask)
        return output.last_hidden_state, mask


class FluxTextEncoderWithMask(TextEncoderWithMask):
    """Text side of miniFLUX: `text_encoder` is CLIP, pooled, and `text_encoder_2` is T5."""

    num_clip = 1
    clip_class = "CLIPTextModel"

    def _pooled_output(self, output: Any) -> Tensor:
        return output.pooler_output


class SD3TextEncoderWithMask(TextEncoderWithMask):
    """Text side of SD3: two CLIPs with projection, pooled side by side, `text_encoder_3` is T5."""

    num_clip = 2
    clip_class = "CLIPTextModelWithProjection"

    def _pooled_output(self, output: Any) -> Tensor:
        return output.text_embeds


_TOKENIZING = threading.Lock()
"""Fast tokenizers keep how to pad and cut on themselves, which is for one thread at a time."""


def _tokenize(tokenizer: Any, prompts: list[str], length: int) -> Any:
    if "CLIP" in type(tokenizer).__name__:
        prompts = [_normalized(tokenizer, prompt) for prompt in prompts]
    with _TOKENIZING:
        return tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )


def _normalized(tokenizer: Any, prompt: str) -> str:
    """The text as CLIP was trained on it: quotes straight, entities and ligatures resolved.

    The fast tokenizers leave that out, see `CLIPTokenizer._tokenize` of transformers 4.
    """
    from ftfy import fix_text

    special = "|".join(map(re.escape, tokenizer.all_special_tokens))
    parts = re.split(f"({special})", prompt) if special else [prompt]
    return "".join(part if number % 2 else fix_text(part) for number, part in enumerate(parts))


def _warn_of_cuts(tokenizer: Any, prompts: list[str], mask: Tensor) -> None:
    """Say which prompts have more tokens than fit into the rows of `mask`."""
    length = mask.shape[1]
    for prompt, row in zip(prompts, mask, strict=True):
        if not row.all():
            continue
        with _TOKENIZING:
            tokens = len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
        if tokens > length:
            logger.warning(
                "a prompt of %d tokens is cut to %d, what T5 reads (max_sequence_length): %.40r...",
                *(tokens, length, prompt),
            )
