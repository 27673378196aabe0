"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyramid_dit.devices.memory import free_memory


def test_free_memory_of_the_system_and_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pyramid_dit.devices.memory.MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("pyramid_dit.devices.memory.CONTROL_GROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   5000 kB\n")
    assert free_memory(torch.device("cpu")) == 5000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in (("max", 5000 * 1024), ("4000", 3000), ("900", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert free_memory(torch.device("cpu")) == free
