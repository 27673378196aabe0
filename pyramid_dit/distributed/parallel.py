"""Many processes at work on one video: the only file here that knows process groups.

Two kinds of parallelism, the two axes of a `DeviceMesh` cfg x sequence. Guidance evaluates the
transformer for a negative and a positive prompt; with cfg = 2 each half of the processes takes
one of them. Within a half the tokens are split (Ulysses, arXiv 2309.14509): everything but the
attention works on a process's own tokens, and an all-to-all turns "my tokens, all heads" into
"all tokens, my heads" and back around the attention.

The transformers and the sampler are written for one process. They are handed a `Serial`, whose
methods are all the identity, or a `Parallel`. Splits are those of `torch.tensor_split`: uneven
numbers of tokens and heads are fine, and so are processes without a token of a short segment.

Gradients: let every process of a sequence group compute the loss alike, from gathered results.
The gradient of a parameter is then, on each process, the part that came through its own tokens,
and the sum over the group is the gradient (no mean). Parameters must therefore not be used
behind `gather`.

Legend: B batch, L all tokens, L_r tokens of process r, H all heads, H_r heads of process r,
D channels of a head.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..flow.latents import Generators
from .heartbeat import Heartbeat
from .launcher import end_with_launcher

T = TypeVar("T")

CFG, SEQUENCE = "cfg", "sequence"
BRANCHES = 2
"""Negative and positive prompt."""
START_TIMEOUT = timedelta(minutes=10)
"""For the others to arrive."""
NO_LIMIT = timedelta(days=365)
"""For a collective operation: others may compute for long, and a `Heartbeat` watches them."""


class Serial:
    """One process: every method is the identity."""

    rank = 0
    size = 1
    cfg = 1
    """Processes among which the branches of guidance are divided."""
    sequence = 1
    """Processes among which the tokens are divided."""
    cfg_rank = 0
    """Which branch is this process's: 0 the negative one."""
    sequence_rank = 0
    """Which part of the tokens."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that reports."""
        return self.rank == 0

    def check_heads(self, heads: int) -> None:
        """Refuse with a ValueError to divide `heads` heads among more processes."""
        check_heads(heads, self.sequence)

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        """This process's part of `x`, a tensor that all have, along `dim`.

        The gradient of `x` is zero outside that part.
        """
        return x

    def gather(self, x: Tensor, length: int, dim: int = 1) -> Tensor:
        """The whole, `length` long, of which every process has its part `x`; undoes `shard`."""
        return x

    def to_heads(self, tensors: Sequence[Tensor], lengths: Sequence[int]) -> Sequence[Tensor]:
        """All tokens of this process's heads from all heads of its tokens, in one exchange.

        Args:
            tensors: `[B, L_r, H, D]`, the process's parts of consecutive segments.
            lengths: Full lengths of the segments, each of which was split on its own.

        Returns:
            Tensors `[B, L, H_r, D]`, the segments whole and in order.
        """
        return tensors

    def to_tokens(self, x: Tensor, lengths: Sequence[int], heads: int) -> Tensor:
        """All `heads` heads of this process's tokens: undoes `to_heads` of one tensor."""
        return x

    def join_branches(self, velocity: Tensor) -> Tensor:
        """`[negative ; positive]` along the batch, from what this process evaluated."""
        return velocity

    def common_generator(self, generator: Generators | None) -> Generators | None:
        """A source of random numbers that is the same on all processes: as process 0's draws.

        Without a generator the numbers come from the CPU, seeded by process 0's global one.
        """
        return generator

    def common(self, x: Tensor) -> Tensor:
        """What process 0 has in place of `x`, a tensor of one shape on all processes."""
        return x

    def common_object(self, x: T) -> T:
        """What process 0 has in place of `x`, anything that can be pickled."""
        return x

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any process."""
        return flag


class Parallel(Serial):
    """This process's ranks among those that make one video.

    Args:
        mesh: cfg x sequence, with these names.
        line: The same processes in one dimension.
    """

    def __init__(self, mesh: DeviceMesh, line: DeviceMesh) -> None:
        self.line = line
        self.cfg, self.sequence = mesh.size(0), mesh.size(1)
        self.size, self.rank = line.size(), line.get_local_rank()
        self._cfg_group, self._sequence_group = mesh.get_group(CFG), mesh.get_group(SEQUENCE)
        self.cfg_rank, self.sequence_rank = mesh.get_coordinate() or (0, 0)
        # As a decorator it would import the compiler with this module, which takes a second.
        self._exchange = torch.compiler.disable(self._all_to_all)

    @property
    def group(self) -> dist.ProcessGroup:
        """All processes of the video."""
        return self.line.get_group()

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        return x.tensor_split(self.sequence, dim)[self.sequence_rank]

    def gather(self, x: Tensor, length: int, dim: int = 1) -> Tensor:
        if self.sequence == 1 or length == 0:
            return x
        sizes = split_sizes(length, self.sequence)
        return _Gather.apply(x, dim, sizes, self.sequence_rank, self._sequence_group)

    def to_heads(self, tensors: Sequence[Tensor], lengths: Sequence[int]) -> Sequence[Tensor]:
        if self.sequence == 1:
            return tensors
        x = torch.cat(list(tensors), dim=-1)
        batch, _, heads, channels = x.shape
        head_counts = split_sizes(heads, self.sequence)
        parts = _segment_parts(lengths, self.sequence)
        own_tokens, own_heads = sum(parts[self.sequence_rank]), head_counts[self.sequence_rank]
        row = batch * channels
        received = self._exchange(
            x.permute(2, 1, 0, 3).reshape(-1),  # heads first: what goes to a process is one run
            [own_heads * sum(part) * row for part in parts],
            [count * own_tokens * row for count in head_counts],
        )
        pieces = []  # of segments, by process
        by_rank = received.split([own_heads * sum(part) * row for part in parts])
        for run, part in zip(by_rank, parts, strict=True):
            tokens = run.view(own_heads, sum(part), batch, channels)
            pieces.append(tokens.split(part, dim=1))
        in_order = [piece for segment in zip(*pieces, strict=True) for piece in segment]
        return torch.cat(in_order, dim=1).permute(2, 1, 0, 3).chunk(len(tensors), dim=-1)

    def to_tokens(self, x: Tensor, lengths: Sequence[int], heads: int) -> Tensor:
        if self.sequence == 1:
            return x
        batch, _, own_heads, channels = x.shape
        head_counts = split_sizes(heads, self.sequence)
        parts = _segment_parts(lengths, self.sequence)
        own_tokens = sum(parts[self.sequence_rank])
        row = batch * channels
        counts = [own_tokens * count * row for count in head_counts]
        # tokens first, regrouped from segments of processes to processes of segments
        sizes = [size for segment in zip(*parts, strict=True) for size in segment]
        pieces = x.transpose(0, 1).split(sizes)
        by_rank = [
            piece for rank in range(self.sequence) for piece in pieces[rank :: self.sequence]
        ]
        received = self._exchange(
            torch.cat(by_rank).reshape(-1),
            counts,
            [sum(part) * own_heads * row for part in parts],
        )
        columns = [
            run.view(own_tokens, batch, count, channels)
            for run, count in zip(received.split(counts), head_counts, strict=True)
        ]
        return torch.cat(columns, dim=2).transpose(0, 1)

    def _all_to_all(self, x: Tensor, received: list[int], sent: list[int]) -> Tensor:
        """All-to-all of the runs of `x`, one for each process, whose lengths are `sent`."""
        return _AllToAll.apply(x, received, sent, self._sequence_group)

    def join_branches(self, velocity: Tensor) -> Tensor:
        if self.cfg == 1:
            return velocity
        return torch.cat(_all_gather(velocity, self._cfg_group))

    def common_generator(self, generator: Generators | None) -> Generators | None:
        if generator is None:
            seed = self.common_object(int(torch.randint(2**62, ())))
            return torch.Generator().manual_seed(seed)
        given = [generator] if isinstance(generator, torch.Generator) else generator
        states = self.common_object([source.get_state() for source in given])
        for source, state in zip(given, states, strict=True):
            source.set_state(state)
        return generator

    def common(self, x: Tensor) -> Tensor:
        # a copy: `x` may be the caller's
        x = x.clone(memory_format=torch.contiguous_format)
        dist.broadcast(x, group=self.group, group_src=0)
        return x

    def common_object(self, x: T) -> T:
        box = [x]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def any(self, flag: bool) -> bool:
        flags: list[bool | None] = [None] * self.size
        dist.all_gather_object(flags, flag, group=self.group)
        return True in flags


class _AllToAll(torch.autograd.Function):
    """`all_to_all_single` of a vector; the gradients go the way back.

    It is called twice a block, so it does without the wrapped tensors of PyTorch's functional
    collectives.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.way_back = (sent, received, group)
        result = x.new_empty(sum(received))
        dist.all_to_all_single(result, x.contiguous(), received, sent, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _AllToAll.apply(gradients[0], *ctx.way_back), None, None, None


class _Gather(torch.autograd.Function):
    """All-gather of uneven parts; backward keeps the own part of what every process has alike."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, sizes: list[int], rank: int, group: dist.ProcessGroup
    ) -> Tensor:
        ctx.place = (dim, sum(sizes[:rank]), sizes[rank])
        leading = x.movedim(dim, 0)
        padded = leading.new_zeros((max(sizes), *leading.shape[1:]))
        padded[: sizes[rank]] = leading
        gathered = zip(_all_gather(padded, group), sizes, strict=True)
        parts = [part[:size] for part, size in gathered]
        return torch.cat(parts).movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0].narrow(*ctx.place), None, None, None, None


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """The `x` of all processes of `group`, of one shape."""
    parts = [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for _ in range(dist.get_world_size(group))
    ]
    dist.all_gather(parts, x.contiguous(), group=group)
    return parts


def split_sizes(length: int, parts: int) -> list[int]:
    """Sizes of the `parts` that `torch.tensor_split` makes of `length`."""
    share, larger = divmod(length, parts)
    return [share + 1] * larger + [share] * (parts - larger)


def _segment_parts(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """For each process, how much it has of each segment."""
    columns = [split_sizes(length, parts) for length in lengths]
    return [list(row) for row in zip(*columns, strict=True)]


# ---- from processes to meshes -------------------------------------------------------------------

SERIAL = Serial()

_formed: dict[bool, Serial] = {}  # by whether there is guidance
_heartbeat: Heartbeat | None = None
_joined = count()  # how often this process did


def mesh_shape(processes: int, *, guided: bool) -> tuple[int, int]:
    """cfg and sequence for so many processes.

    The branches of guidance need no exchange within a step, so they are parted first; an odd
    number of processes splits the tokens only.
    """
    cfg = BRANCHES if guided and processes % BRANCHES == 0 else 1
    return cfg, processes // cfg


def check_heads(heads: int, processes: int) -> None:
    """Refuse with a ValueError to divide the tokens among more processes than heads."""
    if processes > heads:
        raise ValueError(
            f"{processes} processes cannot share the tokens: each needs a head of the attention, "
            f"and the transformer has {heads}"
        )


def join_processes(device: torch.device, *, timeout: timedelta = START_TIMEOUT) -> None:
    """Join the process group that the environment describes (`RANK`, `WORLD_SIZE`, ...).

    Args:
        device: What this process computes on: NCCL carries CUDA tensors, Gloo those of the CPU.
        timeout: How long to wait for the others to arrive.

    Raises:
        ValueError: The environment lacks a variable; a launcher such as torchrun sets them.
        TimeoutError: Another process does not arrive.
    """
    global _heartbeat
    if dist.is_initialized():
        return
    end_with_launcher()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_joined)}"
    if size > 1:
        _heartbeat = Heartbeat(
            dist.PrefixStore(f"heartbeat/{attempt}", store.clone()),
            rank,
            size,
            served=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
        _heartbeat.start(timeout)
    store.set_timeout(timedelta(days=1))  # in milliseconds an int of C, unlike the others
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"group/{attempt}", store),
        rank=rank,
        world_size=size,
        timeout=NO_LIMIT,
    )


def leave_processes() -> None:
    """Forget all groups and leave the process group, if there is one."""
    global _heartbeat
    _formed.clear()
    if _heartbeat is not None:
        _heartbeat.leave()
        _heartbeat = None
    if dist.is_initialized():
        dist.destroy_process_group()


def form_groups(per_video: int | None = None, processes: int | None = None) -> None:
    """Say how many processes make one video together; all processes call this.

    Args:
        per_video: Consecutive processes of a video; by default all.
        processes: Of all processes the first so many; the others work alone. By default all.

    Raises:
        RuntimeError: This process has joined no process group.
        ValueError: The numbers do not fit.
    """
    if not dist.is_initialized():
        raise RuntimeError("join a process group first, with init_distributed_mode or torchrun")
    from torch.distributed.distributed_c10d import _set_pg_timeout  # not in every PyTorch

    world = dist.get_world_size()
    processes = world if processes is None else processes
    per_video = processes if per_video is None else per_video
    if not 1 <= processes <= world:
        raise ValueError(f"there are {world} processes, so {processes} cannot be used")
    if per_video < 1 or processes % per_video:
        raise ValueError(f"{processes} processes cannot be divided into groups of {per_video}")
    ranks = torch.arange(processes)
    names = ("video", CFG, SEQUENCE)
    kind = "cuda" if "nccl" in dist.get_backend_config() else "cpu"
    meshes = {}
    for shape in {mesh_shape(per_video, guided=guided) for guided in (False, True)}:
        mesh = DeviceMesh(kind, ranks.view(-1, *shape), mesh_dim_names=names)
        if mesh.get_coordinate() is not None:
            for group in mesh.get_all_groups():
                _set_pg_timeout(NO_LIMIT, group)
        meshes[shape] = mesh
    _formed.clear()
    for guided in (False, True):
        mesh = meshes[mesh_shape(per_video, guided=guided)]
        if mesh.get_coordinate() is None or per_video == 1:
            _formed[guided] = SERIAL
        else:
            line = meshes[1, per_video][SEQUENCE]
            _formed[guided] = Parallel(mesh[CFG, SEQUENCE], line)


def groups_are_formed() -> bool:
    """Whether it was said which processes make a video together, by `form_groups` or first use."""
    return bool(_formed)


def scaled_gradient(x: Tensor, factor: int) -> Tensor:
    """`x`, whose gradient is `factor` times that which comes to it."""
    return x if factor == 1 else x.detach() + factor * (x - x.detach())  # the same bits


def speaks(record: logging.LogRecord) -> bool:
    """A filter of loggers: of the processes that make a video together one warns."""
    return all(processes.is_main for processes in _formed.values())


def processes_at_work(*, guided: bool) -> Serial:
    """The processes that make a video together with this one.

    Without a process group that is this one alone. Where none said otherwise, all processes of
    the group work together; all of them must then come here.

    Args:
        guided: Whether there is guidance, whose branches can be parted.
    """
    if not dist.is_available() or not dist.is_initialized():
        return SERIAL
    if not _formed:
        form_groups()
    return _formed[guided]
