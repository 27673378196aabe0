"""What diffusers asks of all its pipelines, asked of ours; what is not met is in docs/diffusers.md.

Loading and saving, offloading and quantization are in `test_loading` and
`test_diffusers_pipeline`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import (
    MultiPipelineCallbacks,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
)
from diffusers.video_processor import VideoProcessor
from PIL import Image
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor

from pyramid_dit import PyramidFlowPipeline
from pyramid_dit.sampling.guidance import StageVelocity

MODELS = ("pyramid_flux", "pyramid_mmdit")
CIRCLE, SQUARE = "a red circle", "a blue square moves left"
STAGES = 3


@pytest.fixture(scope="module", params=MODELS)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PyramidFlowPipeline:
    folder = tmp_path_factory.mktemp(request.param)
    write_tiny_checkpoint(folder, request.param, index=QUICK_INDEX)
    return PyramidFlowPipeline.from_pretrained(folder)


@pytest.fixture
def pipe(loaded: PyramidFlowPipeline) -> PyramidFlowPipeline:
    fresh = PyramidFlowPipeline(**loaded.components)
    fresh.set_progress_bar_config(disable=True)
    return fresh


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(pipe: PyramidFlowPipeline, prompt: Any = CIRCLE, **arguments: Any) -> Tensor:
    """Of a still, always of the same noise, unless something else is asked for."""
    given = {"num_frames": 1, "generator": seeded(), "output_type": "latent"} | arguments
    return pipe(prompt, **given).frames


# ---- signature and components -------------------------------------------------------------------


def test_the_call_takes_what_video_pipelines_take() -> None:
    parameters = inspect.signature(PyramidFlowPipeline.__call__).parameters
    usual = (
        "prompt negative_prompt height width num_frames num_inference_steps guidance_scale "
        "num_videos_per_prompt generator latents prompt_embeds negative_prompt_embeds output_type "
        "return_dict attention_kwargs callback_on_step_end callback_on_step_end_tensor_inputs "
        "max_sequence_length image video"
    ).split()
    assert {*usual} <= {*parameters}
    assert all(parameters[name].default is not inspect.Parameter.empty for name in usual)
    encode = inspect.signature(PyramidFlowPipeline.encode_prompt).parameters
    assert {"prompt", "negative_prompt", "max_sequence_length"} <= {*encode}


def test_components_are_arguments_of_the_constructor(pipe: PyramidFlowPipeline) -> None:
    arguments = inspect.signature(PyramidFlowPipeline.__init__).parameters
    assert {*pipe.components} <= {*arguments}
    assert {*PyramidFlowPipeline._optional_components} == {*pipe.components} - {"scheduler"}
    offloaded = PyramidFlowPipeline.model_cpu_offload_seq.split("->")
    models = {k for k in pipe.components if not k.startswith(("tokenizer", "scheduler"))}
    assert {*offloaded} == models


@pytest.mark.parametrize("left_out", [("vae",), ("text_encoder", "tokenizer"), ("tokenizer_2",)])
def test_what_is_left_out_stays_left_out(
    pipe: PyramidFlowPipeline, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    encoded = pipe.encode_prompt(CIRCLE)
    expected = latents(pipe, None, **encoded)
    some = PyramidFlowPipeline(**pipe.components | dict.fromkeys(left_out))
    some.save_pretrained(tmp_path)
    again = PyramidFlowPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    absent = [name for name, part in again.components.items() if part is None]
    assert {*left_out} <= {*absent}
    assert torch.equal(latents(again, None, **encoded), expected)


def test_models_move_and_cast_together(pipe: PyramidFlowPipeline) -> None:
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu")
    try:
        pipe.to(torch.bfloat16)
        models = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
        assert {model.dtype for model in models} == {torch.bfloat16} == {pipe.dtype}
        assert latents(pipe).isfinite().all()
    finally:
        pipe.to(torch.float32)  # other tests share the models


# ---- batches ------------------------------------------------------------------------------------


def test_a_batch_is_its_videos(pipe: PyramidFlowPipeline) -> None:
    both = latents(pipe, [CIRCLE, SQUARE], generator=[seeded(0), seeded(1)])
    for row, (prompt, seed) in enumerate([(CIRCLE, 0), (SQUARE, 1)]):
        alone = latents(pipe, prompt, generator=seeded(seed))
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("prompts", "each"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_the_number_of_videos(pipe: PyramidFlowPipeline, prompts: int, each: int) -> None:
    given = CIRCLE if prompts == 1 else [CIRCLE] * prompts
    assert len(latents(pipe, given, num_videos_per_prompt=each)) == prompts * each


def test_the_same_noise_gives_the_same_video(pipe: PyramidFlowPipeline) -> None:
    first = latents(pipe)
    assert torch.equal(latents(pipe), first)
    assert not torch.equal(latents(pipe, generator=seeded(1)), first)
    noise = torch.randn(first.shape, generator=seeded(2))
    same = [latents(pipe, latents=noise) for _ in range(2)]
    assert torch.equal(*same) and not torch.equal(same[0], first)


# ---- guidance, length of prompts, results -------------------------------------------------------


def test_guidance(pipe: PyramidFlowPipeline) -> None:
    results = [latents(pipe, guidance_scale=scale) for scale in (1.0, 0.0, 7.5)]
    assert pipe.guidance_scale == 7.5 and pipe.do_classifier_free_guidance
    assert results[0].shape == results[2].shape
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_length_of_prompts(pipe: PyramidFlowPipeline) -> None:
    short, long = "a red", "a red circle moves"
    cut = {"max_sequence_length": 2}
    assert pipe.encode_prompt(long, **cut)["prompt_embeds"].shape[1] == 2
    encoded = pipe.encode_prompt(long, negative_prompt="", **cut)
    assert torch.equal(latents(pipe, long, **cut), latents(pipe, None, **encoded))
    assert not torch.equal(latents(pipe, long), latents(pipe, long, **cut))
    assert not torch.equal(latents(pipe, long), latents(pipe, short))
    with pytest.raises(ValueError, match="max_sequence_length must be .*got 0"):
        latents(pipe, long, max_sequence_length=0)


def test_records_and_tuples_hold_the_same(pipe: PyramidFlowPipeline) -> None:
    arguments: dict[str, Any] = {"num_frames": 1, "output_type": "np"}
    record = pipe(CIRCLE, generator=seeded(), **arguments)
    (frames,) = pipe(CIRCLE, generator=seeded(), return_dict=False, **arguments)
    assert np.array_equal(record.frames, frames) and record[0] is record.frames


def test_forms_of_the_result_agree_and_the_video_processor_makes_them(
    pipe: PyramidFlowPipeline,
) -> None:
    form = {
        name: pipe(CIRCLE, generator=seeded(), output_type=name).frames
        for name in ("pil", "np", "pt", "latent")
    }
    array, tensor = form["np"], form["pt"]
    assert array.dtype == np.float32 and tensor.dtype == torch.float32
    assert array.shape == (1, 9, 64, 64, 3) and tensor.shape == (1, 9, 3, 64, 64)
    assert array.min() >= 0 and array.max() <= 1
    np.testing.assert_array_equal(array, tensor.movedim(2, -1).numpy())
    images = np.stack([np.asarray(image) for image in form["pil"][0]])
    np.testing.assert_array_equal(images, (255 * array[0]).astype(np.uint8))

    processor = pipe.video_processor
    assert isinstance(processor, VideoProcessor)
    assert pipe.vae is not None
    with torch.no_grad():
        statistics = pipe.video_generator.components.statistics
        pixels = pipe.vae.decode(statistics.denormalize(form["latent"])).sample
    torch.testing.assert_close(processor.postprocess_video(pixels, "pt"), tensor)
    usual = VideoProcessor().postprocess_video(pixels, output_type="np")
    np.testing.assert_allclose(processor.postprocess_video(pixels), usual, atol=1e-6)
    assert processor.postprocess_video(pixels, "pil")[0][0].size == (64, 64)
    assert processor.preprocess_video([Image.new("RGB", (100, 130))] * 2).shape[2:] == (2, 128, 64)
    with pytest.raises(ValueError, match="pil, np, pt, got 'gif'"):
        processor.postprocess_video(pixels, "gif")


# ---- callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_callback_is_handed_what_it_asks_for(pipe: PyramidFlowPipeline, guidance: float) -> None:
    handed: list[dict[str, Any]] = []

    def note(_: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        assert step == len(handed) and timestep == pipe.current_timestep
        assert pipe.num_timesteps == STAGES and pipe.guidance_scale == (guidance or 1.0)
        handed.append(tensors)
        return tensors

    names = pipe._callback_tensor_inputs
    assert names[0] == "latents" and "negative_pooled_prompt_embeds" in names
    expected = latents(pipe, guidance_scale=guidance)
    for asked in (["latents"], names):
        handed.clear()
        more = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": asked}
        assert torch.equal(latents(pipe, guidance_scale=guidance, **more), expected)
        assert len(handed) == STAGES and all([*entry] == asked for entry in handed)
    absent = {name for name, value in handed[0].items() if value is None}
    assert absent == ({name for name in names if "negative" in name} if guidance == 0 else set())


def test_a_callback_changes_latents(pipe: PyramidFlowPipeline) -> None:
    def zero_at_last(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> Any:
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    assert not latents(pipe, callback_on_step_end=zero_at_last).any()


def test_a_callback_changes_the_guidance(pipe: PyramidFlowPipeline) -> None:
    def stronger(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> Any:
        pipe._guidance_scale += 1.0
        return tensors

    used = latents(pipe, guidance_scale=2.0, callback_on_step_end=stronger)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert not torch.equal(used, latents(pipe, guidance_scale=2.0))
    assert pipe.guidance_scale == 2.0  # of the next call
    with pytest.raises(ValueError, match="began without guidance"):
        latents(pipe, guidance_scale=0.0, callback_on_step_end=stronger)
    with pytest.raises(ValueError, match="guidance_scale must be .*got -1"):
        latents(pipe, callback_on_step_end=lambda p, *_: setattr(p, "_guidance_scale", -1.0))


@pytest.mark.parametrize("kind", [SDCFGCutoffCallback, SD3CFGCutoffCallback])
@pytest.mark.parametrize("several", [False, True])
def test_guidance_is_cut_off(
    pipe: PyramidFlowPipeline,
    kind: type[Any],
    several: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    run = StageVelocity._run

    def spy(self: StageVelocity, latents: Tensor, *args: Any) -> Tensor:
        rows.append(len(latents))
        return run(self, latents, *args)

    monkeypatch.setattr(StageVelocity, "_run", spy)
    pipe.batched_guidance = True
    video: dict[str, Any] = {"num_frames": 9, "guidance_scale": 3.0}
    expected = latents(pipe, **video, guidance_scales={1: 1.0})
    assert rows == [2] * STAGES + [1] * STAGES
    for cut in ({"cutoff_step_index": STAGES - 1}, {"cutoff_step_ratio": 0.34}):
        callback = kind(**{"cutoff_step_ratio": None} | cut)
        if several:
            callback = MultiPipelineCallbacks([callback])
        rows.clear()
        assert torch.equal(latents(pipe, **video, callback_on_step_end=callback), expected)
        assert rows == [2] * STAGES + [1] * STAGES
        assert not pipe.do_classifier_free_guidance


def test_a_callback_changes_the_prompt(pipe: PyramidFlowPipeline) -> None:
    names = ["prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds"]
    encoded = {name: pipe.encode_prompt(SQUARE)[name] for name in names}

    def other(_: Any, step: int, timestep: float, tensors: dict[str, Any]) -> Any:
        return encoded if step == STAGES - 1 else tensors

    story = latents(pipe, None, num_frames=17, prompts={0: CIRCLE, 1: SQUARE})
    asked: dict[str, Any] = {"callback_on_step_end_tensor_inputs": names}
    changed = latents(pipe, num_frames=17, callback_on_step_end=other, **asked)
    assert torch.equal(changed, story)
    with pytest.raises(ValueError, match=r"prompt_embeds must have shape .*got"):
        latents(
            pipe,
            callback_on_step_end=lambda *_: {"prompt_embeds": encoded["prompt_embeds"][:, :1]},
        )
    with pytest.raises(ValueError, match="what a callback returns must be one of latents.*'noise'"):
        latents(pipe, callback_on_step_end=lambda *_: {"noise": 1})


# ---- LoRA by attention_kwargs -------------------------------------------------------------------


def test_attention_kwargs_weigh_loras_for_a_call(pipe: PyramidFlowPipeline) -> None:
    peft = pytest.importorskip("peft")
    base = latents(pipe)
    assert torch.equal(latents(pipe, attention_kwargs={"scale": 0.5}), base)  # there is none
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, "own")
    try:
        whole = latents(pipe)
        assert torch.equal(latents(pipe, attention_kwargs={}), whole)
        torch.testing.assert_close(latents(pipe, attention_kwargs={"scale": 0}), base)
        assert torch.equal(latents(pipe), whole)
        half = latents(pipe, attention_kwargs={"scale": 0.5})
        pipe.set_adapters("own", 0.5)
        assert torch.equal(latents(pipe), half)
        latents(pipe, attention_kwargs={"scale": 0.0})
        assert torch.equal(latents(pipe), half)
    finally:
        pipe.transformer.delete_adapters("own")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"ip_adapter_masks": 1}, ValueError, "must be one of scale, got 'ip_adapter_masks'"),
        ({"scale": "much"}, TypeError, r"attention_kwargs\['scale'\] must be a number, got 'much'"),
        (0.5, TypeError, "must be a dictionary, got 0.5"),
    ],
)
def test_other_attention_kwargs_are_refused(
    pipe: PyramidFlowPipeline, given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        latents(pipe, attention_kwargs=given)


# ---- slices and tiles ---------------------------------------------------------------------------


def test_slicing_decodes_one_video_at_a_time(pipe: PyramidFlowPipeline) -> None:
    assert pipe.vae is not None
    batches: list[int] = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))

    def frames(**arguments: Any) -> Tensor:
        batches.clear()
        given = {"num_videos_per_prompt": 2, "generator": seeded(), "output_type": "pt"}
        return pipe(CIRCLE, **given | arguments).frames

    try:
        whole = frames()
        assert {*batches} == {2}
        pipe.enable_vae_slicing()
        torch.testing.assert_close(frames(), whole, rtol=0, atol=1e-5)
        assert {*batches} == {1}
        image = Image.new("RGB", (64, 64), "red")
        pictures = pipe([CIRCLE, SQUARE], image=[image, image], output_type="pt").frames
        assert len(pictures) == 2
        pipe.disable_vae_slicing()
        assert torch.equal(frames(), whole)
    finally:
        hook.remove()
        pipe.disable_vae_slicing()
