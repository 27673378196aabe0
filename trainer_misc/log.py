"""The log of a run: lines of figures, in `log.jsonl` and for the trackers of accelerate."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.utils import gather_object

from .checkpoints import trim_log
from .loop_config import LoopConfig

logger = logging.getLogger(__name__)

Figures: TypeAlias = dict[str, float]
"""What goes to the log, by name."""
SAMPLES = "samples"
"""The figure that says how many samples a batch has; the log has them by the second."""


class Log:
    """Collects the figures of steps and writes their means.

    A line has the mean of each figure over the steps and the processes that have it, the seconds
    since this process began the run, samples a second since the last line, and the share of the
    time since then that the main process waited for data.

    Args:
        config: Of the run.
        accelerator: Its processes and trackers.
    """

    def __init__(self, config: LoopConfig, accelerator: Accelerator) -> None:
        self._config, self._accelerator = config, accelerator
        self._file = config.output / "log.jsonl"
        self._seen: dict[str, list[float]] = {}
        self._waited = 0.0
        self._began = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the run began in this process."""
        return time.monotonic() - self._began

    def go_on_from(self, step: int) -> None:
        """Drop the lines of steps that will be done again."""
        trim_log(self._file, step)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count the time from here, with the trackers at hand, which are closed in the end."""
        self._began = self._last = time.monotonic()
        trackers = self._accelerator.log_with
        if trackers:
            settings = {k: str(v) for k, v in vars(self._config).items()}
            self._accelerator.init_trackers(self._config.output.name, settings)
        try:
            yield
        finally:
            for tracker in self._accelerator.trackers if trackers else ():
                tracker.finish()  # as `end_training` does, which ends the processes' group too

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time meanwhile as time that data are waited for."""
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    def add(self, figures: Mapping[str, float]) -> None:
        """Keep the figures of a batch for the next line."""
        for name, value in figures.items():
            self._seen.setdefault(name, []).append(float(value))

    def write(self, step: int, **more: float) -> None:
        """Write a line of what was added since the last one; all processes come here together."""
        now = time.monotonic()
        since = max(now - self._last, 1e-9)
        seen, self._seen = _of_all(self._seen, self._accelerator), {}
        samples = seen.pop(SAMPLES, [])
        if samples:
            more["samples_per_second"] = round(sum(samples) / since, 3)
        more["waiting"] = round(self._waited / since, 4)
        self._last, self._waited = now, 0.0
        self._write(step, seen, more)

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a line of figures that are not of the steps, such as those of a validation."""
        own = {name: [value] for name, value in figures.items()}
        self._write(step, _of_all(own, self._accelerator), {})

    def _write(self, step: int, seen: Mapping[str, list[float]], more: Figures) -> None:
        line: dict[str, Any] = {"step": step, "seconds": round(self.seconds, 1)}
        line |= {name: sum(values) / len(values) for name, values in seen.items()} | more
        if self._accelerator.is_main_process:
            with self._file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            logger.info(" ".join(f"{name} {value:.4g}" for name, value in line.items()))
        if self._accelerator.log_with:
            self._accelerator.log(line, step=step)


def _of_all(seen: dict[str, list[float]], accelerator: Accelerator) -> dict[str, list[float]]:
    """The figures of all processes."""
    if accelerator.num_processes == 1:
        return seen
    joined: dict[str, list[float]] = {}
    for one in gather_object([seen]):
        for name, values in one.items():
            joined.setdefault(name, []).extend(values)
    return joined
