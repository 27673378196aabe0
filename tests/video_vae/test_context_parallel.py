"""Encoding and decoding over real processes gives what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_over_ranks_is_alone(ranks: int, tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    torchrun = subprocess.Popen(
        [sys.executable, *command, str(PROJECT_ROOT / "tests" / "vae_ranks.py"), str(tmp_path)],
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
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    for rank, report in enumerate(reports):
        wrong = {name: value for name, value in report["differences"].items() if value > 1e-5}
        assert not wrong, f"rank {rank}: {wrong}"
        assert "different shapes: [[1, 4, 2, 4, 4], [1, 4, 3, 4, 4]" in report["other shapes"]
    assert len(reports[-1]["differences"]) == 25
