"""The text a video is conditioned on: what the caller gave, and its encoded form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_prompts, check_shape


@dataclass(frozen=True)
class TextCondition:
    """Encoded prompts: `embeds` `[b, L, d]`, `mask` `[b, L]` (1 = real), `pooled` `[b, p]`."""

    embeds: Tensor
    mask: Tensor
    pooled: Tensor

    @classmethod
    def checked(
        cls, embeds: Tensor | None, mask: Tensor | None, pooled: Tensor | None, *, prefix: str = ""
    ) -> TextCondition | None:
        """The caller's three tensors as one condition, None where none of them is given.

        Args:
            embeds: `<prefix>prompt_embeds`.
            mask: `<prefix>prompt_attention_mask`.
            pooled: `<prefix>pooled_prompt_embeds`.
            prefix: How the arguments' names start, for the messages.

        Raises:
            ValueError: Some are given and some not, or their shapes do not fit each other.
        """
        names = [f"{prefix}{name}" for name in TENSOR_NAMES]
        if embeds is None and mask is None and pooled is None:
            return None
        if embeds is None or mask is None or pooled is None:
            given = zip(names, (embeds, mask, pooled), strict=True)
            missing = [name for name, tensor in given if tensor is None]
            raise ValueError(f"{', '.join(names)} go together; without {' and '.join(missing)}")
        if embeds.ndim != 3:
            raise ValueError(f"{names[0]} must be [b, L, d], got shape {tuple(embeds.shape)}")
        check_shape(names[1], mask, tuple(embeds.shape[:2]))
        check_shape(names[2], pooled, (embeds.shape[0], pooled.shape[-1]))
        if not mask.bool().any(dim=1).all():
            raise ValueError(f"{names[1]} has a row without a real token")
        return cls(embeds, mask, pooled)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.embeds.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> TextCondition:
        """On `device`, the embeddings in `dtype`."""
        return TextCondition(
            self.embeds.to(device, dtype), self.mask.to(device), self.pooled.to(device, dtype)
        )

    def repeated(self, count: int) -> TextCondition:
        """Every sample `count` times in a row."""
        if count == 1:
            return self
        tensors = (self.embeds, self.mask, self.pooled)
        return TextCondition(*(tensor.repeat_interleave(count, dim=0) for tensor in tensors))

    def followed_by(self, other: TextCondition) -> TextCondition:
        """The samples of both in one batch, the shorter text padded."""
        length = max(self.embeds.shape[1], other.embeds.shape[1])
        first, second = self._padded(length), other._padded(length)
        return TextCondition(
            torch.cat([first.embeds, second.embeds]),
            torch.cat([first.mask, second.mask]),
            torch.cat([first.pooled, second.pooled]),
        )

    def _padded(self, length: int) -> TextCondition:
        extra = length - self.embeds.shape[1]
        return TextCondition(
            F.pad(self.embeds, (0, 0, 0, extra)), F.pad(self.mask, (0, extra)), self.pooled
        )


@dataclass(frozen=True)
class GuidedText:
    """What to show and, with guidance, what to guide away from, encoded."""

    prompt: TextCondition
    negative: TextCondition | None

    def to(self, device: torch.device, dtype: torch.dtype) -> GuidedText:
        """On `device`, the embeddings in `dtype`."""
        return self._map(lambda text: text.to(device, dtype))

    def repeated(self, count: int) -> GuidedText:
        """Every sample `count` times in a row."""
        return self._map(lambda text: text.repeated(count))

    def _map(self, change: Callable[[TextCondition], TextCondition]) -> GuidedText:
        negative = None if self.negative is None else change(self.negative)
        return GuidedText(change(self.prompt), negative)


Triple = tuple[Tensor | None, Tensor | None, Tensor | None]
TENSOR_NAMES = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")


@dataclass(frozen=True)
class Prompts:
    """What to show and, with guidance, what to guide away from; in words or encoded."""

    positive: list[str] | TextCondition
    negative: list[str] | TextCondition | None
    batch: int

    @classmethod
    def checked(
        cls,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str],
        *,
        encoded: Triple,
        encoded_negative: Triple,
        suffix: str,
        guided: bool,
        allow_empty: bool = False,
    ) -> Prompts:
        """The caller's prompts, checked against each other.

        Args:
            prompt: One prompt or a list.
            negative_prompt: One for all prompts or one for each.
            encoded: Encoded prompts (embeddings, mask, pooled), instead of `prompt`.
            encoded_negative: The same for the negative prompts.
            suffix: What is appended to every prompt.
            guided: Whether there is guidance, which needs the negative prompts.
            allow_empty: Whether a prompt may be empty.

        Raises:
            TypeError: A prompt is not a string.
            ValueError: No prompt, an empty one, both kinds at once, or numbers that do not fit.
        """
        positive: list[str] | TextCondition
        condition = TextCondition.checked(*encoded)
        if condition is not None:
            if prompt:
                raise ValueError("give either prompt or prompt_embeds, not both")
            positive, batch = condition, condition.batch
        elif prompt is None:
            raise ValueError("a prompt is needed, or prompt_embeds")
        else:
            prompts = check_prompts(prompt, allow_empty=allow_empty)
            positive, batch = [text + suffix for text in prompts], len(prompts)

        negative: list[str] | TextCondition | None = None
        negative_condition = TextCondition.checked(*encoded_negative, prefix="negative_")
        if guided and negative_condition is not None:
            rows = negative_condition.batch
            if rows not in (1, batch):
                raise ValueError(f"negative_prompt_embeds have {rows} rows for {batch} prompts")
            negative = negative_condition.repeated(batch // rows)
        elif guided:
            negative = check_prompts(negative_prompt, allow_empty=True)
            if isinstance(negative_prompt, str):
                negative = negative * batch
            if len(negative) != batch:
                raise ValueError(f"{len(negative)} negative prompts for {batch} prompts")
        return cls(positive, negative, batch)

    def check_widths(self, joint: int, pooled: int) -> None:
        """Refuse encoded prompts of another model with a ValueError.

        Args:
            joint: Channels of the token embeddings that the transformer takes.
            pooled: Channels of the pooled embedding.
        """
        for prefix, texts in (("", self.positive), ("negative_", self.negative)):
            if isinstance(texts, TextCondition):
                widths = (texts.embeds.shape[-1], texts.pooled.shape[-1])
                if widths != (joint, pooled):
                    raise ValueError(
                        f"{prefix}prompt_embeds and {prefix}pooled_prompt_embeds have "
                        f"{widths[0]} and {widths[1]} channels, the model takes {joint} and "
                        f"{pooled}"
                    )

    @property
    def need_encoder(self) -> bool:
        """Whether any of them is still in words."""
        return isinstance(self.positive, list) or isinstance(self.negative, list)

    def encode(self, text_encoder: nn.Module | None, max_sequence_length: int) -> GuidedText:
        """Encode what is in words; of each prompt T5 reads `max_sequence_length` tokens."""

        def condition(texts: list[str] | TextCondition) -> TextCondition:
            if isinstance(texts, TextCondition):
                return texts
            assert text_encoder is not None  # the caller has asked need_encoder
            return TextCondition(*text_encoder(texts, max_sequence_length=max_sequence_length))

        positive = condition(self.positive)
        return GuidedText(positive, None if self.negative is None else condition(self.negative))
