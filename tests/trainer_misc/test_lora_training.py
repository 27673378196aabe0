"""`train_dit --lora_rank`: adapters alone are trained, kept and written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from training_files import VARIANT, write_latents

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.cli.command import main as pyramid_flow
from pyramid_dit.cli.options import UsageError, parse_options
from pyramid_dit.video_io import export_to_video
from trainer_misc import train_dit

pytest.importorskip("peft")

FILE = "pytorch_lora_weights.safetensors"
WORDS = ["a", "red", "circle"]
RECIPE = [
    *("--model_name", "pyramid_flux", "--model_variant", VARIANT, "--use_temporal_pyramid"),
    *("--batch_size", "4", "--lr", "1e-1", "--warmup_steps", "1", "--model_dtype", "fp32"),
    *("--max_frames", "2", "--num_workers", "0", "--report_to", "none", "--print_freq", "1"),
    *("--lora_rank", "2", "--lora_alpha", "4"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, and clips of 9 frames with captions that have a word it does not know."""
    folder = tmp_path_factory.mktemp("lora")
    index = QUICK_INDEX | {"known_words": WORDS}
    clips = folder / "clips"
    clips.mkdir()
    for number in range(2):
        export_to_video([np.full((64, 64, 3), 99 * number, np.uint8)] * 9, clips / f"{number}.mp4")
        (clips / f"{number}.txt").write_text("a red star")
    return {
        "model": write_tiny_checkpoint(folder / "model", variant=VARIANT, index=index),
        "clips": clips,
        "latents": write_latents(folder / "latents"),
    }


def train(files: dict[str, Path], output: Path, *more: str, source: str = "clips") -> None:
    given = ["--model_path", str(files["model"]), "--anno_file", str(files[source])]
    pixels = ["--load_vae", "--train_text_encoder", "--resolution", "64x64"]
    empty = ["--empty_text_feature", str(files["latents"].with_name("empty.pt"))]
    of_source = pixels if source == "clips" else empty
    train_dit.main([*RECIPE, *given, *of_source, "--output_dir", str(output), *more])


@pytest.fixture(scope="module")
def trained(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 3 steps."""
    output = tmp_path_factory.mktemp("run")
    train(files, output, "--steps", "3")
    return output


def latents(model: Any, **options: Any) -> torch.Tensor:
    model.set_progress_bar_config(disable=True)
    return model.generate("a red star", seed=1, num_frames=9, output_type="latent", **options)


def test_the_file_is_the_trained_model_everywhere(
    files: dict[str, Path], trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both faces make with it what the weights of the last checkpoint make."""
    checkpoint = load_file(trained / "checkpoint-3" / "model.safetensors")
    assert all(".lora_" in name or "trained_tokens" in name for name in checkpoint)
    with safe_open(trained / FILE, "pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (about["transformer.r"], about["transformer.lora_alpha"]) == (2, 4.0)
    assert about["known_words"] == ["star"]

    model = PyramidDiTForVideoGeneration.from_pretrained(files["model"])
    base = latents(model)
    assert "never learned the words: star" in caplog.text
    caplog.clear()
    model.load_lora_weights(trained)
    made = latents(model)
    assert not caplog.records
    assert not torch.allclose(made, base, rtol=1e-1)
    pipeline = PyramidFlowPipeline.from_pretrained(files["model"])
    pipeline.load_lora_weights(trained)
    torch.testing.assert_close(latents(pipeline.video_generator), made, rtol=1e-3, atol=1e-4)

    # by hand: W + alpha / r B A, and the embeddings that were trained
    plain = PyramidDiTForVideoGeneration.from_pretrained(files["model"])
    state = plain.dit.state_dict()
    with torch.no_grad():
        for name in [name for name in checkpoint if ".lora_A." in name]:
            module = name.removeprefix("dit.").partition(".lora_A")[0]
            upper = checkpoint[name.replace("lora_A", "lora_B")]
            state[f"{module}.weight"] += 4 / 2 * upper @ checkpoint[name]
        for part in plain.text_encoder.parts():
            encoder = plain.text_encoder.get_submodule(part.encoder)
            (change,) = {
                value.data_ptr(): value
                for name, value in checkpoint.items()
                if f".{part.encoder}." in name and "trained_tokens" in name
            }.values()
            assert change.any()
            encoder.get_input_embeddings().weight += change
    torch.testing.assert_close(latents(plain), made, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    files: dict[str, Path], trained: Path, tmp_path: Path
) -> None:
    train(files, tmp_path, "--steps", "1")
    train(files, tmp_path, "--steps", "3")
    one, other = (load_file(folder / FILE) for folder in (tmp_path, trained))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(SystemExit, match="checkpoint of a different model"):
        train(files, tmp_path, "--steps", "4", "--lora_targets", "to_q")
    with pytest.raises(SystemExit, match="checkpoint of a different model"):
        train(files, tmp_path, "--steps", "4", "--lora_rank", "3")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_average_is_written_and_the_base_left_alone(
    dtype: str, files: dict[str, Path], tmp_path: Path
) -> None:
    """From latents and features, where there is no text encoder."""
    average = ["--ema_update", "--ema_every", "1", "--ema_decay", "0.5"]
    more = [*average, "--lora_targets", "to_q,ff.net.2", "--model_dtype", dtype]
    before = {path: path.stat().st_mtime_ns for path in files["model"].rglob("*")}
    train(files, tmp_path, "--steps", "2", *more, source="latents")
    assert before == {path: path.stat().st_mtime_ns for path in files["model"].rglob("*")}
    written = load_file(tmp_path / FILE)
    averages = load_file(tmp_path / "checkpoint-2" / "average.safetensors")
    assert len(written) == len(averages) == 2 * sum("lora_A" in name for name in written)
    assert all("to_q." in name or "ff.net.2." in name for name in written)
    for name, value in averages.items():
        plain = name.replace("dit.", "transformer.", 1).replace(".default", "")
        assert value.dtype == torch.float32
        torch.testing.assert_close(written[plain], value, rtol=1e-6, atol=1e-8)


def test_the_limit_of_the_vae_is_said(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(files, tmp_path, "--steps", "1")
    (line,) = (r.getMessage() for r in caplog.records if "through the VAE" in r.getMessage())
    assert "mean of 8 clips" in line and "no training of the transformer" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora_targets", "to_x"], "no linear layer is called to_x; there are .*attn.to_q"),
        (["--opt", "muon"], "--lora_rank: use adamw"),
        (["--initial_share", "0.1"], "give a LoRA a lower scale"),
        (["--half_weights"], "adapters are always float32"),
        (["--lora_rank", "0"], "--lora_alpha is for a LoRA"),
    ],
)
def test_what_does_not_go_together(
    more: list[str], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        train(files, tmp_path / "run", "--steps", "1", *more)


# ---- the command -------------------------------------------------------------------------------


def test_the_command_takes_it_and_weighs_it(
    files: dict[str, Path], trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def made(*more: str) -> bytes:
        path = tmp_path / "video.gif"
        given = ["a red star", "--model", str(files["model"]), "--seed", "1", "--device", "cpu"]
        assert pyramid_flow([*given, "--quiet", "-o", str(path), *more]) == 0
        return path.read_bytes()

    plain = made()
    assert "never learned the words: star" in caplog.text
    caplog.clear()
    full = made("--lora", str(trained))
    assert "never learned" not in caplog.text
    assert full == made("--lora", str(trained / FILE), "--memory", "max-speed") != plain
    assert made("--lora", f"{trained}:0") == plain
    half = made("--lora", f"{trained / FILE}:0.5")
    assert half not in (plain, full)
    assert made("--lora", f"{trained}:0", "--lora", str(trained)) == full


def test_the_command_refuses_what_is_none(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_options(["x", "--lora", "C:\\a.b:-0.5"]).lora == [("C:\\a.b", -0.5)]
    assert parse_options(["x", "--lora", "C:\\a.b"]).lora == [("C:\\a.b", 1.0)]
    with pytest.raises(UsageError, match="the scale of file: it must be at most 10, got 11"):
        parse_options(["x", "--lora", "file:11"])
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    for name, message in (("./none/at/all", "is not a file"), (str(bad), "is damaged")):
        given = ["a red circle", "--model", str(files["model"]), "--device", "cpu"]
        assert pyramid_flow([*given, "-o", str(tmp_path / "no.mp4"), "--lora", name]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.mp4").exists()
