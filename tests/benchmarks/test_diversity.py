"""`benchmarks.diversity`: how far videos of a prompt differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import diversity
from benchmarks.report import Report
from trainer_misc.toy.moving_shapes import ShapeClip, render_uint8


def squares(prompt: str, seeds: Sequence[int]) -> list[np.ndarray]:
    """Squares whose x is 60 or 68 by the seed; where the prompt says so, no square for one."""
    clips = [
        ShapeClip(
            "red", "square", "stays still", "white", x=60.0 + 8 * (seed % 2), y=64.0, radius=20
        )
        for seed in seeds
    ]
    frames = [render_uint8(clip, [0])[0] for clip in clips]
    if prompt == "empty":
        frames[0] = np.full_like(frames[0], 255)
    return frames


def test_the_spread_is_that_of_the_places() -> None:
    row = diversity.row("squares", squares, ["a", "b"], seeds=4)
    assert row["number"] == 8 and row["without a shape"] == 0
    assert row["x, pixels"] == pytest.approx(np.std([60, 68, 60, 68], ddof=1))
    assert row["y, pixels"] == row["radius, %"] == 0


def test_frames_without_a_shape_are_counted() -> None:
    row = diversity.row("squares", squares, ["a", "empty"], seeds=4)
    assert row["without a shape"] == 1


def test_command_runs(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    diversity.main(["--tiny", "--json", str(path)])
    rows = Report.load(path).rows
    assert [row["first frames"] for row in rows] == ["drawn", "the transformer", "its student"]
    assert all(row["number"] == 4 for row in rows)


def test_one_seed_has_no_spread(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        diversity.main(["--repeats", "1"])
    assert "--repeats is 1" in capsys.readouterr().err
