"""The benchmarks of videos without end: what they read, count and find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from benchmarks import drift, endless
from benchmarks.drift import Scenes, parse_way, starts
from benchmarks.report import Report
from pyramid_dit.sampling.fast_mode import FastMode
from trainer_misc.toy.judge import Verdict
from trainer_misc.toy.moving_shapes import Combination


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=QUICK_INDEX)


def test_endless_compares_the_first_minute_with_the_last(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    endless.main(["--tiny", "--model", str(folder), "--json", str(path)])
    report = Report.load(path)
    assert [row["units"] for row in report.rows] == [2, 2, 4]
    first, last = (row[endless.MEMORY] for row in report.rows[:2])
    assert isinstance(first, float) and isinstance(last, float)
    assert report.bars[2].value == pytest.approx(100 * abs(last - first) / first)
    assert "resident memory, last minute" in str(report.bars[2])


def test_drift_judges_every_scene(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    ways = ["--way", "window=2 sink=1", "--way", "window=1"]
    sheet = ["--sheet", str(tmp_path / "sheet.png")]
    drift.main(["--tiny", "--model", str(folder), "--json", str(path), *ways, *sheet])
    assert (tmp_path / "sheet.png").is_file()
    report = Report.load(path)
    assert [row["history"] for row in report.rows] == ["window=2 sink=1", "window=1"]
    assert [row["videos"] for row in report.rows] == [2, 2]
    assert all(not bar.holds for bar in report.bars)  # noise is no shape that moves


def test_ways_are_read() -> None:
    assert parse_way("window=4 sink=2") == FastMode(history_window=4, history_sink=2)
    assert parse_way("window=4") == FastMode(history_window=4)
    for wrong in ("window", "windows=3", "window=0", "window=x", "sink=-1"):
        with pytest.raises(ValueError, match=r"."):
            parse_way(wrong)


def test_figures_of_scenes() -> None:
    wanted = [Combination("red", "circle", f"moves {way}", "white") for way in ("left", "right")]
    right = [Verdict(what.color, what.shape, what.motion, what.background) for what in wanted]
    drifted = Scenes(wanted, [right[0], replace(right[1], color="blue", motion="moves left")])
    row = drift.row("", [Scenes(wanted, right), drifted], 6.0)
    assert (row["color, %"], row["shape, %"], row["all three at the end, %"]) == (50, 100, 50)
    assert (row["motion, %"], row["first half, %"], row["seconds a video"]) == (75, 100, 3)
    assert len({what.color for what in starts(20)}) == 6
