"""`distill`: rollouts go the way of generation, and a student learns where their stages end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from training_files import run_two_in_turn

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.sampling.guidance import GuidanceSchedule
from pyramid_dit.sampling.prompts import GuidedText
from trainer_misc import distill
from trainer_misc.encoded_texts import EncodedTexts
from trainer_misc.rollouts import Rollout, StageSolver, roll_out
from trainer_misc.stage_batches import RecordedStages, StageBatches
from trainer_misc.toy.moving_shapes import combination_of, is_held_out

INDEX = QUICK_INDEX | {"num_inference_steps": [2, 1, 2], "video_num_inference_steps": [1, 2, 1]}
PROMPTS = ["a red circle", "a blue square moves left"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("distill"), index=INDEX)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PyramidDiTForVideoGeneration:
    model = PyramidDiTForVideoGeneration.from_pretrained(checkpoint)
    model.set_progress_bar_config(disable=True)
    return model


def solver(model: PyramidDiTForVideoGeneration, *, scale: float = 2.0) -> StageSolver:
    return StageSolver(
        dit=model.dit,
        scheduler=model.scheduler,
        first_steps=[2, 1, 2],
        later_steps=[1, 2, 1],
        solver="euler",
        guidance=GuidanceSchedule(scale, scale),
    )


def rolled_out(
    model: PyramidDiTForVideoGeneration, teacher: StageSolver, student: StageSolver | None = None
) -> Rollout:
    texts = EncodedTexts(model.text_encoder, [*PROMPTS, ""])
    guided = GuidedText(texts.of(PROMPTS), texts.of(["", ""]))
    generator = torch.Generator().manual_seed(3)
    return roll_out(
        teacher,
        student,
        noise=torch.randn(2, 4, 3, 8, 8, generator=generator),
        texts={0: guided},
        storyboard={0: PROMPTS},
        frame_per_unit=1,
        generator=generator,
    )


def test_a_teacher_rolls_out_what_it_generates(model: PyramidDiTForVideoGeneration) -> None:
    generated = model.generate(
        PROMPTS, temp=3, output_type="latent", generator=torch.Generator().manual_seed(3)
    )
    rollout = rolled_out(model, solver(model))
    torch.testing.assert_close(rollout.latents, generated)
    torch.testing.assert_close(rollout.ends[-1], generated)
    assert [tuple(start.shape) for start in rollout.starts] == [
        (2, 4, 3, side, side) for side in (2, 4, 8)
    ]


def test_a_student_goes_its_own_way_and_the_teacher_says_where_it_should_end(
    model: PyramidDiTForVideoGeneration,
) -> None:
    alone, own = solver(model), solver(model, scale=0.0)
    rollout, ways = rolled_out(model, alone, own), rolled_out(model, own)
    torch.testing.assert_close(rollout.latents, ways.latents)
    for start, its in zip(rollout.starts, ways.starts, strict=True):
        torch.testing.assert_close(start, its)
    first = rolled_out(model, alone)  # the same noise: the first stage begins alike
    torch.testing.assert_close(rollout.ends[0][:, :, 0], first.ends[0][:, :, 0])
    assert (rollout.ends[0][:, :, 1:] - ways.ends[0][:, :, 1:]).abs().max() > 1e-3


def test_files_hold_rollouts_and_give_each_unit_its_history(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    rollout = rolled_out(model, solver(model))
    path = tmp_path / "text-00000.safetensors"
    rollout.write(path)
    recorded = RecordedStages([path], {text: n for n, text in enumerate(PROMPTS)}, 1)
    batches = StageBatches(recorded, [4, 6], batch_size=1, first=False)
    assert batches.batches_per_epoch == 4
    seen = set()
    for number in range(4):
        batch = batches[number]
        unit, row = batch["unit"], int(batch["texts"])
        seen.add((unit, row))
        expected = rollout.latents[row : row + 1, :, :unit].half()
        assert torch.equal(batch["history"], expected)
        for stage in range(3):
            start = rollout.starts[stage][row : row + 1, :, unit : unit + 1].half()
            assert torch.equal(batch["starts"][stage], start)
    assert seen == {(unit, row) for unit in (1, 2) for row in (0, 1)}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        Rollout.read(path)


def arguments(checkpoint: Path, output: Path, *more: str) -> list[str]:
    prompts = output.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    sizes = "--first_units 8 --videos 8 --max_frames 2 --rollout_batch 4 --batch_size 4"
    steps = "--first_batch_size 4 --steps 12 --cooldown_steps 4 --warmup_steps 1 --print_freq 1"
    rest = "--num_workers 0 --report_to none --model_dtype fp32 --held_back 0.25 --lr 3e-3"
    flags = [*sizes.split(), *steps.split(), *rest.split()]
    paths = ["--model_path", str(checkpoint), "--prompts", str(prompts)]
    return [*paths, *flags, "--output_dir", str(output), *more]


def figures(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def test_a_student_learns_in_rounds_and_goes_on_where_it_was_stopped(
    checkpoint: Path, tmp_path: Path
) -> None:
    more = ["--validate_steps", "12", "--opt", "muon", "--change_share", "1.0", "--ema_update"]
    whole = tmp_path / "whole"
    distill.main(arguments(checkpoint, whole, *more, "--ema_decay", "0.5", "--ema_every", "1"))
    lines = figures(whole / "round-1")
    names = {name for line in lines for name in line}
    assert {f"error_{kind}_stage_{k}" for kind in ("first", "later") for k in range(3)} <= names
    assert "validation_error_first_stage_2" in names
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4])
    AcceleratorState._reset_state(True)
    parts = tmp_path / "parts"
    more += ["--ema_decay", "0.5", "--ema_every", "1"]
    distill.main(arguments(checkpoint, parts, *more, "--rounds", "1"))
    rollouts = sorted((whole / "round-2" / "rollouts").iterdir())
    (parts / "round-2" / "rollouts").mkdir(parents=True)
    for path in rollouts[:2]:  # as where it was stopped
        (parts / "round-2" / "rollouts" / path.name).write_bytes(path.read_bytes())
    AcceleratorState._reset_state(True)
    distill.main(arguments(checkpoint, parts, *more))
    names = [f"round-2/rollouts/{path.name}" for path in rollouts]
    for name in [*names, "round-1/student.safetensors", "round-2/student.safetensors"]:
        first, second = load_file(whole / name), load_file(parts / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), f"{name}: {key}"


def test_a_student_is_a_variant_that_has_its_steps_and_its_guidance_in_its_weights(
    checkpoint: Path, tmp_path: Path
) -> None:
    light = tmp_path / "light"
    shutil.copytree(checkpoint / "causal_video_vae", light)
    output = tmp_path / "run"
    more = ("--rounds", "1", "--student_steps", "2,1,2", "--light_vae", str(light))
    distill.main(arguments(checkpoint, output, *more))
    folder = CheckpointFolder.open(output / "model", fast=True)
    assert folder.variant == "diffusion_transformer_768p_fast"
    assert folder.vae_folder == "causal_video_vae_fast"
    assert folder.stepping == {"solver": "euler", "timestep_spacing": "trailing"}
    own = load_file(output / "round-1/student.safetensors")
    stored = load_file(folder.path / folder.variant / "diffusion_pytorch_model.safetensors")
    assert own.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in own.items())

    usual = CheckpointFolder.open(output / "model")
    assert (usual.variant, usual.vae_folder) == ("diffusion_transformer_768p", "causal_video_vae")
    assert usual.defaults.guidance_scale == 2.0 and not usual.defaults.guidance_in_weights
    model = PyramidDiTForVideoGeneration.from_pretrained(output / "model", fast=True)
    model.set_progress_bar_config(disable=True)
    stream = model.stream("a red circle", num_frames=9, seed=0)
    assert stream.total_steps == 5 + 3
    assert len(stream.join()) == 9
    with pytest.raises(ValueError, match="guidance_scale does not go with"):
        model.generate("a red circle", guidance_scale=3.0)
    with pytest.raises(ValueError, match="negative_prompt does not go with"):
        model.generate("a red circle", negative_prompt="black")
    pipeline = PyramidFlowPipeline.from_pretrained(output / "model", fast=True)
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    pipeline.save_pretrained(tmp_path / "saved")
    again = PyramidFlowPipeline.from_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="guidance_scale does not go with"):
        again("a red circle", guidance_scale=3.0)


def test_a_checkpoint_without_a_student_has_no_fast_variant(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no fast variant of"):
        CheckpointFolder.open(checkpoint, fast=True)


def test_adapters_are_a_lora_and_a_variant_with_it_merged_in(
    checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    more = ("--rounds", "2", "--lora_rank", "2", "--steps", "3")
    distill.main(arguments(checkpoint, output, *more))
    merged = PyramidDiTForVideoGeneration.from_pretrained(output / "model", fast=True)
    beside = PyramidDiTForVideoGeneration.from_pretrained(checkpoint)
    before = torch.cat([p.detach().flatten() for p in beside.dit.parameters()])
    beside.load_lora_weights(output)
    beside.dit.fuse_lora()
    beside.dit.unload_lora()
    own, other = (
        torch.cat([p.detach().flatten() for p in model.dit.parameters()])
        for model in (merged, beside)
    )
    torch.testing.assert_close(own, other)
    assert (own - before).abs().max() > 1e-3


def test_videos_of_drawn_shapes_start_with_pictures_and_change_their_prompts(
    checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    sizes = "--first_units 0 --videos 4 --max_frames 4 --rollout_batch 2 --batch_size 2 --steps 1"
    rest = "--rounds 1 --num_workers 0 --report_to none --model_dtype fp32 --image_share 0.5"
    flags = ["--drawn_shapes", "--change_share", "1.0", *sizes.split(), *rest.split()]
    distill.main(["--model_path", str(checkpoint), "--output_dir", str(output), *flags])
    folder = output / "round-1" / "rollouts"
    text, image = (Rollout.read(folder / f"{kind}-00000.safetensors") for kind in ("text", "image"))
    assert (text.given, text.latents.shape) == (0, (2, 4, 4, 8, 8))
    assert (image.given, image.latents.shape) == (1, (2, 4, 4, 8, 8))
    assert [tuple(end.shape) for end in image.ends] == [(2, 4, 3, side, side) for side in (2, 4, 8)]
    for rollout in (text, image):
        begin, change = sorted(rollout.storyboard)
        assert begin == 0 and change in (2, 3)
        captions = [*rollout.storyboard[begin], *rollout.storyboard[change]]
        assert not any(is_held_out(combination_of(caption)) for caption in captions)


def test_the_other_architecture_is_distilled_too(tmp_path: Path) -> None:
    """Its text encoders are others, and it may read the padding of prompts."""
    folder = write_tiny_checkpoint(
        tmp_path / "model", "pyramid_mmdit", index=INDEX, dit_config={"use_t5_mask": False}
    )
    output = tmp_path / "run"
    distill.main(arguments(folder, output, "--rounds", "1", "--steps", "8"))
    losses = [line["loss"] for line in figures(output / "round-1") if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert CheckpointFolder.open(output / "model", fast=True).architecture.name == "pyramid_mmdit"


@pytest.mark.slow
def test_two_processes_share_the_rollouts_and_learn_one_student(
    checkpoint: Path, tmp_path: Path
) -> None:
    run_two_in_turn("distill", [arguments(checkpoint, tmp_path / "run")], tmp_path)
    rollouts = list((tmp_path / "run/round-2/rollouts").iterdir())
    assert len(rollouts) == 4
    assert CheckpointFolder.open(tmp_path / "run/model", fast=True)
    losses = [line["loss"] for line in figures(tmp_path / "run/round-1") if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--drawn_shapes",), "--prompts or --drawn_shapes is needed"),
        (("--first_units", "0", "--videos", "0"), "there is nothing to learn"),
        (("--image_share", "0.5"), "--image_share needs --image_anno"),
        (("--student", "nothing.safetensors"), "there is no nothing.safetensors"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        distill.main(arguments(checkpoint, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()
