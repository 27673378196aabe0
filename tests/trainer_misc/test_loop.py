"""The loop: updates that are left out, disks that are full, figures."""

from __future__ import annotations

import errno
import json
import logging
import math
from pathlib import Path

import linear_run
import pytest
import torch
from torch import nn

from trainer_misc import checkpoints
from trainer_misc.average import MovingAverage
from trainer_misc.checkpoints import newest_checkpoint, read_checkpoint
from trainer_misc.loop import MOST_SKIPPED, TrainingLoop
from trainer_misc.loop_config import LoopConfig


def test_a_loss_that_is_not_finite_stops_the_run_with_what_was_reached(tmp_path: Path) -> None:
    loop = linear_run.new_loop(tmp_path, 9, save_every=100)
    with pytest.raises(FloatingPointError, match="nan at step 4"):
        linear_run.train(loop, bad=3)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-3"


def test_gradients_that_are_not_finite_change_nothing_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss is finite, and a checkpoint is written in that very step."""
    loop = linear_run.new_loop(tmp_path, 8)
    linear_run.train(loop, bad=3, good=5, kind="gradient")
    assert loop.skipped == 2
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [line.split(":")[0] for line in said] == [
        f"skipping the update of step {step}" for step in (4, 5)
    ]
    before, _ = read_checkpoint(tmp_path / "checkpoint-7")
    after, state = read_checkpoint(tmp_path / "checkpoint-8")
    assert state["skipped"] == 2 and state["average_updates"] == 6
    for tensors in (before, after):
        assert all(v.isfinite().all() for group in tensors.values() for v in group.values())
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 2


def test_a_skipped_update_changes_nothing(tmp_path: Path) -> None:
    for name, steps in (("two", 2), ("four", 4)):
        loop = linear_run.new_loop(tmp_path / name, steps)
        linear_run.train(loop, bad=2, kind="gradient")
    two, four = (
        read_checkpoint(tmp_path / name)[0] for name in ("two/checkpoint-2", "four/checkpoint-4")
    )
    for group in two:
        assert all(torch.equal(two[group][name], four[group][name]) for name in two[group])


def test_ten_in_a_row_stop_the_run(tmp_path: Path) -> None:
    loop = linear_run.new_loop(tmp_path, 100, save_every=1000)
    with pytest.raises(FloatingPointError, match="10 updates in a row"):
        linear_run.train(loop, bad=3, kind="gradient")
    assert loop.step == 3 + MOST_SKIPPED - 1
    tensors, _ = read_checkpoint(tmp_path / f"checkpoint-{loop.step}")
    assert all(v.isfinite().all() for group in tensors.values() for v in group.values())


def test_nine_in_a_row_do_not(tmp_path: Path) -> None:
    loop = linear_run.new_loop(tmp_path, 24)
    linear_run.train(loop, bad=3, good=12, kind="gradient")
    assert loop.step == 24 and loop.skipped == 9


def test_a_large_loss_is_left_out_where_asked(tmp_path: Path) -> None:
    for limit in (math.inf, 1e-9):
        loop = linear_run.new_loop(tmp_path / str(limit), 20, skip_above=limit)
        linear_run.train(loop)
        assert loop.skipped == (20 if limit < 1 else 0)


@pytest.mark.parametrize("fault", ["full disk", "read-only"])
def test_a_disk_that_cannot_be_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = linear_run.new_loop(tmp_path, 5, save_every=2)
    number = errno.ENOSPC if fault == "full disk" else errno.EROFS

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "no room")

    linear_run.train(linear_run.new_loop(tmp_path, 2, save_every=2))
    loop = linear_run.new_loop(tmp_path, 5, save_every=2)
    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="no room"):
        linear_run.train(loop)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-2"
    assert not list(tmp_path.glob(".*.part"))


def test_an_output_that_is_no_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        linear_run.new_loop(tmp_path / "file", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_kept_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4).to(dtype)
    average = MovingAverage(dict(model.named_parameters()), 0.999, warm_up=False)
    start = average.state()
    expected = {name: value.clone() for name, value in start.items()}
    for _ in range(50):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(0.01)
                expected[name].lerp_(p.float(), 0.001)
        average.update()
    found = average.state()
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value, start[name])
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    with average.in_place():
        for name, p in model.named_parameters():
            assert torch.equal(p, found[name].to(dtype))
    assert all(torch.equal(p, raw[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_precisions_learn(precision: str, tmp_path: Path) -> None:
    loop = linear_run.new_loop(tmp_path, 60, mixed_precision=precision, save_every=1000)
    linear_run.train(loop)
    errors = [json.loads(line)["error"] for line in (tmp_path / "log.jsonl").open()]
    assert errors[-1] < 0.2 * errors[0]
    for tensors in read_checkpoint(tmp_path / "checkpoint-60")[0].values():
        assert all(t.dtype == torch.float32 for t in tensors.values() if t.is_floating_point())


def test_float16_lowers_the_scale_of_the_loss_and_goes_on_from_it(tmp_path: Path) -> None:
    loop = linear_run.new_loop(tmp_path, 8, mixed_precision="fp16")
    linear_run.train(loop, bad=3, good=5, kind="gradient")
    scaler = loop.accelerator.scaler
    assert scaler is not None and loop.skipped >= 2
    assert scaler.get_scale() == 2.0 ** (16 - loop.skipped)
    again = linear_run.new_loop(tmp_path, 9, mixed_precision="fp16")
    assert again.accelerator.scaler is not None
    assert again.accelerator.scaler.get_scale() == scaler.get_scale()


def test_an_unknown_tracker_is_refused_and_an_absent_one_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="none, .*tensorboard.*got 'papyrus'"):
        linear_run.new_loop(tmp_path, 1, report_to="papyrus")
    config = LoopConfig(output=tmp_path, steps=1, learning_rate=0.1, report_to="dvclive")
    TrainingLoop(config, {"model": nn.Linear(1, 1)})
    assert "dvclive is not installed" in caplog.text
