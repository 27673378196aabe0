"""The causal video VAE of Pyramid Flow and what its training needs."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "CausalVideoVAE": "autoencoder",
    "CausalVideoVAELossWrapper": "training_wrapper",
}
__all__ = ["CausalVideoVAE", "CausalVideoVAELossWrapper"]


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
