"""Lengths of clips spread over processes, over accumulated batches, or over both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_files import VARIANT, text_features, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.flow.objective import highest_stage_units

UNITS = 4
WAYS = {"processes": (4, 1), "batches": (1, 4), "both": (2, 4), "more processes": (8, 1)}
"""Processes, and batches of each."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PyramidDiTForVideoGeneration:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), variant=VARIANT)
    model = PyramidDiTForVideoGeneration.from_pretrained(
        folder,
        load_vae=False,
        sample_ratios=(1, 2, 1),
        max_temporal_length=UNITS,
        video_sync_group=UNITS,
    )
    model.dit.train().requires_grad_(True)
    return model


def mean_gradient(
    model: PyramidDiTForVideoGeneration, processes: int, batches: int
) -> dict[str, Tensor]:
    """What a step's processes and accumulated batches give on average, of one batch of clips.

    What is random about a batch depends on its length, as it otherwise would on its number.
    """
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(4, model.latent_channels, UNITS, 8, 8, generator=rng)
    features = [text_features(model, prompt) for prompt in ("a red circle", "black")] * 2
    text = {
        "prompt_embeds": torch.cat([f["prompt_embed"] for f in features]),
        "prompt_attention_mask": torch.cat([f["prompt_attention_mask"] for f in features]),
        "pooled_prompt_embeds": torch.cat([f["pooled_prompt_embed"] for f in features]),
    }
    model.dit.zero_grad()
    for batch in range(batches):
        for rank in range(processes):
            place: Any = SimpleNamespace(process_index=rank, num_processes=processes)
            model.accumulate_steps = batch
            longest = highest_stage_units(
                step=batch + 1,
                rank=rank,
                world_size=processes,
                max_units=UNITS,
                sync_group=UNITS,
            )
            noise = torch.Generator().manual_seed(longest)
            loss, _ = model(latents, text, ["video"], True, place, generator=noise)
            (loss / (batches * processes)).backward()
    return {n: p.grad.clone() for n, p in model.dit.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "batches"])
def test_the_expected_gradient_is_the_same(way: str, model: PyramidDiTForVideoGeneration) -> None:
    expected = mean_gradient(model, *WAYS["batches"])
    found = mean_gradient(model, *WAYS[way])
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert found.keys() == expected.keys() and largest > 0
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * largest, name


def test_one_length_alone_gives_another(model: PyramidDiTForVideoGeneration) -> None:
    all_lengths = mean_gradient(model, *WAYS["batches"])
    first = mean_gradient(model, 1, 1)
    largest = max(gradient.abs().max() for gradient in all_lengths.values())
    assert any((first[name] - all_lengths[name]).abs().max() > 0.05 * largest for name in first)
