"""Where a causal convolution finds the frames before the ones it is handed.

A context is made by whoever runs the network and is passed down the forward. Nothing is kept on
modules, so any number of videos can be encoded or decoded in turn by one network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class WholeClip:
    """The clip is complete: there is nothing before it but zeros.

    Args:
        starts_video: The first frame stands alone, so temporal up-samplers drop the first of the
            two frames they make of it.
    """

    carries = False

    def __init__(self, *, starts_video: bool = True) -> None:
        self.starts_video = starts_video

    def begins(self, conv: nn.Module) -> bool:
        """Whether there are only zeros before what `conv` is handed next."""
        return True

    def extend(self, conv: nn.Module, frames: Tensor, *, kernel: int, stride: int) -> Tensor:
        """Put `kernel - 1` zero frames in front of `frames` [b, c, t, h, w]."""
        return F.pad(frames, (0, 0, 0, 0, kernel - 1, 0))


class Stream:
    """A clip that arrives in chunks: each convolution carries its own last frames over.

    A convolution of stride 1 carries `kernel - 1` frames, one of stride s everything from the
    place where its next window starts. Call `advance()` after each chunk.

    Args:
        starts_video: As in `WholeClip`, for the first chunk.
    """

    carries = True

    def __init__(self, *, starts_video: bool = True) -> None:
        self.starts_video = starts_video
        self._carried: dict[nn.Module, Tensor] = {}

    def begins(self, conv: nn.Module) -> bool:
        """Whether there are only zeros before what `conv` is handed next."""
        return conv not in self._carried

    def extend(self, conv: nn.Module, frames: Tensor, *, kernel: int, stride: int) -> Tensor:
        """Put the frames carried for `conv` (zeros at the start) in front of `frames`."""
        carried = self._carried.get(conv)
        if carried is None:
            extended = F.pad(frames, (0, 0, 0, 0, kernel - 1, 0))
        else:
            extended = torch.cat([carried, frames], dim=2)
        windows = (extended.shape[2] - kernel) // stride + 1
        # A copy, lest two carried frames keep a whole chunk alive.
        self._carried[conv] = extended[:, :, windows * stride :].clone()
        return extended

    def advance(self) -> None:
        """The chunk is done: what comes next continues the video."""
        self.starts_video = False


class Neighbours:
    """A clip whose frames are split over the ranks of a process group (context parallelism).

    The clip is worked off in rounds. In each round the first ranks have some of the next frames
    each, in the order of the ranks, and all run the network at the same time: every convolution
    sends its last frames to the rank behind and gets those before its own from the rank in front.
    The last rank of a round sends to rank 0, which keeps the frames for the next round. Call
    `advance()` after each round. A rank without frames in a round does not run the network then.

    The clip starts a video, whose first frame stands alone. So the ranks in front of a rank have
    an odd number of frames together, and a convolution of stride s needs the last `kernel - s`
    of them.

    Where gradients are recorded they cross the ranks the other way, in the backward pass, which
    all ranks then run at the same time. That takes a single round in which every rank has frames,
    at least `kernel - stride` of them before each convolution.

    Args:
        group: The ranks; None is all of them.
        workers: How many ranks have frames in each round.

    Raises:
        ValueError: A rank has too few frames for gradients.
    """

    carries = True

    def __init__(self, group: dist.ProcessGroup | None, workers: Sequence[int]) -> None:
        self._group = group
        self._rank = dist.get_rank(group)
        self._workers = workers
        self._round = 0
        self._carried: dict[nn.Module, Tensor] = {}

    def begins(self, conv: nn.Module) -> bool:
        """Whether there are only zeros before what `conv` is handed next: not looked into."""
        return False

    @property
    def starts_video(self) -> bool:
        """As in `WholeClip`: only rank 0 has the first frame, in the first round."""
        return self._rank == 0 and self._round == 0

    def extend(self, conv: nn.Module, frames: Tensor, *, kernel: int, stride: int) -> Tensor:
        """Put the frames before this rank's (zeros where the video starts) in front of `frames`."""
        reach = kernel - stride
        if torch.is_grad_enabled() and frames.requires_grad:
            missing = reach if self._rank else kernel - 1
            return self._extend_with_gradients(frames, missing, reach)
        goes_on = self._round + 1 < len(self._workers)
        sends = goes_on or self._rank + 1 < self._workers[self._round]
        if self._rank == 0:
            before = self._carried.pop(conv, None)
            if before is None:
                before = _new_frames(frames, kernel - 1).zero_()
            extended = torch.cat([before, frames], dim=2)
            received = _new_frames(frames, reach) if goes_on else None
            self._exchange(_last(extended, reach) if sends else None, received)
            if received is not None:
                self._carried[conv] = received
            return extended
        before = _new_frames(frames, reach)
        if not sends or frames.shape[2] >= reach:
            self._exchange(_last(frames, reach) if sends else None, before)
            return torch.cat([before, frames], dim=2)
        # What is to be sent has to be received in part.
        self._exchange(None, before)
        extended = torch.cat([before, frames], dim=2)
        self._exchange(_last(extended, reach), None)
        return extended

    def advance(self) -> None:
        """The round is done: what comes next continues the video."""
        self._round += 1

    def _extend_with_gradients(self, frames: Tensor, missing: int, reach: int) -> Tensor:
        ranks = dist.get_world_size(self._group)
        if list(self._workers) != [ranks] or frames.shape[2] < reach:
            raise ValueError(
                f"gradients need frames on all ranks in one round, {reach} or more: rank "
                f"{self._rank} of {ranks} has {frames.shape[2]}, workers are {list(self._workers)}"
            )
        before: Tensor = _FromFront.apply(frames[:, :, frames.shape[2] - reach :], missing, self)
        return torch.cat([before, frames], dim=2)

    def _exchange(self, sent: Tensor | None, received: Tensor | None) -> None:
        """Send to the rank behind and fill `received` from the rank in front, at the same time."""
        workers = self._workers[self._round]
        if workers == 1:
            if sent is not None and received is not None:
                received.copy_(sent)
            return
        front, behind = (self._rank - 1) % workers, (self._rank + 1) % workers
        self._transfer(sent, behind, received, front)

    def _transfer(self, sent: Tensor | None, to: int, received: Tensor | None, source: int) -> None:
        operations = []
        if sent is not None:
            operations.append(_operation(dist.isend, sent, to, self._group))
        if received is not None:
            operations.append(_operation(dist.irecv, received, source, self._group))
        # A batch even of one: it is what decides which communicator NCCL takes.
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()


class _FromFront(torch.autograd.Function):
    """The frames in front of a rank's own; gradients go to the rank that they came from.

    The first rank gets zeros. The backward pass takes place on every rank, for on every rank
    something depends on the result.
    """

    @staticmethod
    def forward(ctx: Any, sent: Tensor, missing: int, ranks: Neighbours) -> Tensor:
        ctx.ranks, ctx.reach = ranks, sent.shape[2]
        before = _new_frames(sent, missing)
        rank, last = ranks._rank, ranks._workers[0] - 1
        if rank == 0:
            before.zero_()
        ranks._transfer(
            *(_last(sent, ctx.reach) if rank < last else None, rank + 1),
            *(before if rank > 0 else None, rank - 1),
        )
        return before

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        ranks = ctx.ranks
        rank, last = ranks._rank, ranks._workers[0] - 1
        of_sent = _new_frames(gradient, ctx.reach) if rank < last else None
        ranks._transfer(
            *(_last(gradient, gradient.shape[2]) if rank > 0 else None, rank - 1),
            *(of_sent, rank + 1),
        )
        return of_sent, None, None


def _operation(
    operation: Callable[..., Any], frames: Tensor, peer: int, group: dist.ProcessGroup | None
) -> dist.P2POp:
    # Channels last they lie in one piece.
    return dist.P2POp(operation, frames.movedim(1, -1), group=group, group_peer=peer)


def _new_frames(like: Tensor, count: int) -> Tensor:
    """Uninitialized `[b, c, count, h, w]`, channels last, in dtype and device as `like`."""
    b, c, _, h, w = like.shape
    return like.new_empty(b, count, h, w, c).movedim(-1, 1)


def _last(frames: Tensor, count: int) -> Tensor:
    """A copy of the last `count` frames of `[b, c, t, h, w]`, channels last."""
    return _new_frames(frames, count).copy_(frames[:, :, frames.shape[2] - count :])


TemporalContext = WholeClip | Stream | Neighbours
