"""How much memory is free."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import torch

MEMINFO, CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
STATUS = Path("/proc/self/status")


def limit_memory(size: float | None) -> None:
    """Have `free_memory` of the CPU keep this process within `size` bytes; None is no limit.

    It is a wish that those who ask what is free comply with; nothing is enforced.
    """
    global _limit
    _limit = math.inf if size is None else size


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated on `device`.

    On an accelerator what PyTorch has reserved but not given out counts as free; on the CPU it is
    what the system calls available, within the limit of the control group (version 2) if there is
    one, as in a container, and within that of `limit_memory`.
    """
    if device.type in ("cuda", "xpu"):
        backend = torch.get_device_module(device)
        free, _ = backend.mem_get_info(device)
        idle = backend.memory_reserved(device) - backend.memory_allocated(device)
        return free + idle
    system = min(_available_to_the_system(), _left_to_the_group(), _left_to_the_process())
    if device.type == "mps":  # which has a share of the system's memory
        return min(system, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    # PyTorch has no common call for the memory of other devices
    return system if device.type == "cpu" else system / 2


def _available_to_the_system() -> int:
    try:
        lines = MEMINFO.read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        # no Linux: all there is, of which the other half is taken to be in use
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_to_the_group() -> float:
    try:
        limit, used = (
            (CONTROL_GROUP / f"memory.{name}").read_text() for name in ("max", "current")
        )
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no group, or its limit is "max"
        return math.inf


def _left_to_the_process() -> float:
    if _limit == math.inf:
        return math.inf
    return max(0, _limit - resident_memory())


def resident_memory(*, peak: bool = False) -> int:
    """Bytes that this process has in memory, or had at most; 0 where the system is not Linux."""
    if not STATUS.exists():
        return 0
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB$", STATUS.read_text(), re.M)
    return 0 if found is None else int(found[1]) * 1024


_limit = math.inf
