"""Both faces hold one generator, which holds the components."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.generation.video_generator import VideoGenerator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=QUICK_INDEX)


@pytest.mark.parametrize("kind", [PyramidDiTForVideoGeneration, PyramidFlowPipeline])
def test_a_face_holds_one_generator(
    kind: type[PyramidDiTForVideoGeneration] | type[PyramidFlowPipeline], folder: Path
) -> None:
    face = kind.from_pretrained(folder)
    generator = face.video_generator
    assert generator is face.video_generator and not isinstance(face, VideoGenerator)
    face.enable_fast_mode(history_window=2)
    face.batched_guidance = False
    assert generator.fast_mode.history_window == 2 and generator.batched_guidance is False
    assert generator.components.vae is face.vae and generator.components.vae is not None
    face.vae = None
    assert face.video_generator is generator and generator.components.vae is None


def test_attributes_of_the_official_face_are_those_of_its_components(folder: Path) -> None:
    model = PyramidDiTForVideoGeneration.from_pretrained(folder)
    components = model.video_generator.components
    for name in ("dit", "vae", "text_encoder", "scheduler", "statistics", "defaults"):
        assert getattr(model, name) is getattr(components, name)
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.size_multiple == 64
    with pytest.raises(AttributeError):
        model.device = torch.device("cpu")
