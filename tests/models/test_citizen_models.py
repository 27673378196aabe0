"""What diffusers asks of all its models, asked of ours; what is not met is in docs/diffusers.md.

Gradient checkpointing, caches and LoRA are in the tests beside this one, `AutoModel` in
`test_loading`.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.training_utils import EMAModel
from small_models import SMALL, both_models, small_inputs, small_model
from tiny_checkpoint import VAE_CONFIG
from torch import Tensor

from video_vae import CausalVideoVAE

all_models = pytest.mark.parametrize(
    "kind", [*SMALL, CausalVideoVAE], ids=lambda kind: kind.__name__
)


def model_of(kind: type[Any]) -> Any:
    if kind is not CausalVideoVAE:
        return small_model(kind)
    torch.manual_seed(0)
    return CausalVideoVAE(**VAE_CONFIG)


def output_of(model: Any) -> Tensor:
    """What the model makes of inputs that are always the same."""
    if isinstance(model, CausalVideoVAE):
        pixels = torch.randn(2, 3, 9, 16, 16, generator=torch.Generator().manual_seed(1))
        return model(pixels, sample_posterior=False)[1]
    return model(**small_inputs())[0]


def same(model: Any, other: Any) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


@all_models
@torch.no_grad()
def test_outputs_are_always_the_same(kind: type[Any]) -> None:
    model = model_of(kind).eval()
    first = output_of(model)
    assert first.isfinite().all() and first.any()
    assert torch.equal(output_of(model), first)


# ---- saving and loading -------------------------------------------------------------------------


@all_models
@pytest.mark.parametrize("shards", ["10GB", "20KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@torch.no_grad()
def test_what_is_saved_is_loaded(
    kind: type[Any], shards: str, variant: str | None, tmp_path: Path
) -> None:
    model = model_of(kind).eval()
    model.save_pretrained(tmp_path, max_shard_size=shards, variant=variant)
    files = [*tmp_path.glob("*.safetensors")]
    assert all(("fp16" in file.name) == (variant is not None) for file in files)
    assert (len(files) > 1) == (shards == "20KB") == bool([*tmp_path.glob("*.index*.json")])
    loaded = kind.from_pretrained(tmp_path, variant=variant)
    assert not loaded.training and same(loaded, model)
    assert torch.equal(output_of(loaded), output_of(model))
    with pytest.raises(OSError, match="(?i)no file|not found|does not appear"):
        kind.from_pretrained(tmp_path, variant="bf16" if variant is None else None)


@all_models
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_loaded_in_a_dtype(kind: type[Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    for low in (True, False):
        loaded = kind.from_pretrained(tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low)
        assert loaded.dtype == dtype
        for ours, theirs in zip(loaded.parameters(), model.to(dtype).parameters(), strict=True):
            assert torch.equal(ours, theirs)


@all_models
def test_the_config_makes_the_same_model(kind: type[Any], tmp_path: Path) -> None:
    model = model_of(kind)
    again = kind.from_config(model.config)
    assert {**again.config} == {**model.config}
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    model.save_config(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    assert entries["_class_name"] == kind.__name__
    parameters = {*inspect.signature(kind.__init__).parameters} - {"self"}
    assert parameters == {name for name in entries if not name.startswith("_")}
    kind.from_config(kind.load_config(tmp_path)).save_config(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == entries


# ---- forward ------------------------------------------------------------------------------------


@both_models
@torch.no_grad()
def test_velocities_as_a_list_a_tuple_and_a_record(model_class: type[Any]) -> None:
    model, inputs = small_model(model_class), small_inputs(entries=[[(1, 4, 4)], [(1, 8, 8)]])
    velocities = model(**inputs)
    assert isinstance(velocities, list) and len(velocities) == 2
    record = model(**inputs, return_dict=True)
    assert isinstance(record, Transformer2DModelOutput)
    (listed,) = model(**inputs, return_dict=False)
    for theirs in (record.sample, listed):
        assert all(torch.equal(*pair) for pair in zip(velocities, theirs, strict=True))
    with pytest.raises(ValueError, match="must be one of scale, got 'mask'"):
        model(**inputs, attention_kwargs={"mask": None})


@both_models
@torch.no_grad()
def test_attention_kwargs_of_a_forward_weigh_its_loras(model_class: type[Any]) -> None:
    peft = pytest.importorskip("peft")
    model = small_model(model_class)
    plain = output_of(model)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    whole = output_of(model)
    for scale, expected in ((0, plain), (1, whole)):
        (scaled,) = model(**small_inputs(), attention_kwargs={"scale": scale})
        torch.testing.assert_close(scaled, expected)
    (half,) = model(**small_inputs(), attention_kwargs={"scale": 0.5})
    assert torch.equal(output_of(model), whole) and not torch.equal(half, whole)
    broken = small_inputs() | {"timestep_ratio": torch.zeros(1)}
    with pytest.raises(ValueError, match="timestep_ratio"):
        model(**broken, attention_kwargs={"scale": 0.5})
    assert torch.equal(output_of(model), whole)
    model.enable_gradient_checkpointing()
    with torch.enable_grad(), pytest.raises(ValueError, match="gradient checkpointing"):
        model(**small_inputs(), attention_kwargs={"scale": 0.5})


def test_arguments_of_forward() -> None:
    for kind in (*SMALL, CausalVideoVAE):
        assert [*inspect.signature(kind.forward).parameters][1] == "sample"
    for method in (CausalVideoVAE.encode, CausalVideoVAE.decode):
        assert "return_dict" in inspect.signature(method).parameters


@torch.no_grad()
def test_a_vae_gives_records_and_tuples_whole_or_in_slices() -> None:
    vae = model_of(CausalVideoVAE)
    pixels = torch.randn(3, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    moments = vae.encode(pixels).latent_dist.parameters
    assert torch.equal(vae.encode(pixels, return_dict=False)[0].parameters, moments)
    z = moments.chunk(2, dim=1)[0]
    frames = vae.decode(z).sample
    assert torch.equal(vae.decode(z, return_dict=False)[0], frames)
    assert {*seen} == {3}
    vae.enable_slicing()
    seen.clear()
    torch.testing.assert_close(vae.encode(pixels).latent_dist.parameters, moments)
    torch.testing.assert_close(vae.decode(z).sample, frames)
    assert seen == [1] * 6
    vae.disable_slicing()
    assert torch.equal(vae.decode(z).sample, frames)


# ---- training -----------------------------------------------------------------------------------


@all_models
def test_every_weight_is_trained(kind: type[Any]) -> None:
    model = model_of(kind).train()
    assert model._supports_gradient_checkpointing
    output_of(model).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@all_models
def test_an_average_of_weights(kind: type[Any], tmp_path: Path) -> None:
    model = model_of(kind)
    average = EMAModel(model.parameters(), decay=0.5, model_cls=kind, model_config=model.config)
    before = [parameter.clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.optimization_step = 1000
    average.step(model.parameters())
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, kind)
    for old, ours, theirs in zip(before, average.shadow_params, loaded.shadow_params, strict=True):
        torch.testing.assert_close(ours, old + 0.5)
        assert torch.equal(ours, theirs)


# ---- where weights are, and as what -------------------------------------------------------------


@all_models
@torch.no_grad()
def test_weights_stored_in_eight_bits(kind: type[Any]) -> None:
    model = model_of(kind).eval()
    expected = output_of(model)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    stored = {parameter.dtype for parameter in model.parameters()}
    assert torch.float8_e4m3fn in stored
    error = (output_of(model) - expected).norm() / expected.norm()
    assert 0 < error < 0.5
    assert {parameter.dtype for parameter in model.parameters()} == stored


@all_models
@pytest.mark.parametrize("way", ["leaf_level", "block_level"])
@torch.no_grad()
def test_weights_that_come_in_groups(kind: type[Any], way: str) -> None:
    model = model_of(kind).eval()
    expected = output_of(model)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=way,
        num_blocks_per_group=1 if way == "block_level" else None,
    )
    for _ in range(2):
        assert torch.equal(output_of(model), expected)


@all_models
def test_what_a_model_says_of_itself(kind: type[Any]) -> None:
    model = model_of(kind)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert model.num_parameters() == numbers
    assert model.get_memory_footprint(return_buffers=False) == 4 * numbers
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert not any(isinstance(value, Tensor) for value in model.config.values())
