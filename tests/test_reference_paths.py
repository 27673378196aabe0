"""Names at the paths that the reference's scripts import them from."""

from __future__ import annotations

from importlib import import_module

import pytest

from pyramid_dit import (
    FluxTextEncoderWithMask,
    PyramidDiffusionMMDiT,
    PyramidFluxTransformer,
    SD3TextEncoderWithMask,
)
from pyramid_dit.models.blocks import JointBlock, SingleBlock
from video_vae import CausalVideoVAE

NAMES: dict[str, dict[str, type]] = {
    "pyramid_dit.flux_modules": {
        "PyramidFluxTransformer": PyramidFluxTransformer,
        "FluxTextEncoderWithMask": FluxTextEncoderWithMask,
        "FluxTransformerBlock": JointBlock,
        "FluxSingleTransformerBlock": SingleBlock,
    },
    "pyramid_dit.mmdit_modules": {
        "PyramidDiffusionMMDiT": PyramidDiffusionMMDiT,
        "SD3TextEncoderWithMask": SD3TextEncoderWithMask,
        "JointTransformerBlock": JointBlock,
    },
    "video_vae.modeling_causal_vae": {"CausalVideoVAE": CausalVideoVAE},
}


@pytest.mark.parametrize("path", NAMES)
def test_names(path: str) -> None:
    module = import_module(path)
    assert sorted(module.__all__) == sorted(NAMES[path])
    assert {name: getattr(module, name) for name in module.__all__} == NAMES[path]
