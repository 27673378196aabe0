"""Properties of the two diffusion transformers: contract, initialization, causality, saving."""

import inspect
import json

import pytest
import torch
from golden import PROJECT_ROOT, golden_dir
from small_models import (
    CHANNELS,
    POOLED_DIM,
    SMALL,
    TEXT_DIM,
    both_models,
    small_inputs,
    small_model,
)
from torch import nn

from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.models.mmdit import PyramidDiffusionMMDiT

# Contract with the released checkpoints


def released_architectures():
    folder = golden_dir()
    path = folder.parent / "manifest.json" if folder else PROJECT_ROOT / "../shared/manifest.json"
    return json.loads(path.read_text()) if path.is_file() else None


@both_models
def test_keys_and_shapes_of_the_released_model(model_class):
    architectures = released_architectures()
    if architectures is None:
        pytest.skip("no manifest of the released architectures")
    expected = architectures[model_class.__name__]
    with torch.device("meta"):
        model = model_class.from_config(expected["config"])
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == expected["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    options = {key for key in expected["config"] if not key.startswith("_")}
    assert options <= inspect.signature(model_class.__init__).parameters.keys()


# Initialization


def is_gated_norm(name, weight):
    """AdaLN with gates, unlike the pre-only norm (2·D outputs) in the last block of the MMDiT."""
    return ".norm" in name and weight.shape[0] != 2 * weight.shape[1]


@both_models
def test_fresh_weights(model_class):
    torch.manual_seed(0)
    wide = {"caption_projection_dim": 72} if model_class is PyramidDiffusionMMDiT else {}
    model = model_class(**SMALL[model_class] | {"num_attention_heads": 9} | wide)
    assert not model(**small_inputs())[0].any()

    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        weight = module.weight.flatten(1)
        xavier = (2 / sum(weight.shape)) ** 0.5
        if name.startswith(("time_text_embed.", "context_embedder")):
            deviation = 0.02
        elif name in ("proj_out", "norm_out.linear") or is_gated_norm(name, weight):
            deviation = 0.0
        else:
            deviation = xavier
            assert weight.abs().max() <= 3**0.5 * xavier, name
        assert weight.std().item() == pytest.approx(deviation, rel=0.15), name
        assert not module.bias.any(), name


# Which tokens attend to which


def hidden_states(model, inputs):
    """Tokens before the last block (of flux text and video, of the MMDiT video), and the velocity.

    The last block only computes the tokens of the last clip.
    """
    seen = []
    blocks = getattr(model, "single_transformer_blocks", model.transformer_blocks)
    hook = blocks[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        velocity = model(**inputs)
    hook.remove()
    return seen[0], velocity


@both_models
@pytest.mark.parametrize("clip", [0, 1, 2])
def test_a_later_frame_moves_nothing_earlier(model_class, clip):
    model, inputs = small_model(model_class), small_inputs(text_length=5)
    before, velocity = hidden_states(model, inputs)
    inputs["sample"][0][clip][:, :, -1] += 1
    after, changed = hidden_states(model, inputs)

    text = 5 if model_class is PyramidFluxTransformer else 0
    first_changed = text + (2, 4, 12)[clip]  # two frames of 2 tokens, then two of 8
    torch.testing.assert_close(after[:, :first_changed], before[:, :first_changed])
    assert (after[:, first_changed:] - before[:, first_changed:]).abs().amax(-1).min() > 1e-5
    assert (changed[0] - velocity[0]).abs().max() > 1e-4


@both_models
def test_without_causality_everything_sees_the_last_frame(model_class):
    model, inputs = small_model(model_class, use_temporal_causal=False), small_inputs()
    before, _ = hidden_states(model, inputs)
    inputs["sample"][0][-1] += 1
    after, _ = hidden_states(model, inputs)
    assert (after - before).abs().amax(-1).min() > 1e-5


@both_models
@pytest.mark.parametrize("real", [(5, 5), (5, 1), (1, 1), (2, 4)])
@pytest.mark.parametrize("padding", [0, 1, 20])
def test_padded_text_changes_nothing(model_class, real, padding):
    model, inputs = small_model(model_class), small_inputs()
    alone = []
    for row, length in enumerate(real):
        one = {k: v[row : row + 1] for k, v in inputs.items() if k != "sample"}
        for key in ("encoder_hidden_states", "encoder_attention_mask"):
            one[key] = one[key][:, :length]
        one["sample"] = [[clip[row : row + 1] for clip in inputs["sample"][0]]]
        alone.append(model(**one)[0])

    states = torch.full((2, max(real) + padding, TEXT_DIM), torch.nan)
    mask = torch.zeros(states.shape[:2], dtype=torch.long)
    for row, length in enumerate(real):
        states[row, :length] = inputs["encoder_hidden_states"][row, :length]
        mask[row, :length] = 1
    inputs |= {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    together = model(**inputs)[0]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)

    together.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mask_is_ignored_where_the_config_says_so():
    model, inputs = small_model(PyramidDiffusionMMDiT, use_t5_mask=False), small_inputs()
    expected = model(**inputs)[0]
    inputs["encoder_attention_mask"][:, 2:] = 0
    assert torch.equal(model(**inputs)[0], expected)


@both_models
def test_entries_are_independent(model_class):
    """Stage entries of one batch, equal or unequal in shape, run as they would alone."""
    model = small_model(model_class)
    entries = [[(1, 4, 8)], [(1, 2, 4), (1, 4, 8)], [(1, 4, 8)]]
    inputs = small_inputs(entries=entries)
    inputs["encoder_attention_mask"][1, 3:] = 0
    inputs["encoder_attention_mask"][3, 1:] = 0
    together = model(**inputs)
    for p, velocity in enumerate(together):
        one = {k: v[p::3] for k, v in inputs.items() if k != "sample"}
        alone = model([inputs["sample"][p]], **one)[0]
        torch.testing.assert_close(velocity, alone, rtol=1e-4, atol=1e-5)


@both_models
def test_input_is_not_modified(model_class):
    model, inputs, copy = small_model(model_class), small_inputs(), small_inputs()
    model(**inputs)
    for ours, theirs in zip(inputs["sample"][0], copy["sample"][0], strict=True):
        assert torch.equal(ours, theirs)


# Training


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs)[0].square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@both_models
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
def test_checkpointing_keeps_the_gradients(model_class, ratio):
    inputs = small_inputs()
    inputs["encoder_attention_mask"][1, 3:] = 0
    model = small_model(model_class, gradient_checkpointing_ratio=ratio)
    calls = []
    for module in model.modules():
        if type(module).__name__ in ("JointBlock", "SingleBlock"):
            module.register_forward_pre_hook(lambda module, args: calls.append(module))
    plain = gradients(model, inputs)
    blocks = len(calls)
    model.enable_gradient_checkpointing()
    for ours, expected in zip(gradients(model, inputs), plain, strict=True):
        torch.testing.assert_close(ours, expected)
    assert len(calls) - 2 * blocks == round(ratio * blocks)

    model.disable_gradient_checkpointing()
    gradients(model, inputs)
    assert len(calls) - 3 * blocks == round(ratio * blocks)


@both_models
def test_checkpointing_from_the_config(model_class):
    assert small_model(model_class, use_gradient_checkpointing=True).is_gradient_checkpointing
    assert not small_model(model_class).is_gradient_checkpointing


@both_models
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model_class, dtype):
    """Half precision stays near float32, and the latents' dtype comes back."""
    model, inputs = small_model(model_class), small_inputs()
    inputs["timestep_ratio"][:] = 998.7  # half precision would round it by up to 4
    expected = model(**inputs)[0]
    actual = model.to(dtype)(**inputs)[0]
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


@both_models
def test_autocast(model_class):
    model, inputs = small_model(model_class), small_inputs()
    expected = model(**inputs)[0]
    inputs["encoder_attention_mask"][:] = 1
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(**inputs)[0]
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


# Saving and loading


@both_models
@pytest.mark.parametrize(
    "options",
    [{}, {"safe_serialization": False}, {"max_shard_size": "10KB"}],
    ids=["safetensors", "bin", "sharded"],
)
def test_save_and_load(model_class, options, tmp_path):
    model, inputs = small_model(model_class), small_inputs()
    model.save_pretrained(tmp_path, **options)
    if "max_shard_size" in options:
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not loaded.training
    assert loaded.config.num_layers == model.config.num_layers
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])

    half = model_class.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, device_map="cpu")
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}


@both_models
def test_options_can_change_while_loading(model_class, tmp_path):
    small_model(model_class).save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(
        tmp_path, use_gradient_checkpointing=True, use_temporal_causal=False
    )
    assert loaded.is_gradient_checkpointing
    assert not loaded.config.use_temporal_causal


# Bad input


@pytest.mark.parametrize(
    ("model_class", "change"),
    [
        (PyramidDiffusionMMDiT, {"qk_norm": "layer_norm"}),
        (PyramidDiffusionMMDiT, {"qk_norm": None}),
        (PyramidDiffusionMMDiT, {"pos_embed_type": "rope"}),
        (PyramidDiffusionMMDiT, {"temp_pos_embed_type": "sincos"}),
        (PyramidDiffusionMMDiT, {"add_temp_pos_embed": False}),
        (PyramidDiffusionMMDiT, {"patch_size": 4}),
        (PyramidDiffusionMMDiT, {"caption_projection_dim": 25}),
        (PyramidFluxTransformer, {"axes_dims_rope": [4, 4, 4]}),
        (PyramidFluxTransformer, {"axes_dims_rope": [4, 4]}),
        (PyramidFluxTransformer, {"axes_dims_rope": [6, 1, 1]}),
        (PyramidFluxTransformer, {"in_channels": 18}),
        (PyramidFluxTransformer, {"gradient_checkpointing_ratio": 2.0}),
    ],
    ids=str,
)
def test_unsupported_options(model_class, change):
    (name,) = change
    with pytest.raises(ValueError, match=name):
        model_class(**SMALL[model_class] | change)


@both_models
def test_bad_inputs(model_class):
    model = small_model(model_class)

    def run(**changes):
        return model(**small_inputs() | changes)

    with pytest.raises(ValueError, match="at least one"):
        run(sample=[])
    with pytest.raises(ValueError, match="at least one"):
        run(sample=[[]])
    with pytest.raises(ValueError, match="2 rows"):
        run(encoder_hidden_states=torch.zeros(3, 5, TEXT_DIM))
    with pytest.raises(ValueError, match="pooled_projections"):
        run(pooled_projections=torch.zeros(1, POOLED_DIM))
    with pytest.raises(ValueError, match="timestep_ratio"):
        run(timestep_ratio=torch.tensor(3.0))
    with pytest.raises(ValueError, match="encoder_attention_mask"):
        run(encoder_attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="even h and w"):
        run(sample=[[torch.zeros(2, CHANNELS, 1, 3, 4)]])


def test_a_clip_larger_than_the_position_table():
    model = small_model(PyramidDiffusionMMDiT)
    inputs = small_inputs(entries=[[(1, 4, 28)]])
    with pytest.raises(ValueError, match="pos_embed_max_size"):
        model(**inputs)
