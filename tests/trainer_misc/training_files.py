"""What trainings of the tests read: a tiny checkpoint, latents, features of text; and two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from golden import PROJECT_ROOT
from tiny_checkpoint import LATENT_CHANNELS, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration

PROMPTS = ["a red circle", "a blue square", "black", "white on white"]
VARIANT = "diffusion_transformer_384p"


def write_latents(folder: Path, count: int = 8, *, frames: int = 3, size: int = 8) -> Path:
    """Annotations in the reference's form, of latents and features as its tools write them."""
    folder.mkdir(parents=True, exist_ok=True)
    model_folder = write_tiny_checkpoint(folder / "encoder", variant=VARIANT)
    model = PyramidDiTForVideoGeneration.from_pretrained(model_folder, load_vae=False)
    rng = torch.Generator().manual_seed(0)
    lines = []
    for number in range(count):
        latent, features = folder / f"{number}.pt", folder / f"{number}_text.pt"
        shape = (1, LATENT_CHANNELS, frames + number % 2, size, size)
        torch.save(torch.randn(shape, generator=rng), latent)
        prompt = PROMPTS[number % len(PROMPTS)]
        torch.save(text_features(model, prompt), features)
        record = {"video": f"{number}.mp4", "text": prompt}
        lines.append(record | {"latent": str(latent), "text_fea": str(features)})
    torch.save(text_features(model, ""), folder / "empty.pt")
    path = folder / "annotations.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@torch.no_grad()
def text_features(model: PyramidDiTForVideoGeneration, prompt: str) -> dict[str, Any]:
    """Features of a prompt by the reference's names."""
    condition = model.text_encoder([prompt])
    return {
        "prompt_embed": condition.prompt_embeds,
        "prompt_attention_mask": condition.prompt_attention_mask,
        "pooled_prompt_embed": condition.pooled_prompt_embeds,
    }


def run_two(*arguments: str) -> None:
    """Start two processes by torchrun, and wait for their end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", *arguments],
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run_two_in_turn(trainer: str, runs: list[list[str]], folder: Path) -> None:
    """Train with two processes once for each of `runs`, the arguments of `trainer`."""
    path = folder / "runs.json"
    path.write_text(json.dumps(runs))
    run_two(str(PROJECT_ROOT / "tests/runs_in_turn.py"), trainer, str(path))
