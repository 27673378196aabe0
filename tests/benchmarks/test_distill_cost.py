"""What a distillation is said to cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from benchmarks import distill_cost
from benchmarks.distill_cost import OF_COST, operations
from pyramid_dit import PyramidDiTForVideoGeneration
from trainer_misc.distill_options import GROUPS, completed
from trainer_misc.options import parse


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("cost"), index=QUICK_INDEX)


def test_operations_grow_with_what_is_asked_for(checkpoint: Path) -> None:
    dit = PyramidDiTForVideoGeneration.from_pretrained(
        checkpoint, load_vae=False, load_text_encoder=False
    ).dit
    few = "--first_units 10 --videos 10 --max_frames 3 --teacher_steps 2 --teacher_video_steps 2"
    options = completed(parse(None, {**GROUPS, "the cost": OF_COST}, few.split()))
    usual = operations(dit, options, 64, 64)
    options.videos = options.first_units = 20
    assert operations(dit, options, 64, 64).teacher == pytest.approx(2 * usual.teacher)
    options.steps *= 2
    assert operations(dit, options, 64, 64).training == pytest.approx(2 * usual.training)
    options.teacher_steps = options.teacher_video_steps = (4,)
    assert operations(dit, options, 64, 64).teacher == pytest.approx(4 * usual.teacher)
    options.student_steps = options.student_video_steps = (4,)
    double = operations(dit, options, 64, 64)
    assert double.student == pytest.approx(double.teacher / 2)  # as many steps, not guided
    options.gradient_checkpointing, options.gradient_checkpointing_ratio = True, 1.0
    assert operations(dit, options, 64, 64).training == pytest.approx(4 / 3 * double.training)


def test_the_command_prints_memory_and_hours(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--size 64x64 --max_frames 2 --batch_size 1 --rounds 2 --model_dtype fp32"
    variant = ["--model_variant", "diffusion_transformer_768p"]
    distill_cost.main(["--model_path", str(checkpoint), *variant, *flags.split()])
    printed = capsys.readouterr().out
    assert "3 samples of 9 frames of 64x64" in printed and "most at any time" in printed
    assert [line.split("|")[1].strip() for line in printed.splitlines()[-2:]] == ["1", "2"]
