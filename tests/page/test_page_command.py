"""The command line of the page: what it refuses, and how it starts further processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from golden import PROJECT_ROOT

from pyramid_dit.page import serve
from pyramid_dit.page.command import main

pytest.importorskip("gradio")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "x"], "invalid int value"),
        (["--model", "no/where/at/all"], "is not a folder"),
        (["--shard"], "add --gpus"),
        (["--port", "99999"], "cannot serve at 127.0.0.1, port 99999"),
        (["--host", "192.0.2.1", "--port", "7860"], "cannot serve at 192.0.2.1"),
        (["--gpus", "2", "--device", "cuda:1"], "does not go with"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("program", [["app.py"], ["-m", "pyramid_dit", "page"]])
def test_both_programs_say_so(program: list[str]) -> None:
    command = [sys.executable, *program, "--port", "x"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid int value" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_gradio_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main([]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert line.startswith("pyramid-flow page: ") and "pip install" in line


@pytest.mark.parametrize("program", [["app.py"], ["-m", "pyramid_dit", "page"]])
def test_further_processes_are_started_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch, program: list[str]
) -> None:
    started: list[Sequence[str]] = []
    monkeypatch.setattr(serve, "run_processes", lambda command, _: started.append(command))
    arguments = ["--gpus", "2", "--device", "cpu"]
    assert main(arguments, " ".join(program), program) == 0
    assert started == [[*program, *arguments]]
