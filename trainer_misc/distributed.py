"""Starting processes that work together, by the names that the reference's scripts use.

The groups themselves are made in `pyramid_dit.distributed.parallel`.
"""

from __future__ import annotations

import builtins
import functools
import logging
import os
from argparse import Namespace
from typing import Any

import torch
import torch.distributed as dist

from pyramid_dit.distributed.launcher import launched_process
from pyramid_dit.distributed.parallel import (
    SERIAL,
    Parallel,
    Serial,
    form_groups,
    groups_are_formed,
    join_processes,
    processes_at_work,
)

logger = logging.getLogger(__name__)

OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
}
"""What torchrun calls it, and what Open MPI's mpirun does."""


def init_distributed_mode(args: Namespace, init_pytorch_ddp: bool = True) -> None:
    """Join the process group that torchrun has described in the environment.

    NCCL carries what lies on GPUs, Gloo what lies on the CPU. Without torchrun this process
    stays alone.

    Args:
        args: Gets `distributed`, `rank`, `world_size`, `gpu` (number of the process on its
            machine), `dist_backend`, `dist_url` and `device`. A true `dist_on_itp` says that
            mpirun started the processes, which must then have `MASTER_ADDR` and `MASTER_PORT`;
            the environment gets torchrun's variables.
        init_pytorch_ddp: False joins nothing, for accelerate to do it.

    Raises:
        ValueError: The environment is incomplete, or there are fewer GPUs than processes.
    """
    if getattr(args, "dist_on_itp", False):
        _describe_as_torchrun_does()
    if getattr(args, "dist_url", "env://") != "env://":
        logger.warning("dist_url=%s has no effect: torchrun's environment is used", args.dist_url)
    launched = launched_process()
    on_gpu = torch.cuda.is_available()
    args.distributed = launched is not None
    args.rank, args.gpu, args.world_size = (0, 0, 1) if launched is None else launched[:3]
    args.dist_backend = "nccl" if on_gpu else "gloo"
    args.dist_url = "env://"
    if on_gpu and args.gpu >= torch.cuda.device_count():
        raise ValueError(
            f"process {args.gpu} of this machine has no GPU, there are {torch.cuda.device_count()}"
        )
    args.device = torch.device("cuda", args.gpu) if on_gpu else torch.device("cpu")
    if launched is None:
        logger.warning("not started by torchrun: this process runs alone")
    elif init_pytorch_ddp:
        join_processes(args.device)


def _describe_as_torchrun_does() -> None:
    missing = [name for name in OPEN_MPI.values() if name not in os.environ]
    if missing:
        raise ValueError(f"dist_on_itp: the environment has no {', '.join(missing)}")
    os.environ.update({name: os.environ[theirs] for name, theirs in OPEN_MPI.items()})


def setup_for_distributed(is_master: bool) -> None:
    """Have `print` and logging below a warning speak on one process only.

    `print(..., force=True)` speaks everywhere.

    Args:
        is_master: Whether this process is that one.
    """
    speak = getattr(builtins.print, "__wrapped__", builtins.print)  # not around itself

    @functools.wraps(speak)
    def print_here(*args: Any, force: bool = False, **kwargs: Any) -> None:
        if is_master or force:
            speak(*args, **kwargs)

    builtins.print = print_here
    logging.disable(logging.NOTSET if is_master else logging.INFO)


def get_rank() -> int:
    """Rank of this process among all, 0 for one alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def init_sequence_parallel_group(args: Namespace) -> None:
    """Let every `args.sp_group_size` processes work on one video.

    Call it on all processes, after `init_distributed_mode`. Without it, `inference_multigpu=True`
    lets all processes work on one video.

    Args:
        args: `sp_group_size`, and where it has them `sp_proc_num`, how many of the processes do
            so (-1 or none: all), and `use_sequence_parallel`, which can say that none does.

    Raises:
        RuntimeError: `init_distributed_mode` has not been called, or not under torchrun.
        ValueError: The processes cannot be divided into such groups.
    """
    size = args.sp_group_size if getattr(args, "use_sequence_parallel", True) else 1
    count = getattr(args, "sp_proc_num", -1)
    if size == 1 and not dist.is_initialized():
        return
    form_groups(size, None if count in (-1, None) else count)


def is_sequence_parallel_initialized() -> bool:
    """Whether this process shares its videos with others."""
    return isinstance(_of_a_video(), Parallel)


def get_sequence_parallel_group() -> dist.ProcessGroup:
    """The processes that share a video with this one.

    Raises:
        RuntimeError: There are none.
    """
    parallel = _of_a_video()
    if not isinstance(parallel, Parallel):
        raise RuntimeError("this process runs alone: call init_sequence_parallel_group first")
    return parallel.group


def get_sequence_parallel_rank() -> int:
    """Rank of this process among those of its video."""
    return _of_a_video().rank


def get_sequence_parallel_world_size() -> int:
    """Number of processes that share a video, 1 where each works alone."""
    return _of_a_video().size


def get_sequence_parallel_group_rank() -> int:
    """Which of the groups of a video each is this process's."""
    return get_rank() // get_sequence_parallel_world_size()


def _of_a_video() -> Serial:
    # to ask before the groups are formed forms none
    return processes_at_work(guided=False) if groups_are_formed() else SERIAL
