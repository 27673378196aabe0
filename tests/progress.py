"""How far a command is that runs in a process of its own."""

from __future__ import annotations

import re
import subprocess

STEPS_MADE = r"\| [1-9]\d*/"
"""What its progress bar shows once there are steps."""


def wait_for(pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until something that matches comes out of stderr."""
    assert process.stderr is not None
    seen = ""
    while not re.search(pattern, seen):
        character = process.stderr.read(1)
        assert character, seen
        seen += character
