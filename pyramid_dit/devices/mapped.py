"""Weights that lie in files and come into memory page by page, when they are read.

Loaders map files of weights in place of reading them, where dtypes allow it. On a CPU that is all
it takes to have a model in memory only while it is at work: what was read is forgotten after it,
and comes from the file, or from the system's cache of it, when it is read again.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .cpu import give_back_freed_memory

logger = logging.getLogger(__name__)

MAPS, PAGEMAP = Path("/proc/self/maps"), Path("/proc/self/pagemap")
_MAPS_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")
_DONT_NEED = 4  # MADV_DONTNEED of Linux's <sys/mman.h>
# Bits of an entry of /proc/self/pagemap, see the kernel's admin-guide/mm/pagemap.
_PRESENT, _SWAPPED, _OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


def map_weights(module: nn.Module) -> None:
    """Have the weights of `module` lie in files.

    What does not, as its dtype was converted, is written to a temporary file that has no name and
    goes with the weights. Weights that no file can hold, and all of them where the disk is full,
    stay in memory.
    """
    files = list(_mapped_ranges())
    loose = [
        tensor
        for tensor in (*module.parameters(), *module.buffers())
        if _plain(tensor) and not any(tensor.data_ptr() in pages for pages in files)
    ]
    if not loose or not files:
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "weights.safetensors")
            save_file({str(number): tensor.data for number, tensor in enumerate(loose)}, path)
            with safe_open(path, framework="pt") as file:
                for number, tensor in enumerate(loose):
                    tensor.data = file.get_tensor(str(number))
    except OSError as error:
        logger.warning("weights stay in memory, a temporary file cannot be written: %s", error)
    give_back_freed_memory()


def forget_pages(module: nn.Module) -> int:
    """Give back the memory of weights that are as in their files.

    Whole pages only, and none that was written to since it was read: those hold what no file has.

    Returns:
        How many bytes that is; 0 where the system is not Linux.
    """
    if not PAGEMAP.exists():
        return 0
    size = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    forgotten = 0
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        for start, stop in _spans(module):
            first, last = -(-start // size), stop // size
            if first >= last:
                continue
            entries = np.frombuffer(os.pread(pagemap.fileno(), 8 * (last - first), 8 * first), "u8")
            clean = (entries & (_PRESENT | _SWAPPED | _OF_A_FILE)) == (_PRESENT | _OF_A_FILE)
            edges = np.flatnonzero(np.diff(clean, prepend=False, append=False))
            for begin, end in edges.reshape(-1, 2).tolist():
                length = (end - begin) * size
                address = ctypes.c_void_p((first + begin) * size)
                if libc.madvise(address, ctypes.c_size_t(length), _DONT_NEED) == 0:
                    forgotten += length
    return forgotten


def _spans(module: nn.Module) -> list[tuple[int, int]]:
    """Addresses of the weights, of neighbours in one piece."""
    spans: list[tuple[int, int]] = []
    tensors = (t for t in (*module.parameters(), *module.buffers()) if _plain(t))
    for start, stop in sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _plain(tensor: Tensor) -> bool:
    """Whether the values of `tensor` lie one after another in the CPU's memory."""
    ordinary = type(tensor.data) is Tensor and tensor.device.type == "cpu"
    return ordinary and tensor.nbytes > 0 and tensor.is_contiguous()


def _mapped_ranges() -> Iterator[range]:
    """Addresses that files are mapped to; none where the system is not Linux."""
    if not MAPS.exists():
        return
    for line in MAPS.read_text().splitlines():
        found = _MAPS_LINE.match(line)
        if found is not None and found[3] != "0":
            yield range(int(found[1], 16), int(found[2], 16))
