"""Figures show the pictures that they are said to show, where and as large as they should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pyramid_dit.flow.temporal_pyramid import history_plan
from pyramid_dit.media import figures
from pyramid_dit.media.figures import (
    STAGE_COLORS,
    evenly_spaced,
    history_figure,
    picture_grid,
    scaled,
)

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 200, 0)


def plain(color: tuple[int, int, int], width: int = 32, height: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def box_of(page: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of what has exactly this color."""
    return Image.fromarray((np.asarray(page) == color).all(axis=-1)).getbbox()


@pytest.mark.parametrize(
    ("items", "count", "chosen"),
    [
        ("abcdefg", 4, "aceg"),
        ("abcdefg", 7, "abcdefg"),
        ("abc", 7, "abc"),
        ("abcdefg", 1, "a"),
        ("", 3, ""),
    ],
)
def test_evenly_spaced(items: str, count: int, chosen: str) -> None:
    assert evenly_spaced(items, count) == [*chosen]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evenly_spaced(items, 0)


def test_scaled_pictures_keep_their_shape_and_their_pixels() -> None:
    picture = plain(RED, 4, 2)
    picture.putpixel((0, 0), BLUE)
    larger = scaled(picture, 40)
    assert larger.size == (40, 20)
    assert box_of(larger, BLUE) == (0, 0, 10, 10)
    assert scaled(plain(RED, 400, 300), 40).size == (40, 30)
    assert scaled(Image.new("L", (4, 4)), 4).mode == "RGB"


def test_a_grid_has_its_pictures_in_rows_and_columns() -> None:
    page = picture_grid([[plain(RED), plain(BLUE)], [plain(GREEN, 32, 16)]], side=64)
    red, blue, green = (box_of(page, color) for color in (RED, BLUE, GREEN))
    assert red and blue and green
    assert [right - left for left, _, right, _ in (red, blue, green)] == [64] * 3
    assert [bottom - top for _, top, _, bottom in (red, blue, green)] == [64, 64, 32]
    assert red[0] == green[0] and red[1] == blue[1]
    assert red[2] < blue[0] and red[3] < green[1]
    assert page.size == (blue[2] + red[0], green[3] + red[1])  # the same margin on all sides


def test_labels_get_room_of_their_own() -> None:
    rows = [[plain(RED), plain(BLUE)]]
    bare = picture_grid(rows)
    named = picture_grid(rows, column_labels=["a", "b\nc"], row_labels=["a long name of a row"])
    before, after = box_of(bare, RED), box_of(named, RED)
    assert before and after
    assert after[2] - after[0] == before[2] - before[0] == 128
    assert after[0] > before[0] + 50 and after[1] > before[1] + 20
    for box in ((0, 0, named.width, after[1] - 1), (0, 0, after[0] - 1, named.height)):
        dark, _ = named.crop(box).convert("L").getextrema()
        assert dark < 100  # something is written there
    wide = picture_grid(rows, column_labels=["a label wider than its picture by far", ""], side=16)
    assert wide.width > 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": []}, "no pictures"),
        ({"rows": [[], []]}, "no pictures"),
        ({"rows": [[plain(RED)]], "side": 0}, "side must be at least 1, got 0"),
        ({"rows": [[plain(RED)]], "row_labels": ["a", "b"]}, "row_labels must be 1, got 2"),
        ({"rows": [[plain(RED)]], "column_labels": ["a", "b"]}, "column_labels must be 1, got 2"),
    ],
)
def test_a_grid_that_makes_no_sense(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        picture_grid(**arguments)


def own_color(level: int, frame: int) -> tuple[int, int, int]:
    return 50 + 60 * level, 200, 3 + 20 * frame


@pytest.mark.parametrize(("frames", "frame_per_unit"), [(1, 1), (2, 1), (7, 1), (7, 2)])
def test_the_history_is_drawn_as_it_is_seen(
    monkeypatch: pytest.MonkeyPatch, frames: int, frame_per_unit: int
) -> None:
    written: list[str] = []
    write = figures._write
    monkeypatch.setattr(
        figures,
        "_write",
        lambda page, at, text, **k: (written.append(text), write(page, at, text, **k)),
    )
    sizes = [(96, 64)] * 2 + [(160, 96)]  # only the last is told to be that of the video
    levels = [
        [plain(own_color(level, frame), *size) for frame in range(frames)]
        for level, size in enumerate(sizes)
    ]
    page = history_figure(levels, frame_per_unit=frame_per_unit, side=80)

    made = 1 if frames == 1 else frame_per_unit
    seen = [history_plan(frames - made, s, frame_per_unit=frame_per_unit) for s in range(3)]
    drawn = {(c.stage, frame) for plan in seen for c in plan for frame in range(c.start, c.stop)}
    drawn |= {(stage, frame) for stage in range(3) for frame in range(frames - made, frames)}
    for level in range(3):
        for frame in range(frames):
            box = box_of(page, own_color(level, frame))
            assert (box is not None) == ((level, frame) in drawn)
    largest = box_of(page, own_color(2, frames - 1))
    assert largest and largest[2] - largest[0] == 80 and largest[3] - largest[1] == 48

    tokens = [60 // 16, 60 // 4, 60]  # of 160x96 pixels, in patches of 16x16
    for stage, plan in enumerate(seen):
        history = sum((clip.stop - clip.start) * tokens[clip.stage] for clip in plan)
        whole = (frames - made) * tokens[stage]
        assert written.count(
            f"{made * tokens[stage]} tokens are made,\n{history} are seen\n"
            f"({whole} if all were at this size)"
        )
    assert set(written) >= {"stage 0", "stage 1", "stage 2", *map(str, range(frames))}


def test_what_is_made_has_a_thick_frame() -> None:
    levels = [[plain(own_color(level, frame)) for frame in range(3)] for level in range(3)]
    page = history_figure(levels, side=80)
    color = tuple(int(STAGE_COLORS[2][i : i + 2], 16) for i in (1, 3, 5))
    for frame, thickness in ((1, 1), (2, 3)):
        box = box_of(page, own_color(2, frame))
        assert box
        middle = (box[1] + box[3]) // 2
        left = [page.getpixel((box[0] - distance, middle)) for distance in range(1, 5)]
        assert left == [color] * thickness + [(255, 255, 255)] * (4 - thickness)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [((3, 3, 2), "one length"), ((0, 0, 0), "from 1 on"), ((4, 4, 4), "multiple of 2")],
)
def test_a_history_that_cannot_be(lengths: tuple[int, ...], message: str) -> None:
    levels = [[plain(RED)] * length for length in lengths]
    with pytest.raises(ValueError, match=message):
        history_figure(levels, frame_per_unit=2)
