"""The text a video is conditioned on: what the caller gave, and its encoded form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checks import check_prompts, check_shape, tensor
from ..models.text_condition import TextCondition


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

    def arguments(self) -> dict[str, Tensor]:
        """The tensors by the names that arguments give them."""
        prefixed = {} if self.negative is None else self.negative._asdict()
        return self.prompt._asdict() | {f"negative_{name}": x for name, x in prefixed.items()}

    def replaced(self, tensors: Mapping[str, Tensor]) -> GuidedText:
        """With those of `tensors` that are other ones, by the names of `arguments`.

        Raises:
            TypeError: One is no tensor.
            ValueError: One has another shape than what it replaces.
        """
        own = self.arguments()
        given = {name: tensors[name] for name in own if name in tensors}
        changed = {name: new for name, new in given.items() if new is not own[name]}
        if not changed:
            return self
        for name, new in changed.items():
            tensor(name, new)
            check_shape(name, new, tuple(own[name].shape))
        every = {name: changed.get(name, old).to(old) for name, old in own.items()}
        negative = [every.get(f"negative_{name}") for name in TextCondition._fields]
        return GuidedText(
            TextCondition(*(every[name] for name in TextCondition._fields)),
            TextCondition.checked(*negative, prefix="negative_"),
        )

    def _map(self, change: Callable[[TextCondition], TextCondition]) -> GuidedText:
        negative = None if self.negative is None else change(self.negative)
        return GuidedText(change(self.prompt), negative)


Triple = tuple[Tensor | None, Tensor | None, Tensor | None]
_NONE = (None, None, None)


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
        suffix: str,
        guided: bool,
        encoded: Triple = _NONE,
        encoded_negative: Triple = _NONE,
        allow_empty: bool = False,
    ) -> Prompts:
        """The caller's prompts, checked against each other.

        Args:
            prompt: One prompt or a list.
            negative_prompt: One for all prompts or one for each.
            suffix: What is appended to every prompt.
            guided: Whether there is guidance, which needs the negative prompts.
            encoded: Encoded prompts (embeddings, mask, pooled), instead of `prompt`.
            encoded_negative: The same for the negative prompts.
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
                widths = (texts.prompt_embeds.shape[-1], texts.pooled_prompt_embeds.shape[-1])
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
