"""Loading of LoRAs whose adapters are all the transformer's."""

from __future__ import annotations

from typing import Any

from diffusers.loaders import CogVideoXLoraLoaderMixin
from torch import Tensor


class TransformerLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """diffusers' plain loader, which here refuses what has no place in the transformer."""

    @classmethod
    def load_lora_into_transformer(
        cls, state_dict: dict[str, Tensor], transformer: Any, **kwargs: Any
    ) -> None:
        """Add the adapter of `state_dict`; weights of another component are a ValueError."""
        foreign = [key for key in state_dict if not key.startswith("transformer.")]
        if foreign or not state_dict:
            raise ValueError(
                "the names of a LoRA's weights must start with 'transformer.', "
                f"got {', '.join(sorted(foreign)[:3]) or 'no weights at all'}"
            )
        super().load_lora_into_transformer(state_dict, transformer, **kwargs)
