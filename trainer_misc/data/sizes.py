"""Sizes of pictures and clips: of any shape, but few enough to make batches of."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeAlias

from pyramid_dit.checks import SIDE

Size: TypeAlias = tuple[int, int]
"""Width and height."""

REFERENCE: dict[str, list[Size]] = {
    "384p": [(512, 512), (384, 640), (640, 384)],
    "768p": [(1024, 1024), (768, 1280), (1280, 768)],
}
"""The sizes of the reference."""
AREAS = {"384p-any": 512 * 512, "768p-any": 1024 * 1024}
"""Most pixels of sizes of all shapes."""
GRID = 64
"""Pixels that divide the sides: of a patch of the coarsest of three stages of latents."""
WIDEST = 2.5
"""Largest ratio of the sides."""


def aspect_sizes(area: int) -> list[Size]:
    """Sizes of at most `area` pixels, from tall to wide: one for each longer side on the grid.

    Those of the reference, 1:1, 3:5 and 5:3, are among them.
    """
    longer = range(math.isqrt(area) // GRID * GRID, area // GRID, GRID)
    landscape = [(width, area // width // GRID * GRID) for width in longer]
    landscape = [
        (width, height) for width, height in landscape if height and width / height <= WIDEST
    ]
    return sorted({*landscape, *((height, width) for width, height in landscape)})


def sizes_of(resolution: str | Sequence[Size]) -> list[Size]:
    """The sizes that a resolution means.

    Args:
        resolution: "384p" or "768p" for the three of the reference; "384p-any" or "768p-any" for
            those of `aspect_sizes`; sizes as "640x384,384x640", or as pairs of width and height.

    Raises:
        TypeError: A side is no whole number.
        ValueError: There is no such resolution, or a side is out of range.
    """
    if isinstance(resolution, str):
        if resolution in REFERENCE:
            return REFERENCE[resolution]
        if resolution in AREAS:
            return aspect_sizes(AREAS[resolution])
        pairs = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in resolution.split(",")]
        sizes = [(int(pair[1]), int(pair[2])) for pair in pairs if pair]
        if len(sizes) < len(pairs):
            raise ValueError(
                f"resolution must be {', '.join([*REFERENCE, *AREAS])} or sizes such as "
                f"640x384,384x640, got {resolution!r}"
            )
    else:
        sizes = [(width, height) for width, height in resolution]
    if not sizes:
        raise ValueError("resolution has no sizes")
    for side in (side for size in sizes for side in size):
        SIDE("a side of resolution", side)
    return sizes


def closest_size(width: float, height: float, sizes: Sequence[Size]) -> Size:
    """The size whose ratio of the sides is the closest to that of a picture, up or down."""
    return min(sizes, key=lambda size: abs(math.log(size[0] * height / (size[1] * width))))
