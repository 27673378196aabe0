"""What a signal changes, and when it is too late to change anything."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import pytest

from pyramid_dit.cli.status import status_of


def _signal_at(function: str, signum: int) -> None:
    """Send this process `signum` when a function of that name is entered next."""

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == function:
            sys.setprofile(None)
            os.kill(os.getpid(), signum)

    sys.setprofile(watch)


def _report(error: BaseException, received: list[int]) -> int:
    return 128 + received[0] if isinstance(error, KeyboardInterrupt) else 7


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_the_work(signum: int) -> None:
    former = signal.getsignal(signum)
    assert status_of(lambda received: os.kill(os.getpid(), signum), _report) == 128 + signum
    assert signal.getsignal(signum) is former


@pytest.mark.parametrize("failed", [False, True])
def test_a_signal_after_the_work_changes_nothing(failed: bool) -> None:
    def work(received: list[int]) -> None:
        _signal_at("__exit__", signal.SIGTERM)
        if failed:
            raise ValueError("no")

    former = signal.getsignal(signal.SIGTERM)
    assert status_of(work, _report, once=True) == (7 if failed else 0)
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_signal_within_the_report_is_reported() -> None:
    reported: list[BaseException] = []

    def report(error: BaseException, received: list[int]) -> int:
        reported.append(error)
        if len(reported) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return 128 + received[0]

    assert status_of(lambda received: int("x"), report, once=True) == 143
    assert [type(error) for error in reported] == [ValueError, KeyboardInterrupt]
