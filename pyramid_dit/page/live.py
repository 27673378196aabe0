"""A live video: a job without end that follows new words and whose frames are shown at once."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ..files import replacing
from ..media.embedded_settings import write_comment
from ..media.progressive_video import ProgressiveVideo
from .preview import QUALITY, FrameStrip, reduced
from .settings import MAX_PROMPT
from .visitors import in_words
from .worker import Job, State, VideoRequest, Worker

if TYPE_CHECKING:
    from ..generation.stream import VideoStream
    from ..pipelines.official import PyramidDiTForVideoGeneration

PATH = "/pyramid-flow/live"
TURN = 300
"""Seconds after which a live video ends if others wait."""
MARGIN = 0.05  # seconds by which frames are there before they are due
KEPT_STRIPS = 8
"""Strips that are kept for a browser that lags behind."""
MOST_BYTES = 8 * MAX_PROMPT
"""Of a message with new words."""


class Kept(NamedTuple):
    """What was played, as a file."""

    path: Path
    poster: Path


class LiveJob(Job):
    """A live video on its way.

    It is made no faster than it is played, so that new words are soon seen.

    Args:
        request: What is to be made.
        folder: Where the frames go.

    Attributes:
        others_wait: Says whether others wait for their turn.
        heard: Number of the newest words that the last frames follow.
    """

    def __init__(self, request: VideoRequest, folder: Path) -> None:
        super().__init__(request, folder)
        self.others_wait: Callable[[], bool] = lambda: False
        self.heard = 0
        self.turn_is_over = False
        self._words: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._woken = threading.Event()
        self._asked = self._due = 0.0  # when the last unit was begun, when its frames are played
        self._took = 0.0  # seconds that it took
        self._played = folder / "played.mp4"
        self._recent: dict[int, tuple[FrameStrip, int]] = {}  # with the words that they follow

    def strip(self, number: int) -> tuple[FrameStrip, int] | None:
        """The strip of that number, from 1 on, and the number of the words that it follows.

        None where it is so long ago that it is not kept.
        """
        return self._recent.get(number)

    def say(self, number: int, prompt: str) -> None:
        """Go on with this prompt, from the unit on that is begun next."""
        self._words.put((number, prompt))

    def stop(self) -> None:
        super().stop()
        self._woken.set()

    def callbacks(self, model: PyramidDiTForVideoGeneration) -> dict[str, Any]:
        return {**super().callbacks(model), "next_prompt": self._next_prompt}

    def run(self, stream: VideoStream) -> None:
        """Make the video until it is stopped.

        Raises:
            OSError: What is played could not be written.
        """
        self._loaded()
        file = ProgressiveVideo(self._played, self.request.frames_per_second, partial=self._played)
        try:
            while (frames := self._next(stream)) is not None:
                now = time.monotonic()
                self._took = now - self._asked
                seconds = len(frames) / self.request.frames_per_second
                self._due = max(self._due, now) + seconds
                file.write(frames)
        except BaseException:
            self.stop()
            raise
        finally:
            for _ in stream:  # to its end, as for every job
                pass
            file.leave()

    def keep(self, folder: Path) -> Kept:
        """Write what was played so far to a new file in `folder`.

        Raises:
            ValueError: Nothing was played yet.
            OSError: It could not be written.
        """
        if not self._played.exists():
            raise ValueError("nothing was played yet that could be kept")
        settings = self.request.settings
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"pyramid-flow-live-{settings.options['seed']}.mp4"
        write_comment(path, settings.to_json(), source=self._played)
        with replacing(folder / "poster.jpg") as temporary:
            reduced(self._last).save(temporary, "JPEG", quality=QUALITY)
        return Kept(path, folder / "poster.jpg")

    def discard(self) -> None:
        """Remove what was played."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def status(self, *, ahead: int, live_ahead: bool) -> tuple[str, str]:
        """Where it stands: the name of the state, and words for people."""
        if self.error is not None:
            return "failed", in_words(self.error)
        if self.finished or self.stopping:
            why = ", for others are waiting" if self.turn_is_over else ""
            return "stopped", f"Stopped{why}."
        if self.state is State.WAITING and ahead:
            if live_ahead:
                minutes = f"{TURN // 60} minutes"
                return "wait", f"Waiting: someone else is live, for {minutes} at most."
            videos = "1 video is" if ahead == 1 else f"{ahead} videos are"
            return "wait", f"Waiting: {videos} made before yours."
        if self.loading:
            return "wait", f"Loading the model {self.request.settings.model} …"
        if not self.frames:
            return "wait", "Starting …"
        return "run", "Live."

    def _show(self, strip: FrameStrip) -> None:
        number = self.strips_made + 1
        self._recent[number] = strip, self.heard
        self._recent.pop(number - KEPT_STRIPS, None)

    def _next_prompt(self, _: int) -> str | None:
        """What `live` asks before each unit: the newest words, once it is time for the unit."""
        if self.elapsed() > TURN and self.others_wait():
            self.turn_is_over = True
            self.stop()
        self._woken.wait(max(0.0, self._due - time.monotonic() - self._took - MARGIN))
        self._asked = time.monotonic()
        prompt = None
        with suppress(queue.Empty):
            while True:
                self.heard, prompt = self._words.get_nowait()
        return prompt


class LiveRoutes:
    """By which browsers watch live videos, and steer them.

    Whoever knows the name of a job's folder, which is not to be guessed, may do so.

    Args:
        worker: What makes them.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._jobs: WeakValueDictionary[str, LiveJob] = WeakValueDictionary()

    def add(self, job: LiveJob) -> str:
        """Let a job be watched, and return its name."""
        job.others_wait = lambda: self._worker.behind(job) > 0
        self._jobs[job.folder.name] = job
        return job.folder.name

    def routes(self) -> list[Route]:
        """For the server."""
        return [
            Route(f"{PATH}/{{name}}", self._watch),
            Route(f"{PATH}/{{name}}/say", self._say, methods=["POST"]),
        ]

    async def _watch(self, request: Request) -> Response:
        job = self._jobs.get(request.path_params["name"])
        if job is None:
            return PlainTextResponse("There is no such live video any more.\n", 404)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        last = request.headers.get("Last-Event-ID", "")  # of a browser that has lost the connection
        seen = int(last) if last.isdecimal() and len(last) < 10 else 0
        shown = max(seen, job.strips_made - KEPT_STRIPS)
        return StreamingResponse(self._events(job, shown), 200, headers, "text/event-stream")

    async def _events(self, job: LiveJob, shown: int) -> AsyncIterator[str]:
        """Frames and words as server-sent events; the job ends when nobody reads them.

        A strip's number is the id of its event. What was made before somebody watched comes too, as
        far as it is kept: a browser connects a moment after the work has begun.
        """
        status, heard = ("", ""), time.monotonic()
        async for strips in job.watch(seen=shown):
            now = job.status(
                ahead=self._worker.ahead(job), live_ahead=self._worker.waits_for_live(job)
            )
            if now != status:
                status, heard = now, time.monotonic()
                yield _event(state=now[0], words=now[1])
            if strips > shown:
                shown, heard = strips, time.monotonic()
                if (recent := job.strip(strips)) is not None:
                    strip, number = recent
                    event = _event(count=strip.count, source=strip.source, heard=number)
                    yield f"id: {strips}\n{event}"
            if time.monotonic() - heard > 1:
                heard = time.monotonic()
                yield ": still here\n\n"  # by which it is found out who has left
        state, words = job.status(ahead=0, live_ahead=False)
        yield _event(state=state, words=words, over=True)

    async def _say(self, request: Request) -> Response:
        job = self._jobs.get(request.path_params["name"])
        if job is None or job.finished:
            return PlainTextResponse("There is no such live video any more.\n", 404)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return PlainTextResponse(f"A prompt has at most {MAX_PROMPT} characters.\n", 413)
        try:
            said = json.loads(body)
            number, prompt = said["number"], said["prompt"].strip()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return PlainTextResponse('The request must be {"number": 1, "prompt": "..."}.\n', 400)
        if type(number) is not int or not 0 < len(prompt) <= MAX_PROMPT:
            words = f"The prompt must have 1 to {MAX_PROMPT} characters, and the number be whole.\n"
            return PlainTextResponse(words, 400)
        job.say(number, prompt)
        return Response(status_code=204)


def _event(**values: Any) -> str:
    return f"data: {json.dumps(values)}\n\n"
