"""Points in common, tables, and factors of convergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_misc.experiments.report import (
    RIGHT,
    Measure,
    Results,
    convergence_factor,
    mean_and_deviation,
    reached,
)

LOSS = Measure(("frechet",), "distance", "{:.1f}", 1, higher_is_better=False)
BOTH = Measure(("all", "frechet"), "both", "{:.2f}", 1)


def record(arm: str, seed: int, rates: list[float], *, scale: float = 1.0) -> dict[str, Any]:
    points = [
        {"step": 10 * 2**n, "tflops": scale * 2.0**n, "rates": {"all": rate}}
        for n, rate in enumerate(rates)
    ]
    return {"arm": arm, "seed": seed, "batch_size": 4, "points": points}


@pytest.fixture
def results() -> Results:
    records = [
        record("a", 0, [0.1, 0.5, 0.9]),
        record("a", 1, [0.3, 0.7, 0.7]),
        record("b", 0, [0.0, 0.2], scale=1.02),
    ]
    return Results(records, {"a": "first", "b": "second"})


def test_arms_are_compared_where_all_have_come(results: Results) -> None:
    assert results.common_tflops() == 2.04
    again = Results(results.records[::-1], results.labels)
    assert again.common_tflops() == 2.04
    assert results.values("a", RIGHT, 2.0) == [50.0, 70.0]
    table = results.table([RIGHT])
    assert "| first | 2 | 4 | 20 | 60 ± 14 |" in table
    assert "| second | 1 | 4 | 20 | 20 |" in table
    assert "At 2.04·10¹² operations" in table


def test_ends_may_be_told_as_they_are(results: Results) -> None:
    table = results.table_of_ends([RIGHT, LOSS])
    assert "| first | 40 | 4 | 90 |  |" in table
    assert "| second | 20 | 2.04 | 20 |  |" in table


def test_runs_without_a_common_point_are_refused() -> None:
    apart = Results([record("a", 0, [0.1]), record("b", 0, [0.1], scale=1.5)], {})
    with pytest.raises(ValueError, match="no point in common"):
        apart.table([RIGHT])


def test_curves_are_means_over_the_seeds(results: Results) -> None:
    curve, deviations = results.curve("a", RIGHT)
    assert [x for x, _ in curve] == [1.0, 2.0, 4.0]
    assert [y for _, y in curve] == pytest.approx([20, 60, 80])
    assert deviations == pytest.approx([14.142, 14.142, 14.142], abs=1e-3)


def test_the_figure_has_lines_and_whiskers(results: Results, tmp_path: Path) -> None:
    results.draw(tmp_path / "figure.png", "Runs", [RIGHT, LOSS])
    with Image.open(tmp_path / "figure.png") as picture:
        colors = picture.convert("RGB").getcolors(1 << 24) or []
    seen = {color for _, color in colors}
    assert {(178, 73, 61), (42, 111, 151)} <= seen


def test_factors_of_convergence() -> None:
    fast = [(1.0, 10.0), (2.0, 40.0), (4.0, 80.0)]
    slow = [(1.0, 0.0), (4.0, 20.0), (8.0, 40.0)]
    assert reached(fast, 40) == pytest.approx(2)
    assert reached(fast, 90) is None
    # both get to 40: at 2 and at 8
    assert convergence_factor(fast, slow, RIGHT) == pytest.approx(4)
    assert convergence_factor(slow, fast, RIGHT) == pytest.approx(1 / 4)
    faint = [[(x, y / 10) for x, y in curve] for curve in (fast, slow)]
    assert convergence_factor(faint[0], faint[1], RIGHT) is None
    falling = [[(x, 100 - y) for x, y in curve] for curve in (fast, slow)]
    assert convergence_factor(falling[0], falling[1], LOSS) == pytest.approx(4)
    assert convergence_factor([(1.0, 50.0)], slow, RIGHT) is None


def test_means_have_deviations_from_two_on() -> None:
    assert mean_and_deviation([1.0, 3.0], "{:.1f}") == "2.0 ± 1.4"
    assert mean_and_deviation([1.0], "{:.1f}") == "1.0"


def test_measures_are_means_of_what_is_there() -> None:
    point = {"rates": {"all": 0.5}, "frechet": 1.5}
    assert (RIGHT.of(point), LOSS.of(point), BOTH.of(point)) == (50, 1.5, 1.0)
    assert BOTH.of({"rates": {"all": 0.5}}) is None
