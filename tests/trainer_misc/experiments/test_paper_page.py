"""The page of the paper's claims has the tables that the committed records give."""

from __future__ import annotations

from pathlib import Path

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

PAPER = PROJECT_ROOT / "docs" / "paper"
RESULTS = PAPER / "results"
PAGE = " ".join((PAPER / "README.md").read_text(encoding="utf-8").split())
CLAIMS = (
    spatial_pyramid.CLAIM,
    temporal_pyramid.CLAIM,
    attention.CLAIM,
    factors.STAGES,
    factors.GAMMA,
    factors.DRIFT,
)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
@pytest.mark.parametrize("folder", ["cpu", "h200"])
def test_tables_are_those_of_the_records(tmp_path: Path, folder: str, claim: Claim) -> None:
    more = spatial_pyramid.factors if claim is spatial_pyramid.CLAIM else lambda results: ""
    paths = [p for p in sorted((RESULTS / folder).glob("*.json")) if p.stem[:-2] in claim.labels]
    paths = [p for p in paths if claim.seeds is None or int(p.stem[-1]) < claim.seeds]
    text = claim.write(Results.read(paths, claim.labels), tmp_path, more)
    assert " ".join(text.split()) in PAGE
    assert (tmp_path / f"{claim.name}.png").is_file()


def test_the_tokens_are_those_of_the_layout() -> None:
    assert " ".join(temporal_pyramid.tokens(Results([], {})).split()) in PAGE


def test_the_table_of_the_jumps_is_that_of_the_record() -> None:
    table = jumps.table(read_json(RESULTS / "jumps.json"))
    assert all(" ".join(part.split()) in PAGE for part in table.split("\n\n"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.json")), ids=lambda path: path.stem)
def test_records_are_of_the_arms_as_they_are(path: Path) -> None:
    record = read_json(path)
    device = record["device"]
    arm = Arm.named(record["arm"])
    assert record["finished"] and record["settings"] == arm.as_dict(device)
    assert (record["pixels"], record["shapes"]) == (arm.pixels(device), list(arm.shapes(device)))
    assert record["steps"] == arm.steps(device)
