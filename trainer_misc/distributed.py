"""Starting processes that work together, by the names that the reference's scripts use.

The groups themselves are made in `pyramid_dit.distributed.parallel`.
"""

from __future__ import annotations

import logging
from argparse import Namespace

import torch
import torch.distributed as dist

from pyramid_dit.distributed.launcher import launched_process
from pyramid_dit.distributed.parallel import form_groups, join_processes

logger = logging.getLogger(__name__)


def init_distributed_mode(args: Namespace) -> None:
    """Join the process group that torchrun has described in the environment.

    NCCL carries what lies on GPUs, Gloo what lies on the CPU. Without torchrun this process
    stays alone.

    Args:
        args: Gets `distributed`, `rank`, `world_size`, `gpu` (number of the process on its
            machine), `dist_backend`, `dist_url` and `device`.

    Raises:
        ValueError: The environment is incomplete, or there are fewer GPUs than processes.
    """
    here = launched_process()
    on_gpu = torch.cuda.is_available()
    args.distributed = here is not None
    args.rank, args.gpu, args.world_size = (0, 0, 1) if here is None else here[:3]
    args.dist_backend = "nccl" if on_gpu else "gloo"
    args.dist_url = "env://"
    if on_gpu and args.gpu >= torch.cuda.device_count():
        raise ValueError(
            f"process {args.gpu} of this machine has no GPU, there are {torch.cuda.device_count()}"
        )
    args.device = torch.device("cuda", args.gpu) if on_gpu else torch.device("cpu")
    if here is None:
        logger.warning("not started by torchrun: this process works alone")
    else:
        join_processes(args.device)


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
