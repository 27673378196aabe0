"""Checkpoints of training runs: whole or not at all, without code in them, found again."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import linear_run
import numpy as np
import pytest
import torch
from golden import PROJECT_ROOT
from safetensors.torch import load_file
from torch import nn

from pyramid_dit.files import write_folder
from trainer_misc.checkpoints import (
    check_whole,
    checkpoint_steps,
    newest_checkpoint,
    thin_checkpoints,
    write_checkpoint,
)
from trainer_misc.loop_config import LoopConfig

SCRIPT = Path(linear_run.__file__)


def start(*arguments: Any, processes: int = 1) -> subprocess.Popen[str]:
    """`linear_run.py` with these arguments, in a session of its own."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command.append(str(processes))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), str(SCRIPT.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [*command, str(SCRIPT), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status, and what it wrote to both streams."""
    out, errors = process.communicate(timeout=300)
    return process.returncode, out + errors


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by file and name."""
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        found |= {f"{path.stem}/{name}": value for name, value in load_file(path).items()}
    return found


def same(one: Path, other: Path) -> None:
    """Two checkpoints have the same bits."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[name], second[name]) for name in first)


def small(folder: Path, step: int) -> Path:
    """A whole checkpoint."""
    target = folder / f"checkpoint-{step}"
    write_checkpoint(target, {"model": {"a": torch.ones(2)}}, {"step": step})
    return target


# ---- folders ----------------------------------------------------------------------------------


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-3"
    write_folder(target, lambda folder: (folder / "a").write_text("old") and None)

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]
    assert (target / "a").read_text() == "old"
    write_folder(target, lambda folder: (folder / "b").write_text("new") and None)
    assert [p.name for p in target.iterdir()] == ["b"]


def test_checkpoints_are_found_and_thinned(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None
    for step in (5, 20, 100):
        small(tmp_path, step)
    (tmp_path / ".0123456789ab.part").mkdir()
    (tmp_path / "checkpoint-half").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-100"
    thin_checkpoints(tmp_path, keep=2)
    assert list(checkpoint_steps(tmp_path)) == [20, 100]
    thin_checkpoints(tmp_path, keep=0)
    assert list(checkpoint_steps(tmp_path)) == [20, 100]


DAMAGES = {
    "no state": lambda folder: (folder / "state.json").unlink(),
    "half a state": lambda folder: (folder / "state.json").write_text('{"format": 1'),
    "state of nulls": lambda folder: (folder / "state.json").write_bytes(bytes(100)),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "short weights": lambda folder: os.truncate(folder / "model.safetensors", 50),
    "weights of nulls": lambda folder: (folder / "model.safetensors").write_bytes(
        bytes((folder / "model.safetensors").stat().st_size)
    ),
    "other format": lambda folder: (folder / "state.json").write_text('{"format": 99}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small(tmp_path, 1)
    small(tmp_path, 2)
    damaged = small(tmp_path, 3)
    DAMAGES[damage](damaged)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-2"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "skipping" in line and str(damaged) in line and "\n" not in line
    thin_checkpoints(tmp_path, keep=2)  # of which the damaged one is none
    assert list(checkpoint_steps(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_checkpoint_holds_a_value_that_is_not_finite(value: float, tmp_path: Path) -> None:
    tensors = {"model": {"good": torch.ones(2)}, "average": {"bad": torch.tensor([1.0, value])}}
    with pytest.raises(FloatingPointError, match="average: bad"):
        write_checkpoint(tmp_path / "checkpoint-1", tensors, {"step": 1})
    assert not list(tmp_path.iterdir())


# ---- runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(5,), (1, 2, 7)])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(
    stops: tuple[int, ...], accumulation: int, tmp_path: Path
) -> None:
    settings = {"accumulation": accumulation, "ema_every": 2}
    for steps in (*stops, 12):
        assert linear_run.train(linear_run.new_loop(tmp_path / "broken", steps, **settings))
    assert linear_run.train(linear_run.new_loop(tmp_path / "whole", 12, **settings))
    same(tmp_path / "whole/checkpoint-12", tmp_path / "broken/checkpoint-12")
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken/log.jsonl").open()]
    assert steps == list(range(1, 13))


def test_resuming_runs_no_code(tmp_path: Path) -> None:
    linear_run.train(linear_run.new_loop(tmp_path, 2))
    checkpoint = tmp_path / "checkpoint-2"
    files = sorted(path.name for path in checkpoint.iterdir())
    assert files == [
        "average.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]

    class MakesAFile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "made",)

    code = pickle.dumps(MakesAFile())
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "model.bin"):
        (checkpoint / name).write_bytes(code)
    assert linear_run.train(linear_run.new_loop(tmp_path, 3))
    for name in files:
        (checkpoint / name).write_bytes(code)
    assert linear_run.new_loop(tmp_path, 3).step == 3
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    loop = linear_run.new_loop(tmp_path, 1)
    linear_run.train(loop)
    config = LoopConfig(output=tmp_path, steps=2, learning_rate=0.1)
    with pytest.raises(ValueError, match="checkpoint of a different model") as caught:
        linear_run.TrainingLoop(config, {"model": nn.Linear(4, 4)})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a different model"):
        linear_run.TrainingLoop(config, {"other": nn.Linear(3, 3)})
    with pytest.raises(FileNotFoundError, match="state.json"):
        linear_run.new_loop(tmp_path / "new", 1, resume=tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_written_again(tmp_path: Path) -> None:
    linear_run.train(linear_run.new_loop(tmp_path, 3))
    os.truncate(tmp_path / "checkpoint-3/model.safetensors", 10)
    loop = linear_run.new_loop(tmp_path, 3)
    assert loop.step == 2
    linear_run.train(loop)
    check_whole(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_lets_the_step_end_and_a_checkpoint_be_written(
    signum: signal.Signals, status: int, tmp_path: Path
) -> None:
    process = start(tmp_path, 10**6, "save_every=1000000", "pause=0.01")
    wait_for(tmp_path / "log.jsonl", process)
    process.send_signal(signum)
    code, text = finish(process)
    assert code == status and "Traceback" not in text and "done" not in text
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert newest.name == f"checkpoint-{last}"


def test_a_signal_to_one_of_two_processes_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, 10**6, "save_every=1000000", "pause=0.01", processes=2)
    wait_for(tmp_path / "log.jsonl", process)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGTERM)
    finish(process)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert newest.name == f"checkpoint-{last}"


def test_processes_end_with_a_killed_launcher(tmp_path: Path) -> None:
    process = start(tmp_path, 10**6, "save_every=1000000", processes=2)
    wait_for(tmp_path / "log.jsonl", process)
    process.kill()
    process.communicate(timeout=100)  # until all that have its streams have ended


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_lose_nothing(processes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(processes)
    reached = 0
    for _ in range(20):
        process = start(tmp_path, 10**6, "keep=2", processes=processes)
        wait_for(tmp_path / "log.jsonl", process)
        time.sleep(float(rng.uniform(0.0, 0.5)))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=100)  # the processes of a launcher end after it
        newest = newest_checkpoint(tmp_path)
        steps = list(checkpoint_steps(tmp_path))
        assert newest is not None and newest.name == f"checkpoint-{steps[-1]}"
        assert steps[-1] >= reached and len(steps) <= 3
        reached = steps[-1]
    linear_run.train(linear_run.new_loop(tmp_path / "whole", reached))
    if processes == 1:
        same(tmp_path / f"whole/checkpoint-{reached}", tmp_path / f"checkpoint-{reached}")
    assert not list(tmp_path.glob(".*.part")) or newest_checkpoint(tmp_path) is not None


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until `path` has changed, or fail with what the process wrote."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    while not path.exists() or path.stat().st_mtime_ns == before:
        if process.poll() is not None:
            pytest.fail(process.communicate()[1][-2000:])
        time.sleep(0.02)
