"""Encoding and decoding over real processes gives what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden import PROJECT_ROOT

from video_vae.context_parallel import plan_rounds


@pytest.mark.parametrize(
    ("latents", "ranks", "window", "plan"),
    [
        (1, 3, None, [[1, 0, 0]]),
        (2, 3, None, [[2, 0, 0]]),
        (16, 4, None, [[5, 4, 4, 3]]),
        (16, 4, 2, [[3, 2, 2, 2], [2, 2, 2, 1]]),
        (16, 8, 1, [[2, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]]),
        (4, 1, 1, [[2], [1], [1]]),
    ],
)
def test_plan(latents: int, ranks: int, window: int | None, plan: list[list[int]]) -> None:
    assert plan_rounds(latents, ranks, window) == plan


def test_every_latent_is_planned_once() -> None:
    for latents in range(1, 32):
        for ranks in range(1, 9):
            for window in (None, 1, 2, 3):
                plan = plan_rounds(latents, ranks, window)
                assert sum(map(sum, plan)) == latents
                assert all(len(shares) == ranks and shares[0] > 0 for shares in plan)
                assert all(min(shares) > 0 for shares in plan[:-1])
                assert all(shares == sorted(shares, reverse=True) for shares in plan)


def test_windows_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="window is 0 latents"):
        plan_rounds(3, 2, 0)


def run_ranks(script: str, ranks: int, folder: Path) -> list[Any]:
    """What each of the ranks of a script wrote down."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    torchrun = subprocess.Popen(
        [sys.executable, *command, str(PROJECT_ROOT / "tests" / script), str(folder)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = torchrun.communicate(timeout=600)
    finally:
        torchrun.terminate()  # it ends its processes
    assert torchrun.returncode == 0, errors
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_over_ranks_is_alone(ranks: int, tmp_path: Path) -> None:
    reports = run_ranks("vae_ranks.py", ranks, tmp_path)
    for rank, report in enumerate(reports):
        wrong = {name: value for name, value in report["differences"].items() if value > 1e-5}
        assert not wrong, f"rank {rank}: {wrong}"
        assert "different shapes: [[1, 4, 2, 4, 4], [1, 4, 3, 4, 4]" in report["other shapes"]
    assert len(reports[-1]["differences"]) == 27


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_cross_the_ranks(ranks: int, tmp_path: Path) -> None:
    """Losses, figures and every gradient, averaged over the ranks, are those of one process."""
    for report in run_ranks("context_ranks.py", ranks, tmp_path):
        least = 16 * ranks + 1
        assert report.pop("short") == (
            f"a clip of 25 frames is too short for {ranks} ranks: at least {least}"
        )
        assert f"a clip of 1 frames is too short for {ranks} ranks" in report.pop("picture")
        for case, differences in report.items():
            wrong = {name: value for name, value in differences.items() if value > 1e-8}
            assert not wrong, f"{case}: {wrong}"
            assert ("loss.discriminator.main.0.weight" in differences) == ("without" not in case)
            assert ("vae.encoder.conv_in.conv.weight" in differences) == ("frozen" not in case)
