"""Work that is done once per stage, approximations, guidance in one pass or two, compilation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from small_models import both_models, small_inputs
from small_models import small_model as model_of
from tiny_checkpoint import write_tiny_checkpoint
from torch._dynamo.testing import CompileCounter

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFluxTransformer
from pyramid_dit.sampling.fast_mode import FastMode

HISTORY = [(2, 2, 4), (1, 4, 8)]
LAST = (1, 4, 8)


@pytest.fixture(scope="module", params=["pyramid_flux", "pyramid_mmdit"])
def pipeline(request, tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return PyramidDiTForVideoGeneration(folder, "fp32", request.param)


@pytest.fixture(autouse=True)
def exact_again(request):
    yield
    if "pipeline" in request.fixturenames:
        pipeline = request.getfixturevalue("pipeline")
        pipeline.disable_fast_mode()
        pipeline.batched_guidance = None
        pipeline.dit.disable_cache() if pipeline.dit.is_cache_enabled else None


def latents_of(pipeline, **options: Any) -> torch.Tensor:
    arguments = {
        "prompt": "a red circle",
        "height": 64,
        "width": 64,
        "temp": 3,
        "num_inference_steps": [2, 2, 2],
        "video_num_inference_steps": [3, 3, 3],
        "guidance_scale": 3.0,
        "video_guidance_scale": 2.0,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return pipeline.generate(**arguments | options)


def stage(model, **options: Any):
    """A context of a stage with history, and a step in it as a function of the timestep."""
    inputs = small_inputs(entries=[[*HISTORY, LAST]])
    inputs["encoder_attention_mask"][1, 3:] = 0
    *history, last = inputs["sample"][0]
    texts = [
        inputs[f"{n}"]
        for n in ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    ]
    context = model.prepare(history, last.shape, *texts, **options)

    def step(timestep: float) -> torch.Tensor:
        return model.denoise(last, torch.full((2,), timestep), context)

    def whole(timestep: float) -> torch.Tensor:
        return model(**inputs | {"timestep_ratio": torch.full((2,), timestep)})[0]

    return step, whole


# One context for all steps


@both_models
@torch.no_grad()
def test_a_context_serves_all_steps_exactly(model_class):
    step, whole = stage(model_of(model_class))
    for timestep in (900.0, 500.0, 900.0):
        torch.testing.assert_close(step(timestep), whole(timestep), rtol=1e-5, atol=1e-6)


@both_models
@torch.no_grad()
def test_the_last_block_makes_what_is_read_and_no_more(model_class):
    model = model_of(model_class)
    shapes = []
    blocks = getattr(model, "single_transformer_blocks", model.transformer_blocks)
    for linear in ("attn.to_q", "attn.to_k"):
        blocks[-1].get_submodule(linear).register_forward_hook(
            lambda module, args, output: shapes.append(output.shape[1])
        )
    step, whole = stage(model)
    step(500.0)
    queries, keys = shapes
    assert queries == 8  # the last clip: 2 x 4 patches
    assert keys == 2 * 2 + 8 + 8 + (5 if model_class is PyramidFluxTransformer else 0)


@both_models
def test_gradients_reach_every_weight_through_a_context(model_class):
    model = model_of(model_class)
    step, _ = stage(model)
    step(500.0).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# History cache


@both_models
@torch.no_grad()
def test_history_cache(model_class):
    """Fresh at every n-th step, near the exact velocity in between, and cheaper."""
    model = model_of(model_class)
    tokens = []
    model.transformer_blocks[0].attn.to_k.register_forward_hook(
        lambda module, args, output: tokens.append(output.shape[1])
    )
    step, whole = stage(model, refresh_history=2)
    for timestep in (900.0, 500.0):
        torch.testing.assert_close(step(timestep), whole(timestep), rtol=1e-5, atol=1e-6)
        tokens.clear()
        # the timestep is that of the step before: what is kept is right, to rounding
        torch.testing.assert_close(step(timestep), whole(timestep), rtol=1e-4, atol=1e-5)
        assert tokens[0] == 8 and tokens[1] > 8

    errors = []
    for begun in (100.1, 900.0):
        step, _ = stage(model, refresh_history=2)
        step(begun)
        errors.append((step(100.0) - whole(100.0)).abs().max())
    assert 0 < errors[0] < errors[1] / 2


def test_history_cache_needs_causality():
    model = model_of(PyramidFluxTransformer, use_temporal_causal=False)
    with pytest.raises(ValueError, match="causality"):
        stage(model, refresh_history=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        stage(model_of(PyramidFluxTransformer), refresh_history=0)


# Whole videos


def test_fast_mode_off_is_exact(pipeline):
    exact = latents_of(pipeline)
    pipeline.enable_fast_mode(
        history_cache=1, guidance_interval=(0.0, 1.0), history_window=2
    )  # two units of history are all there is
    assert torch.equal(latents_of(pipeline), exact)


@pytest.mark.parametrize(
    ("options", "same_frames"),
    [
        ({"history_cache": 2}, 1),  # the first frame has no history
        ({"guidance_interval": (0.0, 0.5)}, 0),
        ({"history_window": 1}, 2),  # the third frame is the first that misses something
    ],
    ids=str,
)
def test_fast_mode_changes_what_it_says(pipeline, options, same_frames):
    exact = latents_of(pipeline)
    pipeline.enable_fast_mode(**options)
    fast = latents_of(pipeline)
    assert torch.equal(fast[:, :, :same_frames], exact[:, :, :same_frames])
    assert not torch.equal(fast[:, :, same_frames], exact[:, :, same_frames])
    pipeline.disable_fast_mode()
    assert torch.equal(latents_of(pipeline), exact)


def test_guidance_interval_saves_the_second_branch(pipeline):
    rows = []
    hook = pipeline.dit.proj_out.register_forward_hook(
        lambda module, args, output: rows.append(len(output))
    )
    pipeline.enable_fast_mode(guidance_interval=(0.5, 1.0))
    latents_of(pipeline, temp=1)
    hook.remove()
    assert rows == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"history_cache": 0},
        {"guidance_interval": (0.5, 0.2)},
        {"guidance_interval": (0.0, 1.5)},
        {"history_window": 0},
    ],
    ids=str,
)
def test_fast_mode_refuses(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        FastMode(**options)


def test_two_passes_give_what_one_batch_gives(pipeline):
    pipeline.batched_guidance = True
    together = latents_of(pipeline)
    pipeline.batched_guidance = False
    rows = []
    hook = pipeline.dit.proj_out.register_forward_hook(
        lambda module, args, output: rows.append(len(output))
    )
    apart = latents_of(pipeline)
    hook.remove()
    assert set(rows) == {1}
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


def test_guidance_is_in_two_passes_where_memory_is_short(pipeline, monkeypatch):
    rows = []
    hook = pipeline.dit.proj_out.register_forward_hook(
        lambda module, args, output: rows.append(len(output))
    )
    monkeypatch.setattr("pyramid_dit.generation.engine.free_memory", lambda device: 10_000)
    latents_of(pipeline, temp=1)
    hook.remove()
    assert set(rows) == {1}


# diffusers' caches


def test_first_block_cache(pipeline):
    exact = latents_of(pipeline)
    calls = []
    blocks = getattr(pipeline.dit, "single_transformer_blocks", pipeline.dit.transformer_blocks)
    hook = blocks[-1].attn.register_forward_hook(lambda *args: calls.append(1))
    pipeline.dit.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(latents_of(pipeline), exact, rtol=1e-4, atol=1e-4)
    all_calls = len(calls)
    pipeline.dit.disable_cache()

    calls.clear()
    pipeline.dit.enable_cache(FirstBlockCacheConfig(threshold=1e6))
    cached = latents_of(pipeline)
    hook.remove()
    assert cached.isfinite().all() and not torch.equal(cached, exact)
    assert len(calls) < all_calls / 2
    pipeline.dit.disable_cache()
    assert torch.equal(latents_of(pipeline), exact)


# Compilation


@pytest.fixture
def counter(pipeline) -> Iterator[CompileCounter]:
    """A backend that counts programs; the blocks are as before in the end."""
    torch.compiler.reset()
    yield CompileCounter()
    for module in pipeline.dit.modules():
        module._compiled_call_impl = None
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["pyramid_flux"], indirect=True)
def test_a_compiled_image_is_the_same_and_the_next_one_compiles_nothing(pipeline, counter):
    exact = latents_of(pipeline, temp=1)
    pipeline.compile(backend=counter)
    torch.testing.assert_close(latents_of(pipeline, temp=1), exact, rtol=1e-4, atol=1e-4)
    cold = counter.frame_count
    assert cold > 0
    latents_of(pipeline, temp=1)
    assert counter.frame_count == cold


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["pyramid_flux", "pyramid_mmdit"], indirect=True)
def test_compiled_blocks_know_all_shapes_after_one_video(pipeline, counter):
    """A warm run compiles nothing, and videos of other lengths and prompts hardly anything."""
    exact = latents_of(pipeline)
    blocks = {type(m) for m in pipeline.dit.modules() if type(m).__name__.endswith("Block")}
    pipeline.compile(backend=counter)
    torch.testing.assert_close(latents_of(pipeline), exact, rtol=1e-4, atol=1e-4)
    cold = counter.frame_count
    assert 0 < cold <= 30 * len(blocks), cold
    latents_of(pipeline)
    assert counter.frame_count == cold
    latents_of(pipeline, prompt="a blue square moves left on a white background", temp=4)
    assert counter.frame_count <= cold + 4
