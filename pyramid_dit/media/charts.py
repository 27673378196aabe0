"""Line charts, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Pixels of the file for each one below."""
WIDTH, HEIGHT = 440, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 48, 44
COLORS = ("#b2493d", "#2a6f97", "#5b7f3b", "#7a5c99", "#b07d2b", "#555555")
INK, GRID = "#222222", "#dddddd"
FONT_SIZE = 12


@dataclass(frozen=True)
class Chart:
    """One chart: lines by their names, each of points (x, y) above 0 on logarithmic axes.

    Attributes:
        title: Above it.
        x_label: Below it.
        lines: The points by name.
        errors: By the same names, how far whiskers reach up and down from each point.
        linear_range: Where the vertical axis, then linear, begins and ends.
    """

    title: str
    x_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    linear_range: tuple[float, float] | None = None


def draw_charts(charts: Sequence[Chart], path: Path, *, columns: int = 2) -> None:
    """Draw `charts` side by side into the PNG `path`."""
    rows = math.ceil(len(charts) / columns)
    size = (columns * WIDTH * SCALE, rows * HEIGHT * SCALE)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for index, chart in enumerate(charts):
        row, column = divmod(index, columns)
        _Panel(draw, chart, column * WIDTH, row * HEIGHT).draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


class _Panel:
    """The drawing of one chart at a place of the picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, chart: Chart, left: int, top: int) -> None:
        self.canvas, self.chart = draw, chart
        self.left, self.top = left, top
        self.font = ImageFont.load_default(FONT_SIZE * SCALE)
        points = [point for line in chart.lines.values() for point in line]
        self.x_range = _padded([x for x, _ in points])
        self.y_range = chart.linear_range or _padded([y for _, y in points])

    def draw(self) -> None:
        """Draw grid, lines and legend."""
        self._text((WIDTH / 2, 14), self.chart.title, "mm")
        self._text((WIDTH / 2, HEIGHT - 10), self.chart.x_label, "mm")
        for value in _ticks(*self.x_range):
            x = self._x(value)
            self._line([(x, TOP), (x, HEIGHT - BOTTOM)], GRID)
            self._text((x, HEIGHT - BOTTOM + 12), f"{value:g}", "mm")
        linear = self.chart.linear_range is not None
        for value in (_even_ticks if linear else _ticks)(*self.y_range):
            y = self._y(value)
            self._line([(LEFT, y), (WIDTH - RIGHT, y)], GRID)
            self._text((LEFT - 6, y), f"{value:g}", "rm")
        self._line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], INK)
        colors = zip(self.chart.lines.items(), COLORS, strict=False)
        legend_width = (WIDTH - LEFT - RIGHT) / max(2, len(self.chart.lines))
        for index, ((name, points), color) in enumerate(colors):
            places = [(self._x(x), self._y(y)) for x, y in points]
            self._line(places, color, width=2)
            for (x, y), error in zip(points, self.chart.errors.get(name, ()), strict=False):
                ends = [(self._x(x), self._y(y + side * error)) for side in (-1, 1)]
                self._line(ends, color)
            for x, y in places:
                corners = [self._place((x + d, y + d)) for d in (-3, 3)]
                self.canvas.ellipse(corners, fill=color)
            self._text((LEFT + legend_width * index, TOP - 12), name, "lm", color)

    def _x(self, value: float) -> float:
        return LEFT + _share(value, *self.x_range) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y_range
        if self.chart.linear_range is not None:
            share = (min(max(value, low), high) - low) / (high - low)
        else:
            share = _share(value, low, high)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def _place(self, point: tuple[float, float]) -> tuple[float, float]:
        return (self.left + point[0]) * SCALE, (self.top + point[1]) * SCALE

    def _line(self, points: Sequence[tuple[float, float]], color: str, width: int = 1) -> None:
        self.canvas.line([self._place(p) for p in points], fill=color, width=width * SCALE)

    def _text(self, point: tuple[float, float], text: str, anchor: str, color: str = INK) -> None:
        self.canvas.text(self._place(point), text, fill=color, font=self.font, anchor=anchor)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of `values` with some room on both sides."""
    return min(values) / 1.3, max(values) * 1.3


def _share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in the range; of a wide one the powers alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1,) if high / low > 1e4 else (1, 2, 5)
    values = [digit * 10.0**power for power in powers for digit in digits]
    return [value for value in values if low <= value <= high]


def _even_ticks(low: float, high: float) -> list[float]:
    """Six values evenly from `low` to `high`."""
    return [low + (high - low) * part / 5 for part in range(6)]
