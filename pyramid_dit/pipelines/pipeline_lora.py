"""Loading of LoRAs: adapters of the transformer, and the words that they taught."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import Any

from diffusers.loaders import CogVideoXLoraLoaderMixin
from safetensors import SafetensorError
from torch import Tensor, nn

from ..models.lora_text import LoraText
from .lora_format import (
    PREFIX,
    token_changes,
    transformer_weights,
    without_tokens,
    words_of,
)

logger = logging.getLogger(__name__)


class TransformerLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """diffusers' plain loader, for all names of `lora_format`; what has no place is refused.

    What it brings along for the text encoders goes there, see `models.lora_text`.
    """

    @classmethod
    def lora_state_dict(cls, source: Any, **kwargs: Any) -> Any:
        """As diffusers' method, of safetensors by default.

        Raises:
            OSError: There is no such file, folder or repository.
            ValueError: The file is damaged.
        """
        kwargs.setdefault("use_safetensors", True)
        try:
            return super().lora_state_dict(source, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"the LoRA in {source} is damaged: {error}") from error

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, Tensor],
        transformer: Any,
        adapter_name: str | None = None,
        *,
        text_encoders: Mapping[str, nn.Module | None] | None = None,
        metadata: Mapping[str, Any] | None = None,
        _pipeline: Any = None,
        **kwargs: Any,
    ) -> None:
        """Add the adapter of `state_dict`.

        Args:
            state_dict: Its weights.
            transformer: What it is for.
            adapter_name: What to call it, by default the first free of `default_0` and so on.
            text_encoders: By name; those of a pipeline by default.
            metadata: What its file says of it.

        Raises:
            ValueError: The weights are of something else, or for another model.
        """
        words, changes = words_of(metadata), token_changes(state_dict)
        weights = transformer_weights(without_tokens(state_dict), transformer)
        if metadata is not None and not any(key.startswith(PREFIX) for key in metadata):
            metadata = {PREFIX + key: value for key, value in metadata.items()}
        if text_encoders is None:
            text_encoders = {name: getattr(_pipeline, name, None) for name in changes}
        encoders: dict[str, nn.Module] = {}
        for name, change in changes.items():
            encoder = text_encoders.get(name)
            if encoder is None:
                logger.warning("the LoRA's token embeddings are left out: there is no %s", name)
                continue
            change.check(name, encoder)
            encoders[name] = encoder
        known = set(getattr(transformer, "peft_config", {}))
        super().load_lora_into_transformer(
            {PREFIX + key: value for key, value in weights.items()},
            transformer,
            adapter_name=adapter_name,
            metadata=metadata or None,
            _pipeline=_pipeline,
            **kwargs,
        )
        adapter = adapter_name or (set(transformer.peft_config) - known).pop()
        text = LoraText(transformer, adapter, words)
        for name, encoder in encoders.items():
            text.add_to(encoder, changes[name])

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | PathLike[str],
        transformer_lora_layers: Mapping[str, nn.Module | Tensor] | None = None,
        *args: Any,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """As of diffusers' pipelines; a warning says that a LoRA without metadata has no alpha."""
        if transformer_lora_layers and not transformer_lora_adapter_metadata:
            logger.warning(
                "a LoRA is saved without its alpha, and will be loaded at scale 1 whatever it was "
                "trained at: pass transformer_lora_adapter_metadata, or save by "
                "transformer.save_lora_adapter"
            )
        super().save_lora_weights(
            save_directory,
            transformer_lora_layers,
            *args,
            transformer_lora_adapter_metadata=transformer_lora_adapter_metadata,
            **kwargs,
        )
