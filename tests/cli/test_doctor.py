"""`pyramid-flow doctor`: what it prints of a sound model, and one line for each thing wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidFlowPipeline
from pyramid_dit.checkpoints.hub import TOY_FOLDER
from pyramid_dit.cli import model_checks
from pyramid_dit.cli.command import main
from pyramid_dit.cli.options import UsageError, parse_options

TRANSFORMER, VAE = "diffusion_transformer_128p", "causal_video_vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FACTS = (
    "pyramid-flow,system,libraries,ffmpeg,computer,device,model,files,dtype,parameters,"
    "memory preset,steps,VAE,latents"
).split(",")

Damage = Callable[[Path], object]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint, to be spoiled."""
    return Path(shutil.copytree(TOY_FOLDER, tmp_path / "model"))


class Doctor:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, dict[str, str], list[str]]:
        """Exit status, facts and problems."""
        status = main(["doctor", "--device", "cpu", "--json", *map(str, arguments)])
        output, errors = self.capsys.readouterr()
        assert errors == ""
        found = json.loads(output)
        assert all("\n" not in text for text in (*found["facts"].values(), *found["problems"]))
        assert status == bool(found["problems"])
        return status, found["facts"], found["problems"]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


# ---- a sound model ----------------------------------------------------------------------------


def test_one_screen_of_the_bundled_checkpoint() -> None:
    command = [sys.executable, "-m", "pyramid_dit", "doctor", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    *lines, empty, verdict = done.stdout.splitlines()
    assert (empty, verdict) == ("", "nothing is wrong")
    assert [line[:14].strip() for line in lines] == FACTS
    assert len(lines) < 24


def test_what_it_measures(doctor: Doctor) -> None:
    status, facts, problems = doctor("--memory", "auto")
    assert (status, problems) == (0, [])
    assert f"torch {torch.__version__}" in facts["libraries"]
    assert facts["dtype"] == "fp32" and facts["memory preset"] == "max-speed"
    assert facts["parameters"].startswith("transformer 3.4 M, vae 2.8 M")
    psnr = float(facts["VAE"].split(" dB")[0].split()[-1])
    assert 30 < psnr < 40
    assert facts["steps"].startswith("finite, ") and facts["steps"].endswith("128x128")
    assert facts["steps"].count(",") == 3  # the seconds of three stages
    assert "first frame mean -0.5" in facts["latents"]
    assert facts["latents"].count("checkpoint: ") == 2


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_and_a_preset(doctor: Doctor, dtype: str) -> None:
    status, facts, _ = doctor("--dtype", dtype, "--memory", "8GB", "--threads", "1")
    assert status == 0
    assert facts["dtype"] == dtype
    assert facts["memory preset"] == "8GB; max-speed by --memory auto"
    assert "1 threads" in facts["computer"]


@pytest.mark.parametrize("model_name", ["pyramid_flux", "pyramid_mmdit"])
def test_a_vae_that_was_never_trained(doctor: Doctor, tmp_path: Path, model_name: str) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", model_name, index=QUICK_INDEX)
    status, facts, problems = doctor("--model", folder)
    assert status == 1 and facts["steps"].startswith("finite")
    assert any("dB PSNR" in problem for problem in problems)
    assert all("dB PSNR" in problem or "statistics" in problem for problem in problems), problems


def test_a_saved_pipeline_without_text_encoders(doctor: Doctor, tmp_path: Path) -> None:
    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    PyramidFlowPipeline.from_pretrained(**absent).save_pretrained(tmp_path)
    status, facts, problems = doctor("--model", tmp_path)
    assert (status, problems) == (0, [])
    assert "saved without text_encoder, text_encoder_2, tokenizer, tokenizer_2" in facts["files"]
    assert facts["steps"].startswith("not checked")


# ---- what is wrong ----------------------------------------------------------------------------


def remove(name: str) -> Damage:
    def spoil(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def truncate(name: str) -> Damage:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def edit(name: str, **entries: Any) -> Damage:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return spoil


def swap(first: str, second: str) -> Damage:
    def spoil(folder: Path) -> None:
        (folder / first).rename(folder / "other")
        (folder / second).rename(folder / first)
        (folder / "other").rename(folder / second)

    return spoil


def with_nan(*names: str) -> Damage:
    def spoil(folder: Path) -> None:
        for name in names:
            (path,) = (folder / name).glob("*.safetensors")
            weights = load_file(path)
            key = sorted(weights)[0]
            weights[key].view(-1)[-1] = float("nan")
            save_file(weights, path, metadata={"format": "pt"})

    return spoil


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def statistics(first: dict[str, Any], later: dict[str, Any]) -> Damage:
    stated = {"first_frame": first, "later_frames": later}
    return edit("model_index.json", latent_statistics=stated)


MODELS = (TRANSFORMER, VAE, "text_encoder", "text_encoder_2")
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "two truncated files": (
        both(truncate(f"{TRANSFORMER}/{WEIGHTS}"), truncate("text_encoder/model.safetensors")),
        ["transformer: .* is truncated", "text_encoder: .* is truncated"],
    ),
    "weights of a VAE that are no weights": (write(f"{VAE}/{WEIGHTS}", "<html>"), ["vae: .*trunc"]),
    "four folders are missing": (
        both(*(remove(name) for name in (VAE, "tokenizer", "tokenizer_2", "text_encoder_2"))),
        [
            "vae: missing folder",
            "tokenizer: missing folder",
            "text_encoder_2: missing folder",
            "tokenizer_2: missing folder",
        ],
    ),
    "no config": (remove("text_encoder_2/config.json"), ["text_encoder_2: missing file"]),
    "no vocabulary": (remove("tokenizer/tokenizer.json"), ["tokenizer: .*no vocabulary"]),
    "no transformer": (remove(TRANSFORMER), ["the model: .*no variant"]),
    "nothing": (
        both(both(remove(TRANSFORMER), remove(f"{TRANSFORMER}_fast")), remove("model_index.json")),
        ["the model: .*not a check"],
    ),
    "an index that is no JSON": (write("model_index.json", "{"), ["the model: .*no valid JSON"]),
    "a config of other sizes": (
        edit(f"{TRANSFORMER}/config.json", num_attention_heads=3),
        ["transformer: .*do not fit its config.json"],
    ),
    "a config that cannot be": (
        edit("text_encoder/config.json", num_attention_heads=3),
        ["text_encoder: .*number of attention heads"],
    ),
    "a config of another class": (
        edit(f"{TRANSFORMER}/config.json", _class_name="UNet"),
        ["the model: .*'UNet'"],
    ),
    "a config of a VAE with nothing in it": (write(f"{VAE}/config.json", "{}"), ["vae: .*shape"]),
    "a dtype that is none": (
        edit("model_index.json", model_dtype="int3"),
        ["the model: .*bf16, fp16, fp32, got 'int3'"],
    ),
    "a variant that is no name": (edit("model_index.json", model_variant=3), ["the model: .* 3"]),
    "a size that does not fit": (
        edit("model_index.json", height=100),
        ["the steps: .*multiple of 64", "a picture through the VAE: .*multiples of 8"],
    ),
    "swapped tokenizers": (
        swap("tokenizer", "tokenizer_2"),
        [
            "tokenizer does not fit text_encoder: CLIP starts",
            "tokenizer_2 does not fit text_encoder_2: it has 177 tokens, the encoder 69",
            "tokenizer_2 does not fit text_encoder_2: it is CLIP's",
            "tokenizer_2 does not fit text_encoder_2: its pad_token_id",
        ],
    ),
    "swapped text encoders": (
        swap("text_encoder", "text_encoder_2"),
        ["text_encoder: .*do not fit", "text_encoder_2: .*do not fit"],
    ),
    "a tokenizer with half of its vocabulary": (
        truncate("tokenizer_2/tokenizer.json"),
        ["tokenizer_2: .*no valid JSON"],
    ),
    "a tokenizer of nothing": (write("tokenizer/tokenizer.json", "{}"), ["tokenizer: cannot load"]),
    "a tokenizer of no model": (
        edit("tokenizer_2/tokenizer.json", model={}),
        ["tokenizer_2: cannot load the tokenizer"],
    ),
    "a tokenizer of a length that is none": (
        edit("tokenizer/tokenizer_config.json", model_max_length="many"),
        ["tokenizer: .*model_max_length is 'many'"],
    ),
    "weights that are not numbers": (
        with_nan(*MODELS),
        [f"{name}: weights that are not finite" for name in ("transformer", "vae", *MODELS[2:])],
    ),
    "foreign statistics": (
        statistics({"shift": 0.0, "scale": 10.0}, {"shift": 5.0, "scale": 1.0}),
        ["latents of the first frame .*statistics", "latents of the later frames .*statistics"],
    ),
    "statistics of another VAE": (
        statistics({"shift": [0.0, 1.0], "scale": 1.0}, {"shift": 0.0, "scale": 1.0}),
        ["a picture through the VAE: .*2 channels for latents of 8"],
    ),
    "statistics that divide by zero": (
        statistics({"shift": 0.0, "scale": 0.0}, {"shift": 0.0, "scale": 1.0}),
        ["the model: .*scale must be above 0"],
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_line_for_each_thing_wrong(doctor: Doctor, toy: Path, case: str) -> None:
    damage, expected = DAMAGES[case]
    damage(toy)
    status, _, problems = doctor("--model", toy)
    assert status == 1
    assert len(problems) == len(expected), problems
    for problem, pattern in zip(sorted(problems), sorted(expected), strict=True):
        assert re.match(pattern, problem), (problem, pattern)


def test_steps_that_are_not_finite(doctor: Doctor, toy: Path) -> None:
    """Weights that are numbers, but too large."""
    path = toy / TRANSFORMER / WEIGHTS
    weights = load_file(path)
    weights["proj_out.weight"] *= 1e38
    save_file(weights, path, metadata={"format": "pt"})
    _, facts, problems = doctor("--model", toy)
    (problem,) = problems
    assert re.match("the steps: .* not finite from its step . of 6 on", problem)
    assert "steps" not in facts


def test_weights_that_do_not_fit_into_memory(
    doctor: Doctor, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_checks, "free_memory", lambda device: 1e7)
    _, facts, (problem,) = doctor("--model", toy)
    assert "take 0.0 GB of the computer's memory" in problem
    assert facts["parameters"] == "none that can be loaded"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model", "./nowhere/at/all"], "the model: --model './nowhere/at/all' is not a folder"),
        (["--model", __file__], "the model: .* is a file"),
        (["--variant", "2k"], "the model: .*no variant diffusion_transformer_2k"),
        (["--device", "xpu:7"], "the device: --device 'xpu:7' is not available"),
    ],
)
def test_what_is_not_there(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert main(["doctor", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert errors == ""
    assert re.search(f"\n1 thing is wrong:\n- {problem}", output)


# ---- the first word ---------------------------------------------------------------------------


def test_the_first_word_is_a_command_and_a_prompt_is_not() -> None:
    assert parse_options(["doctor"]).command == "doctor"
    assert parse_options(["doctor", "--model", "folder"]).model == "folder"
    for arguments in (["--prompt", "doctor"], ["--seed", "1", "doctor"]):
        options = parse_options(arguments)
        assert (options.command, options.prompt) == (None, "doctor")
    assert parse_options(["doctor at work"]).prompt == "doctor at work"
    with pytest.raises(UsageError, match="given twice"):
        parse_options(["a cat", "--prompt", "a dog"])
    with pytest.raises(UsageError, match="pyramid-flow doctor --help"):
        parse_options(["doctor", "--steps", "3"])


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--gpus", "2"]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("pyramid-flow: unrecognized arguments: --gpus 2")
