"""Times, memory, and what the machine can do.

Two ways of computing are always timed in turn, in one process, and compared round by round, so
that a drift of the machine's speed meets both.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from pyramid_dit.devices.memory import resident_memory

T = TypeVar("T")
Times = dict[str, list[float]]


def synchronize(device: torch.device) -> None:
    """Wait for what `device` is doing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def alternate(
    variants: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    device: torch.device,
    warm_up: bool = True,
) -> Times:
    """Seconds of every call, by variant: A B, B A, A B, ..., `repeats` times.

    Raises:
        ValueError: `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if warm_up:
        for function in variants.values():
            timed(function, device)
    times: Times = {name: [] for name in variants}
    order = list(variants)
    for _ in range(repeats):
        for name in order:
            times[name].append(timed(variants[name], device))
        order.reverse()
    return times


def speed_up(times: Times, slow: str, fast: str) -> float:
    """Median over the rounds of how many times faster `fast` is than `slow`."""
    rounds = zip(times[slow], times[fast], strict=True)
    return statistics.median(before / after for before, after in rounds)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a large matrix product, the best of several.

    Args:
        device: Where.
        dtype: Of the matrices.
        size: Their extent, by default one that keeps the device busy.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    seconds = min(timed(lambda: a @ b, device) for _ in range(8))
    return 2 * size**3 / seconds


def device_name(device: torch.device) -> str:
    """The processor or accelerator, and the version of PyTorch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_model()}, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__.partition('+')[0]}"


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else platform.machine()


# ---- memory -----------------------------------------------------------------------------------


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes by which memory in use rises above its level while `function` runs.

    On a CPU it is resident memory, read from Linux's /proc; `in_fresh_process` keeps what ran
    before out of it.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, see proc(5)
    before = resident_memory()
    function()
    return resident_memory(peak=True) - before


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    """What `function(*args)` returns in a process of its own, which gives freed memory back."""
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, context, _begin_process, (threads,)) as pool:
        return pool.submit(function, *args).result()


def _begin_process(threads: int) -> None:
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold = -3  # number of M_MMAP_THRESHOLD in malloc.h; fixed, lest it adapts
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 17)


# ---- where the time goes ----------------------------------------------------------------------


class PhaseClock:
    """Seconds spent in chosen methods, while the context is open.

    A call within a watched call counts for the outer one.

    Args:
        device: Waited for before and after each watched call.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._watched: list[tuple[object, str]] = []
        self._busy = False

    def watch(self, owner: object, methods: Sequence[str], phase: str) -> None:
        """Count the methods of `owner` for `phase`."""
        self.seconds.setdefault(phase, 0.0)
        for method in methods:
            setattr(owner, method, self._counting(getattr(owner, method), phase))
            self._watched.append((owner, method))

    def __enter__(self) -> PhaseClock:
        return self

    def __exit__(self, *error: object) -> None:
        for owner, method in self._watched:
            delattr(owner, method)

    def _counting(self, function: Callable[..., T], phase: str) -> Callable[..., T]:
        def call(*args: Any, **kwargs: Any) -> T:
            if self._busy:
                return function(*args, **kwargs)
            self._busy = True
            results: list[T] = []
            try:
                self.seconds[phase] += timed(
                    lambda: results.append(function(*args, **kwargs)), self._device
                )
            finally:
                self._busy = False
            return results[0]

        return call
