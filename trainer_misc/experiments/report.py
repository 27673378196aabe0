"""Results of trained arms put together: points, curves, tables and figures."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pyramid_dit.json_files import read_json
from pyramid_dit.media.charts import Chart, draw_charts

SAME = 0.1
"""Numbers of operations that differ by less than this share are one point."""

Curve = list[tuple[float, float]]
"""Operations and a measure, in order."""


def mean_and_deviation(values: Sequence[float], form: str) -> str:
    """The mean of `values` and, of several, their sample standard deviation, `1.00 ± 0.01`."""
    mean = form.format(fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(stdev(values))}"


@dataclass(frozen=True)
class Measure:
    """What is told of a point: the mean of some of its `rates`, or "frechet"."""

    keys: tuple[str, ...]
    title: str
    form: str = "{:.0f}"
    factor: float = 100
    higher_is_better: bool = True
    least: float = 0.0
    """Values below it are not told from noise."""

    def of(self, point: Mapping[str, Any]) -> float | None:
        """Its value at a point, if it was measured there."""
        known = {**point, **point["rates"]}
        if not all(key in known for key in self.keys):
            return None
        return self.factor * fmean(float(known[key]) for key in self.keys)


RIGHT = Measure(("all",), "all right, in %", least=10)
FRECHET = Measure(("frechet",), "Fréchet distance", "{:.3f}", 1, higher_is_better=False)


class Results:
    """The records of a claim's runs.

    Args:
        records: As `ArmRun.run` gives them.
        labels: What arms are called, by their names.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> None:
        self.records = list(records)
        self.labels = labels

    @classmethod
    def read(cls, paths: Sequence[Path], labels: Mapping[str, str]) -> Results:
        """Those in the files."""
        return cls([read_json(path) for path in paths], labels)

    def of(self, arm: str) -> list[Mapping[str, Any]]:
        """The runs of an arm."""
        return [record for record in self.records if record["arm"] == arm]

    def common_tflops(self) -> float:
        """The most operations that all runs have reached and were sampled at, in 10^12.

        Raises:
            ValueError: There are none.
        """
        every = {float(p["tflops"]) for record in self.records for p in record["points"]}
        for tflops in sorted(every, reverse=True):
            if len(self.points_at(tflops)) == len(self.records):
                return tflops
        raise ValueError("the runs have no point in common")

    def points_at(self, tflops: float) -> list[Mapping[str, Any]]:
        """The point of each run at so many operations, where it has one."""
        points = [_at(record, tflops) for record in self.records]
        return [point for point in points if point is not None]

    def values(self, arm: str, measure: Measure, tflops: float) -> list[float]:
        """The measure of all seeds of an arm, where they have reached so many operations."""
        points = Results(self.of(arm), {}).points_at(tflops)
        values = [measure.of(point) for point in points]
        return [value for value in values if value is not None]

    def curve(self, arm: str, measure: Measure) -> tuple[Curve, list[float]]:
        """Means over the seeds at all points that all of them have, and deviations."""
        runs = self.of(arm)
        curve, deviations = [], []
        for point in runs[0]["points"]:
            values = self.values(arm, measure, point["tflops"])
            if len(values) == len(runs):
                curve.append((float(point["tflops"]), fmean(values)))
                deviations.append(stdev(values) if len(values) > 1 else 0.0)
        return curve, deviations

    def table_of_ends(self, measures: Sequence[Measure]) -> str:
        """The first seed of all arms at the end of its training, as Markdown."""
        lines = [
            "| | steps | 10¹² operations | " + " | ".join(m.title for m in measures) + " |",
            "|---|--:|--:|" + "--:|" * len(measures),
        ]
        for arm, label in self.labels.items():
            for record in self.of(arm)[:1]:
                point = record["points"][-1]
                cells = [str(point["step"]), f"{point['tflops']:.3g}"]
                values = [(measure, measure.of(point)) for measure in measures]
                cells += ["" if value is None else m.form.format(value) for m, value in values]
                lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def table(self, measures: Sequence[Measure]) -> str:
        """All arms at the most operations that they have in common, as Markdown."""
        tflops = self.common_tflops()
        lines = [
            "| | seeds | batch | steps | " + " | ".join(m.title for m in measures) + " |",
            "|---|--:|--:|--:|" + "--:|" * len(measures),
        ]
        for arm, label in self.labels.items():
            runs = self.of(arm)
            if not runs:
                continue
            point = _at(runs[0], tflops)
            assert point is not None
            cells = [str(len(runs)), str(runs[0]["batch_size"]), str(point["step"])]
            for measure in measures:
                values = self.values(arm, measure, tflops)
                cells.append(mean_and_deviation(values, measure.form) if values else "")
            lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join(lines) + f"\n\nAt {tflops:.3g}·10¹² operations of training each.\n"

    def draw(self, path: Path, title: str, measures: Sequence[Measure]) -> None:
        """Curves of the measures over operations, into a PNG."""
        charts = []
        for measure in measures:
            lines: dict[str, Curve] = {}
            errors: dict[str, list[float]] = {}
            for arm, label in self.labels.items():
                curve, deviations = self.curve(arm, measure) if self.of(arm) else ([], [])
                if curve:
                    lines[label], errors[label] = curve, deviations
            if not lines:
                continue
            highest = max(y for line in lines.values() for _, y in line)
            top = 100.0 if measure.factor == 100 else _round_top(highest)
            charts.append(
                Chart(
                    f"{title}: {_ascii(measure.title)}",
                    "10^12 operations",
                    lines,
                    errors,
                    (0.0, top),
                )
            )
        draw_charts(charts, path)


def _round_top(highest: float) -> float:
    """The end of an axis of five round steps that has room for `highest`."""
    if highest <= 0:
        return 1.0
    step = 1.1 * highest / 5
    power: float = 10.0 ** math.floor(math.log10(step))
    return 5 * power * min(digit for digit in (1, 2, 3, 4, 5, 6, 8, 10) if digit * power >= step)


def _ascii(text: str) -> str:
    """Without the accents, which the font of the charts lacks."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _at(record: Mapping[str, Any], tflops: float) -> Mapping[str, Any] | None:
    """The point of a run that is nearest to so many operations, if it is near."""
    nearest: Mapping[str, Any]
    nearest = min(record["points"], key=lambda point: abs(point["tflops"] - tflops))
    return nearest if abs(nearest["tflops"] / tflops - 1) < SAME else None


def reached(curve: Curve, level: float) -> float | None:
    """At how many operations a curve that rises gets to `level`, between points by straight lines.

    Operations count by their logarithm. None where it does not get there.
    """
    before: tuple[float, float] | None = None
    for operations, value in curve:
        if value >= level:
            if before is None:
                return operations
            low, base = before
            share = (level - base) / (value - base)
            return math.exp(math.log(low) + share * math.log(operations / low))
        before = operations, value
    return None


def convergence_factor(curve: Curve, baseline: Curve, measure: Measure) -> float | None:
    """How many times the operations of `curve` the `baseline` takes, to the same quality.

    The quality is the best that both get to. None where a curve starts with it, for then nothing
    is known of the way there, or where it is below what can be told from noise.
    """
    sign = 1 if measure.higher_is_better else -1
    rising = [[(x, sign * y) for x, y in one] for one in (curve, baseline)]
    level = min(max(y for _, y in one) for one in rising)
    if any(one[0][1] >= level for one in rising) or sign * level < measure.least:
        return None
    first, second = (reached(one, level) for one in rising)
    return second / first if first and second else None
