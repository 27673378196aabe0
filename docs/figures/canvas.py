"""A page to draw on with Pillow, in units of half a pixel of the file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Pixels of the file for each unit."""
INK, PALE, GRID = "#222222", "#777777", "#dddddd"
STAGES = ("#2a6f97", "#5b7f3b", "#b2493d")
"""Colors of the stages, lowest resolution first."""
TEXT_COLOR = "#7a5c99"

Point = tuple[float, float]


class Canvas:
    """A white page.

    Args:
        width: In units.
        height: In units.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self._draw = ImageDraw.Draw(self.image)

    def save(self, path: Path) -> None:
        """Write the page as a PNG of few colors."""
        self.image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)

    def text(
        self, at: Point, text: str, *, anchor: str = "mm", size: int = 12, color: str = INK
    ) -> None:
        """Write one line; `anchor` is Pillow's."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text(_scaled(at), text, fill=color, font=font, anchor=anchor)

    def box(
        self, at: Point, size: Point, *, fill: str | None = None, outline: str | None = INK
    ) -> None:
        """A rectangle from its upper left corner."""
        corners = (at, (at[0] + size[0], at[1] + size[1]))
        (left, top), (right, bottom) = map(_scaled, corners)
        self._draw.rectangle((left, top, right, bottom), fill=fill, outline=outline, width=SCALE)

    def line(self, *points: Point, color: str = INK, width: float = 1) -> None:
        """A line through points."""
        self._draw.line([_scaled(point) for point in points], color, round(width * SCALE))

    def arrow(self, *points: Point, color: str = INK, width: float = 1) -> None:
        """A line whose last part, upright or level, ends in a head."""
        self.line(*points, color=color, width=width)
        (x0, y0), (x1, y1) = points[-2:]
        length = max(abs(x1 - x0), abs(y1 - y0))
        dx, dy = 6 * (x1 - x0) / length, 6 * (y1 - y0) / length
        head = [
            (x1, y1),
            (x1 - dx - dy / 2, y1 - dy + dx / 2),
            (x1 - dx + dy / 2, y1 - dy - dx / 2),
        ]
        self._draw.polygon([_scaled(point) for point in head], fill=color)

    def polygon(self, *points: Point, fill: str) -> None:
        """A filled area."""
        self._draw.polygon([_scaled(point) for point in points], fill=fill)

    def picture(self, at: Point, picture: Image.Image, size: Point) -> None:
        """A picture in a frame, its pixels left square."""
        width, height = (round(side * SCALE) for side in size)
        resized = picture.resize((width, height), Image.Resampling.NEAREST)
        left, top = _scaled(at)
        self.image.paste(resized, (round(left), round(top)))
        self.box(at, size, outline=PALE)


def _scaled(point: Point) -> Point:
    return point[0] * SCALE, point[1] * SCALE
