"""The recipes of the reference and of the documentation, from raw files to trained steps."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import PROJECT_ROOT
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint
from training_files import PROMPTS, VARIANT

from pyramid_dit.video_io import export_to_video

SMALL = "--steps 1 --num_workers 0 --model_dtype fp32 --device cpu --report_to none --print_freq 1"
"""What makes a documented training short; flags that come last win."""

Shell = Callable[..., None]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documentation's commands are told about: a checkpoint, clips, pictures, shards."""
    folder = tmp_path_factory.mktemp("recipes")
    write_tiny_checkpoint(folder / "models/pyramid-flow-miniflux", variant=VARIANT)
    for name in ("my-clips", "my-pictures", "shards"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    lines, rows = [], ["file_name,text"]
    for number, text in enumerate(PROMPTS):
        size = (96, 64) if number % 2 else (64, 96)
        frames = rng.integers(0, 256, (17, 1, 1, 3), np.uint8).repeat(size[0], 1).repeat(size[1], 2)
        clip = folder / f"my-clips/{number}.mp4"
        export_to_video(list(frames), clip, 24)
        clip.with_suffix(".txt").write_text(text)
        lines.append({"video": f"my-clips/{number}.mp4", "text": text})
        lines[-1] |= {"latent": f"latents/{number}.safetensors", "text_fea": f"texts/{number}.pt"}
        Image.fromarray(frames[0]).save(folder / f"my-pictures/{number}.png")
        rows.append(f"{number}.png,{text}")
        with tarfile.open(folder / f"shards/clips-{number:03}.tar", "w") as archive:
            archive.add(clip, "0.mp4")
            info = tarfile.TarInfo("0.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    (folder / "my-pictures/metadata.csv").write_text("\n".join(rows) + "\n")
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "scripts").symlink_to(PROJECT_ROOT / "scripts")
    return folder


@pytest.fixture
def shell(files: Path, tmp_path: Path) -> Shell:
    """Runs a command in the folder, with trainings and videos made short."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *trainer_misc.train_dit*) set -- "$@" {SMALL} ;; esac\n'
        'case "$*" in *--load_vae*) set -- "$@" --resolution 64x64,128x64 ;; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    command = tmp_path / "pyramid-flow"
    command.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m pyramid_dit "$@" '
        "--num-frames 9 --size 128x128 --steps 2 --device cpu\n"
    )
    for script in (python, command):
        script.chmod(0o755)

    def run(command: str, **settings: str) -> None:
        small = {"WIDTH": "64", "HEIGHT": "64", "NUM_FRAMES": "17", "GPUS": "1"}
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT_ROOT),
            "OMP_NUM_THREADS": "1",
            **small,
            **settings,
        }
        done = subprocess.run(
            ["sh", "-ec", command], cwd=files, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def trained(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log of a run that wrote its result."""
    assert (folder / "model" / VARIANT / "config.json").is_file()
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def commands(heading: str, page: str = "training", language: str = "sh") -> list[str]:
    """The shell blocks, or those of another language, of a section of a page in docs."""
    text = (PROJECT_ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_folders_and_shards_as_documented(files: Path, shell: Shell) -> None:
    (block,) = commands("Data")
    shell(block)
    for name in ("folder", "shards"):
        assert len(trained(files / "output" / name)) == 1


@pytest.mark.slow
def test_from_raw_files_over_extraction_to_trained_steps_as_documented(
    files: Path, shell: Shell
) -> None:
    """The reference's way: latents and features of texts, then the autoregressive training."""
    extraction, training = commands("Latents and features of texts")
    shell(extraction)
    assert len(list((files / "latents").iterdir())) == len(PROMPTS)
    assert len(list((files / "texts").iterdir())) == len(PROMPTS)
    shell(training)
    (line,) = trained(files / "output/features")
    assert 0 < line["loss"] < 10 and 0 <= line["waiting"] <= 1


@pytest.mark.parametrize(
    "heading",
    ["On a laptop", pytest.param("At released size", marks=pytest.mark.slow)],
)
def test_a_lora_from_a_folder_of_clips_as_documented(
    heading: str, files: Path, shell: Shell, tmp_path: Path
) -> None:
    """Each has its clips in a folder of its own; at released size the checkpoint is a tiny one."""
    pytest.importorskip("peft")
    for source in commands("On a laptop", "finetune", "python"):
        (tmp_path / "clips.py").write_text(source)
        shell(f"cd {tmp_path} && python clips.py")
    shell(f"ln -s {files}/models {files}/scripts {tmp_path}")
    for block in commands(heading, "finetune"):
        shell(f"cd {tmp_path}\n{block}", BATCH_SIZE="4")
    (made,) = tmp_path.glob("*.mp4")
    assert made.stat().st_size
    run = tmp_path / "output/lora"
    (line,) = (json.loads(line) for line in (run / "log.jsonl").open())
    assert line["step"] == 1 and 0 < line["loss"] < 10
    assert (run / "pytorch_lora_weights.safetensors").is_file()


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
    script: str, source: str, settings: dict[str, str], files: Path, shell: Shell, tmp_path: Path
) -> None:
    if source == "clips.jsonl":
        shell(commands("Latents and features of texts")[0])
    paths = {"MODEL_PATH": "models/pyramid-flow-miniflux", "ANNO_FILE": source}
    given = {**paths, "VARIANT": VARIANT, "OUTPUT_DIR": str(tmp_path / "run"), **settings}
    shell(f"scripts/{script} --steps 2", NUM_FRAMES="3", **given)
    assert trained(tmp_path / "run")
