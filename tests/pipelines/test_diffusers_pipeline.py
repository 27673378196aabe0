"""`PyramidFlowPipeline` with whole, tiny checkpoints: as diffusers' pipelines are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    BitsAndBytesConfig,
    DiffusionPipeline,
    GGUFQuantizationConfig,
    TorchAoConfig,
)
from diffusers.callbacks import PipelineCallback
from diffusers.quantizers import PipelineQuantizationConfig
from PIL import Image
from tiny_checkpoint import LATENT_CHANNELS, QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor
from transformers import BitsAndBytesConfig as TransformersBitsAndBytesConfig

from pyramid_dit import (
    PyramidDiTForVideoGeneration,
    PyramidFlowMatchEulerDiscreteScheduler,
    PyramidFlowPipeline,
)
from pyramid_dit.checkpoints.architectures import architecture_of
from pyramid_dit.devices.offload import module_device
from pyramid_dit.flow.latents import FrameStatistics, LatentStatistics
from pyramid_dit.models.text_encoder import TextPart

MODELS = ("pyramid_flux", "pyramid_mmdit")
PROMPT = "a red circle moves left"
STATISTICS = {"first_frame": {"shift": 0.1, "scale": 0.5}, "later_frames": {"shift": -0.2}}
STEPS = 6  # of two units in three stages


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    index = QUICK_INDEX | {"latent_statistics": STATISTICS}
    return {name: write_tiny_checkpoint(folder / name, name, index=index) for name in MODELS}


@pytest.fixture
def flux(folders: dict[str, Path]) -> PyramidFlowPipeline:
    return quiet(PyramidFlowPipeline.from_pretrained(folders["pyramid_flux"]))


def quiet(pipeline: PyramidFlowPipeline) -> PyramidFlowPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def made(pipeline: PyramidFlowPipeline, prompt: Any = PROMPT, **arguments: Any) -> Tensor:
    """Frames `[b, t, 3, h, w]`, always of the same noise."""
    return pipeline(prompt, generator=seeded(), output_type="pt", **arguments).frames


def picture(width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


# ---- one implementation, two layouts ----------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_it_makes_what_the_other_class_makes(name: str, folders: dict[str, Path]) -> None:
    model = PyramidDiTForVideoGeneration.from_pretrained(folders[name])
    model.set_progress_bar_config(disable=True)
    # one VAE: how its weights lie in memory decides on the last bit of a convolution
    pipeline = quiet(PyramidFlowPipeline.from_pretrained(folders[name], vae=model.vae))
    clip = [picture()] * 9
    same: dict[str, Any] = {"output_type": "pt", "prompt": [PROMPT]}
    expected = model.generate(generator=seeded(), num_frames=9, **same)
    assert torch.equal(made(pipeline), expected)
    expected = model.generate_i2v(
        input_image=picture(),
        generator=seeded(),
        num_frames=9,
        num_inference_steps=2,
        video_guidance_scale=3.0,
        **same,
    )
    given = made(pipeline, image=picture(), num_inference_steps=2, guidance_scale=3.0)
    assert torch.equal(given, expected)
    expected = model.generate_v2v(video=clip, generator=seeded(), num_frames=8, **same)
    assert expected.shape[1] == 8
    assert torch.equal(made(pipeline, video=clip), expected)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_what_is_loaded(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    scheduler = PyramidFlowMatchEulerDiscreteScheduler(gamma=0.25)
    changed: dict[str, Any] = {"scheduler": scheduler, "frame_per_unit": 2}
    pipeline = quiet(PyramidFlowPipeline.from_pretrained(folders[name], **changed))
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "PyramidFlowPipeline"
    assert index["latent_statistics"]["first_frame"] == STATISTICS["first_frame"]
    loaded = quiet(PyramidFlowPipeline.from_pretrained(tmp_path))
    assert loaded.scheduler.config.gamma == 0.25
    assert loaded.defaults == pipeline.defaults
    assert loaded.config.frame_per_unit == 2
    frames = made(pipeline, num_frames=17)
    assert torch.equal(made(loaded, num_frames=17), frames)
    model = PyramidDiTForVideoGeneration.from_pretrained(tmp_path)
    model.set_progress_bar_config(disable=True)
    again = model.generate([PROMPT], num_frames=17, generator=seeded(), output_type="pt")
    assert torch.equal(again, frames)


def test_what_changes_a_video_travels_with_the_components(
    flux: PyramidFlowPipeline, folders: dict[str, Path]
) -> None:
    frames = made(flux)
    assert torch.equal(made(quiet(PyramidFlowPipeline(**flux.components))), frames)
    model = PyramidDiTForVideoGeneration.from_pretrained(folders["pyramid_flux"])
    parts = flux.components | {"transformer": model.dit, "vae": model.vae}
    torch.testing.assert_close(made(quiet(PyramidFlowPipeline(**parts))), frames)

    plain = {"shift": 0.0, "scale": 1.0}
    own = {"first_frame": plain, "later_frames": plain}
    arguments: dict[str, Any] = {
        "latent_statistics": own,
        "generation_defaults": {"num_frames": 17},
        "frame_per_unit": 2,
    }
    other = quiet(PyramidFlowPipeline(**flux.components, **arguments))
    assert other.video_generator.components.statistics == LatentStatistics(
        FrameStatistics(), FrameStatistics()
    )
    assert made(other).shape[1] == 17 and other.video_generator.components.frame_per_unit == 2
    assert other.defaults.height == flux.defaults.height  # which the arguments do not say
    assert torch.equal(made(flux), frames)  # whose components are the same objects


def test_statistics_that_nobody_states_are_those_of_the_architecture(tmp_path: Path) -> None:
    released = {name: write_tiny_checkpoint(tmp_path / name, name) for name in MODELS}
    flux = PyramidFlowPipeline.from_pretrained(released["pyramid_flux"])
    mmdit = PyramidFlowPipeline.from_pretrained(released["pyramid_mmdit"], vae=flux.vae)
    for pipeline in (flux, mmdit):
        stated = architecture_of(pipeline.transformer).released_statistics
        assert pipeline.video_generator.components.statistics == stated
    assert flux.vae is not None and flux.vae.config.latent_statistics is None


@pytest.mark.parametrize("layout", ["released", "saved"])
def test_a_folder_whose_index_is_silent(
    flux: PyramidFlowPipeline, folders: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    """Configs of the components say it then, to both faces."""
    if layout == "released":
        shutil.copytree(folders["pyramid_flux"], tmp_path, dirs_exist_ok=True)
        transformer, vae = "diffusion_transformer_own", "causal_video_vae"
        (tmp_path / "diffusion_transformer_768p").rename(tmp_path / transformer)
        flux.transformer.save_pretrained(tmp_path / transformer)
        assert flux.vae is not None
        flux.vae.save_pretrained(tmp_path / vae)
        (tmp_path / "model_index.json").unlink()
    else:
        flux.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        for name in ("latent_statistics", "generation_defaults", "frame_per_unit"):
            del index[name]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    expected = flux.video_generator.components
    pipeline = PyramidFlowPipeline.from_pretrained(tmp_path)
    model = PyramidDiTForVideoGeneration.from_pretrained(tmp_path)
    for found in (pipeline.video_generator.components, model.video_generator.components):
        assert found.statistics == expected.statistics
        assert found.defaults == expected.defaults
        assert found.frame_per_unit == expected.frame_per_unit


@pytest.mark.parametrize(
    ("name", "entry"),
    [("frame_per_unit", 0), ("generation_defaults", [1]), ("generation_defaults", {"width": "a"})],
)
def test_a_config_that_says_nonsense(
    flux: PyramidFlowPipeline, tmp_path: Path, name: str, entry: Any
) -> None:
    flux.save_pretrained(tmp_path)
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: entry}))
    with pytest.raises(ValueError, match="config.json"):
        PyramidFlowPipeline.from_pretrained(tmp_path)


def test_without_text_encoders_and_vae(flux: PyramidFlowPipeline, tmp_path: Path) -> None:
    encoded = flux.encode_prompt([PROMPT, "a blue square"], prompt_suffix="")
    frames = made(flux, [PROMPT, "a blue square"])
    assert torch.equal(made(flux, None, **encoded), frames)
    single = {name: tensor[:1] for name, tensor in encoded.items()}
    (video,) = flux(**single, generator=seeded()).frames
    assert len(video) == 9

    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae"))
    bare = PyramidFlowPipeline.from_pretrained(flux.name_or_path, **absent)
    bare.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "scheduler",
        "transformer",
    ]
    bare = quiet(PyramidFlowPipeline.from_pretrained(tmp_path))
    latents = bare(**encoded, generator=seeded(), output_type="latent").frames
    assert latents.shape == (2, LATENT_CHANNELS, 2, 8, 8)
    with pytest.raises(ValueError, match="no text encoder"):
        bare(PROMPT, output_type="latent")
    with pytest.raises(ValueError, match="no VAE"):
        bare(**encoded)
    with pytest.raises(ValueError, match="no VAE"):
        bare.enable_vae_tiling()
    model = PyramidDiTForVideoGeneration.from_pretrained(tmp_path)
    assert model.vae is None
    assert model.text_encoder is None


def test_variant_size_and_dtype_are_detected(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, variant="diffusion_transformer_384p")
    pipeline = PyramidFlowPipeline.from_pretrained(folder, torch_dtype="bf16")
    assert pipeline.transformer.dtype == torch.bfloat16
    assert (pipeline.defaults.width, pipeline.defaults.height) == (640, 384)
    assert pipeline.defaults.num_frames == 121
    pipeline.transformer.save_pretrained(folder / "diffusion_transformer_768p")
    detected = PyramidFlowPipeline.from_pretrained(folder)
    assert detected.dtype == torch.bfloat16
    assert detected.defaults.width == 1280
    assert PyramidFlowPipeline.from_pretrained(folder, "384p").dtype == torch.float32


def test_components_of_the_caller(flux: PyramidFlowPipeline) -> None:
    other = PyramidFlowPipeline.from_pretrained(flux.name_or_path, vae=flux.vae, device_map="cpu")
    assert other.vae is flux.vae
    assert other.transformer is not flux.transformer
    shared = quiet(PyramidFlowPipeline.from_pipe(flux))
    assert shared.transformer is flux.transformer
    assert torch.equal(made(shared), made(flux))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"unet": None}, TypeError, "no argument unet; components are .*transformer"),
        ({"device_map": "balanced"}, ValueError, "one device.*'balanced'"),
        ({"torch_dtype": "int8"}, ValueError, "one of bf16, fp16, fp32"),
        ({"variant": "2k"}, FileNotFoundError, "no variant"),
    ],
)
def test_bad_arguments_of_loading(
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "pyramid_dit.checkpoints.weights.load_model", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(error, match=message):
        PyramidFlowPipeline.from_pretrained(folders["pyramid_flux"], **arguments)


def test_a_damaged_saved_pipeline(flux: PyramidFlowPipeline, tmp_path: Path) -> None:
    flux.save_pretrained(tmp_path)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        PyramidFlowPipeline.from_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config"):
        PyramidFlowPipeline.from_pretrained(tmp_path)


# ---- a call -----------------------------------------------------------------------------------


def test_forms_of_the_result(flux: PyramidFlowPipeline) -> None:
    assert isinstance(flux, DiffusionPipeline)
    tensor = made(flux, num_videos_per_prompt=2)
    assert tensor.shape == (2, 9, 3, 64, 64)
    same: dict[str, Any] = {"num_videos_per_prompt": 2, "generator": seeded()}
    array = flux(PROMPT, output_type="np", **same).frames
    np.testing.assert_array_equal(array, tensor.movedim(2, -1).numpy())
    (videos,) = flux(PROMPT, return_dict=False, num_videos_per_prompt=2, generator=seeded())
    assert [len(video) for video in videos] == [9, 9]
    np.testing.assert_array_equal(np.asarray(videos[1][8]), (array[1, 8] * 255).astype(np.uint8))
    (image,) = flux(PROMPT, num_frames=1).frames
    assert [frame.size for frame in image] == [(64, 64)]


def test_steps_guidance_and_storyboard(flux: PyramidFlowPipeline) -> None:
    steps: list[int] = []

    def count(pipeline: Any, step: int, timestep: float, tensors: Any) -> None:
        steps.append(step)

    def total(**arguments: Any) -> int:
        steps.clear()
        flux(PROMPT, output_type="latent", callback_on_step_end=count, **arguments)
        assert steps == list(range(len(steps)))
        return len(steps)

    assert total() == STEPS
    assert total(num_inference_steps=2) == 2 * STEPS
    assert total(pyramid_num_inference_steps_list=[1, 2, 1]) == 8
    assert total(num_inference_steps=2, video_num_inference_steps=1) == 9
    assert total(num_frames=1) == 3
    assert flux.num_timesteps == 3
    unguided = made(flux, guidance_scale=1.0)
    assert not flux.do_classifier_free_guidance
    assert not torch.equal(unguided, made(flux, guidance_scale=1.0, video_guidance_scale=5.0))
    board = made(flux, None, prompts={0: PROMPT, 1: "a blue square"})
    frames = made(flux)
    assert torch.equal(board[:, :1], frames[:, :1])
    assert not torch.equal(board, frames)


def test_callbacks_see_and_change_the_latents(flux: PyramidFlowPipeline) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def zero(pipeline: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> Any:
        assert pipeline is flux
        assert pipeline.current_timestep == timestep
        seen.append((step, tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = flux(PROMPT, output_type="latent", callback_on_step_end=zero).frames
    assert not latents.any()
    assert seen == [
        (step, (1, LATENT_CHANNELS, 1, 2 ** (step % 3 + 1), 2 ** (step % 3 + 1)))
        for step in range(STEPS)
    ]
    assert flux.current_timestep is None

    class Recorder(PipelineCallback):
        tensor_inputs = ["latents"]
        steps: list[int] = []

        def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: Any) -> Any:
            self.steps.append(step)
            return tensors

    flux(PROMPT, callback_on_step_end=Recorder(cutoff_step_ratio=None, cutoff_step_index=0))
    assert Recorder.steps == list(range(STEPS))


def test_a_callback_can_end_the_call(flux: PyramidFlowPipeline) -> None:
    def stop_after(last: int) -> Any:
        def callback(pipeline: Any, step: int, timestep: Any, tensors: Any) -> Any:
            pipeline._interrupt = step == last
            return tensors

        return callback

    whole = made(flux)
    first = made(flux, callback_on_step_end=stop_after(4))
    assert flux.interrupt
    assert torch.equal(first, whole[:, :1])
    assert flux(PROMPT, callback_on_step_end=stop_after(0)).frames == [[]]
    assert torch.equal(made(flux), whole)


def test_images_of_all_kinds(flux: PyramidFlowPipeline) -> None:
    image = picture()
    array = np.asarray(image)
    tensor = torch.tensor(array).movedim(-1, 0).float() / 255
    frames = made(flux, image=image)
    assert frames.shape == (1, 9, 3, 64, 64)
    for same in (array, array / 255, tensor, [image], tensor[None]):
        assert torch.equal(made(flux, image=same), frames)
    assert made(flux, image=picture(90, 200), height=128, width=64).shape[3:] == (128, 64)
    assert made(flux, image=picture(90, 200)).shape[3:] == (64, 64)
    both = made(flux, [PROMPT, PROMPT], image=[image, picture(100, 100)])
    assert both.shape[0] == 2


def test_videos_are_brought_to_a_size(flux: PyramidFlowPipeline) -> None:
    clip = [picture(80, 70)] * 20
    with pytest.raises(ValueError, match="multiple of 64"):
        made(flux, video=clip)
    frames = made(flux, video=clip, height=64, width=128)
    assert frames.shape == (1, 8, 3, 64, 128)
    stacked = np.stack([np.asarray(frame) for frame in clip])
    assert torch.equal(made(flux, video=stacked, height=64, width=128), frames)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": picture(), "video": [picture()]}, ValueError, "one of image and video"),
        ({"image": "image.png"}, TypeError, "got str"),
        ({"image": np.zeros((64, 64))}, ValueError, r"\[h, w, 3\].*\(64, 64\)"),
        ({"image": []}, ValueError, "empty"),
        ({"height": 70}, ValueError, "height must be a multiple of 64"),
        ({"num_frames": 10}, ValueError, "9 and 17"),
        ({"video": [picture()], "height": 64}, ValueError, "go together"),
        ({"num_inference_steps": 1, "pyramid_num_inference_steps_list": [1]}, ValueError, "either"),
        ({"callback_on_step_end_tensor_inputs": ["image"]}, ValueError, "latents, got 'image'"),
        ({"output_type": "gif"}, ValueError, "pil, np, pt, latent"),
    ],
)
def test_bad_arguments(
    flux: PyramidFlowPipeline, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        flux(PROMPT, **arguments)


# ---- where the weights are --------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["model", "sequential", "leaf_level", "block_level"])
def test_offloading_changes_nothing(name: str, way: str, folders: dict[str, Path]) -> None:
    pipeline = quiet(PyramidFlowPipeline.from_pretrained(folders[name]))
    expected, image = made(pipeline), made(pipeline, image=picture())
    if way == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
        assert module_device(pipeline.transformer) == torch.device("cpu", 0)
    elif way == "sequential":
        # what enable_sequential_cpu_offload does, which on a CPU stumbles over "cpu:0"
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                cpu_offload(component, torch.device("cpu"))
        assert next(pipeline.transformer.parameters()).is_meta
    else:
        pipeline.enable_group_offload(torch.device("cpu"), offload_type=way, num_blocks_per_group=1)
    for _ in range(2):
        assert torch.equal(made(pipeline), expected)
    assert torch.equal(made(pipeline, image=picture()), image)
    units = pipeline.video_generator.stream(
        PROMPT, num_frames=9, generator=seeded(), output_type="pt"
    )
    assert torch.equal(torch.cat(list(units), dim=1), expected)


@pytest.mark.parametrize("name", MODELS)
def test_weights_stored_in_eight_bits(name: str, folders: dict[str, Path]) -> None:
    pipeline = quiet(PyramidFlowPipeline.from_pretrained(folders[name]))
    same: dict[str, Any] = {"generator": seeded(), "output_type": "latent"}
    expected = pipeline(PROMPT, **same).frames
    pipeline.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    block = pipeline.transformer.transformer_blocks[0]
    assert block.attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert block.norm1.linear.weight.dtype == torch.float32
    same["generator"].manual_seed(0)
    latents = pipeline(PROMPT, **same).frames
    assert block.attn.to_q.weight.dtype == torch.float8_e4m3fn
    error = (latents - expected).norm() / expected.norm()
    assert 0 < error < 0.2


def test_tiling_fast_mode_and_progress_bar_reach_the_engine(flux: PyramidFlowPipeline) -> None:
    flux.enable_vae_tiling()
    assert flux.vae.use_tiling
    flux.disable_vae_tiling()
    assert not flux.vae.use_tiling
    flux.enable_fast_mode(history_window=1)
    flux.batched_guidance = False
    engine = flux.video_generator
    assert engine.fast_mode.history_window == 1
    assert engine.batched_guidance is False
    assert engine._progress_bar_config == {"disable": True}
    flux.disable_fast_mode()
    assert flux.video_generator.fast_mode.history_window is None


@pytest.mark.parametrize("shards", ["10GB", "40KB"])
def test_a_variant_of_files_is_read_again(
    folders: dict[str, Path], tmp_path: Path, shards: str
) -> None:
    pipeline = quiet(PyramidFlowPipeline.from_pretrained(folders["pyramid_flux"]))
    same: dict[str, Any] = {"num_frames": 9, "output_type": "latent"}
    expected = pipeline(PROMPT, generator=seeded(), **same).frames
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size=shards)
    assert not [*tmp_path.rglob("diffusion_pytorch_model.safetensors")]
    for variant in ("fp16", None):
        again = quiet(PyramidFlowPipeline.from_pretrained(tmp_path, variant=variant))
        assert torch.equal(again(PROMPT, generator=seeded(), **same).frames, expected)
    official = PyramidDiTForVideoGeneration.from_pretrained(tmp_path)
    assert official.text_encoder is not None and official.vae is not None
    with pytest.raises(FileNotFoundError, match="bf16"):
        PyramidFlowPipeline.from_pretrained(tmp_path, variant="bf16")


# ---- quantized weights ------------------------------------------------------------------------


def test_configs_of_quantization_reach_their_components(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    def load_model(kind: type, folder: Path, *, quantization_config: Any = None, **_: Any) -> Any:
        taken[kind.__name__] = quantization_config
        return kind.from_pretrained(folder)

    def load_encoder(self: TextPart, *_: Any, quantization_config: Any = None, **__: Any) -> None:
        taken[self.encoder] = quantization_config

    def load(config: Any) -> dict[str, Any]:
        taken.clear()
        PyramidFlowPipeline.from_pretrained(folders["pyramid_flux"], quantization_config=config)
        return {name: value for name, value in taken.items() if value is not None}

    monkeypatch.setattr("pyramid_dit.checkpoints.weights.load_model", load_model)
    monkeypatch.setattr(TextPart, "load_encoder", load_encoder)
    model_config = BitsAndBytesConfig(load_in_8bit=True)
    text_config = TransformersBitsAndBytesConfig(load_in_8bit=True)
    both = {"transformer": model_config, "text_encoder_2": text_config}
    expected = {"PyramidFluxTransformer": model_config, "text_encoder_2": text_config}
    assert load(None) == {}
    assert load(model_config) == {"PyramidFluxTransformer": model_config}
    assert load(both) == expected
    assert load(PipelineQuantizationConfig(quant_mapping=both)) == expected
    with pytest.raises(ValueError, match="GGUF"):
        load(GGUFQuantizationConfig())


def test_weights_quantized_by_torchao(flux: PyramidFlowPipeline, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    small = quiet(
        PyramidFlowPipeline.from_pretrained(flux.name_or_path, quantization_config=config)
    )
    weight = small.transformer.transformer_blocks[0].ff.net[2].weight
    assert type(weight).__module__.startswith("torchao.")
    error = (made(small) - made(flux)).norm() / made(flux).norm()
    assert 0 < error < 0.05
    small.save_pretrained(tmp_path)
    assert torch.equal(made(quiet(PyramidFlowPipeline.from_pretrained(tmp_path))), made(small))


@pytest.mark.parametrize("undo", ["remove_all_hooks", "max-speed"])
def test_moving_and_saving_after_offloading_says_what_to_call(
    undo: str, flux: PyramidFlowPipeline, tmp_path: Path
) -> None:
    flux.enable_memory_preset("6GB", "cpu")  # which rounds the weights
    frames = made(flux)
    for action in (
        lambda: flux.to("cpu"),
        lambda: flux.to(torch.bfloat16),
        lambda: flux.save_pretrained(tmp_path),
    ):
        with pytest.raises(RuntimeError, match=r"offloaded.*remove_all_hooks.*max-speed"):
            action()
    assert torch.equal(made(flux), frames)
    if undo == "max-speed":
        flux.enable_memory_preset(undo)
    else:
        flux.remove_all_hooks()
    flux.to("cpu")
    flux.save_pretrained(tmp_path)
    for pipeline in (flux, quiet(PyramidFlowPipeline.from_pretrained(tmp_path))):
        torch.testing.assert_close(made(pipeline), frames, rtol=0, atol=1e-4)
