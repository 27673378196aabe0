"""Figures of videos and of the pyramid, drawn with Pillow: for notebooks and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from ..flow.sizes import SPATIAL_FACTOR
from ..flow.temporal_pyramid import HistoryClip, history_plan
from ..models.token_layout import PATCH

T = TypeVar("T")

INK, PALE, GRID = "#222222", "#777777", "#dddddd"
STAGE_COLORS = ("#2a6f97", "#5b7f3b", "#b2493d", "#7a5c99")
"""Colors of the stages, lowest resolution first; with more stages they start again."""
FONT_SIZE = 13
GAP = 6
"""Pixels between pictures, and between a picture and its label."""
TOKEN_SIDE = SPATIAL_FACTOR * PATCH
"""Pixels of a token's side."""


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, the first and the last among them; all of them if they are fewer.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """The picture in RGB with its longer side of `side` pixels; enlarged pixels stay square."""
    longer = max(picture.size)
    width, height = (max(1, round(extent * side / longer)) for extent in picture.size)
    method = Image.Resampling.LANCZOS if side < longer else Image.Resampling.NEAREST
    return picture.convert("RGB").resize((width, height), method)


def picture_grid(
    rows: Sequence[Sequence[Image.Image]],
    *,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    side: int = 128,
) -> Image.Image:
    """Pictures in rows and columns on white, each in a thin frame.

    Args:
        rows: The pictures of each row, from left to right; rows may differ in length.
        column_labels: What is written above the columns; "\\n" starts a new line.
        row_labels: What is written left of the rows, the same.
        side: Longer side of each picture in pixels, to which it is scaled.

    Raises:
        ValueError: There is no picture, `side` is below 1, or the labels are not as many as the
            rows or columns.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side}")
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("there are no pictures")
    for name, labels, count in (
        ("column_labels", column_labels, columns),
        ("row_labels", row_labels, len(rows)),
    ):
        if labels and len(labels) != count:
            raise ValueError(f"{name} must be {count}, got {len(labels)}: {list(labels)}")
    cells = [[scaled(picture, side) for picture in row] for row in rows]
    above, beside = [_text_size(text) for text in column_labels], [*map(_text_size, row_labels)]
    widths = [max(row[c].width for row in cells if c < len(row)) for c in range(columns)]
    if above:
        widths = [max(pair) for pair in zip(widths, (size[0] for size in above), strict=True)]
    heights = [max((cell.height for cell in row), default=0) for row in cells]
    if beside:
        heights = [max(pair) for pair in zip(heights, (size[1] for size in beside), strict=True)]
    left = GAP + max((size[0] + GAP for size in beside), default=0)
    top = GAP + max((size[1] + GAP for size in above), default=0)
    page = Image.new(
        "RGB", (left + sum(widths) + GAP * columns, top + sum(heights) + GAP * len(rows)), "white"
    )
    draw = ImageDraw.Draw(page)
    for c, text in enumerate(column_labels):
        x = left + sum(widths[:c]) + GAP * c + widths[c] / 2
        _write(page, (x, top - GAP), text, anchor="md")
    y = top
    for r, row in enumerate(cells):
        if row_labels:
            _write(page, (left - GAP, y + heights[r] / 2), row_labels[r], anchor="rm")
        x = left
        for cell, width in zip(row, widths, strict=False):
            at = (x + (width - cell.width) // 2, y + (heights[r] - cell.height) // 2)
            page.paste(cell, at)
            corners = (at[0] - 1, at[1] - 1, at[0] + cell.width, at[1] + cell.height)
            draw.rectangle(corners, outline=GRID)
            x += width + GAP
        y += heights[r] + GAP
    return page


@dataclass(frozen=True)
class _Tile:
    """A latent frame in `history_figure`."""

    picture: Image.Image
    name: str
    color: str
    is_made: bool


def history_figure(
    levels: Sequence[Sequence[Image.Image]], *, frame_per_unit: int = 1, side: int = 144
) -> Image.Image:
    """What the last unit of a video sees of the frames before it, one row per stage.

    Frames are drawn as large as they are seen, and framed in the color of that stage; the frames
    at the right, in a thick frame, are those that are made. See `history_plan`.

    Args:
        levels: For each stage, lowest resolution first, a picture of every latent frame at that
            resolution; those of the last stage as large as the video.
        frame_per_unit: Latent frames of every unit but unit 0.
        side: Longer side of a frame at the highest resolution in the figure.

    Raises:
        ValueError: The levels differ in length, or are not 1 plus a number of whole units.
    """
    lengths = {len(level) for level in levels}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"levels must have one length, from 1 on, got {sorted(lengths)}")
    (frames,) = lengths
    made = min(frames, frame_per_unit) if frames > 1 else 1
    largest = levels[-1][0]
    tokens = [
        (largest.width // TOKEN_SIDE) * (largest.height // TOKEN_SIDE) // 4**level
        for level in reversed(range(len(levels)))
    ]
    rows, notes = [], []
    for stage in range(len(levels)):
        seen = history_plan(frames - made, stage, frame_per_unit=frame_per_unit)
        own = HistoryClip(frames - made, frames, stage)
        rows.append(
            [
                _Tile(
                    scaled(levels[clip.stage][frame], side >> (len(levels) - 1 - clip.stage)),
                    str(frame),
                    STAGE_COLORS[clip.stage % len(STAGE_COLORS)],
                    is_made=clip is own,
                )
                for clip in (*seen, own)
                for frame in range(clip.start, clip.stop)
            ]
        )
        history = sum((clip.stop - clip.start) * tokens[clip.stage] for clip in seen)
        whole = (frames - made) * tokens[stage]
        notes.append(
            f"{made * tokens[stage]:,} tokens are made,\n{history:,} are seen\n"
            f"({whole:,} if all were at this size)"
        )
    return _history_page(rows, notes)


def _history_page(rows: Sequence[Sequence[_Tile]], notes: Sequence[str]) -> Image.Image:
    left = 2 * GAP + max(_text_size(f"stage {stage}")[0] for stage in range(len(rows)))
    border, line = 3, _text_size("0")[1]
    heights = [max(tile.picture.height for tile in row) for row in rows]
    heights = [max(pair[0], _text_size(pair[1])[1]) for pair in zip(heights, notes, strict=True)]
    widths = [sum(tile.picture.width + GAP + 2 * border for tile in row) for row in rows]
    notes_at = left + max(widths) + 2 * GAP
    width = notes_at + max(_text_size(note)[0] for note in notes) + GAP
    row_gap = line + 4 * GAP
    page = Image.new("RGB", (width, sum(heights) + row_gap * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(page)
    bottom = 2 * GAP
    for stage, (row, note, height) in enumerate(zip(rows, notes, heights, strict=True)):
        bottom += height
        color = STAGE_COLORS[stage % len(STAGE_COLORS)]
        _write(page, (GAP, bottom - height / 2), f"stage {stage}", anchor="lm", color=color)
        x = left
        for tile in row:
            y = bottom - tile.picture.height
            thickness = border if tile.is_made else 1
            corners = (
                x + border - thickness,
                y - thickness,
                x + border + tile.picture.width + thickness - 1,
                bottom + thickness - 1,
            )
            draw.rectangle(corners, outline=tile.color, width=thickness)
            page.paste(tile.picture, (x + border, y))
            middle = x + border + tile.picture.width / 2
            _write(page, (middle, bottom + GAP), tile.name, anchor="ma", color=tile.color)
            x += tile.picture.width + GAP + 2 * border
        _write(page, (notes_at, bottom - height / 2), note, anchor="lm", color=PALE)
        bottom += row_gap
    return page


def _text_size(text: str) -> tuple[int, int]:
    """Width and height that a text of one or more lines takes."""
    font = ImageFont.load_default(FONT_SIZE)
    lines = text.split("\n")
    return max(round(font.getlength(line)) for line in lines), len(lines) * (FONT_SIZE + 4)


def _write(
    page: Image.Image, at: tuple[float, float], text: str, *, anchor: str, color: str = INK
) -> None:
    """Write a text of one or more lines; `anchor` is Pillow's: l, m, r and a, m, d."""
    font = ImageFont.load_default(FONT_SIZE)
    lines = text.split("\n")
    line_height = FONT_SIZE + 4
    height = line_height * len(lines)
    top = at[1] - {"a": 0, "m": height / 2, "d": height}[anchor[1]]
    for index, line in enumerate(lines):
        y = top + (index + 0.5) * line_height
        ImageDraw.Draw(page).text((at[0], y), line, fill=color, font=font, anchor=anchor[0] + "m")
