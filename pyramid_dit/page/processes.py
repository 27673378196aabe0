"""Several processes behind one page: the first serves it and tells the others what to make."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from ..distributed.launcher import fail_at_once
from ..distributed.parallel import NO_LIMIT
from .worker import Job, VideoRequest

if TYPE_CHECKING:
    from ..generation.stream import VideoStream
    from ..pipelines.official import PyramidDiTForVideoGeneration

logger = logging.getLogger(__name__)

ALONE = 600.0
"""Seconds that a process which failed waits for the others to fail too."""


class Requests:
    """The way of requests from process 0 to the others; all processes construct it together.

    It has a group of its own, on the CPU, as nothing may come for days.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=NO_LIMIT)

    def send(self, request: VideoRequest) -> None:
        """Tell the others what to make."""
        self._broadcast(request)

    def receive(self) -> VideoRequest:
        """Wait for what process 0 sends."""
        return self._broadcast(None)

    def _broadcast(self, request: VideoRequest | None) -> VideoRequest:
        box: list[Any] = [request]
        dist.broadcast_object_list(box, src=0, group=self._group, device=torch.device("cpu"))
        return box[0]

    @contextmanager
    def end_together(self) -> Iterator[None]:
        """Wait after the body for the others; end all where only this process failed.

        The others would wait for it forever.
        """
        try:
            yield
        except Exception as error:
            reason = f"one of the processes could not go on: {type(error).__name__}: {error}"
            limit = threading.Timer(ALONE, fail_at_once, [" ".join(reason.split())])
            limit.daemon = True
            limit.start()
            dist.barrier(self._group)
            limit.cancel()
            raise
        dist.barrier(self._group)


@contextmanager
def start_together(
    model: PyramidDiTForVideoGeneration, requests: Requests, job: Job, *, cpu_offloading: bool
) -> Iterator[VideoStream]:
    """Begin a job in process 0 and have the others make it along."""
    requests.send(job.request)
    with (
        requests.end_together(),
        job.request.stream(
            model, inference_multigpu=True, cpu_offloading=cpu_offloading, **job.callbacks(model)
        ) as stream,
    ):
        yield stream


def follow(
    model: PyramidDiTForVideoGeneration, requests: Requests, *, cpu_offloading: bool
) -> NoReturn:
    """Make along what process 0 sends, until this process is ended.

    What is refused, or does not fit into memory, is so in all processes alike, and process 0
    tells the visitor. Where it is not alike, all are ended.
    """
    while True:
        request = requests.receive()
        try:
            with (
                requests.end_together(),
                request.stream(
                    model, inference_multigpu=True, cpu_offloading=cpu_offloading
                ) as stream,
            ):
                for _ in stream:
                    pass
        except (ValueError, TypeError, torch.OutOfMemoryError) as error:
            logger.info("given up: %s", error)
