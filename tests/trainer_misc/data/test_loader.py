"""The loader's processes: order, errors in words, signals, and their end with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from golden import PROJECT_ROOT

from trainer_misc.data.batches import loader

# Prints the ids of its workers, then waits.
PARENT = """
import time
from test_loader import Workers
from trainer_misc.data.batches import loader
found = loader(Workers(), workers=2)
print(*{next(found)["worker"] for _ in range(8)}, flush=True)
time.sleep(60)
"""


class Workers:
    """Batches that say which process made them; that of `fails` cannot be made."""

    def __init__(self, fails: int = -1, error: Exception | None = None) -> None:
        self.fails = fails
        self.error = error or ValueError("batch 3 is no good")

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number == self.fails:
            raise self.error
        return {"number": number, "worker": os.getpid()}


class UnsendableError(Exception):
    """Cannot be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_in_order_from_the_start_on(workers: int) -> None:
    found = list(islice(loader(Workers(), start=5, workers=workers), 20))
    assert [batch["number"] for batch in found] == list(range(5, 25))
    others = {batch["worker"] for batch in found} - {os.getpid()}
    assert len(others) == workers


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_out_as_it_is(workers: int) -> None:
    batches = loader(Workers(3), workers=workers)
    assert [next(batches)["number"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError) as error:
        next(batches)
    assert str(error.value) == "batch 3 is no good"


def test_an_error_that_cannot_be_sent_comes_out_in_words() -> None:
    with pytest.raises(RuntimeError, match="^UnsendableError: this and that$"):
        next(loader(Workers(0, UnsendableError("this", "that")), workers=1))


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(processes: set[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(is_alive, processes))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at Linux' processes")
def test_workers_outlast_signals_to_the_group_but_not_their_end() -> None:
    batches = loader(Workers(), workers=2)
    workers = {next(batches)["worker"] for _ in range(8)}
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    assert [next(batches)["number"] for _ in range(20)] == list(range(8, 28))
    batches.close()  # type: ignore[attr-defined]
    assert wait_for_end(workers, 20)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at Linux' processes")
def test_workers_end_with_the_parent() -> None:
    folders = [PROJECT_ROOT, PROJECT_ROOT / "tests", Path(__file__).parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=PROJECT_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        workers = {int(word) for word in parent.stdout.readline().split()}
        parent.kill()
    assert len(workers) == 2 and wait_for_end(workers, 30)
