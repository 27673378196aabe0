"""LoRA on the transformers: diffusers' adapter methods, imported only when one of them is used.

A model that inherits `PeftAdapterMixin` outright pays seconds at every start for what few need:
with it come `peft` and all that `peft` imports.
"""

from __future__ import annotations

from functools import cache
from inspect import getattr_static
from typing import Any


class _AdapterMethod:
    """A method of diffusers' `PeftAdapterMixin`, under the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return getattr_static(_adapter_mixin(), self.name).__get__(instance, owner)


class LoraAdapters:
    """What a model with diffusers' `PeftAdapterMixin` can do, documented there.

    Without `peft` every method raises an ImportError.
    """

    _hf_peft_config_loaded = False
    _prepare_lora_hotswap_kwargs: dict[str, Any] | None = None

    save_lora_adapter = _AdapterMethod()
    unload_lora = _AdapterMethod()
    add_adapter = _AdapterMethod()
    delete_adapters = _AdapterMethod()
    set_adapter = _AdapterMethod()
    set_adapters = _AdapterMethod()
    active_adapters = _AdapterMethod()
    enable_adapters = _AdapterMethod()
    disable_adapters = _AdapterMethod()
    enable_lora = _AdapterMethod()
    disable_lora = _AdapterMethod()
    fuse_lora = _AdapterMethod()
    unfuse_lora = _AdapterMethod()
    enable_lora_hotswap = _AdapterMethod()

    def load_lora_adapter(
        self, source: Any, prefix: str | None = "transformer", hotswap: bool = False, **kwargs: Any
    ) -> None:
        """As diffusers' method, of safetensors by default, so that a folder will do."""
        kwargs.setdefault("use_safetensors", True)
        _adapter_mixin().load_lora_adapter(self, source, prefix, hotswap, **kwargs)  # type: ignore[attr-defined]

    _fuse_lora_apply = _AdapterMethod()
    _unfuse_lora_apply = _AdapterMethod()
    _optionally_disable_offloading = _AdapterMethod()


def require_peft() -> None:
    """Make sure that `peft` is there, recent enough for diffusers.

    Raises:
        ImportError: It is not; the message says how to get it.
    """
    from diffusers.utils import MIN_PEFT_VERSION, USE_PEFT_BACKEND

    if not USE_PEFT_BACKEND:
        raise ImportError(
            f"LoRA takes peft {MIN_PEFT_VERSION} or newer: pip install 'pyramid-flow[lora]'"
        )


@cache
def _adapter_mixin() -> type:
    require_peft()
    from diffusers.loaders.peft import PeftAdapterMixin

    return PeftAdapterMixin
