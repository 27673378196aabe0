"""Several processes behind one page: the first serves it and tells the others what to make."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from .worker import Job, VideoRequest

if TYPE_CHECKING:
    from ..generation.stream import VideoStream
    from ..pipelines.official import PyramidDiTForVideoGeneration

logger = logging.getLogger(__name__)

_NO_LIMIT = timedelta(days=365)
"""How long the others wait for the next request."""


class Requests:
    """The way of requests from process 0 to the others; all processes construct it together.

    It has a group of its own, on the CPU, as nothing may come for days.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_NO_LIMIT)

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


def start_together(
    model: PyramidDiTForVideoGeneration, requests: Requests, job: Job, *, cpu_offloading: bool
) -> VideoStream:
    """Begin a job in process 0 and have the others make it along."""
    requests.send(job.request)
    return job.request.stream(
        model, inference_multigpu=True, cpu_offloading=cpu_offloading, **job.callbacks(model)
    )


def follow(
    model: PyramidDiTForVideoGeneration, requests: Requests, *, cpu_offloading: bool
) -> NoReturn:
    """Make along what process 0 sends, until this process is ended.

    What is refused, or does not fit into memory, is so in all processes alike, and process 0
    tells the visitor. Where it is not alike, the others time out, and the launcher ends them all.
    """
    while True:
        request = requests.receive()
        try:
            with request.stream(
                model, inference_multigpu=True, cpu_offloading=cpu_offloading
            ) as stream:
                for _ in stream:
                    pass
        except (ValueError, TypeError, torch.OutOfMemoryError) as error:
            logger.info("given up: %s", error)
