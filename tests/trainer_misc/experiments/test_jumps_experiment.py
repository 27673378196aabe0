"""Energies at the edges of blocks, the jumps that are compared, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pyramid_dit.flow.latents import upsample_nearest
from trainer_misc.experiments import jumps


def test_white_latents_have_no_blocks_and_repeated_ones_have() -> None:
    rng = torch.Generator().manual_seed(0)
    white = torch.randn(1, 8, 1, 64, 64, generator=rng)
    assert jumps.latent_block_edges(white) == pytest.approx(1, abs=0.03)
    blocks = upsample_nearest(white) + 0.1 * torch.randn(1, 8, 1, 128, 128, generator=rng)
    # between blocks 2 + 2 * 0.01, inside of them 2 * 0.01
    assert jumps.latent_block_edges(blocks) == pytest.approx(2.02 / 0.02, rel=0.05)


def test_frames_are_looked_at_without_outlines() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(100, 104, (4, 64, 64, 3)).astype(np.uint8)
    assert jumps.frame_block_edges(frames) == pytest.approx(1, abs=0.1)
    tiles = (np.arange(64) // 16) % 2 * 6
    marked = frames + tiles.astype(np.uint8)[:, None]
    # 4 levels differ by 2.5 in the square, with steps of 6 on one of two axes by 38.5: 41 / 5
    assert jumps.frame_block_edges(marked) == pytest.approx(8.2, 0.1)
    marked[:, 20:40, 20:40] += 100
    assert jumps.frame_block_edges(marked) == pytest.approx(8.2, 0.1)


@pytest.mark.parametrize(("jump", "variance"), [("corrective", 1.0), ("white", 1.0), ("none", 0)])
def test_jumps_differ_in_their_noise_alone(jump: str, variance: float) -> None:
    scheduler = jumps.JUMPS[jump]()
    shape = (1, 1, 1, 200, 200)
    noise = scheduler.sample_block_noise(shape, generator=torch.Generator().manual_seed(0))
    assert noise.shape == shape
    assert float(noise.square().mean()) == pytest.approx(variance, abs=0.02)
    blocks = noise.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).movedim(-3, -2).reshape(-1, 4)
    covariance = -1 / 3 if jump == "corrective" else 0
    assert float((blocks[:, 0] * blocks[:, 3]).mean()) == pytest.approx(covariance, abs=0.02)


def test_the_corrective_jump_alone_leads_to_the_start_of_the_training() -> None:
    rng = torch.Generator().manual_seed(1)
    found = jumps.starts(torch.randn(4, 8, 2, 64, 64, generator=rng), 0)
    assert found["corrective"] == pytest.approx(found["training"], rel=0.03)
    assert found["white"] < 0.9 * found["training"]
    assert found["none"] == 0


def test_the_command_measures_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path), "--quick", "--device", "cpu", "--seeds", "1"]
    jumps.main(arguments)
    result = json.loads((tmp_path / "jumps.json").read_text())
    assert [run["jump"] for run in result["runs"]] == list(jumps.JUMPS)
    assert len({run["latent_edges"] for run in result["runs"]}) == 3
    assert (tmp_path / "jumps.png").is_file()
    assert "| pictures, 1 step a stage | white |" in (tmp_path / "jumps.md").read_text()
    capsys.readouterr()
    jumps.main(arguments)  # all is there
    assert "seed 0" not in capsys.readouterr().out
    assert json.loads((tmp_path / "jumps.json").read_text()) == result
