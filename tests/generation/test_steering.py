"""Streaming, extending, resuming and steering: what an autoregressive model can do."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.generation.latent_codec import DecodeSizes
from pyramid_dit.generation.saved_latents import SavedLatents
from pyramid_dit.generation.stream import VideoStream
from pyramid_dit.media.video_files import export_to_video

CIRCLE, SQUARE = "a red circle", "a blue square"
OPTIONS: dict[str, Any] = {
    "num_inference_steps": [1, 2, 1],
    "guidance_scale": 2.0,
    "video_guidance_scale": 3.0,
    "output_type": "np",
    "seed": 0,
}
TEXT: dict[str, Any] = {
    "prompt": CIRCLE,
    "height": 64,
    "width": 64,
    "temp": 3,
    "video_num_inference_steps": [1, 1, 2],
    **OPTIONS,
}
UNIT_STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def model(folder: Path) -> PyramidDiTForVideoGeneration:
    model = PyramidDiTForVideoGeneration(folder, "fp32", "pyramid_flux")
    model.set_progress_bar_config(disable=True)
    return model


def picture(seed: int = 0, width: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, width, 3), np.uint8)
    return Image.fromarray(pixels)


# ---- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["np", "pt", "latent"])
def test_a_stream_is_the_video_cut_in_time(
    model: PyramidDiTForVideoGeneration, output_type: str
) -> None:
    arguments = {**TEXT, "output_type": output_type}
    stream = model.stream(**arguments)
    assert stream.num_units == 3 and stream.total_steps == 3 * UNIT_STEPS
    pieces = [torch.as_tensor(piece) for piece in stream]
    axis = 2 if output_type == "latent" else 1
    assert [piece.shape[axis] for piece in pieces] == (
        [1, 1, 1] if output_type == "latent" else [1, 8, 8]
    )
    whole = torch.as_tensor(model.generate(**arguments))
    assert torch.equal(torch.cat(pieces, dim=axis), whole)
    assert stream.steps_done == stream.total_steps


def test_streamed_images_come_as_lists(model: PyramidDiTForVideoGeneration) -> None:
    pieces = list(model.stream(**{**TEXT, "output_type": "pil"}))
    assert [len(piece) for piece in pieces] == [1, 8, 8]
    assert all(isinstance(frame, Image.Image) for piece in pieces for frame in piece)
    two = list(model.stream(**{**TEXT, "output_type": "pil", "prompt": [CIRCLE, SQUARE]}))
    assert [[len(frames) for frames in piece] for piece in two] == [[1, 1], [8, 8], [8, 8]]


def test_a_stream_checks_before_it_is_asked(model: PyramidDiTForVideoGeneration) -> None:
    with pytest.raises(ValueError, match="height must be a multiple of 64"):
        model.stream(**{**TEXT, "height": 65})
    with pytest.raises(TypeError, match="no_such_option"):
        model.stream(**TEXT, no_such_option=1)


def test_units_come_while_later_ones_are_not_made(model: PyramidDiTForVideoGeneration) -> None:
    stream = model.stream(**TEXT)
    next(stream)
    assert stream.steps_done == UNIT_STEPS
    assert stream.latents is not None and stream.latents.shape[2] == 1
    stream.close()
    assert list(stream) == [] and stream.steps_done == UNIT_STEPS


def test_a_stream_is_closed_from_another_thread_within_a_step(
    model: PyramidDiTForVideoGeneration,
) -> None:
    reached, closed = threading.Event(), threading.Event()

    def hold(pipe: object, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        if step == 1:
            reached.set()
            assert closed.wait(300)

    stream = model.stream(**TEXT, callback_on_step_end=hold)
    got: list[Any] = []
    worker = threading.Thread(target=lambda: got.extend(stream))
    worker.start()
    assert reached.wait(300)
    stream.close()
    closed.set()
    worker.join(300)
    assert not worker.is_alive() and got == []
    assert stream.steps_done == 2


def test_a_stream_decodes_in_tiles_where_memory_is_short(
    model: PyramidDiTForVideoGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = DecodeSizes(window=1, tile=32)
    monkeypatch.setattr(
        "pyramid_dit.generation.engine.DecodeSizes.of", lambda *, save_memory: sizes
    )
    assert model.vae is not None
    model.vae.enable_tiling(force=True)
    pieces = np.concatenate(list(model.stream(**TEXT)), axis=1)
    np.testing.assert_allclose(pieces, model.generate(**TEXT), rtol=0, atol=1.01 / 255)


def test_an_image_comes_first_out_of_its_stream(model: PyramidDiTForVideoGeneration) -> None:
    pieces = list(model.stream_i2v(CIRCLE, picture(), temp=3, **OPTIONS))
    assert [piece.shape[1] for piece in pieces] == [1, 8, 8]
    whole = model.generate_i2v(CIRCLE, picture(), temp=3, **OPTIONS)
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)


def test_the_arguments_are_shown() -> None:
    for name in ("generate", "stream", "generate_i2v", "stream_v2v"):
        method = getattr(PyramidDiTForVideoGeneration, name)
        shown = inspect.signature(method).parameters
        assert {"temp", "num_frames", "prompts", "seed", "prompt_embeds"} <= set(shown)
        assert "options" not in shown and "Args:" in (inspect.getdoc(method) or "")


# ---- going on -----------------------------------------------------------------------------------


def stopped_after(model: PyramidDiTForVideoGeneration, units: int, **changes: Any) -> VideoStream:
    stream = model.stream(**{**TEXT, **changes})
    for _ in range(units):
        next(stream)
    stream.close()
    return stream


@pytest.mark.parametrize("units", [1, 2, 3])
def test_a_resumed_run_is_that_without_the_stop(
    model: PyramidDiTForVideoGeneration, tmp_path: Path, units: int
) -> None:
    story = {"prompt": None, "prompts": {0: CIRCLE, 2: SQUARE}, "guidance_scales": {2: 1.5}}
    name = tmp_path / "run.safetensors"
    stopped_after(model, units, **story).save_latents(name)
    resumed = model.generate_v2v(resume=name, output_type="latent")
    assert torch.equal(resumed, model.generate(**{**TEXT, **story, "output_type": "latent"}))
    frames = model.generate_v2v(resume=name, output_type="np")
    whole = model.generate(**{**TEXT, **story})
    np.testing.assert_allclose(frames, whole, rtol=0, atol=1.01 / 255)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    (tmp_path / "plain").touch()
    assert name.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it too


def test_a_run_with_the_global_generator_and_several_samples_is_resumed(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    several = {"seed": [3, 4], "num_images_per_prompt": 2}
    one_for_both = {"seed": 3, "num_images_per_prompt": 2}
    global_one = {"seed": None}
    for changes in (several, one_for_both, global_one):
        torch.manual_seed(5)
        whole = model.generate(**{**TEXT, **changes, "output_type": "latent"})
        torch.manual_seed(5)
        stream = stopped_after(model, 2, **changes)
        stream.save_latents(tmp_path / "run")
        torch.manual_seed(6)
        assert torch.equal(model.generate_v2v(resume=tmp_path / "run", output_type="latent"), whole)


def test_saved_latents_are_refused_where_they_do_not_fit(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    stream = model.stream(**TEXT)
    with pytest.raises(ValueError, match="no unit of the video is complete"):
        stream.save_latents(tmp_path / "run")
    next(stream)
    stream.save_latents(tmp_path / "run")
    for own in ({"prompt": SQUARE}, {"num_frames": 8}, {"seed": 1}, {"guidance_scales": {0: 1.0}}):
        with pytest.raises(ValueError, match="keeps its own"):
            model.generate_v2v(resume=tmp_path / "run", **own)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SavedLatents.load(tmp_path / "nowhere")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="holds no saved latents"):
        SavedLatents.load(tmp_path / "text")
    whole = (tmp_path / "run").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="holds no saved latents"):
        model.generate_v2v(resume=tmp_path / "cut")


def test_encoded_prompts_are_given_again(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    assert model.text_encoder is not None
    names = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    encoded = dict(zip(names, model.text_encoder([CIRCLE]), strict=True))
    text = {"prompt": None, "guidance_scale": 0.0, **encoded}
    whole = model.generate(**{**TEXT, **text, "output_type": "latent"})
    stopped_after(model, 1, **text).save_latents(tmp_path / "run")
    with pytest.raises(ValueError, match="a prompt is needed"):
        model.generate_v2v(resume=tmp_path / "run", output_type="latent")
    resumed = model.generate_v2v(resume=tmp_path / "run", output_type="latent", **encoded)
    assert torch.equal(resumed, whole)


def test_a_video_goes_on(model: PyramidDiTForVideoGeneration, tmp_path: Path) -> None:
    start = model.generate(**{**TEXT, "output_type": "pil"})
    calls: list[tuple[int, int]] = []
    arguments = {**OPTIONS, "temp": 2, "callback": lambda *call: calls.append(call)}
    more = model.generate_v2v(CIRCLE, start, **arguments)
    assert more.shape == (1, 16, 64, 64, 3)
    assert calls == [(3, 5), (4, 5)]
    latents = model.generate_v2v(CIRCLE, start, **{**arguments, "output_type": "latent"})
    assert latents.shape[2] == 5

    as_array = model.generate_v2v(CIRCLE, np.stack([np.asarray(f) for f in start]), **arguments)
    assert np.array_equal(more, as_array)
    pieces = list(model.stream_v2v(CIRCLE, start, **arguments))
    assert [piece.shape[1] for piece in pieces] == [8, 8]
    assert np.array_equal(np.concatenate(pieces, axis=1), more)

    name = export_to_video(start, tmp_path / "start.mp4")
    from_file = model.generate_v2v(CIRCLE, name, **{**arguments, "temp": None, "num_frames": 8})
    assert from_file.shape[1] == 8


def test_the_history_is_the_end_of_the_video(model: PyramidDiTForVideoGeneration) -> None:
    clip = [picture(seed) for seed in range(12)]
    arguments = {**OPTIONS, "seconds": 1 / 3}
    whole = model.generate_v2v(CIRCLE, clip, **arguments)
    assert whole.shape[1] == 8
    assert np.array_equal(whole, model.generate_v2v(CIRCLE, clip[-9:], **arguments))
    assert not np.array_equal(whole, model.generate_v2v(CIRCLE, clip[:9], **arguments))
    last = model.generate_v2v(CIRCLE, clip, history_frames=1, **arguments)
    assert np.array_equal(last, model.generate_v2v(CIRCLE, clip[-1:], **arguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": None}, "pass a video"),
        ({"video": []}, "no frames"),
        ({"video": np.zeros((9, 64, 64, 3))}, "bytes"),
        ({"video": [picture(), picture(width=96)] * 5}, "one size"),
        ({"video": [picture(width=65)]}, "width must be a multiple"),
        ({"num_frames": 9, "temp": None}, "multiple of 8"),
        ({"num_frames": 8}, "only one of temp, num_frames"),
        ({"history_frames": 0}, "history_frames must be at least 1"),
        ({"prompts": {0: SQUARE}}, "either prompt or prompts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_video_that_cannot_go_on(
    model: PyramidDiTForVideoGeneration, changes: dict[str, Any], message: str
) -> None:
    arguments = {"prompt": CIRCLE, "video": [picture()], "temp": 1, **OPTIONS, **changes}
    with pytest.raises(ValueError, match=message):
        model.generate_v2v(**arguments)


# ---- steering -----------------------------------------------------------------------------------


def test_a_storyboard_holds_from_its_units_on(model: PyramidDiTForVideoGeneration) -> None:
    def units(**changes: Any) -> list[np.ndarray]:
        return list(model.stream(**{**TEXT, "prompt": None, **changes}))

    plain = list(model.stream(**TEXT))
    board = units(prompts={0: CIRCLE, 2: SQUARE})
    assert all(np.array_equal(*pair) for pair in zip(plain[:2], board[:2], strict=True))
    assert not np.array_equal(plain[2], board[2])
    same = units(prompts={2: CIRCLE, 0: CIRCLE})
    assert all(np.array_equal(*pair) for pair in zip(plain, same, strict=True))

    guided = list(model.stream(**TEXT, guidance_scales={1: 3.0, 2: 5.0}))
    assert [np.array_equal(*pair) for pair in zip(plain, guided, strict=True)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("board", "error", "message"),
    [
        ({1: CIRCLE}, ValueError, "unit 0"),
        ({0: CIRCLE, -1: SQUARE}, ValueError, "from 0 on, got -1"),
        ({0: CIRCLE, "2": SQUARE}, TypeError, "integers, got '2'"),
        ({0: CIRCLE, 1: " "}, ValueError, "prompt is empty"),
        ({0: CIRCLE, 1: [CIRCLE, SQUARE]}, ValueError, "as many in every unit"),
    ],
)
def test_a_storyboard_that_makes_no_sense(
    model: PyramidDiTForVideoGeneration,
    board: dict[Any, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        model.generate(**{**TEXT, "prompt": None, "prompts": board})


def test_the_callback_after_steps_sees_and_changes_latents(
    model: PyramidDiTForVideoGeneration,
) -> None:
    seen: list[tuple[int, float, torch.Size]] = []

    def watch(pipe: object, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        assert pipe is model
        seen.append((step, timestep, tensors["latents"].shape))

    plain = model.generate(**TEXT)
    watched = model.generate(**TEXT, callback_on_step_end=watch)
    assert np.array_equal(plain, watched)
    assert [step for step, *_ in seen] == list(range(3 * UNIT_STEPS))
    sizes = [shape[-1] for *_, shape in seen]
    assert sizes == [2, 4, 4, 8] + 2 * [2, 4, 8, 8]
    assert all(0 <= timestep <= 1000 for _, timestep, _ in seen)

    def change(pipe: object, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] + (step == 3)}

    changed = model.generate(**TEXT, callback_on_step_end=change)
    assert not np.array_equal(plain, changed)


def stop_before_unit(model: PyramidDiTForVideoGeneration, unit: int) -> dict[str, Any]:
    def callback(index: int, units: int) -> None:
        if index == unit:
            model.stop()

    return {"callback": callback}


def stop_after_step(model: PyramidDiTForVideoGeneration, unit: int) -> dict[str, Any]:
    def callback(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        if step == UNIT_STEPS * unit + 1:
            pipe._interrupt = True  # as users of diffusers do

    return {"callback_on_step_end": callback}


@pytest.mark.parametrize("stop", [stop_before_unit, stop_after_step])
@pytest.mark.parametrize(("unit", "frames"), [(0, 0), (1, 1), (2, 9)])
def test_both_callbacks_can_stop_the_run(
    model: PyramidDiTForVideoGeneration,
    stop: Callable[[PyramidDiTForVideoGeneration, int], dict[str, Any]],
    unit: int,
    frames: int,
) -> None:
    part = model.generate(**TEXT, **stop(model, unit))
    assert part.shape == (1, frames, 64, 64, 3)
    whole = model.generate(**TEXT)  # is not stopped by what was said before
    assert np.array_equal(whole[:, :frames], part)


def test_lengths_are_given_in_three_ways(model: PyramidDiTForVideoGeneration) -> None:
    def frames(**length: Any) -> int:
        stream = model.stream(**{**TEXT, "temp": None, **length})
        return 8 * (stream.num_units - 1) + 1

    assert frames() == 121  # as released
    assert frames(temp=3) == frames(num_frames=17) == frames(seconds=0.7) == 17
    i2v = model.stream_i2v(CIRCLE, picture(), num_frames=17, **OPTIONS)
    assert i2v.num_units == 3
    with pytest.raises(ValueError, match="nearest are 9 and 17"):
        frames(num_frames=10)
    with pytest.raises(ValueError, match="only one of temp, seconds"):
        frames(temp=1, seconds=1)


def test_the_suffix_can_be_turned_off(model: PyramidDiTForVideoGeneration) -> None:
    arguments = {**TEXT, "temp": 1}
    suffix = model.defaults.prompt_suffix
    assert suffix
    with_suffix = model.generate(**arguments)
    without = model.generate(**arguments, prompt_suffix="")
    assert not np.array_equal(with_suffix, without)
    by_hand = {**arguments, "prompt": CIRCLE + suffix, "prompt_suffix": ""}
    assert np.array_equal(with_suffix, model.generate(**by_hand))


def test_every_sample_has_its_seed(model: PyramidDiTForVideoGeneration) -> None:
    two = model.generate(**{**TEXT, "seed": [7, 8], "num_images_per_prompt": 2})
    for index, seed in enumerate((7, 8)):
        one = model.generate(**{**TEXT, "seed": seed})
        np.testing.assert_allclose(two[index], one[0], rtol=0, atol=1.01 / 255)
    generator = torch.Generator().manual_seed(7)
    same = model.generate(**{**TEXT, "seed": None, "generator": generator})
    assert np.array_equal(same, model.generate(**{**TEXT, "seed": 7}))
    for seed, error in ((1.5, TypeError), (-1, ValueError), ([0, 1], ValueError)):
        with pytest.raises(error):
            model.generate(**{**TEXT, "seed": seed})
    with pytest.raises(ValueError, match="either seed or generator"):
        model.generate(**TEXT, generator=generator)


# ---- numbers that are none ----------------------------------------------------------------------


def test_latents_that_are_not_finite_stop_the_run(model: PyramidDiTForVideoGeneration) -> None:
    def spoil(_: object, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors["latents"]
        return {"latents": latents * (torch.inf if step == UNIT_STEPS + 2 else 1)}

    stream = model.stream(**TEXT, callback_on_step_end=spoil)
    next(stream)
    with pytest.raises(FloatingPointError, match="unit 1 are not finite from its step 3 of 4"):
        next(stream)
    assert stream.latents is not None and stream.latents.shape[2] == 1


def test_frames_that_are_not_finite_stop_the_run(model: PyramidDiTForVideoGeneration) -> None:
    assert model.vae is not None
    with torch.no_grad():
        model.vae.decoder.conv_out.conv.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="frames that the VAE decoded are not finite"):
        model.generate(**TEXT)


def test_encoded_negative_prompts_are_given_again_and_only_then(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    assert model.text_encoder is not None
    names = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    values = model.text_encoder([SQUARE])
    encoded = {f"negative_{name}": value for name, value in zip(names, values, strict=True)}
    whole = model.generate(**{**TEXT, **encoded, "output_type": "latent"})
    stopped_after(model, 1, **encoded).save_latents(tmp_path / "run")
    with pytest.raises(ValueError, match="made with negative_prompt_embeds: pass them"):
        model.generate_v2v(resume=tmp_path / "run", output_type="latent")
    resumed = model.generate_v2v(resume=tmp_path / "run", output_type="latent", **encoded)
    assert torch.equal(resumed, whole)
    stopped_after(model, 1).save_latents(tmp_path / "words")
    with pytest.raises(ValueError, match="keeps its own negative prompts"):
        model.generate_v2v(resume=tmp_path / "words", output_type="latent", **encoded)


def test_latents_of_another_transformer_are_said_to_be(
    model: PyramidDiTForVideoGeneration, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [message for message in caplog.messages if "made with" in message]

    stopped_after(model, 1).save_latents(tmp_path / "run")
    model.generate_v2v(resume=tmp_path / "run")
    saved = SavedLatents.load(tmp_path / "run")
    assert saved.model.startswith("pyramid_flux diffusion_transformer") and not said()
    model.generate_v2v(resume=replace(saved, model=""))
    assert not said()
    model.generate_v2v(resume=replace(saved, model="pyramid_flux other"))
    (message,) = said()
    assert f"made with pyramid_flux other, and the video is continued with {saved.model}" in message
