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
    "pyramid_dit": {
        "JointTransformerBlock": JointBlock,
        "FluxTransformerBlock": JointBlock,
        "FluxSingleTransformerBlock": SingleBlock,
        "FluxTextEncoderWithMask": FluxTextEncoderWithMask,
        "SD3TextEncoderWithMask": SD3TextEncoderWithMask,
    },
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
    assert {name: getattr(module, name) for name in NAMES[path]} == NAMES[path]
    assert set(NAMES[path]) <= set(module.__all__)
    if path != "pyramid_dit":
        assert len(module.__all__) == len(NAMES[path])
