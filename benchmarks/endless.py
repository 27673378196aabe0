"""Whether a video without end goes on at one pace and in one memory.

    python -m benchmarks.endless
    python -m benchmarks.endless --model FOLDER --minutes 10

Units are timed, and the resident memory of the process is read, from the unit on whose history
fills its window; the first minute of video after that is compared with the last.
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

TIME, MEMORY = "median time of a unit, s", "resident memory, MB"
TIME_BAR, MEMORY_BAR = 15.0, 10.0  # percent


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
    for heading, limit in ((TIME, TIME_BAR), (MEMORY, MEMORY_BAR)):
        first, last = (number(r, heading) for r in report.rows[:2])
        apart = 100 * abs(last - first) / first
        what = f"{heading.partition(',')[0]}, last minute beside the first"
        report.bars.append(Bar(what, apart, limit, "%", at_least=False))
    finish(report, options)


def measured(model: PyramidDiTForVideoGeneration, units: int) -> list[tuple[float, float]]:
    """Seconds that each unit takes, and resident bytes after it, once the window is full."""
    found: list[tuple[float, float]] = []
    with model.stream(SHAPES[0], seconds=math.inf, seed=0) as stream:
        for _ in islice(stream, temp_of(model.defaults.frames())):
            pass
        while len(found) < units:
            began = time.perf_counter()
            next(stream)
            found.append((time.perf_counter() - began, resident_memory()))
    return found


def row(name: str, minutes: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Cell]:
    """The medians of one part of all runs."""
    seconds, memory = zip(*(unit for minute in minutes for unit in minute), strict=True)
    return {
        "minute of video": name,
        "units": len(seconds),
        TIME: median(seconds),
        MEMORY: median(memory) / 1e6,
    }


if __name__ == "__main__":
    main()
