"""Estimates of what a step of the transformer takes."""

from __future__ import annotations

import pytest
import torch
from small_models import both_models, small_model

from pyramid_dit.flow.latents import latent_pyramid
from pyramid_dit.flow.temporal_pyramid import gather_history, history_plan
from pyramid_dit.generation.memory_estimates import step_memory, unit_tokens
from pyramid_dit.models.transformer import PyramidTransformer


@pytest.mark.parametrize("frame_per_unit", [1, 2])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("unit", [0, 1, 2, 5])
def test_tokens_are_those_of_the_history_and_of_the_unit(
    unit: int, stages: int, frame_per_unit: int
) -> None:
    past = 0 if unit == 0 else 1 + (unit - 1) * frame_per_unit
    plan = history_plan(past, stages - 1, frame_per_unit=frame_per_unit)
    clean = latent_pyramid(torch.zeros(1, 1, max(past, 1), 16, 24), stages)
    history = sum(clip.numel() // 4 for clip in gather_history(clean, plan))
    frames = frame_per_unit if unit else 1
    tokens = unit_tokens(
        unit, frames, frame_per_unit=frame_per_unit, stages=stages, height=16, width=24
    )
    assert tokens == history + frames * 8 * 12


@both_models
def test_memory_grows_with_tokens_batch_and_width_of_numbers(
    model_class: type[PyramidTransformer],
) -> None:
    dit = small_model(model_class)
    one = step_memory(dit, tokens=100, batch=1)
    assert one >= 100 * 24 * 4  # at least the tokens themselves
    assert step_memory(dit, tokens=100, batch=2) == step_memory(dit, tokens=200, batch=1) == 2 * one
    assert step_memory(dit.to(torch.bfloat16), tokens=100, batch=1) == one // 2
