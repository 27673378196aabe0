"""Loading of LoRAs whose adapters are all the transformer's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import Any

from diffusers.loaders import CogVideoXLoraLoaderMixin
from torch import Tensor, nn

logger = logging.getLogger(__name__)

PREFIX = "transformer."


class TransformerLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """diffusers' plain loader, which here refuses what has no place in the transformer.

    It also takes what `save_lora_adapter` of the transformer writes, where names have no prefix.
    """

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, Tensor],
        transformer: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the adapter of `state_dict`; weights of another component are a ValueError."""
        modules = {name for name, _ in transformer.named_modules()}
        if state_dict and all(key.partition(".lora_")[0] in modules for key in state_dict):
            state_dict = {PREFIX + key: value for key, value in state_dict.items()}
            metadata = metadata and {PREFIX + key: value for key, value in metadata.items()}
        foreign = [key for key in state_dict if not key.startswith(PREFIX)]
        if foreign or not state_dict:
            raise ValueError(
                "the names of a LoRA's weights must start with 'transformer.', "
                f"got {', '.join(sorted(foreign)[:3]) or 'no weights at all'}"
            )
        super().load_lora_into_transformer(state_dict, transformer, metadata=metadata, **kwargs)

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
