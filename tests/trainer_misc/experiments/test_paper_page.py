"""The page of the paper's claims has the tables that the committed records give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden import PROJECT_ROOT

from pyramid_dit.json_files import read_json
from trainer_misc.experiments import (
    attention,
    factors,
    jumps,
    spatial_pyramid,
    temporal_pyramid,
)
from trainer_misc.experiments.arms import Arm
from trainer_misc.experiments.claims import Claim
from trainer_misc.experiments.report import Results
from trainer_misc.toy.moving_shapes import SHAPES

PAPER = PROJECT_ROOT / "docs" / "paper"
RESULTS = PAPER / "results"
PAGE = " ".join((PAPER / "README.md").read_text(encoding="utf-8").split())
CLAIMS: list[tuple[str, Claim, Callable[[Results], str]]] = [
    ("h200", spatial_pyramid.CLAIM, spatial_pyramid.factors),
    ("cpu", spatial_pyramid.CLAIM, spatial_pyramid.factors),
    ("h200", temporal_pyramid.CLAIM, temporal_pyramid.tokens),
    ("h200", attention.CLAIM, lambda results: ""),
    ("h200", factors.STAGES, lambda results: ""),
    ("h200", factors.GAMMA, lambda results: ""),
    ("h200", factors.DRIFT, lambda results: ""),
]


@pytest.mark.parametrize(
    ("folder", "claim", "more"),
    CLAIMS,
    ids=[f"{folder}-{claim.name}" for folder, claim, _ in CLAIMS],
)
def test_tables_are_those_of_the_records(
    tmp_path: Path, folder: str, claim: Claim, more: Callable[[Results], str]
) -> None:
    paths = [p for p in sorted((RESULTS / folder).glob("*.json")) if p.stem[:-2] in claim.labels]
    paths = [p for p in paths if claim.seeds is None or int(p.stem[-1]) < claim.seeds]
    text = claim.write(Results.read(paths, claim.labels), tmp_path, more)
    assert " ".join(text.split()) in PAGE
    assert (tmp_path / f"{claim.name}.png").is_file()


def test_the_table_of_the_jumps_is_that_of_the_record() -> None:
    table = jumps.table(read_json(RESULTS / "jumps.json"))
    assert all(" ".join(part.split()) in PAGE for part in table.split("\n\n"))


ON_CPU: dict[str, Any] = {
    "cpu_pixels": 128,
    "cpu_shapes": SHAPES,
    "cpu_steps": 600,
    "cpu_step_gflops": 30.0,
}
"""What the records of a CPU were made with, which is not what the arms have there."""


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.json")), ids=lambda path: path.stem)
def test_records_are_of_the_arms_as_they_are(path: Path) -> None:
    record = read_json(path)
    device = record["device"]
    arm = Arm.named(record["arm"])
    if device == "cpu":
        arm = replace(arm, **ON_CPU)
    assert record["finished"] and record["settings"] == arm.as_dict(device)
    assert (record["pixels"], record["shapes"]) == (arm.pixels(device), list(arm.shapes(device)))
    assert record["steps"] == arm.steps(device)
