"""Make one video in this process, and print what each part of it took, as a line of JSON.

`released_size` starts this file beside the library of any checkout, so nothing of the project is
imported but what that has.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")
GB = 1e9
LOADING, REST, ALL = "loading", "rest", "all"
WALL, CPU, PEAK, FILES = "s", "CPU s", "peak, GB", "of it in files, GB"
PARTS = {
    "text": ("text_encoder", ["forward"]),
    "transformer": ("dit", ["prepare", "denoise"]),
    "decoding": ("vae", ["decode_chunk"]),
}
"""Attribute of the pipeline, and methods, whose calls are counted for each part."""
INTERVAL = 0.05
"""Seconds between two looks at the memory."""


class MemoryWatch(threading.Thread):
    """Looks at the memory of the process again and again, until `end`.

    Args:
        clock: A `PhaseClock`, whose phase a figure belongs to.
    """

    def __init__(self, clock: Any) -> None:
        super().__init__(daemon=True)
        self.most: dict[str, dict[str, float]] = {}
        """What `memory` found at the worst moment of a part."""
        self.part = LOADING
        """What is at work where the clock does not know it."""
        self._clock = clock
        self._ended = threading.Event()

    def run(self) -> None:
        """Look, and wait."""
        while not self._ended.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        """Look once."""
        part = self._clock.phase or self.part
        found = memory()
        for name in (part, ALL):
            if found[PEAK] >= self.most.get(name, found)[PEAK]:
                self.most[name] = found

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self.join()


def memory() -> dict[str, float]:
    """GB in memory now, and how much of it are pages of files, such as mapped weights."""
    sizes = status()
    return {PEAK: sizes["VmRSS"], FILES: sizes["RssFile"]}


def status() -> dict[str, float]:
    """Sizes in GB that Linux tells of the process, by the names of proc(5)."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", STATUS.read_text(), re.M)
    return {name: int(size) * 1024 / GB for name, size in found}


def main() -> None:
    """Run."""
    options: dict[str, Any] = json.loads(sys.argv[-1])
    from pyramid_dit import PyramidDiTForVideoGeneration
    from pyramid_dit.devices.cpu import keep_freed_memory

    keep_freed_memory()  # as the command line does
    clock = runpy.run_path(str(Path(__file__).with_name("measure.py")))["PhaseClock"](
        torch.device("cpu")
    )
    watch = MemoryWatch(clock)
    watch.start()
    began = time.perf_counter(), time.process_time()
    model = PyramidDiTForVideoGeneration.from_pretrained(options["folder"], **options["load"])
    model.set_progress_bar_config(disable=True)
    loaded = time.perf_counter(), time.process_time()
    watch.part = REST
    with clock:
        for part, (attribute, methods) in PARTS.items():
            clock.watch(getattr(model, attribute), methods, part)
        frames = model.generate(generator=torch.Generator().manual_seed(0), **options["generate"])
    ended = time.perf_counter(), time.process_time()
    watch.end()

    seconds = {LOADING: loaded[0] - began[0], **clock.seconds}
    cpu_seconds = {LOADING: loaded[1] - began[1], **clock.cpu_seconds}
    for table, index in ((seconds, 0), (cpu_seconds, 1)):
        total = ended[index] - began[index]
        table |= {REST: total - sum(table.values()), ALL: total}
    watch.most[ALL][PEAK] = status()["VmHWM"]
    found = {
        "frames": len(frames),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.dit.parameters()),
        "parts": {
            part: {WALL: seconds[part], CPU: cpu_seconds[part], **watch.most.get(part, {})}
            for part in seconds
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
