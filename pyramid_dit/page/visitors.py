"""Visitors, what they ask for and what they have."""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..checks import TEXT, OneOrMore, Whole, shown
from ..generation.arguments import OPTIONS
from ..media.images import fit_image
from ..media.video_files import HISTORY_FRAMES
from .media_checks import last_frames, open_image, video_frames
from .settings import (
    ON_PAGE,
    ModelCard,
    Scene,
    Settings,
    size_of,
)
from .worker import Job, QueueFull, VideoRequest

MAX_RESULTS = 20
"""Videos that are kept of each visitor; the oldest go."""
GRACE = 60
"""Seconds that a video is still made for a visitor who has left, who perhaps only reloads."""
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Result:
    """A video that was made in this visit."""

    path: Path
    poster: Path | None
    settings: Settings
    note: str
    """How long it is and how long it took, for people."""


@dataclass
class Visitor:
    """What the page keeps of one visitor, whatever pages he has open."""

    folder: Path
    job: Job | None = None
    """The last one."""
    results: list[Result] = field(default_factory=list)
    leaving: threading.Timer | None = None
    """Has the job stopped, unless he returns."""

    def add(self, result: Result) -> None:
        """Put it among the others, in the place of the oldest if there are too many."""
        self.results.append(result)
        while len(self.results) > MAX_RESULTS:
            shutil.rmtree(self.results.pop(0).path.parent, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Whether a video of this visitor waits or is being made."""
        return self.job is not None and not self.job.finished


@dataclass
class Tab:
    """An open page."""

    visitor: Visitor
    listed: list[Result] = field(default_factory=list)
    """The results as this page shows them, newest first; another may have made more."""
    shown: Result | None = None
    """The one that is to be seen large."""
    present: bool = True
    """Whether the connection stands."""
    kept_until: float = math.inf


class Visitors:
    """All visitors, by a token that their browsers keep, and the pages that they have open.

    Args:
        folder: Where each gets a folder of his own.
        kept: Seconds that a result is kept, and all after the visitor last did something.
        kept_after_leaving: The same where his connections have ended; a phone that sleeps ends
            them too, and comes back.
        grace: Seconds without a connection after which his job is stopped.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kept: float = 24 * 3600,
        kept_after_leaving: float = 3600,
        grace: float | None = None,
    ) -> None:
        self._folder = folder
        self._kept = kept
        self._kept_after_leaving = kept_after_leaving
        self._grace = GRACE if grace is None else grace
        self._by_token: dict[str, Visitor] = {}
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Tab:
        """The page of that name, which Gradio gives to it; if it is new, with a new visitor."""
        with self._lock:
            self._remove_old()
            name = session or ""
            if name not in self._tabs:
                self._tabs[name] = Tab(self._new()[1])
            return self._here(self._tabs[name])

    def enter(self, session: str | None, token: Any) -> tuple[str, Tab]:
        """A page is opened by the visitor who got this token.

        Returns:
            The token to keep, which is another if nobody has this one, and the page.
        """
        with self._lock:
            self._remove_old()
            known = self._by_token.get(token) if isinstance(token, str) else None
            token, visitor = self._new() if known is None else (token, known)
            self._tabs[session or ""] = tab = Tab(visitor)
            return token, self._here(tab)

    def leave(self, session: str | None) -> None:
        """A connection has ended. What the visitor waits for is stopped unless he returns soon."""
        with self._lock:
            tab = self._tabs.get(session or "")
            if tab is None:
                return
            tab.present = False
            tab.kept_until = time.monotonic() + self._kept_after_leaving
            visitor = tab.visitor
            if visitor.busy and visitor.leaving is None and not self._is_there(visitor):
                visitor.leaving = threading.Timer(self._grace, self._give_up, [visitor])
                visitor.leaving.daemon = True
                visitor.leaving.start()
            self._remove_old()

    def remove_old_results(self) -> None:
        """Remove the videos that are too old, also of clients, who have no gallery."""
        oldest = time.time() - self._kept
        for folder in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):
                if folder.is_dir() and folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)

    def _new(self) -> tuple[str, Visitor]:
        """A visitor with a token and a folder that others cannot guess, and that nobody chose."""
        token = secrets.token_urlsafe(32)
        self._by_token[token] = visitor = Visitor(self._folder / secrets.token_hex(16))
        return token, visitor

    def _here(self, tab: Tab) -> Tab:
        tab.present = True
        tab.kept_until = time.monotonic() + self._kept
        if tab.visitor.leaving is not None:
            tab.visitor.leaving.cancel()
            tab.visitor.leaving = None
        return tab

    def _is_there(self, visitor: Visitor) -> bool:
        return any(tab.present for tab in self._tabs.values() if tab.visitor is visitor)

    def _give_up(self, visitor: Visitor) -> None:
        with self._lock:
            visitor.leaving = None
            if visitor.job is not None and not self._is_there(visitor):
                visitor.job.stop()

    def _remove_old(self) -> None:
        now = time.monotonic()
        for name, tab in list(self._tabs.items()):
            if tab.kept_until <= now and not tab.visitor.busy:
                del self._tabs[name]
        there = {id(tab.visitor) for tab in self._tabs.values()}
        for token, visitor in list(self._by_token.items()):
            if id(visitor) not in there:
                del self._by_token[token]
                shutil.rmtree(visitor.folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is in the fields of the page, as a browser or a client sends it."""

    mode: str
    prompt: str | None = ""
    scenes: tuple[tuple[float | None, str | None], ...] = ()
    image: str | None = None
    """Path of an upload."""
    video: str | None = None
    """Path of an upload."""
    size: str
    model: str | None = None
    """Where there are several: the name on its card."""
    options: Mapping[str, Any]
    """Of the record of arguments, by the name of the field; no `seed` is a new one."""

    def request(self, card: ModelCard) -> VideoRequest:
        """Check everything and read what was uploaded.

        Raises:
            ValueError: Something is missing or not as it should be.
        """
        width, height = size_of(self.size)
        options = {key: _plain(key, value) for key, value in self.options.items()}
        if options["seed"] is None:
            options["seed"] = secrets.randbelow(2**32)
        prompt = _text(self.prompt)
        settings = Settings(
            mode=self.mode,
            prompt=prompt,
            scenes=self._scenes(),
            width=width,
            height=height,
            model=card.name,
            options=options,
        )
        settings.check(card.max_area)
        rate = card.defaults.frames_per_second
        request = VideoRequest(settings=settings, frames_per_second=rate)
        if self.mode == "image":
            if self.image is None:
                raise ValueError("choose a picture to start from")
            return replace(request, image=crop_of_image(self.image, self.size))
        if self.mode == "extend":
            if self.video is None:
                raise ValueError("choose a video to extend")
            frames = video_frames(self.video, width, height, rate)
            history = last_frames(frames, HISTORY_FRAMES)
            return replace(request, history=history, clip=Path(self.video))
        if self.mode in ("text", "live") and not prompt:
            raise ValueError("the prompt is empty: say what the video should show")
        return request

    def _scenes(self) -> tuple[Scene, ...]:
        found = []
        for start, prompt in self.scenes:
            if text := _text(prompt):
                found.append(Scene(0.0 if start is None else _real(start), text))
        return tuple(sorted(found, key=lambda scene: scene.start))


def _text(value: str | None) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"a prompt must be text, not {shown(value)}")
    return (value or "").strip()


def _real(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"there must be a number, not {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("a number must have at most 308 digits") from error


def _plain(key: str, value: Any) -> Any:
    """What a browser sent, of which all numbers may come as floats, and an empty text as None."""
    check = OPTIONS[ON_PAGE[key]].check
    one = check.check if isinstance(check, OneOrMore) else check
    if one is TEXT:
        return _text(value)
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and isinstance(one, Whole) else value


def crop_of_image(path: str, size: str) -> Image.Image:
    """The picture as the video will begin with it.

    Raises:
        ValueError: It cannot be used.
    """
    return fit_image(open_image(path), *size_of(size))


def last_crop_of_video(path: str, size: str, frames_per_second: float) -> Image.Image:
    """The last frame of a video, as the new frames will follow it.

    Raises:
        ValueError: It cannot be used.
    """
    frames = video_frames(path, *size_of(size), frames_per_second)
    return Image.fromarray(last_frames(frames, 1)[0])


def in_words(error: BaseException) -> str:
    """The message that a visitor gets of an error: what the library says, or else only its kind."""
    text = " ".join(str(error).split())
    if "OutOfMemory" in type(error).__name__:
        return "There is not enough memory for this: a smaller size or a shorter video needs less."
    if isinstance(error, (ValueError, TypeError, QueueFull)) and text:
        return f"{text[0].upper()}{text[1:]}."
    if isinstance(error, OSError):  # whose text may tell where files lie
        if error.errno in FULL:
            return "There is no room left on the server's disk: try again later."
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return f"A file could not be read or written: {reason}."
    return f"Something went wrong ({type(error).__name__}). The log of the server has the details."
