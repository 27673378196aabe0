"""What all tests of the trainers need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the precision of a process' first run for all."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
