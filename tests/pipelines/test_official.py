"""Generation and training with whole, tiny checkpoints of both architectures."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import relative_error
from PIL import Image
from tiny_checkpoint import LATENT_CHANNELS, QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration

MODELS = ("pyramid_flux", "pyramid_mmdit")
PROMPTS = ["a red circle", "a blue square moves left on a white background"]
QUICK: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 3.0}
SIZE: dict[str, Any] = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write_tiny_checkpoint(folder / name, name) for name in MODELS}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, PyramidDiTForVideoGeneration]:
    return {
        name: PyramidDiTForVideoGeneration(folder, "fp32", name, sample_ratios=[1, 2, 1])
        for name, folder in folders.items()
    }


@pytest.fixture(params=MODELS)
def pipeline(
    request: pytest.FixtureRequest, pipelines: dict[str, PyramidDiTForVideoGeneration]
) -> PyramidDiTForVideoGeneration:
    return pipelines[request.param]


@pytest.fixture
def flux(pipelines: dict[str, PyramidDiTForVideoGeneration]) -> PyramidDiTForVideoGeneration:
    return pipelines["pyramid_flux"]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def picture(width: int = 64, height: int = 64, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def text_features(pipeline: PyramidDiTForVideoGeneration, batch: int = 1) -> dict[str, Any]:
    """Arguments that stand in for prompts, and for negative ones, of other lengths."""
    config = pipeline.dit.config
    features: dict[str, Any] = {}
    for prefix, length in (("", 5), ("negative_", 3)):
        features[f"{prefix}prompt_embeds"] = torch.randn(batch, length, config.joint_attention_dim)
        features[f"{prefix}prompt_attention_mask"] = torch.ones(batch, length, dtype=torch.long)
        features[f"{prefix}pooled_prompt_embeds"] = torch.randn(batch, config.pooled_projection_dim)
    return features


# ---- the reference's way of use ---------------------------------------------------------------

README_SCRIPT = """
import torch
from PIL import Image
from pyramid_dit import PyramidDiTForVideoGeneration
from diffusers.utils import load_image, export_to_video

torch.cuda.set_device(0) if torch.cuda.is_available() else None
model_dtype, torch_dtype = 'bf16', torch.bfloat16

model = PyramidDiTForVideoGeneration(
    MODEL_PATH,
    model_dtype,
    model_name=MODEL_NAME,
    model_variant='diffusion_transformer_768p',
)

model.vae.enable_tiling()
model.enable_sequential_cpu_offload()

prompt = "A movie trailer featuring the adventures of a red circle"
with torch.no_grad(), torch.cuda.amp.autocast(enabled=True, dtype=torch_dtype):
    frames = model.generate(
        prompt=prompt,
        num_inference_steps=[1, 2, 1],
        video_num_inference_steps=[1, 1, 1],
        height=64,
        width=128,
        temp=2,
        guidance_scale=7.0,
        video_guidance_scale=5.0,
        output_type="pil",
        save_memory=True,
    )
export_to_video(frames, "./text_to_video_sample.mp4", fps=24)

image = Image.open(IMAGE_PATH).convert("RGB").resize((64, 64))
with torch.no_grad(), torch.cuda.amp.autocast(enabled=True, dtype=torch_dtype):
    image_frames = model.generate_i2v(
        prompt=prompt,
        input_image=image,
        num_inference_steps=[1, 1, 1],
        temp=2,
        video_guidance_scale=4.0,
        output_type="pil",
        save_memory=True,
    )
export_to_video(image_frames, "./image_to_video_sample.mp4", fps=24)
"""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_script_of_the_reference(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(100, 90).save("image.png")
    if importlib.util.find_spec("imageio") is None:
        monkeypatch.setattr("diffusers.utils.export_to_video", lambda *args, **kwargs: None)
    names = {"MODEL_PATH": str(folders[name]), "MODEL_NAME": name, "IMAGE_PATH": "image.png"}
    exec(README_SCRIPT, names)
    assert [frame.size for frame in names["frames"]] == [(128, 64)] * 9
    assert [frame.size for frame in names["image_frames"]] == [(64, 64)] * 9


def test_nothing_is_printed(
    flux: PyramidDiTForVideoGeneration, capfd: pytest.CaptureFixture[str]
) -> None:
    flux.generate(PROMPTS[0], temp=1, **SIZE, **QUICK)
    assert capfd.readouterr() == ("", "")


def test_progress_bar_counts_the_steps(
    flux: PyramidDiTForVideoGeneration, capfd: pytest.CaptureFixture[str]
) -> None:
    flux.set_progress_bar_config(disable=False)
    try:
        flux.generate(PROMPTS[0], temp=2, video_num_inference_steps=[1, 2, 3], **SIZE, **QUICK)
    finally:
        flux.set_progress_bar_config(disable=True)
    assert "9/9" in capfd.readouterr().err


# ---- what comes out ---------------------------------------------------------------------------


def test_forms_of_the_result(flux: PyramidDiTForVideoGeneration) -> None:
    def run(prompt: str | list[str], output_type: str, **kwargs: Any) -> Any:
        options = {"video_num_inference_steps": 1, "generator": seeded(0)[0], **SIZE, **QUICK}
        return flux.generate(prompt, temp=2, output_type=output_type, **options, **kwargs)

    frames = run(PROMPTS[0], "pil")
    assert len(frames) == 9 and frames[0].size == (64, 64) and frames[0].mode == "RGB"
    assert [len(video) for video in run(PROMPTS[:1], "pil")] == [9]
    assert [len(video) for video in run(PROMPTS, "pil")] == [9, 9]
    assert [len(video) for video in run(PROMPTS[0], "pil", num_images_per_prompt=2)] == [9, 9]

    array = run(PROMPTS[0], "np")
    assert array.shape == (1, 9, 64, 64, 3) and array.dtype == np.float32
    np.testing.assert_array_equal((array[0] * 255).astype(np.uint8), np.stack(frames))
    tensor = run(PROMPTS[0], "pt")
    assert tensor.shape == (1, 9, 3, 64, 64) and tensor.dtype == torch.float32
    torch.testing.assert_close(tensor.movedim(2, -1), torch.from_numpy(array))
    latents = run(PROMPTS[0], "latent")
    assert latents.shape == (1, LATENT_CHANNELS, 2, 8, 8) and latents.dtype == torch.float32


@pytest.mark.parametrize("save_memory", [True, False])
def test_decoding_in_pieces_changes_nothing(
    flux: PyramidDiTForVideoGeneration, save_memory: bool
) -> None:
    options = {"video_num_inference_steps": 1, "output_type": "np", **SIZE, **QUICK}
    video = flux.generate(
        PROMPTS[0], temp=4, generator=seeded(1)[0], save_memory=save_memory, **options
    )
    latents = flux.generate(
        PROMPTS[0], temp=4, generator=seeded(1)[0], **{**options, "output_type": "latent"}
    )
    with torch.no_grad():
        whole = flux.vae.decode(flux.statistics.denormalize(latents)).sample
    expected = ((whole[0].permute(1, 2, 3, 0) + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(video[0] * 255 - expected).max() <= 1.01  # bytes are truncated


@pytest.mark.parametrize("name", MODELS)
def test_size_and_number_of_frames(
    name: str, pipelines: dict[str, PyramidDiTForVideoGeneration]
) -> None:
    frames = pipelines[name].generate(PROMPTS[0], height=128, width=64, temp=1, **QUICK)
    assert [frame.size for frame in frames] == [(64, 128)]


def test_units_of_several_frames(folders: dict[str, Path]) -> None:
    pipeline = PyramidDiTForVideoGeneration(
        folders["pyramid_flux"], "fp32", "pyramid_flux", frame_per_unit=2
    )
    options = {"output_type": "latent", **QUICK}
    video_steps = {"video_num_inference_steps": 1}
    calls: list[tuple[int, int]] = []
    latents = pipeline.generate(
        PROMPTS[0],
        temp=5,
        callback=lambda *call: calls.append(call),
        **SIZE,
        **video_steps,
        **options,
    )
    assert latents.shape[2] == 5
    assert calls == [(0, 3), (1, 3), (2, 3)]
    calls.clear()
    latents = pipeline.generate_i2v(
        PROMPTS[0], picture(), temp=4, callback=lambda *call: calls.append(call), **options
    )
    assert latents.shape[2] == 3
    assert calls == [(1, 2)]
    with pytest.raises(ValueError, match="1 plus a multiple of 2"):
        pipeline.generate(PROMPTS[0], temp=4, **SIZE)
    with pytest.raises(ValueError, match="multiple of 2"):
        pipeline.generate_i2v(PROMPTS[0], picture(), temp=3)


def test_the_first_frame_of_image_to_video_is_the_image(
    pipeline: PyramidDiTForVideoGeneration,
) -> None:
    image = picture(128, 64)
    latents = pipeline.generate_i2v(
        PROMPTS[0], image, temp=3, output_type="latent", generator=seeded(2)[0], **QUICK
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
    first = pipeline.statistics.denormalize(latents[:, :, :1])
    assert ((first - posterior.mean).abs() <= 6 * posterior.std).all()
    assert relative_error(first, posterior.mean) > 1e-4  # drawn, not the mean

    again = pipeline.generate_i2v(
        PROMPTS[0], image_latents=first, temp=3, output_type="latent", **QUICK
    )
    torch.testing.assert_close(again[:, :, :1], latents[:, :, :1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_other_modes(flux: PyramidDiTForVideoGeneration, mode: str) -> None:
    image = picture(mode=mode)
    assert flux.generate_i2v(PROMPTS[0], image, temp=1)[0].size == (64, 64)
    assert image.mode == mode


def test_several_images(flux: PyramidDiTForVideoGeneration) -> None:
    images = [picture(), picture(mode="L")]
    videos = flux.generate_i2v(PROMPTS, images, temp=1, num_images_per_prompt=2)
    assert [len(video) for video in videos] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        flux.generate_i2v(PROMPTS[:1], images, temp=1)


# ---- randomness -------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bytes_twice(pipeline: PyramidDiTForVideoGeneration) -> None:
    def run(seed: int) -> np.ndarray:
        options = {"video_num_inference_steps": 1, "output_type": "np", **SIZE, **QUICK}
        return pipeline.generate(PROMPTS[0], temp=2, generator=seeded(seed)[0], **options)

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


def test_the_global_generator_is_the_default(flux: PyramidDiTForVideoGeneration) -> None:
    def run() -> np.ndarray:
        torch.manual_seed(7)
        return flux.generate(PROMPTS[0], output_type="latent", **SIZE, **QUICK)

    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


@pytest.mark.parametrize("with_image", [False, True])
def test_alone_or_in_a_batch(pipeline: PyramidDiTForVideoGeneration, with_image: bool) -> None:
    def run(prompt: str | list[str], negative: Any, *seeds: int) -> torch.Tensor:
        options = {"temp": 3, "generator": seeded(*seeds), "output_type": "latent", **QUICK}
        options["negative_prompt"] = negative
        if with_image:
            return pipeline.generate_i2v(prompt, picture(), **options)
        return pipeline.generate(prompt, video_num_inference_steps=1, **SIZE, **options)

    negatives = ["", "black background, white"]
    batch = run(PROMPTS, negatives, 3, 4)
    for number, (prompt, negative) in enumerate(zip(PROMPTS, negatives, strict=True)):
        alone = run(prompt, negative, 3 + number)
        assert relative_error(batch[number : number + 1], alone) <= 1e-4


def test_padding_of_the_text_changes_nothing(pipeline: PyramidDiTForVideoGeneration) -> None:
    features = text_features(pipeline)
    padded = dict(features)
    for prefix in ("", "negative_"):
        embeds, mask = (f"{prefix}prompt_embeds", f"{prefix}prompt_attention_mask")
        rubbish = torch.full((1, 9, features[embeds].shape[2]), torch.nan)
        padded[embeds] = torch.cat([features[embeds], rubbish], dim=1)
        padded[mask] = torch.nn.functional.pad(features[mask], (0, 9))
    results = [
        pipeline.generate(
            temp=2,
            generator=seeded(0)[0],
            output_type="latent",
            video_num_inference_steps=1,
            **text,
            **SIZE,
            **QUICK,
        )
        for text in (features, padded)
    ]
    assert relative_error(results[1], results[0]) <= 1e-5


def test_the_callers_tensors_stay_as_they_are(pipeline: PyramidDiTForVideoGeneration) -> None:
    given = text_features(pipeline)
    given["latents"] = torch.randn(1, LATENT_CHANNELS, 2, 8, 8)
    given["image_latents"] = torch.randn(1, LATENT_CHANNELS, 1, 8, 8)
    copies = {name: tensor.clone() for name, tensor in given.items()}
    pipeline.generate_i2v(temp=2, output_type="latent", **given, **QUICK)
    for name, copy in copies.items():
        assert torch.equal(given[name], copy), name


# ---- guidance ---------------------------------------------------------------------------------


def test_without_guidance_no_negative_prompt_is_needed(
    pipelines: dict[str, PyramidDiTForVideoGeneration], folders: dict[str, Path]
) -> None:
    pipeline = PyramidDiTForVideoGeneration(
        folders["pyramid_flux"], "fp32", "pyramid_flux", load_text_encoder=False, load_vae=False
    )
    text = text_features(pipeline)
    positive = {name: value for name, value in text.items() if not name.startswith("negative")}
    options = {"num_inference_steps": 1, "output_type": "latent", **SIZE}
    latents = [
        pipeline.generate(guidance_scale=scale, generator=seeded(0)[0], **given, **options)
        for scale, given in ((0, positive), (1, text), (1.0001, text))
    ]
    assert torch.equal(latents[0], latents[1])
    assert 0 < relative_error(latents[2], latents[1]) < 1e-2
    with pytest.raises(ValueError, match="no text encoder"):
        pipeline.generate(guidance_scale=2, **positive, **options)
    with pytest.raises(ValueError, match="no VAE"):
        pipeline.generate(guidance_scale=0, **positive, **{**options, "output_type": "pil"})
    with pytest.raises(ValueError, match="no VAE"):
        pipeline.generate_i2v(input_image=picture(), output_type="latent", **text)


def test_autocast_leaves_latents_in_float32(flux: PyramidDiTForVideoGeneration) -> None:
    options = {"temp": 2, "video_num_inference_steps": 1, "output_type": "latent"}
    plain = flux.generate(PROMPTS[0], generator=seeded(0)[0], **options, **SIZE, **QUICK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = flux.generate(PROMPTS[0], generator=seeded(0)[0], **options, **SIZE, **QUICK)
    assert cast.dtype == torch.float32
    assert 0 < relative_error(cast, plain) < 0.1


# ---- where the weights are --------------------------------------------------------------------


def test_offloading(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    pipeline = PyramidDiTForVideoGeneration(folders["pyramid_flux"], "fp32", "pyramid_flux")

    def run(**kwargs: Any) -> np.ndarray:
        generator = seeded(0)[0]
        return pipeline.generate(
            PROMPTS[0], generator=generator, output_type="np", **SIZE, **QUICK, **kwargs
        )

    expected = run()
    if not torch.accelerator.is_available():
        np.testing.assert_array_equal(run(cpu_offloading=True), expected)
        pipeline.enable_sequential_cpu_offload()
        assert "no accelerator" in caplog.text
        assert not any(parameter.is_meta for parameter in pipeline.dit.parameters())
    pipeline.enable_sequential_cpu_offload("cpu")
    assert all(parameter.is_meta for parameter in pipeline.dit.parameters())
    assert pipeline.device == torch.device("cpu") and pipeline.dtype == torch.float32
    np.testing.assert_array_equal(run(), expected)
    np.testing.assert_array_equal(run(cpu_offloading=True), expected)
    pipeline.enable_sequential_cpu_offload("cpu")  # once more
    np.testing.assert_array_equal(run(), expected)


# ---- bad input --------------------------------------------------------------------------------

BAD_GENERATE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no prompt": ({"prompt": None}, ValueError, "prompt"),
    "empty prompt": ({"prompt": " "}, ValueError, "empty"),
    "empty list": ({"prompt": []}, ValueError, "empty"),
    "empty prompt in a list": ({"prompt": ["a", ""]}, ValueError, "empty"),
    "prompt of another kind": ({"prompt": [1]}, TypeError, "prompt must be a string, got 1"),
    "height": ({"height": 100}, ValueError, "64 or 128"),
    "width": ({"width": 32}, ValueError, "try 64"),
    "height 0": ({"height": 0}, ValueError, "at least 1"),
    "height of another kind": ({"height": 64.5}, TypeError, "64.5"),
    "temp": ({"temp": 0}, ValueError, "temp must be at least 1, got 0"),
    "steps": ({"num_inference_steps": 0}, ValueError, "num_inference_steps"),
    "steps in a list": ({"video_num_inference_steps": [1, 0, 1]}, ValueError, "at least 1"),
    "steps for two stages": ({"num_inference_steps": [1, 2]}, ValueError, "one number or 3"),
    "half a step": ({"num_inference_steps": [1, 1, 1.5]}, TypeError, "1.5"),
    "negative prompts": ({"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts for 1"),
    "no samples": ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt"),
    "generators": ({"generator": seeded(0, 1)}, ValueError, "2 generators for a batch of 1"),
    "output_type": ({"output_type": "gif"}, ValueError, "pil, np, pt, latent"),
    "latents": ({"latents": torch.zeros(1, 4, 1, 8, 9)}, ValueError, "latents must have shape"),
}


@pytest.mark.parametrize("case", BAD_GENERATE)
def test_bad_arguments(flux: PyramidDiTForVideoGeneration, case: str) -> None:
    arguments, error, message = BAD_GENERATE[case]
    with pytest.raises(error, match=message):
        flux.generate(**{"prompt": PROMPTS[0], **SIZE, **arguments})


def _change(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
    return lambda text: text.update({name: change(text[name])})


BAD_EMBEDS: dict[str, tuple[Any, str]] = {
    "part missing": (_change("pooled_prompt_embeds", lambda x: None), "go together"),
    "batch of the mask": (_change("prompt_attention_mask", lambda x: x[:1]), r"\(2, 5\)"),
    "batch of the pooled": (_change("pooled_prompt_embeds", lambda x: x[:1]), "pooled"),
    "no real token": (_change("prompt_attention_mask", lambda x: x * 0), "real token"),
    "rank": (_change("prompt_embeds", lambda x: x[0]), r"\[b, L, d\]"),
    "width": (_change("prompt_embeds", lambda x: x[..., :3]), "channels"),
}


@pytest.mark.parametrize("case", BAD_EMBEDS)
def test_bad_embeddings(flux: PyramidDiTForVideoGeneration, case: str) -> None:
    spoil, message = BAD_EMBEDS[case]
    text = text_features(flux, batch=2)
    spoil(text)
    with pytest.raises(ValueError, match=message):
        flux.generate(**text, **SIZE)


def test_embeddings_that_do_not_fit_each_other(flux: PyramidDiTForVideoGeneration) -> None:
    two, three = text_features(flux, batch=2), text_features(flux, batch=3)
    negative = {name: value for name, value in three.items() if name.startswith("negative")}
    with pytest.raises(ValueError, match="3 rows for 2 prompts"):
        flux.generate(**{**two, **negative}, **SIZE)
    with pytest.raises(ValueError, match="not both"):
        flux.generate(PROMPTS[0], **two, **SIZE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "input_image is needed"),
        ({"input_image": []}, ValueError, "list of images is empty"),
        ({"input_image": "cat.png"}, TypeError, "PIL image"),
        ({"input_image": np.zeros((64, 64, 3), np.uint8)}, TypeError, "PIL image"),
        ({"input_image": picture(1, 1)}, ValueError, "multiple of 64"),
        ({"input_image": picture(64, 100)}, ValueError, "height must be .* 64 or 128"),
        ({"input_image": Image.new("F", (64, 64))}, ValueError, "mode F"),
        ({"input_image": [picture(), picture(128)]}, ValueError, "one size"),
        ({"input_image": picture(), "image_latents": torch.zeros(1)}, ValueError, "not both"),
        ({"image_latents": torch.zeros(1, 4, 2, 8, 8)}, ValueError, "image_latents must be"),
        ({"input_image": picture(), "temp": 0}, ValueError, "temp"),
    ],
)
def test_bad_images(
    flux: PyramidDiTForVideoGeneration,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        flux.generate_i2v(PROMPTS[0], **arguments)


# ---- model_index.json -------------------------------------------------------------------------


def test_defaults_of_a_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    channels = [0.1 * number for number in range(LATENT_CHANNELS)]
    statistics = {
        "first_frame": {"shift": 0.5, "scale": 2.0},
        "later_frames": {"shift": channels, "scale": [1.0] * LATENT_CHANNELS},
    }
    index = {**QUICK_INDEX, "latent_statistics": statistics, "prompt_suffix": ", sharp"}
    folder = write_tiny_checkpoint(
        tmp_path / "model", variant="diffusion_transformer_128p", index=index
    )
    pipeline = PyramidDiTForVideoGeneration.from_pretrained(folder)
    assert pipeline.dtype == torch.float32
    z = torch.zeros(1, LATENT_CHANNELS, 2, 1, 1)
    x = pipeline.statistics.normalize(z)
    torch.testing.assert_close(x[0, :, 0, 0, 0], torch.full((LATENT_CHANNELS,), -1.0))
    torch.testing.assert_close(x[0, :, 1, 0, 0], -torch.tensor(channels))

    calls: list[list[str]] = []
    encode = pipeline.text_encoder.forward
    pipeline.text_encoder.forward = lambda texts, **_: calls.append(texts) or encode(texts)
    frames = pipeline.generate("a circle", temp=2)
    assert len(frames) == 9 and frames[0].size == (64, 64)
    assert calls == [["a circle, sharp"], [""]]


# ---- steps by themselves ----------------------------------------------------------------------


def test_decoding_and_noise_are_those_of_a_run(flux: PyramidDiTForVideoGeneration) -> None:
    noise = flux.prepare_latents(1, LATENT_CHANNELS, 2, 64, 128, generator=seeded(3)[0])
    assert noise.shape == (1, LATENT_CHANNELS, 2, 8, 16) and noise.dtype == torch.float32
    half = flux.prepare_latents(2, 4, 1, 64, 64, torch.bfloat16, torch.device("cpu"), None)
    assert half.shape == (2, 4, 1, 8, 8) and half.dtype == torch.bfloat16
    options = {"height": 64, "width": 128, "temp": 2, "video_num_inference_steps": 1, **QUICK}
    options["latents"] = noise
    runs = [
        flux.generate(PROMPTS[0], output_type=kind, generator=seeded(3)[0], **options)
        for kind in ("pil", "latent")
    ]
    for save_memory in (True, False):
        frames = np.stack(flux.decode_latent(runs[1], save_memory)).astype(int)
        assert frames.shape == (9, 64, 128, 3)
        assert np.abs(frames - np.stack(runs[0])).max() <= 1  # rounding before the cut to a byte
    assert len(flux.decode_latent(runs[1].expand(2, -1, -1, -1, -1))) == 18


def test_noise_of_a_jump(flux: PyramidDiTForVideoGeneration) -> None:
    noise = flux.sample_block_noise(2, LATENT_CHANNELS, 3, 16, 8, generator=seeded(0)[0])
    expected = flux.scheduler.sample_block_noise(
        (2, LATENT_CHANNELS, 3, 16, 8), generator=seeded(0)[0]
    )
    assert torch.equal(noise, expected)


def test_loss_of_columns(flux: PyramidDiTForVideoGeneration) -> None:
    targets = [torch.zeros(1, 4, 1, size, size) for size in (2, 4, 4, 8)]
    loss, log = flux.calculate_loss([target + 2.0 for target in targets], targets)
    assert loss == 4.0 and log["loss_stage_1"] == 4.0


# ---- training ---------------------------------------------------------------------------------


TRAINING_KINDS = "video", "full sequence", "image", "latents", "image latents", "features"


@pytest.mark.parametrize("kind", TRAINING_KINDS)
def test_training_step(folders: dict[str, Path], kind: str) -> None:
    pipeline = PyramidDiTForVideoGeneration(
        folders["pyramid_flux"],
        "fp32",
        "pyramid_flux",
        sample_ratios=[1, 2, 1],
        load_vae="latents" not in kind,
        use_gradient_checkpointing=True,
        max_temporal_length=3,
    )
    video = torch.rand(4, 3, 9, 64, 64) * 2 - 1
    if kind == "image":
        video = video[:, :, 0]
    if kind == "latents":
        video = torch.randn(4, LATENT_CHANNELS, 3, 8, 8)
    if kind == "image latents":
        video = torch.randn(4, LATENT_CHANNELS, 8, 8)
    text: Any = [PROMPTS[0]] * 4
    if kind == "features":
        features = text_features(pipeline, batch=4)
        text = {name: v for name, v in features.items() if not name.startswith("negative")}
    for step in range(2):
        loss, log = pipeline(
            video,
            text,
            ["image" if kind.startswith("image") else "video"],
            use_temporal_pyramid=kind != "full sequence",
            generator=seeded(step)[0],
        )
        assert loss.isfinite() and log["loss"] == loss.detach()
        loss.backward()
    assert pipeline.accumulate_steps == 2
    gradients = [parameter.grad for parameter in pipeline.dit.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    for frozen in (pipeline.vae, pipeline.text_encoder):
        assert frozen is None or all(p.grad is None for p in frozen.parameters())


def test_a_tenth_of_the_prompts_is_dropped(flux: PyramidDiTForVideoGeneration) -> None:
    seen: list[str] = []
    original = flux.text_encoder.forward
    flux.text_encoder.forward = lambda texts, **_: seen.extend(texts) or original(texts[:1])
    try:
        for seed in range(50):
            flux._training_text(["a circle"] * 40, None, seeded(seed)[0])
    finally:
        flux.text_encoder.forward = original
    assert set(seen) == {"", "a circle"}
    assert 0.08 < seen.count("") / len(seen) < 0.12


def test_images_are_videos_of_one_frame(flux: PyramidDiTForVideoGeneration) -> None:
    images = torch.rand(4, 3, 64, 128) * 2 - 1
    losses = [
        flux(batch, PROMPTS * 2, [kind], False, generator=seeded(0)[0])[0]
        for batch, kind in (
            (images, "image"),
            (images.unsqueeze(2), "image"),
            (images.unsqueeze(2), "video"),
        )
    ]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def feature_batch(count: int) -> dict[str, torch.Tensor]:
    """Features that say in every number which row they are, counted from 1."""
    row = torch.arange(1.0, count + 1)
    return {
        "prompt_embeds": row.view(-1, 1, 1).expand(-1, 5, 24),
        "prompt_attention_mask": torch.ones(count, 5, dtype=torch.long),
        "pooled_prompt_embeds": row.view(-1, 1).expand(-1, 16),
    }


@pytest.mark.parametrize("length", [3, 8])
def test_a_tenth_of_the_features_is_dropped(
    flux: PyramidDiTForVideoGeneration, length: int
) -> None:
    features = feature_batch(40)
    empty = {  # of another length and dtype, by the names of extracted files
        "prompt_embed": torch.zeros(1, length, 24, dtype=torch.bfloat16),
        "prompt_attention_mask": torch.tensor([[1] + [0] * (length - 1)]),
        "pooled_prompt_embed": torch.zeros(1, 16, dtype=torch.bfloat16),
    }
    total = 0
    for seed in range(50):
        text = flux._training_text(features, empty, seeded(seed)[0])
        dropped = torch.rand(40, generator=seeded(seed)[0]) < 0.1  # as prompts are
        expected = features["pooled_prompt_embeds"].masked_fill(dropped[:, None], 0)
        assert torch.equal(text.pooled_prompt_embeds, expected)
        assert torch.equal(text.prompt_embeds[:, 0], expected[:, :1].expand(-1, 24))
        assert text.prompt_attention_mask.sum(1).tolist() == [1 if d else 5 for d in dropped]
        total += int(dropped.sum())
    assert 0.08 < total / 2000 < 0.12


def test_features_without_the_empty_prompt_are_kept_with_a_warning(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = PyramidDiTForVideoGeneration(folders["pyramid_flux"], "fp32", "pyramid_flux")
    features = feature_batch(40)
    for seed in range(3):
        text = pipeline._training_text(features, None, seeded(seed)[0])
        assert all(torch.equal(x, features[name]) for name, x in text._asdict().items())
    assert caplog.text.count("guidance is not learned") == 1
    prompts = pipeline.text_encoder(["a circle"] * 3)
    assert pipeline(torch.zeros(3, 3, 1, 64, 64), prompts)[0].isfinite()
    with pytest.raises(ValueError, match="empty_text must have one row, got 40"):
        pipeline._training_text(features, features, None)
    with pytest.raises(ValueError, match="features of the text must have"):
        pipeline._training_text(features, {}, None)


def test_weights_in_half_precision(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    def train(pipeline: PyramidDiTForVideoGeneration) -> int:
        """Two steps; gives how often the log warns."""
        caplog.clear()
        pipeline.dit.train()
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, _ = pipeline(torch.zeros(3, 3, 1, 64, 64), ["a circle"] * 3)
            assert loss.isfinite()
            loss.backward()
        assert all(p.grad is not None for p in pipeline.dit.parameters())
        return caplog.text.count("use_mixed_training=True")

    place = (folders["pyramid_flux"], "bf16", "pyramid_flux")
    pipeline = PyramidDiTForVideoGeneration(*place)
    assert pipeline.dit.dtype == torch.bfloat16
    assert train(pipeline) == 1
    pipeline = PyramidDiTForVideoGeneration(*place, use_mixed_training=True)
    assert {p.dtype for p in pipeline.dit.parameters()} == {torch.float32}
    for frozen in (pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert train(pipeline) == 0


def test_a_wrapped_transformer(folders: dict[str, Path]) -> None:
    class Around(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(*args, **kwargs)

    pipeline = PyramidDiTForVideoGeneration(folders["pyramid_flux"], "fp32", "pyramid_flux")
    bare = pipeline.dit
    pipeline.dit = around = Around(Around(bare))
    assert pipeline.dit is around and pipeline.video_generator.components.dit is bare
    assert pipeline.dtype == torch.float32 and pipeline.latent_channels == LATENT_CHANNELS
    pipeline(torch.zeros(3, 3, 1, 64, 64), ["a circle"] * 3)
    assert around.calls == around.module.calls == 1
    pipeline.video_generator.components.dit = other = torch.nn.Linear(1, 1)
    assert pipeline.dit is other


def test_bad_training_input(flux: PyramidDiTForVideoGeneration) -> None:
    video = torch.zeros(4, 3, 1, 64, 64)
    with pytest.raises(ValueError, match="identifier"):
        flux(video, ["a"] * 4, ["sound"])
    with pytest.raises(ValueError, match=r"'video'.* of shape \(4, 3, 64, 64\): a batch has 5"):
        flux(video[:, :, 0], ["a"] * 4)
    with pytest.raises(ValueError, match="3 texts for 4 videos"):
        flux(video, ["a"] * 3)
    with pytest.raises(ValueError, match="features"):
        flux(video, {})
