"""Frames are decoded while the transformer is at work, where that is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import LATENT_CHANNELS, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.generation.latent_codec import DecodeSizes, FrameDecoder

OPTIONS: dict[str, Any] = {
    "num_inference_steps": 1,
    "temp": 3,
    "guidance_scale": 2.0,
    "output_type": "np",
}
TEXT_TO_VIDEO = {"height": 64, "width": 64, "video_num_inference_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def pipeline(folder: Path) -> PyramidDiTForVideoGeneration:
    return PyramidDiTForVideoGeneration(folder, "fp32", "pyramid_flux")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in a run: a unit starts, or latents are decoded."""
    seen: list[str] = []
    push = FrameDecoder.push

    def spy(self: FrameDecoder, latents: torch.Tensor) -> torch.Tensor:
        seen.append(f"decode {latents.shape[2]}")
        return push(self, latents)

    monkeypatch.setattr(FrameDecoder, "push", spy)
    return seen


def generate(
    pipeline: PyramidDiTForVideoGeneration, events: list[str], **kwargs: Any
) -> np.ndarray:
    def callback(index: int, units: int) -> None:
        events.append(f"unit {index} of {units}")

    arguments = {"generator": torch.Generator().manual_seed(0), "callback": callback, **OPTIONS}
    if "image_latents" in kwargs:
        return pipeline.generate_i2v("a red circle", **arguments, **kwargs)
    return pipeline.generate("a red circle", **arguments, **TEXT_TO_VIDEO, **kwargs)


def test_each_unit_is_decoded_when_it_is_there(
    pipeline: PyramidDiTForVideoGeneration, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randn(1, LATENT_CHANNELS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    starts: dict[str, dict[str, Any]] = {"unit 0 of 3": {}, "": {"image_latents": image}}
    units = [*("decode 1", "unit 1 of 3"), *("decode 1", "unit 2 of 3"), "decode 1"]
    for first, kwargs in starts.items():
        events.clear()
        streamed = generate(pipeline, events, **kwargs)
        assert events == [first, *units] if first else events == units

        events.clear()
        with monkeypatch.context() as short_of_memory:
            short_of_memory.setattr(
                "pyramid_dit.generation.engine.can_stream", lambda *_, **__: False
            )
            at_the_end = generate(pipeline, events, **kwargs)
        assert events[-1] == "decode 3" and "decode 1" not in events
        assert streamed.shape == (1, 17, 64, 64, 3)
        np.testing.assert_allclose(streamed, at_the_end, rtol=0, atol=1.01 / 255)


def test_decoding_waits_for_the_end_where_weights_are_moved(
    pipeline: PyramidDiTForVideoGeneration, events: list[str]
) -> None:
    streamed = generate(pipeline, events)
    events.clear()
    pipeline.enable_sequential_cpu_offload("cpu")
    offloaded = generate(pipeline, events)
    assert events == ["unit 0 of 3", "unit 1 of 3", "unit 2 of 3", "decode 3"]
    np.testing.assert_allclose(streamed, offloaded, rtol=0, atol=1.01 / 255)


def test_forced_tiles_are_made_at_the_end(
    pipeline: PyramidDiTForVideoGeneration, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pyramid_dit.generation.engine.DecodeSizes.of",
        lambda *, save_memory: DecodeSizes(window=1, tile=32),
    )
    assert pipeline.vae is not None
    pipeline.vae.enable_tiling()
    permitted = generate(pipeline, events)
    assert "decode 1" in events
    events.clear()
    pipeline.vae.enable_tiling(force=True)
    forced = generate(pipeline, events)
    assert events == ["unit 0 of 3", "unit 1 of 3", "unit 2 of 3", "decode 3"]
    assert permitted.shape == forced.shape and np.abs(permitted - forced).max() > 2 / 255
