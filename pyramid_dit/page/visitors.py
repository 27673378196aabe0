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
from dataclasses import dataclass, field
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
    """What the page keeps of one visitor."""

    folder: Path
    job: Job | None = None
    results: list[Result] = field(default_factory=list)
    shown: Result | None = None
    """The one that is to be seen large."""
    kept_until: float = math.inf

    @property
    def busy(self) -> bool:
        """Whether a video of this visitor waits or is being made."""
        return self.job is not None and not self.job.finished

    @property
    def newest_first(self) -> list[Result]:
        """The results in the order in which they are shown."""
        return self.results[::-1]


class Visitors:
    """All visitors, by the name that Gradio gives to an open page.

    Args:
        folder: Where each gets a folder of his own.
        kept: Seconds that results are kept after the visitor last did something.
        kept_after_leaving: The same where his connection has ended; a phone that sleeps ends it
            too, and comes back.
    """

    def __init__(
        self, folder: Path, *, kept: float = 24 * 3600, kept_after_leaving: float = 600
    ) -> None:
        self._folder = folder
        self._kept = kept
        self._kept_after_leaving = kept_after_leaving
        self._there: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Visitor:
        """The visitor of that name, new if need be."""
        with self._lock:
            self._remove_old()
            name = session or ""
            if name not in self._there:
                # a folder whose name others cannot guess, and that nobody chose
                self._there[name] = Visitor(self._folder / secrets.token_hex(16))
            self._there[name].kept_until = time.monotonic() + self._kept
            return self._there[name]

    def leave(self, session: str | None) -> None:
        """Stop what a visitor waits for; what he has is removed later."""
        with self._lock:
            visitor = self._there.get(session or "")
            if visitor is None:
                return
            if visitor.job is not None:
                visitor.job.stop()
            visitor.kept_until = time.monotonic() + self._kept_after_leaving
            self._remove_old()

    def _remove_old(self) -> None:
        now = time.monotonic()
        for name, visitor in list(self._there.items()):
            if visitor.kept_until <= now and not visitor.busy:
                del self._there[name]
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
        if self.mode == "image":
            if self.image is None:
                raise ValueError("choose a picture that the video is to start from")
            return VideoRequest(settings=settings, image=crop_of_image(self.image, self.size))
        if self.mode == "extend":
            if self.video is None:
                raise ValueError("choose a video that is to go on")
            rate = card.defaults.frames_per_second
            frames = video_frames(self.video, width, height, rate)
            history = last_frames(frames, HISTORY_FRAMES)
            return VideoRequest(settings=settings, history=history, clip=Path(self.video))
        if self.mode == "text" and not prompt:
            raise ValueError("the prompt is empty: say what the video should show")
        return VideoRequest(settings=settings)

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
