"""`train_vae`: the reference's command line, on videos and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_checkpoint import VAE_CONFIG
from training_files import run_two, run_two_in_turn
from vae_ranks import SmallDiscriminator

from pyramid_dit.video_io import export_to_video
from trainer_misc import train_vae
from trainer_misc.options import parse
from trainer_misc.vae_options import GROUPS
from video_vae import CausalVideoVAE, CausalVideoVAELossWrapper, losses


@pytest.fixture(autouse=True)
def small_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; that which others train with is of the real size."""
    monkeypatch.setattr(losses, "PatchDiscriminator", SmallDiscriminator)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    CausalVideoVAE(**VAE_CONFIG).save_pretrained(folder / "vae")
    rng = np.random.default_rng(0)
    videos, images = [], []
    for number in range(4):
        still = rng.integers(0, 256, (1, 3), np.uint8).repeat(40 * 48, 0).reshape(40, 48, 3)
        export_to_video([still] * 20, folder / f"{number}.mp4", 24)
        Image.fromarray(still).save(folder / f"{number}.png")
        videos.append({"video": f"{number}.mp4"})
        images.append({"image": f"{number}.png"})
    for name, records in (("videos", videos), ("images", images)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def arguments(files: Path, output: Path, *more: str) -> list[str]:
    given = {
        "model_path": files / "vae",
        "video_anno": files / "videos.jsonl",
        "image_anno": files / "images.jsonl",
        "output_dir": output,
        "batch_size": 2,
        "resolution": 24,
        "max_frames": 9,
        "model_dtype": "fp32",
        "lr": 3e-3,
        "warmup_steps": 1,
        "num_workers": 0,
        "print_freq": 1,
    }
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [*flags, *more]


def trained(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / f"checkpoint-{step}/model.safetensors")


def figures(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").open()]


def test_stage_one_learns_on_pictures_and_clips(files: Path, tmp_path: Path) -> None:
    mixed = ("--use_image_video_mixed_training", "--image_mix_ratio", "0.5")
    train_vae.main(arguments(files, tmp_path, "--steps", "40", *mixed, "--sheet_steps", "40"))
    errors = [line["mse"] for line in figures(tmp_path)]
    assert np.mean(errors[-6:]) < 0.8 * np.mean(errors[:6])
    assert (tmp_path / "sheet-000040.png").stat().st_size > 1000
    vae = CausalVideoVAE.from_pretrained(tmp_path / "causal_video_vae")
    weights = trained(tmp_path, 40)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, weights[f"vae.vae.{name}"])


@pytest.mark.parametrize("begin", ["1", pytest.param("3", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_unbroken_one(begin: str, files: Path, tmp_path: Path) -> None:
    """Whether the discriminator began before the end or only after it."""
    constant = ("--lr_scheduler", "constant", "--add_discriminator", "--disc_start", begin)
    for steps in ("2", "4"):
        train_vae.main(arguments(files, tmp_path / "broken", "--steps", steps, *constant))
    train_vae.main(arguments(files, tmp_path / "whole", "--steps", "4", *constant))
    one, other = (trained(tmp_path / name, 4) for name in ("whole", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    assert "discriminator" not in figures(tmp_path / "whole")[0]
    assert figures(tmp_path / "whole")[-1]["discriminator"] > 0


def test_the_loss_is_that_of_the_wrapper(files: Path, tmp_path: Path) -> None:
    trainer = train_vae.Trainer(parse(None, GROUPS, arguments(files, tmp_path)))
    batch = trainer.batches[0]
    torch.manual_seed(1)
    loss, _ = trainer.loss((0, batch))
    vae = CausalVideoVAE.from_pretrained(files / "vae")
    wrapper = CausalVideoVAELossWrapper(
        vae,
        kl_weight=1e-6,
        pixelloss_weight=1.0,
        add_discriminator=False,
        load_loss_module=True,
    ).train()
    torch.manual_seed(1)
    assert loss.item() == wrapper(batch["video"], 0).loss.item()


def test_every_spelling_of_a_switch_that_is_on() -> None:
    for flag in ("--no_auto_resume", "--no-auto-resume"):
        assert not parse(None, GROUPS, [flag]).auto_resume
    assert parse(None, GROUPS, []).auto_resume


def test_the_encoder_can_be_left_as_it_is(files: Path, tmp_path: Path) -> None:
    train_vae.main(arguments(files, tmp_path, "--steps", "2", "--freeze_encoder"))
    before = CausalVideoVAE.from_pretrained(files / "vae").state_dict()
    after = CausalVideoVAE.from_pretrained(tmp_path / "causal_video_vae").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"} or changed == {"decoder"}


@pytest.mark.slow
@pytest.mark.parametrize("discriminator", [False, True])
def test_two_processes_train_one_model(discriminator: bool, files: Path, tmp_path: Path) -> None:
    more = ("--add_discriminator", "--disc_start", "1") if discriminator else ()
    size = ("--batch_size", "1", "--resolution", "48")  # the least that is judged
    given = arguments(files, tmp_path, "--steps", "2", *size, *more)
    run_two("-m", "trainer_misc.train_vae", *given)
    assert (tmp_path / "causal_video_vae/config.json").is_file()
    assert len(figures(tmp_path)) == 2


def test_stage_two_is_one_process_with_the_whole_clips(files: Path, tmp_path: Path) -> None:
    """The time of a clip over two processes, stopped and gone on with."""
    given = ("--max_frames", "35", "--add_discriminator", "--disc_start", "0")
    # Where eps is large, AdamW does not turn gradients that are only rounding into steps.
    given = (*given, "--lr", "0.01", "--opt_eps", "1", "--lr_scheduler", "constant")
    train_vae.main(arguments(files, tmp_path / "alone", *given, "--steps", "2"))
    shared = ("--use_context_parallel", "--context_size", "2")
    runs = [
        arguments(files, tmp_path / "shared", *given, *shared, "--steps", step) for step in "12"
    ]
    run_two_in_turn("train_vae", runs, tmp_path)
    logs = [figures(tmp_path / name) for name in ("alone", "shared")]
    for name in ("loss", "mse", "kl", "adversarial_weight", "discriminator"):
        assert logs[0][0][name] == pytest.approx(logs[1][0][name], rel=1e-5), name
    for one, other in zip(*logs, strict=True):
        assert one["mse"] == pytest.approx(other["mse"], rel=1e-5)
    start = CausalVideoVAE.from_pretrained(files / "vae").state_dict()
    alone, shared = (trained(tmp_path / name, 2) for name in ("alone", "shared"))
    for name, value in start.items():
        one, other = (weights[f"vae.vae.{name}"] for weights in (alone, shared))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert name.endswith("to_k.bias") or not torch.equal(one, value)


def test_a_new_decoder_learns_from_clips_and_from_the_full_one(files: Path, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({"decoder_block_out_channels": [4, 4, 4, 4]}))
    more = ["--new_decoder", str(sizes), "--full_decoder_weight", "0.5", "--no_learn_logvar"]
    flags = ["--steps", "30", "--kl_weight", "0", "--perceptual_weight", "0"]
    with pytest.raises(SystemExit, match="--new_decoder needs --freeze_encoder"):
        train_vae.main(arguments(files, tmp_path / "run", *more, *flags))
    train_vae.main(arguments(files, tmp_path / "run", *more, *flags, "--freeze_encoder"))
    lines = figures(tmp_path / "run")
    for name in ("mse", "decoder_distance"):
        values = [line[name] for line in lines]
        assert sum(values[-5:]) < sum(values[:5])
    expected = lines[0]["mse"] + 0.5 * lines[0]["decoder_distance"]
    assert lines[0]["loss"] == pytest.approx(expected, rel=1e-4)
    before = CausalVideoVAE.from_pretrained(files / "vae")
    after = CausalVideoVAE.from_pretrained(tmp_path / "run/causal_video_vae")
    assert after.config.decoder_block_out_channels == [4, 4, 4, 4]
    kept = before.encoder.state_dict() | before.quant_conv.state_dict(prefix="quant.")
    own = after.encoder.state_dict() | after.quant_conv.state_dict(prefix="quant.")
    assert all(torch.equal(value, own[name]) for name, value in kept.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model_path", "nowhere"], "no folder at nowhere"),
        (["--video_anno", "nowhere.jsonl"], "nowhere.jsonl"),
        (
            ["--use_context_parallel"],
            "--context_size 2 needs that many processes: start with torchrun",
        ),
        (["--resolution", "33"], "multiple of 8, got 33"),
        (["--pretrained_vae_weight", "nowhere.pth"], "nowhere.pth"),
        (["--full_decoder_weight", "1"], "--full_decoder_weight needs --new_decoder"),
        (["--new_decoder", "nowhere.json"], "there is no file nowhere.json"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    given: list[str], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        train_vae.main(arguments(files, tmp_path / "run", "--steps", "1", *given))
    text = str(caught.value.code)
    assert message in text and text.startswith("error: ") and "\n" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context_size": 3}, "--context_size 3 does not divide the 4 processes"),
        ({"context_size": 4}, "--max_frames 33: a clip of 33 frames is too short for 4 ranks"),
        ({"use_image_video_mixed_training": True}, "works with videos only"),
    ],
)
def test_contexts_that_do_not_fit_are_refused(
    given: dict[str, Any], message: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    options = parse(None, GROUPS, arguments(files, files / "run", "--use_context_parallel"))
    vars(options).update({"max_frames": 33, **given})
    with pytest.raises(ValueError, match=message):
        train_vae.check(options)
