"""Processes that stand still, end, or lose their launcher: real ones, stopped by signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden import PROJECT_ROOT
from progress import wait_for

from pyramid_dit.distributed.heartbeat import PATIENCE
from pyramid_dit.distributed.launcher import ProcessesFailed, run_processes
from pyramid_dit.media.video_files import video_size

PATIENT = 3
"""Seconds without a sign of life, in these tests."""
TIMEOUT = 600  # generous: importing the libraries takes long on a busy machine

PREAMBLE = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from pyramid_dit.distributed.parallel import join_processes, leave_processes

rank = int(os.environ["RANK"])
join_processes(torch.device("cpu"))

def tell(name):
    with open(os.path.join(os.environ["FOLDER"], "new" + str(rank)), "w") as file:
        file.write(str(os.getpid()))
    os.replace(file.name, os.path.join(os.environ["FOLDER"], name + str(rank)))

tell("joined")
"""
MEET = "dist.barrier(); leave_processes(); tell('done')\n"
LAUNCH = """
import sys
from pyramid_dit.distributed.launcher import run_processes
run_processes(["-c", sys.argv[1]], 2)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv(PATIENCE, str(PATIENT))
    return tmp_path


def run_two(code: str) -> None:
    run_processes(["-c", PREAMBLE + code], 2)


def done(folder: Path) -> int:
    return len(list(folder.glob("done*")))


def wait_until_joined(folder: Path) -> list[int]:
    """Numbers of both processes, once they work together."""
    end = time.monotonic() + TIMEOUT
    while len(files := sorted(folder.glob("joined*"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def seconds_until_gone(pids: list[int]) -> float:
    start = time.monotonic()
    while not all(map(is_gone, pids)):
        assert time.monotonic() - start < 60
        time.sleep(0.05)
    return time.monotonic() - start


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_that_is_stopped_ends_all(stopped: int, folder: Path) -> None:
    code = f"if rank == {stopped}: os.kill(os.getpid(), signal.SIGSTOP)\n" + MEET
    message = f"^process {stopped + 1} of 2 stands still, no sign of life for {PATIENT} s$"
    with pytest.raises(ProcessesFailed, match=message) as failed:
        run_two(code)
    ended = time.time()
    assert failed.value.status == 1 and not done(folder)
    assert ended - (folder / "joined0").stat().st_mtime < PATIENT + 10  # not the agent's 30 s more


@pytest.mark.slow
def test_one_that_works_for_long_is_waited_for(folder: Path) -> None:
    code = f"""
if rank == 1:
    end = time.monotonic() + {1.5 * PATIENT}
    while time.monotonic() < end:
        sum(range(1000))
"""
    run_two(code + MEET)
    assert done(folder) == 2


@pytest.mark.slow
def test_those_that_have_left_are_not_missed(folder: Path) -> None:
    """One says goodbye and works on, another ends."""
    leave = "if rank == 1: leave_processes()\nif rank == 2: sys.exit()\n"
    run_processes(["-c", PREAMBLE + leave + f"time.sleep({1.5 * PATIENT})\ntell('done')"], 3)
    assert sorted(file.name for file in folder.glob("done*")) == ["done0", "done1"]


def test_all_go_on_after_a_pause(folder: Path) -> None:
    """First of the launcher alone, then of all."""
    wait = 'while not os.path.exists(os.path.join(os.environ["FOLDER"], "go")): time.sleep(0.01)\n'
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, PREAMBLE + wait + MEET])
    pids = wait_until_joined(folder)
    for stopped in ([launcher.pid], [launcher.pid, *pids]):
        for signum in (signal.SIGSTOP, signal.SIGCONT):
            for pid in stopped:
                os.kill(pid, signum)
            time.sleep(1.5 * PATIENT if signum == signal.SIGSTOP else 0)
    (folder / "go").touch()
    assert launcher.wait(TIMEOUT) == 0 and done(folder) == 2


@pytest.mark.parametrize("start", ["ours", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_without_the_launcher_they_end(start: str, folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(PREAMBLE + "if rank == 1: time.sleep(600)\n" + MEET)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    command = ["-c", LAUNCH, script.read_text()] if start == "ours" else torchrun
    launcher = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    pids = wait_until_joined(folder)
    launcher.kill()
    assert seconds_until_gone(pids) < 10 and not done(folder)
    _, errors = launcher.communicate()
    assert errors.count("the launcher of the processes is gone, and they end") == 1


@pytest.mark.parametrize("alone", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_on_the_page_one_that_fails_alone_ends_all(alone: int, folder: Path) -> None:
    code = f"""
from pyramid_dit.page import processes
processes.ALONE = {PATIENT}
requests = processes.Requests()
for failing in ((0, 1), (), ({alone},)):
    try:
        with requests.end_together():
            if rank in failing:
                raise ValueError("too large")
            if failing == ({alone},):
                dist.barrier()
    except ValueError:
        pass
    tell("done" + str(len(failing)))
"""
    with pytest.raises(ProcessesFailed, match="^one of the processes could not go on: .*too large"):
        run_two(code)
    assert sorted(file.name for file in folder.glob("done*")) == ["done00", "done01"] + [
        "done20",
        "done21",
    ]


def start_by_hand(code: str) -> list[subprocess.Popen[str]]:
    """Two processes without a launcher: the first serves the store."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code],
            env={**os.environ, **place, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_without_a_launcher_too(stopped: int, folder: Path) -> None:
    code = f"if rank == {stopped}: os.kill(os.getpid(), signal.SIGSTOP)\n" + MEET
    processes = start_by_hand(code)
    errors = processes[1 - stopped].communicate(timeout=TIMEOUT)[1]
    assert f"process {stopped + 1} of 2 stands still" in errors
    assert processes[1 - stopped].returncode == 1
    assert processes[stopped].wait(TIMEOUT) == -signal.SIGKILL and not done(folder)


@pytest.mark.slow
def test_without_a_launcher_the_first_may_leave_first(folder: Path) -> None:
    processes = start_by_hand(f"if rank == 1: time.sleep({1.5 * PATIENT})\ntell('done')")
    assert [process.wait(TIMEOUT) for process in processes] == [0, 0]
    assert done(folder) == 2


# ---- the command line -------------------------------------------------------------------------

ONE_FRAME = ["--steps", "1", "--video-steps", "1000", "--seconds", "1"]  # then minutes of work


def started_by(pid: int) -> list[int]:
    """Processes that any thread of `pid` started, and those that these started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *started_by(child)]
    return found


def worker(launcher: int, rank: int) -> int:
    """The process of that rank."""
    mark = f"\0RANK={rank}\0".encode()
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (pid,) = (c for c in children if mark in Path(f"/proc/{c}/environ").read_bytes())
    return int(pid)


def start_video(output: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, which has written a frame and works on others."""
    prompt = "a red circle moves left on a white background"
    command = ["-m", "pyramid_dit", prompt, "--device", "cpu", "--output", str(output)]
    process = subprocess.Popen(
        [sys.executable, *command, *ONE_FRAME, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for("1 frames, play", process)
    return process


@pytest.mark.parametrize("gpus", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_command_that_is_killed_leaves_no_process(gpus: str, tmp_path: Path) -> None:
    process = start_video(tmp_path / "video.mp4", "--gpus", gpus)
    pids = started_by(process.pid)
    assert len(pids) == (3 if gpus == "2" else 1)  # with ffmpeg
    process.kill()
    assert seconds_until_gone([process.pid, *pids]) < 10
    process.communicate()
    (part,) = tmp_path.iterdir()
    assert part.name.startswith("video.partial-") and video_size(part) == (128, 128)


@pytest.mark.parametrize(
    ("rank", "signum"),
    [
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_what_was_made_is_kept(signum: signal.Signals, rank: int, tmp_path: Path) -> None:
    process = start_video(tmp_path / "video.mp4", "--gpus", "2")
    pids = started_by(process.pid)
    os.kill(worker(process.pid, rank), signum)
    _, errors = process.communicate(timeout=TIMEOUT)
    *_, last = errors.splitlines()
    word = "was ended by SIGKILL" if signum == signal.SIGKILL else "stands still"
    assert last.startswith("pyramid-flow: ") and f"process {rank + 1} of 2 {word}" in last, errors
    assert last.endswith(f"; what was made is kept in {tmp_path / 'video.mp4'}")
    assert errors.count("pyramid-flow: ") == 1 and "Traceback" not in errors
    seconds_until_gone(pids)
    assert process.returncode == 1 and [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
