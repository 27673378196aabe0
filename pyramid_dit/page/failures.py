"""Answers to requests that failed: a message instead of a traceback."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from html import escape
from typing import Any

import gradio as gr
from gradio.route_utils import FnIndexInferError
from starlette.routing import BaseRoute

from ..checks import shown
from ..generation.arguments import OPTIONS
from .hosts import App, Message, Receive, Scope, Send, answer
from .visitors import FULL, in_words
from .worker import QueueFull

logger = logging.getLogger(__name__)

MALFORMED = "The request is malformed: its values do not fit the fields."
REFUSALS = (ValueError, TypeError, OSError, QueueFull)

_statuses: ContextVar[list[int]] = ContextVar("statuses")
"""What the request that is being answered is to end with, if it is refused."""


class Refusal(gr.Error):
    """An error in words, with the status of the answer; Gradio takes messages for HTML."""

    def __init__(self, words: str, status: int = 400) -> None:
        super().__init__(escape(words, quote=False), print_exception=False)
        self.status = status

    @classmethod
    def of(cls, error: BaseException) -> Refusal:
        """The error as a visitor gets it."""
        return cls(in_words(error), status_of(error))


class Blocks(gr.Blocks):
    """Gradio's blocks, whose errors are all messages in plain words.

    Attributes:
        own_routes: What the server answers beside Gradio's own.
    """

    own_routes: Sequence[BaseRoute] = ()

    async def preprocess_data(self, block_fn: Any, inputs: Any, *rest: Any) -> Any:
        """As Gradio has it.

        Raises:
            Error: The inputs are not what the function takes.
        """
        inputs = _completed(block_fn.inputs, inputs)
        _check_kinds(block_fn.inputs, inputs)
        try:
            return await super().preprocess_data(block_fn, inputs, *rest)
        except gr.Error as error:
            error.print_exception = False
            error.message = shortened(str(error.message))
            raise
        except OSError as error:
            raise Refusal.of(error) from error
        except Exception as error:
            logger.info("malformed request for %s: %s", block_fn.api_name, error)
            takes = ", ".join(str(block.label) for block in block_fn.inputs if block.label)
            raise Refusal(f"{MALFORMED} It takes: {takes}.") from error

    async def process_api(self, *arguments: Any, **options: Any) -> Any:
        """As Gradio has it.

        Raises:
            Error: Something went wrong.
        """
        try:
            return await super().process_api(*arguments, **options)
        except gr.Error as error:
            _statuses.get([]).append(getattr(error, "status", 400))
            raise
        except OSError as error:
            logger.warning("a request could not be answered: %s", error)
            raise self._refusal(error) from error
        except Exception as error:
            logger.exception("a request could not be answered")
            raise self._refusal(error) from error

    @staticmethod
    def _refusal(error: Exception) -> Refusal:
        refusal = Refusal.of(error)
        _statuses.get([]).append(refusal.status)
        return refusal


class FailuresInWords:
    """ASGI middleware that answers in words where the application breaks down."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []  # of a response that says only that there was an error
        statuses: list[int] = []
        _statuses.set(statuses)
        started: Message | None = None

        async def send_or_hold(message: Message) -> None:
            nonlocal started
            if held or (message["type"] == "http.response.start" and message["status"] >= 500):
                held.append(message)
                return
            if message["type"] == "http.response.start":
                started = message
            await send(message)

        try:
            await self._app(scope, receive, send_or_hold)
        except Exception as error:
            status, words = _answer_to(error)
            if started is None:
                await answer(send, status, words)
            elif any(name == b"content-length" for name, _ in started["headers"]):
                raise
            else:  # a stream, which has reported it as an event
                await send({"type": "http.response.body", "body": b""})
            return
        if held and statuses:  # Gradio has one status for all refusals
            held[0]["status"] = statuses[-1]
        for message in held:
            await send(message)


def _answer_to(error: Exception) -> tuple[int, str]:
    """Status and words for an error in Gradio's own handling of a request."""
    if isinstance(error, OSError):
        logger.warning("a request could not be answered: %s", error)
        return status_of(error), in_words(error)
    malformed = (ValueError, TypeError, LookupError, AttributeError, FnIndexInferError)
    if isinstance(error, (*malformed, RuntimeError)):
        logger.info("malformed request: %s: %s", type(error).__name__, error)
        return 400, MALFORMED
    logger.exception("a request could not be answered")
    return 500, in_words(error)


def _completed(fields: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The values of a request, and of fields that came after it was written what held before."""
    known = {option.label: option.formerly for option in OPTIONS.values() if option.formerly}
    completed = [*values]
    for block in fields[len(completed) :]:
        if block.label not in known:
            break
        completed.append(known[block.label])
    return completed


def _check_kinds(fields: Sequence[Any], values: Sequence[Any]) -> None:
    """Refuse what Gradio would turn into text, or round to a number."""
    for block, value in zip(fields, values, strict=False):
        if value is None:
            continue
        if isinstance(block, gr.Textbox | gr.Dropdown | gr.Radio):
            fits, kind = isinstance(value, str), "text"
        elif isinstance(block, gr.Number | gr.Slider):
            fits, kind = isinstance(value, int | float) and not isinstance(value, bool), "a number"
            if fits and block.precision == 0 and value != value // 1:
                fits, kind = False, "a whole number"
        elif isinstance(block, gr.Checkbox):
            fits, kind = isinstance(value, bool), "true or false"
        else:
            continue
        if not fits:
            raise Refusal(f"{MALFORMED} {block.label!r} must be {kind}, not {shown(value)}.")


def status_of(error: BaseException) -> int:
    """Status of the answer to a request that could not be met."""
    if isinstance(error, QueueFull):
        return 503
    if isinstance(error, OSError):
        return 507 if error.errno in FULL else 500
    return 400 if isinstance(error, (ValueError, TypeError)) else 500


def shortened(words: str) -> str:
    """The words without the middle of very long ones, such as numbers of 400 digits."""
    return " ".join(w if len(w) <= 100 else f"{w[:30]}...{w[-10:]}" for w in words.split())
