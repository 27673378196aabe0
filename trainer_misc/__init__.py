"""Training and evaluation of Pyramid Flow models: data, trainers, a judge of clips.

The public names are imported when they are first asked for, so that importing one part of the
package does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distributed import (
        get_rank,
        get_sequence_parallel_group,
        get_sequence_parallel_group_rank,
        get_sequence_parallel_rank,
        get_sequence_parallel_world_size,
        init_distributed_mode,
        init_sequence_parallel_group,
        is_sequence_parallel_initialized,
        setup_for_distributed,
    )
    from .optimization import constant_scheduler, cosine_scheduler, create_optimizer

_EXPORTS = {
    "constant_scheduler": "optimization",
    "cosine_scheduler": "optimization",
    "create_optimizer": "optimization",
    "get_rank": "distributed",
    "get_sequence_parallel_group": "distributed",
    "get_sequence_parallel_group_rank": "distributed",
    "get_sequence_parallel_rank": "distributed",
    "get_sequence_parallel_world_size": "distributed",
    "init_distributed_mode": "distributed",
    "init_sequence_parallel_group": "distributed",
    "is_sequence_parallel_initialized": "distributed",
    "setup_for_distributed": "distributed",
}
_TRAINERS = "run `python -m trainer_misc.train_dit` or `python -m trainer_misc.train_vae`"
_REPLACED = {
    "NativeScalerWithGradNormCount": _TRAINERS,
    "all_to_all": "use `to_heads` and `to_tokens` of `pyramid_dit.parallel.Parallel`",
    "auto_load_model": _TRAINERS,
    "save_model": _TRAINERS,
    "train_one_epoch": _TRAINERS,
    "train_one_epoch_with_fsdp": _TRAINERS,
}
"""Names of the reference's, and what takes their place."""
__all__ = [
    "constant_scheduler",
    "cosine_scheduler",
    "create_optimizer",
    "get_rank",
    "get_sequence_parallel_group",
    "get_sequence_parallel_group_rank",
    "get_sequence_parallel_rank",
    "get_sequence_parallel_world_size",
    "init_distributed_mode",
    "init_sequence_parallel_group",
    "is_sequence_parallel_initialized",
    "setup_for_distributed",
]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for (PEP 562).

    Raises:
        ImportError: It is a name of the reference's that something else takes the place of. An
            AttributeError would lose the message on the way through `from trainer_misc import`.
    """
    if name in _REPLACED:
        raise ImportError(
            f"{__name__} has no {name} of the reference's: {_REPLACED[name]} (docs/migration.md)"
        )
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
