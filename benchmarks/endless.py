"""Whether a video without end goes on at one pace and in one memory.

    python -m benchmarks.endless
    python -m benchmarks.endless --model FOLDER --minutes 10

Once the window of the history is full, units are timed, by the clock and by how long the processor
worked, and the resident memory is read; the first minute of video is compared with the last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import islice

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checks import Whole
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.devices.memory import resident_memory
from pyramid_dit.flow.sizes import TEMPORAL_FACTOR, temp_of
from pyramid_dit.page.examples import SHAPES

from .measure import device_name
from .report import Bar, Cell, Report, finish, median, number, option_parser, rounds

TIME, CPU_TIME = "median time of a unit, s", "processor time of a unit, s"
MEMORY = "resident memory, MB"
TIME_BAR, MEMORY_BAR = 15.0, 10.0  # percent


Figures = tuple[float, float, float]
"""Of a unit: seconds, seconds of the processor, and resident bytes after it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, and write what was found."""
    parser = option_parser(__doc__, repeats=1)
    parser.add_argument("--model", metavar="FOLDER", help="by default the bundled checkpoint")
    parser.add_argument("--minutes", type=Whole().parse, default=10, help="of video")
    options = parser.parse_args(arguments)

    keep_freed_memory()
    model = PyramidDiTForVideoGeneration.from_pretrained(options.model, device=options.device)
    model.set_progress_bar_config(disable=True)
    a_minute = round(60 * model.defaults.frames_per_second / TEMPORAL_FACTOR)
    if options.tiny:
        a_minute, options.minutes = 2, 2
    units = options.minutes * a_minute
    runs = [measured(model, units) for _ in range(options.repeats)]
    parts = {"the first": slice(a_minute), "the last": slice(-a_minute, None), "all": slice(None)}
    report = Report(
        "endless",
        device_name(options.device),
        f"{options.minutes} minutes of video once the window is full, {rounds(options.repeats)}",
        rows=[row(name, [run[part] for run in runs]) for name, part in parts.items()],
    )
    for heading, limit in ((TIME, TIME_BAR), (CPU_TIME, TIME_BAR), (MEMORY, MEMORY_BAR)):
        first, last = (number(r, heading) for r in report.rows[:2])
        apart = 100 * abs(last - first) / first
        what = f"{heading.partition(',')[0]}, last minute beside the first"
        report.bars.append(Bar(what, apart, limit, "%", at_least=False))
    finish(report, options)


def measured(model: PyramidDiTForVideoGeneration, units: int) -> list[Figures]:
    """What each unit takes once the window is full."""
    found: list[Figures] = []
    with model.stream(SHAPES[0], seconds=math.inf, seed=0) as stream:
        for _ in islice(stream, temp_of(model.defaults.frames())):
            pass
        while len(found) < units:
            began, worked = time.perf_counter(), time.process_time()
            next(stream)
            took = time.perf_counter() - began
            found.append((took, time.process_time() - worked, resident_memory()))
    return found


def row(name: str, minutes: Sequence[Sequence[Figures]]) -> dict[str, Cell]:
    """The medians of one part of all runs."""
    seconds, processor, memory = zip(*(unit for minute in minutes for unit in minute), strict=True)
    return {
        "minute of video": name,
        "units": len(seconds),
        TIME: median(seconds),
        CPU_TIME: median(processor),
        MEMORY: median(memory) / 1e6,
    }


if __name__ == "__main__":
    main()
