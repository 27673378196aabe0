"""What a LoRA teaches beside the transformer: embeddings of tokens, and the words that they spell.

An adapter of the transformer cannot learn a word whose tokens look like nothing it knows. So a LoRA
may bring changes of token embeddings along. They are added to what the text encoder looks up,
as strongly as the adapter of the same name acts in the transformer: weighing, disabling or
unloading that one is all it takes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_REGISTRY = "_lora_text"


class TokenChanges(NamedTuple):
    """Changes of some rows of an embedding."""

    ids: Tensor
    """Of the tokens, ascending, int64 `[n]`."""
    rows: Tensor
    """What is added to their embeddings `[n, d]`."""

    def check(self, name: str, encoder: nn.Module) -> None:
        """Refuse changes that do not fit the text encoder, which is called `name` (ValueError)."""
        weight: Tensor = token_embeddings(encoder)[0].weight  # type: ignore[assignment]
        count, width = weight.shape
        fits = (
            self.ids.ndim == 1
            and self.rows.shape == (len(self.ids), width)
            and bool((self.ids.diff() > 0).all())
            and bool((self.ids >= 0).all() and (self.ids < count).all())
        )
        if not fits:
            raise ValueError(
                f"the LoRA's token embeddings {list(self.rows.shape)} are none of {name}, "
                f"which has {count} tokens of width {width}"
            )


class TrainedTokens(nn.Module):
    """A trainable change of all token embeddings of a text encoder, zero at first, in float32.

    Args:
        encoder: What it is added to; it holds this module as `trained_tokens` from then on.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        embeddings = token_embeddings(encoder)
        weight: Tensor = embeddings[0].weight  # type: ignore[assignment]
        count, width = weight.shape
        self.change = nn.Embedding(count, width, device=weight.device)
        nn.init.zeros_(self.change.weight)
        encoder.add_module("trained_tokens", self)
        for embedding in embeddings:
            embedding.register_forward_hook(self._add)

    def _add(self, embedding: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.change(inputs[0]).to(output.dtype)


def changed_tokens(change: Tensor) -> TokenChanges:
    """The rows of a whole trained change `[v, d]` that are not zero."""
    ids = change.any(dim=1).nonzero().flatten().cpu()
    return TokenChanges(ids, change[ids.to(change.device)].float().cpu())


class LoraText:
    """The text side of an adapter, in effect as long as the adapter is, and as strongly.

    Args:
        transformer: What the adapter is in.
        adapter: Its name; what another of this name brought before is without effect from now on.
        words: What it taught.
    """

    def __init__(self, transformer: nn.Module, adapter: str, words: list[str]) -> None:
        self.adapter, self.words = adapter, words
        self._transformer = weakref.ref(transformer)
        known: dict[str, LoraText] = getattr(transformer, _REGISTRY, {})
        setattr(transformer, _REGISTRY, {**known, adapter: self})

    @property
    def strength(self) -> float:
        """How strongly it acts, 1 as it was trained."""
        transformer = self._transformer()
        if transformer is None or getattr(transformer, _REGISTRY)[self.adapter] is not self:
            return 0.0
        return adapter_strength(transformer, self.adapter)

    def add_to(self, encoder: nn.Module, changes: TokenChanges) -> None:
        """Have a text encoder look up `changes` too."""

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            asked = inputs[0]
            strength = self.strength
            if not strength:
                return output
            ids, rows = (tensor.to(asked.device) for tensor in changes)
            places = torch.searchsorted(ids, asked).clamp(max=len(ids) - 1)
            added = torch.where((ids[places] == asked)[..., None], rows[places] * strength, 0)
            return output + added.to(output.dtype)

        for embedding in token_embeddings(encoder) if len(changes.ids) else ():
            embedding.register_forward_hook(add)


def words_taught(transformer: nn.Module) -> list[str]:
    """The words that adapters taught which act at the moment."""
    texts: Mapping[str, LoraText] = getattr(transformer, _REGISTRY, {})
    return [word for text in texts.values() if text.strength for word in text.words]


def adapter_strength(transformer: nn.Module, adapter: str) -> float:
    """How strongly an adapter acts, 1 as it was trained; 0 where it is not active or not there."""
    if adapter not in getattr(transformer, "peft_config", {}):
        return 0.0
    from peft.tuners.lora import LoraLayer

    for layer in transformer.modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.scaling:
            continue
        if layer.disable_adapters or adapter not in layer.active_adapters:
            return 0.0
        rank, alpha = layer.r[adapter], layer.lora_alpha[adapter]
        rank_stable = transformer.peft_config[adapter].use_rslora  # type: ignore[union-attr, index]
        return layer.scaling[adapter] * (math.sqrt(rank) if rank_stable else rank) / alpha
    return 0.0


def token_embeddings(encoder: Any) -> list[nn.Module]:
    """Where a text encoder of `transformers` may look tokens up: T5 has two with one weight."""
    weight = encoder.get_input_embeddings().weight
    return [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.weight is weight]
