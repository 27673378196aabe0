"""How a command ends: its exit status, an error in one line, and what a signal does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..distributed.launcher import ProcessesFailed

FAILED, BAD_INPUT = 1, 2
_BAD_INPUT_ERRORS = (
    ValueError,
    TypeError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def status_of(
    work: Callable[[list[int]], object],
    report: Callable[[BaseException, list[int]], int],
    *,
    once: bool = False,
    to_the_end: bool = False,
) -> int:
    """Do `work` and return the exit status: 0, or what `report` returns for what was raised.

    Both get the signals that were received. One that comes when the work has ended already, well
    or not, changes nothing.

    Args:
        work: What a SIGINT or SIGTERM interrupts.
        report: Says what became of it.
        once: See `signals_raise`.
        to_the_end: See `signals_raise`.

    Raises:
        SystemExit: By `work`, after --help and the like.
    """
    status: int | None = None
    received: list[int] = []
    try:
        with signals_raise(once=once, to_the_end=to_the_end) as received:
            try:
                work(received)
                status = 0
            except SystemExit:
                raise
            except BaseException as error:
                status = report(error, received)
    except KeyboardInterrupt as late:
        status = report(late, received) if status is None else status
    assert status is not None
    return status


def exit_status(error: BaseException) -> int:
    """What the command exits with: 2 for wrong input, 1 for what could not be done."""
    if isinstance(error, ProcessesFailed):
        return error.status
    return BAD_INPUT if isinstance(error, _BAD_INPUT_ERRORS) else FAILED


@contextmanager
def signals_raise(*, once: bool = False, to_the_end: bool = False) -> Iterator[list[int]]:
    """Have SIGINT and SIGTERM raise `KeyboardInterrupt`; hand out the list of those received.

    SIGINT too, which does so anyway, for a shell starts background jobs deaf to it.

    Args:
        once: Whether only the first does: another would break off what saves what was made.
        to_the_end: Whether this process ends afterwards, which others then cannot disturb either.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if not once or len(received) == 1:
            raise KeyboardInterrupt

    former = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in former.items():
            signal.signal(signum, signal.SIG_IGN if received and to_the_end else handler)


def one_line(error: BaseException) -> str:
    """An error as one line for people."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename!r}" if error.filename else error.strerror
    text = " ".join(text.split())
    if not text or not isinstance(error, (*_BAD_INPUT_ERRORS, OSError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    if "OutOfMemory" in type(error).__name__:
        text += " (--offload model or a smaller --size needs less)"
    return text if len(text) <= 500 else f"{text[:497]}..."
