"""`from_single_file` of the transformers and of the VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoint import DIT_CONFIGS, VAE_CONFIG
from torch import Tensor

from pyramid_dit import PyramidDiffusionMMDiT, PyramidFluxTransformer
from video_vae import CausalVideoVAE
from video_vae.single_file import Shapes

CONFIGS: dict[type[Any], dict[str, Any]] = {
    PyramidFluxTransformer: DIT_CONFIGS["pyramid_flux"],
    PyramidDiffusionMMDiT: DIT_CONFIGS["pyramid_mmdit"],
    CausalVideoVAE: VAE_CONFIG,
}
CANNOT_BE_TOLD = {  # what no shape shows
    PyramidFluxTransformer: ("axes_dims_rope",),
    PyramidDiffusionMMDiT: ("sample_size",),
    CausalVideoVAE: ("encoder_norm_num_groups", "decoder_norm_num_groups"),
}
all_models = pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)


def model_of(kind: type[Any]) -> Any:
    torch.manual_seed(0)
    return kind(**CONFIGS[kind]).eval()


def assert_same(model: Any, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    assert not model.training


@all_models
@pytest.mark.parametrize("way", ["safetensors", "pickled", "training", "prefixed", "dictionary"])
def test_one_file_of_any_kind(kind: type[Any], way: str, tmp_path: Path) -> None:
    state = model_of(kind).state_dict()
    path: Any = tmp_path / ("weights.safetensors" if way in ("safetensors", "prefixed") else "w.pt")
    prefix = kind._single_file_prefixes[-1]
    match way:
        case "safetensors":
            save_file(state, path)
        case "prefixed":
            others = {"text_encoder.weight": torch.ones(2)}
            save_file({prefix + key: value for key, value in state.items()} | others, path)
        case "pickled":
            torch.save(state, path)
        case "training":
            torch.save({"model": state, "step": 3}, path)
        case "dictionary":
            path = state
    model = kind.from_single_file(path, config=CONFIGS[kind])
    assert type(model) is kind
    assert_same(model, state)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@all_models
def test_the_config_beside_the_file_or_by_path(kind: type[Any], tmp_path: Path) -> None:
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    assert_same(kind.from_single_file(path), model.state_dict())
    moved = path.rename(tmp_path.parent / f"{kind.__name__}.safetensors")
    for config in (tmp_path, str(tmp_path), tmp_path / "config.json"):
        assert_same(kind.from_single_file(moved, config=config), model.state_dict())
    # that of another class is not taken
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet", "num_layers": 9}))
    again = moved.rename(path)
    if kind is PyramidDiffusionMMDiT:
        assert_same(kind.from_single_file(again), model.state_dict())
    else:
        with pytest.raises(ValueError, match="pass config="):
            kind.from_single_file(again)


@all_models
@pytest.mark.parametrize("released", [False, True])
def test_shapes_tell_the_config(kind: type[Any], released: bool) -> None:
    with torch.device("meta"):
        model = kind(**({} if released else CONFIGS[kind]))
    config = kind._config_of_shapes(Shapes.of(model.state_dict()))
    for name in CONFIGS[kind].keys() - CANNOT_BE_TOLD[kind]:
        expected = model.config[name]
        assert config[name] == ([*expected] if isinstance(expected, tuple) else expected), name


@all_models
def test_dtypes(kind: type[Any], tmp_path: Path) -> None:
    half = model_of(kind).to(torch.bfloat16).state_dict()
    save_file(half, tmp_path / "half.safetensors")

    def dtype(name: str, **arguments: Any) -> torch.dtype:
        path = tmp_path / f"{name}.safetensors"
        return kind.from_single_file(path, config=CONFIGS[kind], **arguments).dtype

    assert dtype("half") == torch.bfloat16
    assert dtype("half", torch_dtype=torch.float32) == dtype("half", dtype=torch.float32)
    narrow = {key: value.to(torch.float8_e4m3fn) for key, value in half.items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(ValueError, match="float8_e4m3fn: say which dtype"):
        dtype("narrow")
    assert dtype("narrow", dtype=torch.bfloat16) == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, FileNotFoundError, "no file of weights at"),
        ({"dtype": torch.float32, "torch_dtype": torch.bfloat16}, ValueError, "one of them"),
    ],
)
def test_arguments_that_do_not_fit(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        CausalVideoVAE.from_single_file(tmp_path / "nothing.safetensors", **change)


def test_weights_that_do_not_fit() -> None:
    vae = model_of(CausalVideoVAE).state_dict()
    flux = model_of(PyramidFluxTransformer).state_dict()
    with pytest.raises(ValueError, match="no PyramidFluxTransformer: there is no 'context_emb"):
        PyramidFluxTransformer.from_single_file(vae)
    missing = {key: value for key, value in vae.items() if key != "quant_conv.conv.bias"}
    with pytest.raises(ValueError, match="(?s)does not fit CausalVideoVAE.*quant_conv"):
        CausalVideoVAE.from_single_file(missing, config=VAE_CONFIG)
    with pytest.raises(ValueError, match="(?s)does not fit PyramidFluxTransformer.*size mismatch"):
        changed = DIT_CONFIGS["pyramid_flux"] | {"num_attention_heads": 4}
        PyramidFluxTransformer.from_single_file(flux, config=changed)


def test_the_patches_of_a_decoder_are_told_from_its_last_convolution() -> None:
    sizes = {"decoder_spatial_up_sample": [True, True, False, False], "decoder_patch_size": 2}
    light = CausalVideoVAE(**VAE_CONFIG | sizes)
    config = CausalVideoVAE._config_of_shapes(Shapes.of(light.state_dict()))
    assert (config["decoder_patch_size"], config["decoder_out_channels"]) == (2, 3)
    groups = {name: VAE_CONFIG[name] for name in CANNOT_BE_TOLD[CausalVideoVAE]}
    CausalVideoVAE(**config | groups).load_state_dict(light.state_dict())


@pytest.mark.parametrize("size", [0, 3, -2])
def test_patches_are_powers_of_two(size: int) -> None:
    with pytest.raises(ValueError, match=f"must be a power of 2, got {size}"):
        CausalVideoVAE(**VAE_CONFIG | {"decoder_patch_size": size})
