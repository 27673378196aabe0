"""`train_dit`: the reference's command lines, on latents, alone and in two processes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from tiny_checkpoint import write_tiny_checkpoint
from training_files import PROMPTS, VARIANT, run_two_in_turn, write_latents

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.video_io import export_to_video
from trainer_misc import train_dit
from trainer_misc.checkpoints import newest_checkpoint
from trainer_misc.dit_options import GROUPS
from trainer_misc.options import parse

RECIPE = (
    "--task t2v --use_fsdp --fsdp_shard_strategy zero2 --use_flash_attn --use_temporal_causal "
    "--use_temporal_pyramid --interp_condition_pos --sync_video_input --video_sync_group 8 "
    "--load_text_encoder --model_name pyramid_flux --model_variant diffusion_transformer_384p "
    "--model_dtype bf16 --max_frames 16 --batch_size 4 --gradient_accumulation_steps 2 --lr 5e-5 "
    "--opt_beta2 0.95 --clip_grad 1.0 --warmup_steps 1000 --lr_scheduler constant_with_warmup "
    "--epochs 20 --iters_per_epoch 2000 --report_to tensorboard"
).split()
"""Flags of the reference's launch script of autoregressive training."""

PLAIN = [
    *("--batch_size", "4", "--lr", "1e-2", "--warmup_steps", "1", "--model_dtype", "fp32"),
    *("--model_name", "pyramid_flux", "--model_variant", VARIANT, "--use_temporal_pyramid"),
    *("--max_frames", "3", "--num_workers", "0", "--report_to", "none", "--print_freq", "1"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("training")
    return {
        "annotations": write_latents(folder / "data"),
        "model": write_tiny_checkpoint(folder / "model", variant=VARIANT),
    }


def arguments(files: dict[str, Path], output: Path, *more: str) -> list[str]:
    paths = {"model_path": "model", "anno_file": "annotations"}
    given = [text for flag, name in paths.items() for text in (f"--{flag}", str(files[name]))]
    empty = str(files["annotations"].with_name("empty.pt"))
    return [*PLAIN, *given, "--empty_text_feature", empty, "--output_dir", str(output), *more]


def transformer(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").open()]


def test_the_reference_recipe_trains_stops_and_goes_on(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = [*RECIPE, "--model_path", str(files["model"]), "--output_dir", str(tmp_path)]
    given += ["--anno_file", str(files["annotations"]), "--save_ckpt_freq", "1"]
    given += ["--num_workers", "2", "--print_freq", "1", "--iters_per_epoch", "4"]
    with caplog.at_level(logging.WARNING):
        train_dit.main([*given, "--epochs", "1"])
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "use_flash_attn has no effect" in caplog.text
    assert list((tmp_path / "log").rglob("events.out.*"))  # of tensorboard, the default
    AcceleratorState._reset_state(True)
    train_dit.main([*given, "--epochs", "2"])
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert len(losses(tmp_path)) == 4
    weights = transformer(tmp_path / "checkpoint-4")
    assert all(value.dtype == torch.float32 for value in weights.values())
    model = PyramidDiTForVideoGeneration.from_pretrained(tmp_path / "model", model_dtype="fp32")
    for name, value in model.dit.state_dict().items():
        assert torch.equal(value, weights[f"dit.{name}"])


def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(
    files: dict[str, Path], tmp_path: Path
) -> None:
    for steps in ("2", "5"):
        train_dit.main(arguments(files, tmp_path / "broken", "--steps", steps))
    train_dit.main(arguments(files, tmp_path / "whole", "--steps", "5", "--num_workers", "2"))
    one, other = (transformer(tmp_path / name / "checkpoint-5") for name in ("whole", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_it_learns_and_writes_what_generates(files: dict[str, Path], tmp_path: Path) -> None:
    more = ["--steps", "30", "--ema_update", "--ema_every", "1", "--ema_decay", "0.5"]
    validated = ["--validation_file", str(files["annotations"]), "--validate_steps", "15"]
    train_dit.main(arguments(files, tmp_path, *more, *validated, "--export_pipeline"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    held_back = [line for line in lines if "validation_loss" in line]
    assert len(held_back) == 2
    for name in ("loss", "loss_stage_0", "loss_stage_2", "loss_units_1", "loss_units_3"):
        assert held_back[1][f"validation_{name}"] < held_back[0][f"validation_{name}"] * 1.2
    assert held_back[1]["validation_loss"] < held_back[0]["validation_loss"]
    model = PyramidDiTForVideoGeneration.from_pretrained(tmp_path / "model")
    pipeline = PyramidFlowPipeline.from_pretrained(tmp_path / "pipeline")
    averaged = load_file(tmp_path / "checkpoint-30/average.safetensors")
    for name, value in model.dit.state_dict().items():
        torch.testing.assert_close(value, averaged[f"dit.{name}"])
        assert torch.equal(value, pipeline.transformer.state_dict()[name])
    size = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1}
    assert len(model.generate("a red circle", video_num_inference_steps=1, **size)) == 9
    for config in (
        path for part in ("model", "pipeline") for path in tmp_path.glob(f"{part}/**/*.json")
    ):
        assert (
            str(tmp_path) not in config.read_text()
            and str(files["model"]) not in config.read_text()
        )
    card = (tmp_path / "model/README.md").read_text()
    assert "30 optimizer steps" in card and "moving average (decay 0.5)" in card
    assert str(tmp_path) not in card


def test_students_of_the_former_weights_are_left_behind(
    files: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(files["model"], source)
    shutil.copytree(source / VARIANT, source / f"{VARIANT}_fast")
    index = source / "model_index.json"
    content = json.loads(index.read_text()) if index.exists() else {}
    content["variants"] = {f"{VARIANT}_fast": {"num_inference_steps": [2, 2, 2]}}
    index.write_text(json.dumps(content))
    assert CheckpointFolder.open(source, VARIANT, fast=True).variant == f"{VARIANT}_fast"
    train_dit.main(arguments(files | {"model": source}, tmp_path / "run", "--steps", "1"))
    trained = tmp_path / "run/model"
    with pytest.raises(FileNotFoundError, match="has no fast variant"):
        CheckpointFolder.open(trained, VARIANT, fast=True)
    assert json.loads((trained / "model_index.json").read_text())["variants"] == {}
    assert json.loads(index.read_text()) == content


def test_text_encoders_are_trained_along(files: dict[str, Path], tmp_path: Path) -> None:
    before = PyramidDiTForVideoGeneration.from_pretrained(files["model"])
    train_dit.main(arguments(files, tmp_path, "--steps", "2", "--train_text_encoder"))
    after = PyramidDiTForVideoGeneration.from_pretrained(tmp_path / "model")
    for part in ("dit", "text_encoder"):
        one, other = (getattr(model, part).state_dict() for model in (before, after))
        assert one.keys() == other.keys()
        assert not all(torch.equal(one[name], other[name]) for name in one)
    assert before.vae is not None and after.vae is not None
    assert torch.equal(before.vae.get_last_layer(), after.vae.get_last_layer())


SETTINGS = """
lr = 0.5
[steps]
gradient-accumulation-steps = 2
sample_ratios = [1, 1, 2]
"""


def test_settings_of_a_file_and_flags_that_win(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(SETTINGS)
    found = parse(None, GROUPS, ["--config", str(path), "--lr", "0.25"])
    assert (found.lr, found.gradient_accumulation_steps) == (0.25, 2)
    assert found.sample_ratios == (1, 1, 2) and found.batch_size == 4
    dashes = parse(None, GROUPS, ["--batch-size", "8", "--no-use-temporal-causal"])
    assert dashes.batch_size == 8 and not dashes.use_temporal_causal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "no setting is called 'learning_rate'"),
        ("batchsize = 1", "perhaps batch_size"),
        ('lr = "fast"', "lr must be a float, got 'fast'"),
        ("batch_size = 1.5", "batch_size must be a int"),
        ('task = "t2a"', "task must be one of t2v, t2i"),
        ("lr = 1\n[a]\nlr = 2", "'lr' appears twice"),
        ("lr = ", "run.toml"),
    ],
)
def test_files_of_settings_that_are_no_good(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse(None, GROUPS, ["--config", str(path)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"--batch_size": "3"}, "batch_size 3 cannot be divided into the 4 columns"),
        ({"--model_path": "nowhere"}, "nowhere"),
        ({"--anno_file": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"--empty_text_feature": "nowhere.pt"}, "nowhere.pt"),
        ({"--resume": "nowhere"}, "nowhere"),
        ({"--task": "t2i"}, "--load_vae is needed"),
        ({"--sp_group_size": "2", "--use_sequence_parallel": None}, "torchrun"),
        ({"--sample_steps": "1"}, "--sample_prompts"),
        ({"--model_name": "pyramid_mmdit"}, "pyramid_flux"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    given: dict[str, str | None], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    more = [text for pair in given.items() for text in pair if text is not None]
    with pytest.raises(SystemExit) as caught:
        train_dit.main(arguments(files, tmp_path / "run", "--steps", "1", *more))
    text = str(caught.value.code)
    assert message in text and text.startswith("error: ") and "\n" not in text


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(None, GROUPS, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for flag in (flag for group in GROUPS.values() for flag in group):
        assert f"--{flag.name}" in text
        if not flag.is_switch and flag.default is not None and not flag.instead:
            assert f"(default: {flag.default})" in text


LORA, MUON = ["--lora_rank", "2"], ["--opt", "muon"]
KINDS = {
    "ddp": [],
    "zero2": ["--use_fsdp"],
    "zero3": ["--use_fsdp", "--fsdp_shard_strategy", "zero3"],
    "sequence": ["--use_sequence_parallel", "--sp_group_size", "2"],
    "muon": MUON,
    "divided_muon": ["--use_fsdp", *MUON],
    "lora": LORA,
    "divided_lora": ["--use_fsdp", *LORA],
}
TWO_STEPS = ["--steps", "2", "--sync_video_input", "--video_sync_group", "1", "--opt_eps", "1"]


@pytest.fixture(scope="module")
def by_two(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind of training by two processes."""
    folder = tmp_path_factory.mktemp("two")
    runs = [arguments(files, folder / kind, *TWO_STEPS, *KINDS[kind]) for kind in KINDS]
    run_two_in_turn("train_dit", runs, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_with_their_batches(
    kind: str, by_two: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """Gradients to 1e-5: the weights after steps that Adam does not bring to one size."""
    two = transformer(by_two / kind / "checkpoint-2")
    alone = LORA if "lora" in kind else MUON if "muon" in kind else []
    given = arguments(files, tmp_path, *TWO_STEPS, *alone)
    if kind == "sequence":
        train_dit.main(given)
    else:
        train_ranks_in_turn(given)
    one = transformer(tmp_path / "checkpoint-2")
    assert one.keys() == two.keys()
    # products of parts of a matrix are rounded elsewhere than those of the whole
    atol = 1e-6 if kind == "divided_muon" else 1e-7
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=atol)


def train_ranks_in_turn(given: list[str]) -> None:
    """What two processes train together, by one that takes the batches of both in turn."""
    options = parse(None, GROUPS, [*given, "--gradient_accumulation_steps", "2"])
    trainer = train_dit.Trainer(options)
    sources = []
    for rank in range(2):
        places = train_dit.Places(rank, 2, sharing=1, same_data=1)
        sources.append((places, train_dit.open_batches(options, places, 4)))

    def loss(number: int) -> Any:
        step, rank = divmod(number, 2)
        places, batches = sources[rank]
        trainer.places = places
        torch.manual_seed((options.seed << 40) + step * 2 + rank)
        return trainer.loss((step, batches[step]))

    trainer.loop.run(loss)


@pytest.mark.parametrize("task", ["t2i", "t2v"])
def test_pictures_and_videos_are_encoded_here(
    task: str, files: dict[str, Path], tmp_path: Path
) -> None:
    """The reference's recipe without autoregression."""
    records = []
    for number in range(4):
        color = np.full((96, 160, 3), 60 * number, np.uint8)
        if task == "t2i":
            Image.fromarray(color).save(tmp_path / f"{number}.png")
            records.append({"image": f"{number}.png", "text": PROMPTS[number]})
        else:
            export_to_video([color] * 9, tmp_path / f"{number}.mp4", 24)
            records.append({"video": f"{number}.mp4", "text": PROMPTS[number]})
    path = tmp_path / "annotations.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    more = ["--task", task, "--load_vae", "--load_text_encoder", "--max_frames", "2"]
    more += ["--resolution", "64x64"]
    given = [*PLAIN, "--model_path", str(files["model"]), "--anno_file", str(path), *more]
    given.remove("--use_temporal_pyramid")
    train_dit.main([*given, "--output_dir", str(tmp_path / "run"), "--steps", "1"])
    assert (tmp_path / "run/model" / VARIANT / "config.json").is_file()
    assert len(losses(tmp_path / "run")) == 1
