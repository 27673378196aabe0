"""The page as a process of its own, as `python app.py` starts it, or in this process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from golden import PROJECT_ROOT

from pyramid_dit.page.settings import ModelCard
from pyramid_dit.page.worker import Job, Worker

PATIENCE = 300  # seconds after which a test hangs; a loaded machine is many times slower


@contextmanager
def running_page(*options: str, log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `app.py`, and hand out its address and the process.

    Args:
        options: Of the command line.
        log: A file for what the process complains of.
    """
    command = [sys.executable, str(PROJECT_ROOT / "app.py"), *options]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert "http://127.0.0.1:" in said, said + log.read_text()
            yield said.split("page is at ")[1].split()[0], process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE)


@contextmanager
def at_work(worker: Worker) -> Iterator[Worker]:
    """Let `worker` work in a thread of its own."""
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.close()
        thread.join(PATIENCE)
    assert not thread.is_alive()


@contextmanager
def page_here(
    card: ModelCard,
    start: Callable[[Job], Any],
    folder: Path,
    checkpoint: Path | None = None,
    *,
    name: str = "localhost",
) -> Iterator[str]:
    """Serve the page from this process, with jobs that `start` begins; hand out its address.

    `name` is what it may be asked for by.
    """
    from pyramid_dit.page.serve import build_page, launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        worker = Worker(start, folder=folder / "results")
        results = folder / "results"
        page = build_page([card], worker, results, "CPU", checkpoint=checkpoint)
        url = launch(page, {name}, host="127.0.0.1", port=None, share=False)
        with at_work(worker):
            yield url
        page.close(verbose=False)
