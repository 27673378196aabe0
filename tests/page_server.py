"""The page as a process of its own, as `python app.py` starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from golden import PROJECT_ROOT

PATIENCE = 100  # seconds; a loaded machine takes many times what an idle one does


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
