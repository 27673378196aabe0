"""Training and evaluation of Pyramid Flow models: data, trainers, a judge of clips.

The public names are imported when they are first asked for, so that importing one part of the
package does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distributed import init_distributed_mode, init_sequence_parallel_group

_EXPORTS = {
    "init_distributed_mode": "distributed",
    "init_sequence_parallel_group": "distributed",
}
__all__ = ["init_distributed_mode", "init_sequence_parallel_group"]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
