"""LoRA on the transformers: diffusers' adapter methods, imported only when one of them is used.

A model that inherits `PeftAdapterMixin` outright pays seconds at every start for what few need:
with it come `peft` and all that `peft` imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from inspect import getattr_static
from typing import Any

from torch import nn

from ..checks import Number, OneOf, shown


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


def check_attention_kwargs(name: str, value: Any) -> None:
    """Refuse anything but `{"scale": number}`, or nothing.

    Raises:
        TypeError: It is no mapping, or the scale is no number.
        ValueError: There is another entry, which would have no effect.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dictionary, got {shown(value)}")
    for key, entry in value.items():
        OneOf(("scale",))(f"the key in {name}", key)
        Number(-100, 100)(f"{name}['scale']", entry)


@contextmanager
def lora_scale(model: nn.Module, attention_kwargs: Mapping[str, Any] | None) -> Iterator[None]:
    """Meanwhile all active LoRAs of `model` act `attention_kwargs["scale"]` times as strongly.

    As `apply_lora_scale` of diffusers, but without rounding afterwards, and 0 leaves the weights
    of adapters as they were.

    Raises:
        TypeError: As `check_attention_kwargs`.
        ValueError: The same.
    """
    given = attention_kwargs or {}
    check_attention_kwargs("attention_kwargs", given)
    scale = given.get("scale", 1)
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "scale_layer")]
    layers = [] if scale == 1 else layers
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scale_layer(scale)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


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
