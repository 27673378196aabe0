"""`from_pretrained` of the pipeline, and that of diffusers on the folders that we write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor

from pyramid_dit import PyramidFlowPipeline
from pyramid_dit.checkpoints.hub import download_checkpoint

PROMPT = "a red circle"
MODELS = ("pyramid_flux", "pyramid_mmdit")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: write_tiny_checkpoint(folder / name / "inner", name, index=QUICK_INDEX)
        for name in MODELS
    }


def still(pipeline: DiffusionPipeline) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(0)
    return pipeline(PROMPT, num_frames=1, generator=seeded, output_type="latent").frames


# ---- what diffusers itself loads --------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_loads_what_is_saved(
    name: str, released: dict[str, Path], tmp_path: Path
) -> None:
    pipeline = PyramidFlowPipeline.from_pretrained(released[name])
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(str(tmp_path))
    assert type(loaded) is PyramidFlowPipeline
    assert loaded.defaults == pipeline.defaults
    assert torch.equal(still(loaded), still(pipeline))
    halves = DiffusionPipeline.from_pretrained(str(tmp_path), torch_dtype=torch.bfloat16)
    assert halves.transformer.dtype == halves.vae.dtype == torch.bfloat16
    assert not [*tmp_path.rglob("*.py")]
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["pyramid_dit", type(pipeline.transformer).__name__]
    assert index["scheduler"] == ["pyramid_dit", "PyramidFlowMatchEulerDiscreteScheduler"]
    assert index["vae"] == ["video_vae", "CausalVideoVAE"]

    for part in ("transformer", "vae"):
        expected = getattr(pipeline, part).state_dict()
        for model in (
            AutoModel.from_pretrained(str(tmp_path), subfolder=part),
            AutoModel.from_pretrained(str(tmp_path / part)),
        ):
            assert type(model) is type(getattr(pipeline, part))
            assert all(torch.equal(x, expected[key]) for key, x in model.state_dict().items())


def test_a_component_that_is_replaced_is_saved_by_its_package(
    released: dict[str, Path], tmp_path: Path
) -> None:
    pipeline = PyramidFlowPipeline.from_pretrained(released["pyramid_flux"])
    pipeline.transformer = pipeline.transformer.to(torch.bfloat16)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["pyramid_dit", "PyramidFluxTransformer"]


# ---- arguments of from_pretrained -------------------------------------------------------------


def test_a_dtype_for_each_component(released: dict[str, Path]) -> None:
    def dtypes(**arguments: Any) -> dict[str, torch.dtype]:
        pipeline = PyramidFlowPipeline.from_pretrained(released["pyramid_flux"], **arguments)
        names = ("transformer", "vae", "text_encoder", "text_encoder_2")
        return {name: getattr(pipeline, name).dtype for name in names}

    full, half = torch.float32, torch.bfloat16
    assert set(dtypes(dtype="bf16").values()) == {half}
    assert set(dtypes(torch_dtype=half, dtype=half).values()) == {half}
    named = dtypes(torch_dtype={"transformer": half, "text_encoder_2": "bf16"})
    assert named == {
        "transformer": half,
        "vae": full,
        "text_encoder": full,
        "text_encoder_2": half,
    }
    others = dtypes(dtype={"vae": full, "default": half})
    assert others.pop("vae") == full and set(others.values()) == {half}
    assert dtypes(dtype={"vae": "fp16"})["vae"] == full  # whose range is too small


def test_a_subfolder_and_a_device_map(released: dict[str, Path]) -> None:
    inner = released["pyramid_flux"]
    for where in ("cpu", torch.device("cpu"), {"": "cpu"}):
        pipeline = PyramidFlowPipeline.from_pretrained(
            inner.parent, subfolder="inner", device_map=where
        )
        assert pipeline.device == torch.device("cpu")


def test_kinds_of_files(released: dict[str, Path], tmp_path: Path) -> None:
    pipeline = PyramidFlowPipeline.from_pretrained(released["pyramid_flux"])
    pipeline.save_pretrained(tmp_path / "safe")
    pipeline.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    for part in ("text_encoder", "text_encoder_2"):  # transformers writes no other kind
        safe = tmp_path / "pickled" / part / "model.safetensors"
        if safe.exists():
            torch.save(getattr(pipeline, part).state_dict(), safe.with_name("pytorch_model.bin"))
            safe.unlink()
    for kind, takes in (("safe", True), ("pickled", False)):
        for use in (None, takes):
            loaded = PyramidFlowPipeline.from_pretrained(tmp_path / kind, use_safetensors=use)
            assert torch.equal(still(loaded), still(pipeline))
        with pytest.raises(FileNotFoundError, match="has no weights"):
            PyramidFlowPipeline.from_pretrained(tmp_path / kind, use_safetensors=not takes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"low_cpu_mem_usage": True}, TypeError, "does not take low_cpu_mem_usage"),
        ({"trust_remote_code": True}, TypeError, "code from a repository is not run"),
        ({"max_memory": {0: "8GB"}}, TypeError, "memory="),
        ({"torch_dtype": "bf16", "dtype": "fp32"}, ValueError, "give one of them"),
        ({"dtype": {"unet": "bf16"}}, ValueError, "dtype names unet; components are"),
        ({"dtype": {"vae": "int8"}}, ValueError, "one of bf16, fp16, fp32"),
        ({"device_map": {"vae": "cpu", "transformer": "meta"}}, ValueError, "one device"),
        ({"subfolder": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_what_is_refused(
    released: dict[str, Path], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PyramidFlowPipeline.from_pretrained(released["pyramid_flux"], **arguments)


def test_arguments_for_the_hub(
    released: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def fetch(repo_id: str, **options: Any) -> str:
        asked.append(options)
        return str(released["pyramid_flux"].parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    options: dict[str, Any] = {
        "revision": "main",
        "token": "abc",
        "local_files_only": True,
        "force_download": True,
    }
    PyramidFlowPipeline.from_pretrained(
        "owner/model", subfolder="inner", use_safetensors=True, **options
    )
    for call in asked:
        assert call.items() >= options.items()
        assert call["ignore_patterns"] == ["*.bin", "*.pt"]
        assert all(pattern.startswith("inner/") for pattern in call["allow_patterns"])
    asked.clear()
    download_checkpoint("owner/model", subfolder="inner", transformer=False)
    assert not any(name.startswith("inner/diffusion") for name in asked[-1]["allow_patterns"])


# ---- a pipeline for prompts alone -------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_text_encoders_alone(name: str, released: dict[str, Path], tmp_path: Path) -> None:
    whole = PyramidFlowPipeline.from_pretrained(released[name])
    folder = shutil.copytree(released[name], tmp_path / "copy")
    (weights,) = folder.glob("diffusion_transformer_*/*.safetensors")
    weights.unlink()
    texts = PyramidFlowPipeline.from_pretrained(folder, transformer=None, vae=None)
    texts.save_pretrained(tmp_path / "texts")
    for pipeline in (texts, PyramidFlowPipeline.from_pretrained(tmp_path / "texts")):
        encoded = pipeline.encode_prompt(PROMPT, negative_prompt="", prompt_suffix="")
        expected = whole.encode_prompt(PROMPT, negative_prompt="", prompt_suffix="")
        assert encoded.keys() == expected.keys()
        assert all(torch.equal(x, expected[key]) for key, x in encoded.items())
        with pytest.raises(ValueError, match="no transformer"):
            pipeline(PROMPT)
