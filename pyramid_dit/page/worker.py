"""The queue before the models, and who works it off.

A `Job` is written by the thread that works and read by those of the page. Whoever holds it can
stop it: the step that is being computed is finished, nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import replacing
from ..media.embedded_settings import write_comment
from ..media.video_files import export_to_video
from .media_checks import video_frames
from .preview import QUALITY, FrameStrip, reduced
from .settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..generation.stream import VideoStream
    from ..pipelines.official import PyramidDiTForVideoGeneration

logger = logging.getLogger(__name__)

MAX_WAITING = 20
STEPS_EVERY = 0.25  # seconds between two looks at the steps of a job


class QueueFull(RuntimeError):
    """Too many requests wait already."""


class State(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What is to be made. It can be pickled, for other processes."""

    settings: Settings
    image: Image | None = None
    """The first frame, at the size of the video."""
    history: np.ndarray | None = None
    """Last frames of the video that goes on, uint8 `[t, height, width, 3]`."""
    clip: Path | None = None
    """The file of that video."""
    frames_per_second: float = 24
    """Of the model."""

    def stream(self, model: PyramidDiTForVideoGeneration, **options: Any) -> VideoStream:
        """Ask `model` for it.

        Raises:
            TypeError: As `generate`.
            ValueError: As `generate`.
        """
        arguments = self.settings.arguments(self.frames_per_second) | options
        if self.settings.mode == "live":
            return model.live(**{"next_prompt": _go_on} | arguments)
        if self.history is not None:
            return model.stream_v2v(video=self.history, **arguments)
        if self.image is not None:
            return model.stream_i2v(input_image=self.image, **arguments)
        return model.stream(**arguments)


def _go_on(unit: int) -> None:
    """The prompt stays: what processes say that are not asked."""


class Job:
    """A request on its way.

    Args:
        request: What is to be made.
        folder: Where the result goes.

    Attributes:
        state: Where it stands.
        strips: The new frames so far, a few at a time, for showing.
        strips_made: How many there were.
        frames: Number of new frames so far.
        loading: Whether its model is being loaded.
        steps_done: Steps so far.
        total_steps: Steps altogether, 0 before the work begins.
        seconds: What the work took in the end.
        path: The video; of a stopped job what there was, and of a failed one what was written.
        poster: A small picture of its last frame, if there was room for it.
        error: Why it failed.
    """

    def __init__(self, request: VideoRequest, folder: Path) -> None:
        self.request = request
        self.folder = folder
        self.state = State.WAITING
        self.strips: list[FrameStrip] = []
        self.strips_made = 0
        self.frames = 0
        self.loading = False
        self.steps_done = 0
        self.total_steps: float = 0
        self.seconds = 0.0
        self.path: Path | None = None
        self.poster: Path | None = None
        self.error: BaseException | None = None
        self._stopping = False
        self._finished = threading.Event()
        self._watchers: list[Callable[[], object]] = []
        self._began = 0.0
        self._unit_ends: list[tuple[float, int]] = []  # of the first and the last: time, steps
        self._last: Image

    @property
    def finished(self) -> bool:
        """Whether nothing more will change."""
        return self._finished.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping

    def stop(self) -> None:
        """Have it end as soon as possible."""
        self._stopping = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has finished, and say whether it has."""
        return self._finished.wait(timeout)

    async def watch(self, *, seen: int = 0, owned: bool = True) -> AsyncIterator[int]:
        """Yield how many strips are to be shown, until the job has finished.

        No strip is skipped, however fast they come, and each is reported at once. In between the
        number comes again when the work begins and every `STEPS_EVERY` seconds, for the rest may
        have changed.

        Args:
            seen: Strips that are shown already.
            owned: Whether it is stopped if the watcher leaves before the end.
        """
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        wake = partial(loop.call_soon_threadsafe, woken.set)
        self._watchers.append(wake)
        shown = seen
        try:
            while True:
                woken.clear()
                finished = self.finished  # looked at first: after the end there are no more strips
                there = self.strips_made
                for strips in range(min(shown + 1, there), there + 1):
                    yield strips
                shown = there
                if finished:
                    return
                timer = loop.call_later(STEPS_EVERY, woken.set)
                await woken.wait()
                timer.cancel()
        finally:
            self._watchers.remove(wake)
            if owned and not self.finished:
                self.stop()

    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._began if self._began else 0.0

    def seconds_left(self) -> float | None:
        """An estimate, None where there is nothing to go by."""
        ends, now = self._unit_ends, time.monotonic()
        if len(ends) >= 2:  # by the later units, for the first one's steps are others
            (first, steps_before), (last, steps_since) = ends[0], ends[-1]
            rate = max(steps_since - steps_before, 1) / max(last - first, 1e-3)
            return max(0.0, (self.total_steps - steps_since) / rate - (now - last))
        if self.steps_done < 2:
            return None
        return self.elapsed() / self.steps_done * (self.total_steps - self.steps_done)

    # ---- called by the worker -------------------------------------------------------------

    def callbacks(self, model: PyramidDiTForVideoGeneration) -> dict[str, Any]:
        """Arguments that have `model` tell how far it is, and stop when it should."""

        def on_step(_: object, step: int, timestep: float, tensors: dict[str, Any]) -> None:
            self.steps_done = step + 1
            on_unit()

        def on_unit(*_: int) -> None:
            if self.stopping:
                model.stop()

        return {"callback_on_step_end": on_step, "callback": on_unit}

    def begin(self) -> None:
        """The work begins."""
        self._began = time.monotonic()
        self.state = State.RUNNING
        self._wake_watchers()

    def load(self) -> None:
        """Its model is being loaded, until `run`."""
        self.loading = True
        self._wake_watchers()

    def run(self, stream: VideoStream) -> None:
        """Make the video and write it.

        Raises:
            ValueError: The clip that goes on cannot be decoded.
            OSError: The video could not be written.
        """
        self._loaded()
        self.total_steps = stream.total_steps
        frames_per_second = self.request.frames_per_second
        try:
            if first := self._next(stream):
                path = self.folder / f"pyramid-flow-{self.request.settings.options['seed']}.mp4"
                frames = self._frames(first, stream)
                export_to_video(frames, path, frames_per_second)
                self.path = path  # which stays, also where there is no room for the rest
                write_comment(path, self.request.settings.to_json())
                with replacing(self.folder / "poster.jpg") as temporary:
                    reduced(self._last).save(temporary, "JPEG", quality=QUALITY)
                self.poster = self.folder / "poster.jpg"
        except BaseException:
            self.stop()
            raise
        finally:
            # To its end, and not closed: other processes make every step along with this one.
            for _ in stream:
                pass

    def end(self, error: BaseException | None = None) -> None:
        """The work is over."""
        self.loading = False
        self.seconds = self.elapsed()
        # without the frames that it came through, which hold the model
        self.error = None if error is None else error.with_traceback(None)
        self.request = replace(self.request, image=None, history=None)  # no longer needed
        complete = 0 < self.total_steps == self.steps_done
        if error is not None:
            self.state = State.FAILED
        else:
            self.state = State.DONE if complete or not self.stopping else State.STOPPED
        self._finished.set()
        self._wake_watchers()

    def _loaded(self) -> None:
        """The model is there."""
        if self.loading:
            self.loading, self._began = False, time.monotonic()

    def _frames(self, first: list[Image], stream: VideoStream) -> Iterator[Image | np.ndarray]:
        """All frames of the file: those of the video that goes on, then the new ones."""
        settings, clip = self.request.settings, self.request.clip
        if clip is not None:
            rate = self.request.frames_per_second
            yield from video_frames(clip, settings.width, settings.height, rate)
        unit: list[Image] | None = first
        while unit is not None:
            yield from unit
            unit = self._next(stream)

    def _next(self, stream: VideoStream) -> list[Image] | None:
        """The next unit's frames, shown before they are written; None at the end."""
        unit: list[Image] | None = next(stream, None)
        if unit is not None:
            self._show(FrameStrip.of(unit))
            self.strips_made += 1
            self.frames += len(unit)
            self._last = unit[-1]
            self._unit_ends[1:] = [(time.monotonic(), self.steps_done)]
            self._wake_watchers()
        return unit

    def _show(self, strip: FrameStrip) -> None:
        """Have a strip at hand for those who watch."""
        self.strips.append(strip)

    def _wake_watchers(self) -> None:
        for wake in tuple(self._watchers):
            with suppress(RuntimeError):  # the page has been closed, and its event loop with it
                wake()


Starter = Callable[[Job], AbstractContextManager["VideoStream"]]


class Worker:
    """Works off jobs one after another, in the thread that calls `work`.

    On a CPU that should be the one that loaded the models: every thread that runs PyTorch gets
    helpers of its own, and with more of them than cores the work takes about twice as long.

    Args:
        start: Begins the stream of a job.
        folder: Where results go.
    """

    def __init__(self, start: Starter, *, folder: Path) -> None:
        self.folder = folder
        self._start = start
        self._waiting: list[Job] = []
        self._lock = threading.RLock()  # a signal handler may come while it is held
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    def submit(self, request: VideoRequest, folder: Path | None = None) -> Job:
        """Put a request in the queue.

        Args:
            request: What is to be made.
            folder: Where the result goes, by default a new one.

        Raises:
            QueueFull: Too many wait already.
        """
        job = Job(request, (folder or self.folder) / secrets.token_hex(16))
        self.put(job)
        return job

    def put(self, job: Job) -> None:
        """Put a job in the queue.

        Raises:
            QueueFull: Too many wait already.
        """
        with self._lock:
            if sum(not other.stopping for other in self._waiting) >= MAX_WAITING:
                raise QueueFull(f"{MAX_WAITING} requests are waiting already; try again later")
            self._waiting.append(job)
        self._queue.put(job)

    def ahead(self, job: Job) -> int:
        """How many videos are made before `job` begins, the one in work among them."""
        return len(self._around(job)[0])

    def behind(self, job: Job) -> int:
        """How many wait for `job` to end."""
        return len(self._around(job)[1])

    def waits_for_live(self, job: Job) -> bool:
        """Whether one of those before `job` is a live video, which has no end."""
        return any(other.request.settings.mode == "live" for other in self._around(job)[0])

    def _around(self, job: Job) -> tuple[list[Job], list[Job]]:
        """The jobs before and after one, but for those that were stopped."""
        with self._lock:
            jobs = self._waiting[:]
        if job not in jobs:
            return [], []
        at = jobs.index(job)
        before, after = (
            [j for j in part if not j.stopping] for part in (jobs[:at], jobs[at + 1 :])
        )
        return before, after

    def work(self) -> None:
        """Make one video after another until `close`."""
        while True:
            try:
                job = self._queue.get(timeout=1)  # where no signal ends a wait, time does
            except queue.Empty:
                continue
            if job is None:
                return
            self._make(job)

    def close(self) -> None:
        """Stop what runs and what waits, and have `work` return; signal handlers may call it."""
        with self._lock:
            for job in self._waiting:
                job.stop()
        self._queue.put(None)

    def _make(self, job: Job) -> None:
        try:
            if not job.stopping:
                job.begin()
                with self._start(job) as stream:
                    job.run(stream)
            job.end()
        except Exception as error:
            if not isinstance(error, (ValueError, TypeError)):
                logger.exception("a video could not be made")
            job.end(error)
        finally:
            with self._lock:
                self._waiting.remove(job)
