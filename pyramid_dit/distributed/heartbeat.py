"""Signs of life: a process that stands still ends all, one that computes for long does not.

Collective operations wait without a limit, for another process may have a lot to compute. So each
process has a thread beside its work that counts up a number in a store which all of them reach,
and looks at the numbers of the others. Where one stands still for `patience` seconds its process
has been stopped, or hangs without letting any thread run, and this one ends.

Time counts only while this thread runs: after all were stopped together (Ctrl-Z, a laptop that
sleeps) it begins anew. A store that does not answer says nothing of the processes, for it lives in
the launcher, which may be stopped while they work; only without a launcher is it in process 0.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from .launcher import ERROR_FILE, FAILED, LOOK, fail_at_once, write_reason

PATIENCE = "PYRAMID_FLOW_PATIENCE"
"""Environment variable: seconds without a sign of life after which a process stands still."""
DEFAULT_PATIENCE = 40.0
BEATS = 8
"""Signs of life while the others are patient."""

_GOODBYE = "goodbye"


class Heartbeat:
    """The thread that gives signs of life and watches those of the other processes.

    Args:
        store: What all processes reach, by a connection that nothing else uses.
        rank: Of this process.
        size: Number of processes.
        served: Whether a launcher serves the store; else process 0 does.
        patience: Seconds without a sign of life after which a process stands still; by default
            what the environment says.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        *,
        served: bool,
        patience: float | None = None,
    ) -> None:
        if patience is None:
            patience = float(os.environ.get(PATIENCE, DEFAULT_PATIENCE))
        self.rank, self.size, self.patience = rank, size, patience
        self._store, self._served = store, served
        self._interval = patience / BEATS
        self._rounds = 0
        self._others: dict[int, dict[str, object]] = {}
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self, timeout: timedelta) -> None:
        """Wait for the others to arrive, and begin.

        Raises:
            TimeoutError: One does not arrive.
        """
        self._store.set(_beats(self.rank), "0")
        self._store.set(_place(self.rank), json.dumps(_this_process()))
        ranks = range(self.size)
        end = time.monotonic() + timeout.total_seconds()
        missing = [_place(rank) for rank in ranks]
        while not self._store.check(missing):
            missing = [place for place in missing if not self._store.check([place])]
            if time.monotonic() > end and missing:
                names = _named([r for r in ranks if _place(r) in missing], self.size)
                raise TimeoutError(f"{names} did not arrive in {timeout.total_seconds():.0f} s")
            time.sleep(0.05)
        self._others = {
            rank: json.loads(self._store.get(_place(rank))) for rank in ranks if rank != self.rank
        }
        atexit.register(self.leave)
        self._thread.start()
        if not self._served and self.rank != 0:
            threading.Thread(target=self._watch_store, name="store watch", daemon=True).start()

    def leave(self) -> None:
        """Say goodbye: from now on this process may end."""
        atexit.unregister(self.leave)
        self._leaving.set()
        # Python must not end while it is in the store; no longer, where that does not answer.
        self._thread.join(max(self._interval, 5.0))

    def _beat(self) -> None:
        silent = dict.fromkeys(self._others, 0.0)
        keys = [_beats(rank) for rank in silent]
        before: list[bytes] = [b""] * len(keys)
        clock, count = time.monotonic(), 0
        try:
            while not self._leaving.is_set():
                count += 1
                self._store.set(_beats(self.rank), str(count))
                numbers = self._store.multi_get(keys)
                self._rounds += 1
                passed, clock = self._passed(clock), time.monotonic()
                for rank, number, former in zip(silent, numbers, before, strict=True):
                    still = number == former and number != _GOODBYE.encode()
                    silent[rank] = silent[rank] + passed if still else 0.0
                before = numbers
                if late := [rank for rank, seconds in silent.items() if seconds >= self.patience]:
                    self._end(late)
                self._leaving.wait(self._interval)
            self._store.set(_beats(self.rank), _GOODBYE)
        except RuntimeError:  # the store is gone
            if self._served and _GOODBYE.encode() not in before and not self._leaving.is_set():
                time.sleep(2 * LOOK)  # of a launcher on this machine `end_with_launcher` tells
                fail_at_once("the launcher of the processes is gone")
            # else those that remain notice it by the connections between them

    def _watch_store(self) -> None:
        """Where process 0 serves the store, one that does not answer is that process."""
        clock, rounds, silent = time.monotonic(), -1, 0.0
        while self._thread.is_alive():
            self._leaving.wait(self._interval)
            passed, clock = self._passed(clock), time.monotonic()
            silent = silent + passed if rounds == self._rounds else 0.0
            rounds = self._rounds
            if silent >= self.patience and self._thread.is_alive():
                self._end([0])

    def _passed(self, clock: float) -> float:
        """Seconds since `clock`, but little where this process was stopped meanwhile."""
        return min(time.monotonic() - clock, 2 * self._interval)

    def _end(self, ranks: list[int]) -> None:
        """End this process because `ranks` stand still, and them with it."""
        stand = "stands" if len(ranks) == 1 else "stand"
        message = (
            f"{_named(ranks, self.size)} {stand} still, no sign of life for {self.patience:g} s"
        )
        own = _this_process()
        for rank in ranks:
            other = self._others[rank]
            # What is stopped would have the launcher wait before it kills it.
            if all(other[name] == own[name] for name in ("machine", "parent")):
                if other["reason"]:
                    write_reason(str(other["reason"]), message, FAILED)
                with suppress(OSError):
                    os.kill(int(str(other["pid"])), getattr(signal, "SIGKILL", signal.SIGTERM))
        fail_at_once(message)


def _this_process() -> dict[str, object]:
    return {
        "machine": socket.gethostname(),
        "parent": os.getppid(),
        "pid": os.getpid(),
        "reason": os.environ.get(ERROR_FILE),
    }


def _beats(rank: int) -> str:
    return f"beats/{rank}"


def _place(rank: int) -> str:
    return f"place/{rank}"


def _named(ranks: list[int], size: int) -> str:
    words = ", ".join(str(rank + 1) for rank in ranks)
    return f"{'process' if len(ranks) == 1 else 'processes'} {words} of {size}"
