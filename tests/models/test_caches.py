"""Caches of diffusers: those that work skip work, and the others are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import TextKVCacheConfig
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor

from pyramid_dit import PyramidFlowPipeline

STEPS = 8  # in each of three stages
TAYLOR: dict[str, Any] = {"cache_interval": 3, "disable_cache_before_step": 3}
WORKING: dict[str, Any] = {
    "first block": FirstBlockCacheConfig(1e6),
    "mag": MagCacheConfig(mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS),
    "taylor": TaylorSeerCacheConfig(**TAYLOR),
    "taylor, lite": TaylorSeerCacheConfig(**TAYLOR, use_lite_mode=True),
}


class Counting:
    """A pipeline that counts the attentions that its last block computes."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = PyramidFlowPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        self.attentions = 0
        dit = self.pipeline.transformer
        blocks = getattr(dit, "single_transformer_blocks", dit.transformer_blocks)
        blocks[-1].attn.to_k.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.attentions += 1

    def latents(self) -> Tensor:
        self.attentions = 0
        return self.pipeline(
            "a red circle",
            num_frames=1,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames


@pytest.fixture(scope="module", params=["pyramid_flux", "pyramid_mmdit"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Counting]:
    folder = tmp_path_factory.mktemp("model")
    yield Counting(write_tiny_checkpoint(folder, request.param, index=QUICK_INDEX))


@pytest.mark.parametrize("name", WORKING)
def test_work_is_skipped(made: Counting, name: str) -> None:
    exact = made.latents()
    assert made.attentions == 3 * STEPS
    made.pipeline.transformer.enable_cache(WORKING[name])
    try:
        cached = made.latents()
        assert made.attentions < 0.7 * 3 * STEPS
        assert 0 < (cached - exact).norm() / exact.norm() < 0.5
        assert torch.equal(made.latents(), cached)  # nothing is left of the run before
        made.pipeline.enable_fast_mode(history_cache=2)
        with pytest.raises(ValueError, match="history_cache"):
            made.latents()
    finally:
        made.pipeline.disable_fast_mode()
        made.pipeline.transformer.disable_cache()
    assert torch.equal(made.latents(), exact)


@pytest.mark.parametrize(
    "config",
    [
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2),
        FasterCacheConfig(spatial_attention_block_skip_range=2),
        TextKVCacheConfig(),
        object(),
    ],
    ids=lambda config: type(config).__name__,
)
def test_what_would_change_nothing_is_refused(made: Counting, config: Any) -> None:
    dit = made.pipeline.transformer
    with pytest.raises(ValueError, match=f"{type(config).__name__} has no effect.*FirstBlockCache"):
        dit.enable_cache(config)
    assert not dit.is_cache_enabled
