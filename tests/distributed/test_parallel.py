"""Many processes at work on one video: real ones, started by torchrun or by the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import PROJECT_ROOT
from PIL import Image
from progress import STEPS_MADE, wait_for
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit.cli.command import main
from pyramid_dit.distributed import parallel
from pyramid_dit.distributed.launcher import (
    ProcessesFailed,
    Stopped,
    launched_process,
    run_processes,
)
from pyramid_dit.distributed.parallel import (
    SERIAL,
    Serial,
    check_heads,
    form_groups,
    groups_are_formed,
    mesh_shape,
    processes_at_work,
    split_sizes,
)
from pyramid_dit.generation import request
from trainer_misc import (
    get_rank,
    get_sequence_parallel_group,
    get_sequence_parallel_group_rank,
    get_sequence_parallel_rank,
    get_sequence_parallel_world_size,
    init_distributed_mode,
    init_sequence_parallel_group,
    is_sequence_parallel_initialized,
)

PROMPT = "a red circle moves left on a white background"
HEADS = 5  # which no number of processes here divides
TOLERANCE, VIDEO_TOLERANCE = 1e-5, 5e-5
"""Of one pass through a transformer, and of videos, over whose steps differences grow."""
TIMEOUT = 600  # generous: importing the libraries takes long on a busy machine
SHELLS = [shell for shell in ("sh", "bash", "dash") if os.path.exists(f"/bin/{shell}")]


# ---- together as alone ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    width = {"num_attention_heads": HEADS, "caption_projection_dim": 16 * HEADS}
    write_tiny_checkpoint(
        folder / "pyramid_flux", index=QUICK_INDEX, dit_config={"num_attention_heads": HEADS}
    )
    write_tiny_checkpoint(folder / "pyramid_mmdit", "pyramid_mmdit", dit_config=width)
    return folder


def limit(case: str) -> float:
    return VIDEO_TOLERANCE if case.endswith("latents") else TOLERANCE


@pytest.mark.parametrize(
    "processes", [*(pytest.param(few, marks=pytest.mark.slow) for few in (2, 3)), 4]
)
def test_together_is_alone(processes: int, checkpoints: Path, tmp_path: Path) -> None:
    for name in ("pyramid_flux", "pyramid_mmdit"):
        (tmp_path / name).symlink_to(checkpoints / name)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *command, str(PROJECT_ROOT / "tests/parallel_ranks.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(processes)]
    assert len(reports[0]) > 30
    for errors in reports:
        assert {case: error for case, error in errors.items() if not error < limit(case)} == {}


def test_splits_are_those_of_pytorch() -> None:
    for length in range(12):
        for parts in range(1, 9):
            sizes = [len(part) for part in torch.arange(length).tensor_split(parts)]
            assert split_sizes(length, parts) == sizes


@pytest.mark.parametrize(
    ("processes", "guided", "shape"),
    [
        (1, True, (1, 1)),
        (2, True, (2, 1)),
        (2, False, (1, 2)),
        (3, True, (1, 3)),
        (4, True, (2, 2)),
        (8, True, (2, 4)),
        (8, False, (1, 8)),
    ],
)
def test_shape_of_the_mesh(processes: int, guided: bool, shape: tuple[int, int]) -> None:
    assert mesh_shape(processes, guided=guided) == shape


def test_up_to_8_processes_suit_both_released_models() -> None:
    for heads in (24, 30):
        for processes in range(1, 9):
            for guided in (False, True):
                check_heads(heads, mesh_shape(processes, guided=guided)[1])
    with pytest.raises(ValueError, match=r"3 processes .* has 2"):
        check_heads(2, 3)


def test_alone_everything_stays_as_it_is() -> None:
    x = torch.randn(2, 5, 3, 4)
    assert SERIAL.shard(x) is x and SERIAL.gather(x, 5) is x
    assert SERIAL.to_heads([x], [2, 3])[0] is x and SERIAL.to_tokens(x, [2, 3], 3) is x
    assert SERIAL.join_branches(x) is x and SERIAL.common(x) is x and SERIAL.is_main
    with pytest.raises(RuntimeError, match="join a process group first"):
        form_groups()


# ---- starting and ending processes ------------------------------------------------------------

PREAMBLE = """
import os, sys, time
from pyramid_dit.distributed.launcher import *
rank = launched_process().rank

def is_alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
"""


def run_code(code: str) -> None:
    run_processes(["-c", PREAMBLE + code], 3)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT))


@pytest.mark.usefixtures("importable")
class TestProcesses:
    def test_each_knows_its_place(self, tmp_path: Path) -> None:
        run_code(
            f"open(os.path.join({str(tmp_path)!r}, str(rank)), 'w').write(str(launched_process()))"
        )
        texts = [(tmp_path / str(rank)).read_text() for rank in range(3)]
        assert texts == [
            f"LaunchedProcess(rank={r}, local_rank={r}, processes=3, local_processes=3)"
            for r in range(3)
        ]

    def test_the_reason_of_the_first_failure_is_told(self, tmp_path: Path) -> None:
        code = f"""
pid = {str(tmp_path / "pid")!r}
if rank == 1:
    leave_reason("no such thing", 2)
    with open(pid + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(pid + ".new", pid)
    sys.exit(2)
while not os.path.exists(pid):
    time.sleep(0.01)
while is_alive(open(pid).read()):
    time.sleep(0.01)
leave_reason("lost the connection", 1)
sys.exit(1)
"""
        with pytest.raises(ProcessesFailed, match="^no such thing$") as failed:
            run_code(code)
        assert failed.value.status == 2

    @pytest.mark.parametrize(
        ("end", "message"),
        [
            ("os.kill(os.getpid(), 9)", "process 2 of 3 was ended by SIGKILL"),
            ("os._exit(3)", "process 2 of 3 ended with status 3"),
        ],
    )
    def test_one_that_dies_takes_the_others_along(
        self, end: str, message: str, tmp_path: Path
    ) -> None:
        code = f"""
if rank == 1:
    {end}
with ended_by_signals():
    time.sleep(600)
open({str(tmp_path / "came to its end")!r}, "w")
"""
        with pytest.raises(ProcessesFailed, match=message):
            run_code(code)
        assert not list(tmp_path.iterdir())

    def test_a_signal_ends_all(self, tmp_path: Path) -> None:
        code = f"""
if rank == 1:
    os.kill(os.getppid(), 15)
time.sleep(600)
open({str(tmp_path / "came to its end")!r}, "w")
"""
        before = signal.getsignal(signal.SIGINT)  # shells start background jobs deaf to it
        with pytest.raises(Stopped) as stopped:
            run_code(code)
        assert not list(tmp_path.iterdir())
        assert stopped.value.signum == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is before


def test_environments_that_are_no_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched_process() is None
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK"):
        launched_process()
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="RANK=2 does not fit WORLD_SIZE=2"):
        launched_process()


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    args = Namespace(sp_group_size=1)
    init_distributed_mode(args)
    init_sequence_parallel_group(args)
    assert (args.distributed, args.rank, args.world_size, args.gpu) == (False, 0, 1, 0)
    assert processes_at_work(guided=True) is SERIAL
    args.sp_group_size = 2
    with pytest.raises(RuntimeError, match="join a process group first"):
        init_sequence_parallel_group(args)


def test_joining_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    args = Namespace()
    init_distributed_mode(args, init_pytorch_ddp=False)
    assert (args.distributed, args.rank, args.world_size, args.gpu) == (True, 1, 2, 0)
    assert not torch.distributed.is_initialized()


def test_processes_of_mpirun(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    for name in ours:
        monkeypatch.setenv(name, "")  # so that they are put back in the end
        monkeypatch.delenv(name)
        monkeypatch.delenv(f"OMPI_COMM_WORLD_{name.removeprefix('WORLD_')}", raising=False)
    args = Namespace(dist_on_itp=True, dist_url="env://")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="no OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_LOCAL_RANK$"):
        init_distributed_mode(args)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    init_distributed_mode(args, init_pytorch_ddp=False)
    assert (args.rank, args.world_size, args.gpu) == (3, 4, 0)
    assert [os.environ[name] for name in ours] == ["3", "0", "4"]
    assert not caplog.records
    init_distributed_mode(Namespace(dist_url="tcp://host:1"), init_pytorch_ddp=False)
    assert "dist_url=tcp://host:1 has no effect" in caplog.text


def test_alone_there_are_no_groups() -> None:
    assert not groups_are_formed()
    assert get_rank() == get_sequence_parallel_rank() == get_sequence_parallel_group_rank() == 0
    assert get_sequence_parallel_world_size() == 1 and not is_sequence_parallel_initialized()
    with pytest.raises(RuntimeError, match="call init_sequence_parallel_group first"):
        get_sequence_parallel_group()


# ---- the command line -------------------------------------------------------------------------


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pyramid_dit", PROMPT, "--model", folder / "pyramid_flux"]
    return subprocess.Popen(
        [*map(str, command), "--device", "cpu", "--gpus", "2", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(parent: int) -> list[int]:
    """Processes that `parent` started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in children.split()]


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def frames(folder: Path) -> np.ndarray:
    images = [Image.open(path) for path in sorted(folder.glob("*.png"))]
    return np.stack(images).astype(np.float32)


def test_gpus_give_the_video_of_one_process(tmp_path: Path) -> None:
    """And warn once: of words that the bundled checkpoint never learned, and of too many words."""
    prompt = "a red elephant moves left on a white background " * 40
    command = [prompt, "--device", "cpu", "--seed", "3", "--steps", "1", "--video-steps", "1"]
    command += ["--num-frames", "9", "--size", "64x64"]
    done = subprocess.run(
        [sys.executable, "-m", "pyramid_dit", *command, "--gpus", "2", "--shard"]
        + ["--output", f"{tmp_path / 'two'}/"],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "9 frames of 64x64" in done.stdout and "(seed 3)" in done.stdout
    for warning in (
        "the checkpoint never learned the words",
        "a prompt of 681 tokens is cut to 128, what T5 reads (max_sequence_length)",
    ):
        assert done.stderr.count(warning) == 1, done.stderr
    assert main([*command, "-q", "--output", f"{tmp_path / 'one'}/"]) == 0
    assert np.abs(frames(tmp_path / "two") - frames(tmp_path / "one")).mean() < 0.01


def test_in_python_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Other(Serial):
        rank = 1

    warn = request.logger.warning
    monkeypatch.setitem(parallel._formed, True, Other())
    warn("from process 1")
    monkeypatch.setitem(parallel._formed, True, SERIAL)
    warn("from process 0")
    assert caplog.messages == ["from process 0"]


@pytest.mark.parametrize(
    "end", [pytest.param("a worker is killed", marks=pytest.mark.slow), "SIGTERM"]
)
def test_nothing_is_left_of_the_processes(end: str, checkpoints: Path, tmp_path: Path) -> None:
    slow = ["--steps", "1000", "--size", "768x768"]  # minutes, on any machine
    process = start(checkpoints, *slow, "--output", tmp_path / "video.mp4")
    wait_for(STEPS_MADE, process)
    pids = workers(process.pid)
    assert len(pids) == 2
    os.kill(*((pids[1], signal.SIGKILL) if "killed" in end else (process.pid, signal.SIGTERM)))
    output, errors = process.communicate(timeout=TIMEOUT)
    message = "process 2 of 2 was ended by SIGKILL" if "killed" in end else "interrupted"
    *_, last = errors.splitlines()
    assert last.startswith("pyramid-flow: ") and message in last, errors
    assert output == "" and errors.count("pyramid-flow: ") == 1 and "Traceback" not in errors
    assert process.returncode == (1 if "killed" in end else 128 + signal.SIGTERM)
    assert all(map(is_gone, pids)) and not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused_before_a_process_starts(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [PROMPT, "--model", str(checkpoints / "pyramid_flux"), "--quiet"]
    cases: list[tuple[list[str], str]] = [
        (["--device", "cpu", "--gpus", "7"], f"7 processes .* has {HEADS}"),
        (["--gpus", "2", "--device", "cuda:1"], "does not go with --device cuda:1"),
        (["--gpus", "0"], "at least 1"),
        (["--shard"], "add --gpus 2 or more"),
        (["--gpus", "2", "--shard", "--offload", "model"], "does not go with --offload"),
    ]
    if not torch.accelerator.is_available():
        cases.append((["--gpus", "2"], "there is no GPU; --device cpu"))
    for arguments, message in cases:
        assert main([*command, *arguments]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert re.search(message, errors), errors


# ---- the scripts ------------------------------------------------------------------------------


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """Stands in for Python and tells what it was called with."""
    script = tmp_path / "echo"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)
    return script


def run_script(shell: str, name: str, *arguments: str, **settings: Any) -> tuple[int, list[str]]:
    done = subprocess.run(
        [shell, str(PROJECT_ROOT / "scripts" / name), *arguments],
        env={**os.environ, **{key: str(value) for key, value in settings.items()}},
        capture_output=True,
        text=True,
    )
    return done.returncode, (done.stdout or done.stderr).splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_inference_script(shell: str, echo: Path) -> None:
    name = "inference_multigpu.sh"
    status, lines = run_script(shell, name, "--help")
    assert status == 0 and lines[0].startswith("Usage:")
    settings = {"TASK": "i2v", "IMAGE": "a b.png", "PROMPT": 'it\'s a "cat"', "TEMP": 3}
    status, words = run_script(shell, name, "--seed", "7", PYTHON=echo, GPUS=4, **settings)
    assert status == 0 and words[:4] == ["-m", "pyramid_dit", "--gpus", "4"]
    assert words[words.index("--num-frames") + 1] == "17"
    assert words[-6:] == ["--image", "a b.png", "--seed", "7", "--", 'it\'s a "cat"']
    for bad in ({"TASK": "v2v"}, {"TASK": "i2v"}, {"TEMP": "many"}):
        status, lines = run_script(shell, name, PYTHON=echo, **bad)
        assert status == 2 and len(lines) == 1 and lines[0].startswith(f"{name}: ")


@pytest.mark.parametrize("shell", SHELLS)
def test_engine_script(shell: str, echo: Path) -> None:
    name = "app_multigpu_engine.sh"
    status, lines = run_script(shell, name, "--help")
    assert status == 0 and lines[0].startswith("Usage:")
    common = ["2", "diffusion_transformer_384p", "a folder"]
    rest = ["16", "7.0", "5.0", "384p", "out put.mp4"]
    status, words = run_script(shell, name, *common, "i2v", *rest, "a b.png", "-x", PYTHON=echo)
    pairs = dict(zip(words, words[1:], strict=False))
    assert status == 0 and words[-4:] == ["--image", "a b.png", "--", "-x"]
    assert pairs["--model"] == "a folder" and pairs["--size"] == "640x384"
    assert pairs["--num-frames"] == "121" and pairs["--output"] == "out put.mp4"
    assert pairs["--guidance"] == "7.0" and pairs["--video-guidance"] == "5.0"
    for bad in ([*common, "t2v", *rest], [*common, "t2v", *rest, "a", "b"], [*common, "v2v"]):
        status, lines = run_script(shell, name, *bad, PYTHON=echo)
        assert status == 2 and len(lines) == 1 and lines[0].startswith(f"{name}: ")
