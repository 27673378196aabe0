"""Tests run in several processes, file by file (pytest-xdist); each takes one thread.

None depends on what ran before it or on how much memory is free.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start

from collections.abc import Iterator

import pytest
import torch

THREADS = torch.get_num_threads()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random numbers and threads are the same in any order of the tests, also in fixtures.

    What is tested may set the number of threads of the process. Left so, all later tests of the
    process would share the cores with those of the others, which makes them many times slower.
    """
    torch.manual_seed(0)
    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True, scope="session")
def enough_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The memory that the system calls available, by which is decided what goes in pieces."""
    folder = tmp_path_factory.mktemp("memory")
    (folder / "meminfo").write_text(f"MemAvailable: {16 * 1024**2} kB\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyramid_dit.devices.memory.MEMINFO", folder / "meminfo")
        patch.setattr("pyramid_dit.devices.memory.CONTROL_GROUP", folder)
        yield
