"""Reading, checking and loading checkpoint folders, local and on the hub."""

from __future__ import annotations

import fnmatch
import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_checkpoint import QUICK_INDEX, VAE_CONFIG, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline, PyramidFluxTransformer
from pyramid_dit.checkpoints.architectures import ARCHITECTURES
from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.checkpoints.hub import download_checkpoint
from pyramid_dit.checks import is_repo_id
from video_vae import CausalVideoVAE

DIT = "diffusion_transformer_768p"
WEIGHTS = f"{DIT}/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def load(folder: Path, *args: Any, **kwargs: Any) -> PyramidDiTForVideoGeneration:
    """The transformer and the VAE only."""
    kwargs.setdefault("load_text_encoder", False)
    return PyramidDiTForVideoGeneration(folder, "fp32", "pyramid_flux", *args, **kwargs)


# ---- what is in it ----------------------------------------------------------------------------


def test_released_folder(folder: Path) -> None:
    found = CheckpointFolder.open(folder)
    assert (found.variant, found.architecture.name) == (DIT, "pyramid_flux")
    assert found.model_dtype is None
    assert found.statistics == ARCHITECTURES["pyramid_flux"].released_statistics
    assert found.defaults.prompt_suffix == ", hyper quality, Ultra HD, 8K"
    assert found.defaults.negative_prompt.startswith("cartoon style, worst quality")
    assert found.defaults.num_inference_steps == 28
    found.check_files(found.architecture.text_encoder.parts(), vae=True)


def test_a_student_has_entries_of_its_own(folder: Path) -> None:
    fast, light = f"{DIT}_fast", "causal_video_vae_fast"
    shutil.copytree(folder / DIT, folder / fast)
    assert CheckpointFolder.open(folder).variant == DIT  # nobody has to say which
    shutil.copytree(folder / "causal_video_vae", folder / light)
    entries = {"solver": "euler", "timestep_spacing": "trailing", "vae": light, "num_frames": 9}
    index = {**QUICK_INDEX, "solver": "ab2", "num_frames": 17, "variants": {fast: entries}}
    (folder / "model_index.json").write_text(json.dumps(index))
    usual = CheckpointFolder.open(folder)
    assert (usual.vae_folder, usual.stepping) == ("causal_video_vae", {"solver": "ab2"})
    assert (usual.defaults.num_frames, usual.defaults.height) == (17, 64)
    for found in (CheckpointFolder.open(folder, fast=True), CheckpointFolder.open(folder, fast)):
        assert (found.variant, found.vae_folder) == (fast, light)
        assert found.stepping == {"solver": "euler", "timestep_spacing": "trailing"}
        assert (found.defaults.num_frames, found.defaults.height) == (9, 64)
    found.check_files(found.architecture.text_encoder.parts(), vae=True)
    (folder / light / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"{light} has no weights"):
        found.check_files((), vae=True)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (3, "variants in .*model_index.json must have an object for each variant"),
        ({DIT: []}, "must have an object for each variant"),
        ({DIT: {"vae": "../elsewhere"}}, "is '../elsewhere', not the name of a folder"),
        ({DIT: {"guidance_in_weights": True}}, "guidance_in_weights needs guidance_scale"),
        ({DIT: {"solver": "heun"}}, "solver must be one of"),
    ],
)
def test_entries_of_variants_are_checked(folder: Path, variants: Any, message: str) -> None:
    (folder / "model_index.json").write_text(json.dumps(QUICK_INDEX | {"variants": variants}))
    with pytest.raises(ValueError, match=message):
        CheckpointFolder.open(folder)


def test_model_index(folder: Path) -> None:
    statistics = {
        "first_frame": {"shift": 0.0, "scale": [1.0, 2.0, 3.0, 4.0]},
        "later_frames": {"shift": [0.0, 1.0, 2.0, 3.0], "scale": 0.5},
    }
    index = {**QUICK_INDEX, "model_dtype": "bf16", "latent_statistics": statistics, "new_key": 1}
    (folder / "model_index.json").write_text(json.dumps(index))
    found = CheckpointFolder.open(folder)
    assert found.model_dtype == "bf16"
    assert found.statistics.first_frame.scale == [1.0, 2.0, 3.0, 4.0]
    assert found.statistics.later_frames.scale == 0.5
    assert (found.defaults.height, found.defaults.num_frames) == (64, 9)


@pytest.mark.parametrize("variant", ["384p", "diffusion_transformer_384p", "custom"])
def test_variants(folder: Path, variant: str) -> None:
    name = f"diffusion_transformer_{variant.removeprefix('diffusion_transformer_')}"
    shutil.copytree(folder / DIT, folder / name)
    assert CheckpointFolder.open(folder).variant == DIT
    assert CheckpointFolder.open(folder, variant).variant == name
    (folder / "model_index.json").write_text(json.dumps({"model_variant": name}))
    assert CheckpointFolder.open(folder).variant == name
    (folder / "model_index.json").unlink()

    shutil.rmtree(folder / DIT)
    assert CheckpointFolder.open(folder).variant == name
    with pytest.raises(FileNotFoundError, match=f"no variant {DIT}; it has {name}"):
        CheckpointFolder.open(folder, "768p")
    shutil.copytree(folder / name, folder / "diffusion_transformer_image")
    with pytest.raises(ValueError, match=f"{name}, diffusion_transformer_image"):
        CheckpointFolder.open(folder)


# ---- what is wrong with it --------------------------------------------------------------------


def truncate(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-10])

    return spoil


def lengthen(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"more")


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def remove_folder(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no folder": (shutil.rmtree, FileNotFoundError, "no checkpoint folder"),
    "no variant": (remove_folder(DIT), FileNotFoundError, "no variant"),
    "no config": (remove(f"{DIT}/config.json"), FileNotFoundError, "config.json"),
    "cut config": (truncate(f"{DIT}/config.json"), ValueError, "config.json"),
    "config of another kind": (write(f"{DIT}/config.json", "[]"), ValueError, "not an object"),
    "another class": (
        write(f"{DIT}/config.json", '{"_class_name": "UNet2DModel"}'),
        ValueError,
        "UNet2DModel",
    ),
    "no weights": (remove(WEIGHTS), FileNotFoundError, "no weights"),
    "cut weights": (truncate(WEIGHTS), ValueError, "truncated"),
    "empty weights": (write(WEIGHTS, ""), ValueError, "truncated"),
    "weights and more": (lengthen(WEIGHTS), ValueError, "damaged"),
    "weights that are text": (write(WEIGHTS, "version 1\n" * 20), ValueError, "damaged"),
    "no VAE": (remove_folder("causal_video_vae"), FileNotFoundError, "causal_video_vae"),
    "no text encoder": (remove_folder("text_encoder_2"), FileNotFoundError, "text_encoder_2"),
    "no tokenizer": (remove_folder("tokenizer"), FileNotFoundError, "tokenizer"),
    "no vocabulary": (
        remove("tokenizer_2/tokenizer.json"),
        FileNotFoundError,
        "tokenizer_2 has no vocabulary",
    ),
    "cut vocabulary": (truncate("tokenizer_2/tokenizer.json"), ValueError, "tokenizer.json"),
    "cut text encoder": (truncate("text_encoder/model.safetensors"), ValueError, "truncated"),
    "cut index": (write("model_index.json", '{"height": 12'), ValueError, "model_index.json"),
    "half of the statistics": (
        write("model_index.json", '{"latent_statistics": {"first_frame": {"shift": 0}}}'),
        ValueError,
        "latent_statistics",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, error, message = BAD_FOLDERS[case]
    spoil(folder)
    monkeypatch.setattr(
        "pyramid_dit.checkpoints.weights.load_model", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(error, match=message):
        load(folder, load_text_encoder=True)


def test_parts_that_are_not_loaded_may_be_missing(folder: Path) -> None:
    for name in ("causal_video_vae", "text_encoder", "tokenizer_2"):
        shutil.rmtree(folder / name)
    pipeline = load(folder, load_vae=False)
    assert pipeline.vae is None and pipeline.text_encoder is None
    with pytest.raises(ValueError, match="no VAE"):
        pipeline.load_vae_checkpoint(folder / WEIGHTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_dtype": "int8"}, "bf16, fp16, fp32, got 'int8'"),
        ({"model_dtype": torch.float64}, "float64"),
        ({"model_name": "pyramid_flix"}, "pyramid_flux, pyramid_mmdit, got 'pyramid_flix'"),
        ({"model_name": "pyramid_mmdit"}, "holds a pyramid_flux"),
        ({"scheduler_gamma": 0.5}, "gamma"),
        ({"sample_ratios": [1, 1]}, "sample_ratios"),
    ],
)
def test_bad_constructor_arguments(original: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidDiTForVideoGeneration(original, **{"model_name": "pyramid_flux", **arguments})


def test_weights_that_do_not_fit(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    for change in ({"extra": torch.zeros(1)}, {"proj_out.bias": torch.zeros(3)}):
        save_file({**state, **change}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=next(iter(change))):
            load(folder)
    del state["proj_out.bias"]
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"proj_out\.bias"):
        load(folder)


def test_a_vae_of_another_model(folder: Path) -> None:
    config = {**VAE_CONFIG, "encoder_out_channels": 6, "decoder_in_channels": 6}
    CausalVideoVAE(**config).save_pretrained(folder / "causal_video_vae")
    with pytest.raises(ValueError, match="6 latent channels, the transformer 4"):
        load(folder)


# ---- forms of weights -------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_forms_of_weights(folder: Path, safe: bool, sharded: bool) -> None:
    expected = load(folder).dit.state_dict()
    dit = load(folder).dit
    shutil.rmtree(folder / DIT)
    dit.save_pretrained(
        folder / DIT, safe_serialization=safe, max_shard_size="30KB" if sharded else "1GB"
    )
    weights = [path for path in (folder / DIT).iterdir() if path.suffix in (".bin", ".safetensors")]
    assert (len(weights) > 1) == sharded
    loaded = load(folder).dit.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)

    truncate(f"{DIT}/{weights[0].name}")(folder)
    with pytest.raises(ValueError, match=weights[0].name):
        load(folder)
    weights[0].unlink()
    with pytest.raises(FileNotFoundError, match=weights[0].name if sharded else "no weights"):
        load(folder)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "checkpoint.pth"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_training_checkpoints(original: Path, tmp_path: Path, name: str, wrapped: bool) -> None:
    pipeline = load(original)
    parts = {"dit": pipeline.dit, "vae": pipeline.vae}
    fresh = {part: {k: v + 1 for k, v in m.state_dict().items()} for part, m in parts.items()}
    for part, load_it in (
        ("dit", pipeline.load_checkpoint),
        ("vae", pipeline.load_vae_checkpoint),
    ):
        state = fresh[part]
        if wrapped:
            state = {f"{p}.{k}": v for p, entries in fresh.items() for k, v in entries.items()}
        path = tmp_path / name
        if path.suffix == ".pth":
            torch.save({"model": state, "step": 3} if wrapped else state, path)
        else:
            save_file(state, path)
        load_it(path)
        loaded = parts[part].state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in fresh[part].items())

    content = {"ema": fresh["dit"], "model": pipeline.vae.state_dict(), "args": Namespace(lr=1.0)}
    torch.save(content, tmp_path / "two.pth")
    pipeline.load_checkpoint(tmp_path / "two.pth", model_key="ema")
    pipeline.load_vae_checkpoint(tmp_path / "two.pth")
    with pytest.raises(ValueError, match="two.pth does not fit"):
        pipeline.load_checkpoint(tmp_path / "two.pth")

    with pytest.raises(FileNotFoundError, match="nowhere"):
        pipeline.load_checkpoint(tmp_path / "nowhere.pth")
    torch.save({"some": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth"):
        pipeline.load_checkpoint(tmp_path / "other.pth")


def test_unknown_arguments_are_named(original: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(original, load_vae=False, use_wormhole=True)
    assert "use_wormhole" in caplog.text


# ---- from_pretrained --------------------------------------------------------------------------


def test_detection(folder: Path) -> None:
    config = json.loads((folder / DIT / "config.json").read_text())
    config["use_temporal_causal"] = False
    (folder / DIT / "config.json").write_text(json.dumps(config))
    open_it = PyramidDiTForVideoGeneration.from_pretrained
    pipeline = open_it(folder, load_text_encoder=False, device="cpu")
    assert type(pipeline.dit).__name__ == "PyramidFluxTransformer"
    assert pipeline.dtype == torch.float32
    assert pipeline.dit.config.use_temporal_causal is False
    (folder / "model_index.json").write_text('{"model_dtype": "bf16"}')
    assert open_it(folder, load_text_encoder=False).dtype == torch.bfloat16
    assert open_it(folder, "768p", model_dtype="fp16", load_text_encoder=False).dtype == (
        torch.float16
    )
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        open_it("no/such/folder")


def test_weights_stored_in_half_precision_are_loaded_so(folder: Path) -> None:
    PyramidFluxTransformer.from_pretrained(folder / DIT).bfloat16().save_pretrained(folder / DIT)
    assert CheckpointFolder.open(folder).model_dtype == "bf16"
    (folder / "model_index.json").write_text('{"model_dtype": "fp32"}')
    assert CheckpointFolder.open(folder).model_dtype == "fp32"


# ---- the hub ----------------------------------------------------------------------------------


class FakeHub:
    """Stands in for `snapshot_download`: copies what the patterns ask for."""

    def __init__(self, remote: Path, cache: Path) -> None:
        self.remote, self.cache = remote, cache

    def __call__(self, repo_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        self.cache.mkdir(exist_ok=True)
        for path in self.remote.rglob("*"):
            name = path.relative_to(self.remote)
            if path.is_file() and any(fnmatch.fnmatch(str(name), p) for p in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / name)
        return str(self.cache)

    def fetched(self) -> set[str]:
        """Folders of which more than the config was fetched."""
        files = (path for path in self.cache.rglob("*") if path.is_file())
        return {path.parent.name for path in files if path.name != "config.json"}


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(folder, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    return fake


def test_only_what_is_needed_is_fetched(folder: Path, hub: FakeHub) -> None:
    shutil.copytree(folder / DIT, folder / "diffusion_transformer_384p")
    (folder / "teaser.mp4").touch()
    pipeline = PyramidDiTForVideoGeneration.from_pretrained("owner/model", "384p")
    assert pipeline.text_encoder is not None
    parts = {"causal_video_vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"}
    assert hub.fetched() == {"diffusion_transformer_384p", *parts}


def test_parts_that_are_not_needed(hub: FakeHub) -> None:
    download_checkpoint("owner/model", vae=False, text_encoder=False)
    assert hub.fetched() == {DIT}


def test_a_saved_pipeline_on_the_hub(folder: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.remote = tmp_path / "saved"
    PyramidFlowPipeline.from_pretrained(folder).save_pretrained(hub.remote)
    PyramidFlowPipeline.from_pretrained("owner/model", vae=None)
    parts = {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"}
    assert hub.fetched() == {"transformer", "scheduler", hub.cache.name, *parts}
    assert PyramidDiTForVideoGeneration.from_pretrained("owner/model").vae is not None
    with pytest.raises(FileNotFoundError, match="no variant .*_768p"):
        PyramidFlowPipeline.from_pretrained("owner/model", "768p")


def test_a_variant_that_the_hub_lacks(hub: FakeHub) -> None:
    with pytest.raises(FileNotFoundError, match=f"^owner/model has no variant .*_2k; .* {DIT}"):
        download_checkpoint("owner/model", "2k")
    assert hub.fetched() == set()


class Response:
    """The part of an HTTP response that the hub's errors look at."""

    headers: dict[str, str] = {}
    request = None
    status_code = 404


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (LocalEntryNotFoundError("no network\nat all"), ConnectionError),
        (RepositoryNotFoundError("who?", response=Response()), FileNotFoundError),  # type: ignore[arg-type]
    ],
)
def test_hub_errors(
    raised: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(expected, match="owner/model") as caught:
        PyramidDiTForVideoGeneration.from_pretrained("owner/model")
    assert "\n" not in str(caught.value)


def test_names_of_repositories() -> None:
    assert is_repo_id("rain1011/pyramid-flow-miniflux")
    for name in ("model", "a/b/c", "./model", "/model", "owner/", "owner/.."):
        assert not is_repo_id(name), name
