"""What makes PyTorch faster on a CPU."""

from __future__ import annotations

import ctypes
import platform

# Names and numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGE_BLOCK, _NEVER, _RESERVE = 1 << 30, (1 << 31) - 1, 1 << 26


def keep_freed_memory() -> None:
    """Have the C library keep the memory that tensors free, for the next ones.

    By default glibc gives large blocks back to the system at once and takes them again with a
    page fault for every 4 KiB, which can cost more than the arithmetic. Call it early; it holds
    for the whole process, and where there is no glibc it does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_M_TOP_PAD, _RESERVE)


def give_back_freed_memory() -> None:
    """Have the C library give to the system what memory it keeps for later, if it is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
