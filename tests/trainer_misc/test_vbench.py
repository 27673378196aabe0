"""`python -m trainer_misc.vbench`: names, folders and seeds, and what a second start does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from golden import PROJECT_ROOT
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.video_io import export_to_video
from trainer_misc.vbench import NAME_LENGTH, is_whole, main, samples_of

PROMPTS = ["a red circle moves left", "a blue square, on black."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"), index=QUICK_INDEX)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Two lists that share a prompt, one with what editors leave."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "color.txt").write_text("\ufeff" + " \n\n".join([*PROMPTS, PROMPTS[0]]) + "\r\n")
    (folder / "scene.txt").write_text(f"{PROMPTS[1]}\n")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


# ---- what is to be made -----------------------------------------------------------------------


def test_names_and_seeds(lists: Path) -> None:
    """As VBench looks for them; a seed belongs to the prompt and the index, not to the list."""
    output = Path("out")
    samples = samples_of(lists / "color.txt", output, per_prompt=3)
    assert [str(sample.path) for sample in samples] == [
        f"out/color/{prompt}-{index}.mp4" for prompt in PROMPTS for index in range(3)
    ]
    assert len({sample.seed for sample in samples}) == 6
    assert all(0 <= sample.seed < 2**32 for sample in samples)
    other = samples_of(lists / "scene.txt", output, per_prompt=5)
    assert [sample.seed for sample in other[:3]] == [sample.seed for sample in samples[3:]]
    again = samples_of(lists / "scene.txt", output, seed=1)
    assert {sample.seed for sample in again}.isdisjoint(sample.seed for sample in other)


def test_a_long_prompt_is_cut_in_the_name_alone(tmp_path: Path) -> None:
    prompt = "word " * 60 + "end"
    (tmp_path / "a.txt").write_text(prompt)
    sample = samples_of(tmp_path / "a.txt", tmp_path)[0]
    assert sample.prompt == prompt
    assert sample.path.name == f"{prompt[:NAME_LENGTH]}-0.mp4" == f"{prompt[:180]}-0.mp4"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "there are no prompts in"),
        (b"\xff\xfe", "is not a text in UTF-8"),
        (b"either/or", "'/' cannot be in the name of a file: 'either/or'"),
        ("猫".encode() * 100, "a name may have 255 bytes"),
        (b"a" * 181 + b"\n" + b"a" * 182, "two prompts begin with the same 180 letters"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        samples_of(tmp_path / "a.txt", tmp_path)


# ---- making it --------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main([*map(str, arguments), "--quiet"])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_a_folder_of_lists(
    model: Path, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each video is the one that `generate` makes with the seed in the record."""
    output = tmp_path / "out"
    options = [lists, output, "--model", model, "--per-prompt", "1", "--solver", "ab2"]
    assert run(capsys, *options) == (0, f"{output}: 3 made, 0 were there\n", "")
    first, second = (f"{prompt}-0.mp4" for prompt in PROMPTS)
    made = [f"color/{second}", f"color/{first}", f"scene/{second}"]
    assert names(output) == sorted([*made, "color.json", "scene.json"])
    assert {path.suffix for path in (output / "color").iterdir()} == {".mp4"}
    record = json.loads((output / "color.json").read_text())
    assert record["settings"]["solver"] == "ab2" and record["settings"]["seed"] == 0
    generator = PyramidDiTForVideoGeneration.from_pretrained(model)
    generator.set_progress_bar_config(disable=True)
    frames = generator.generate(PROMPTS[0], seed=record["seeds"][first], solver="ab2")
    export_to_video(frames, tmp_path / "expected.mp4")
    assert (output / "color" / first).read_bytes() == (tmp_path / "expected.mp4").read_bytes()
    assert (output / made[0]).read_bytes() == (output / made[2]).read_bytes()


def test_a_second_start_makes_what_is_missing(
    model: Path, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there and whole is left alone; a part of a file, or nothing, is made again."""
    output = tmp_path / "out"
    options = [lists / "color.txt", output, "--model", model]
    assert run(capsys, *options, "--per-prompt", "2", "--part", "1/2")[1].startswith(f"{output}: 2")
    assert names(output / "color") == sorted(f"{prompt}-0.mp4" for prompt in PROMPTS)
    assert run(capsys, *options, "--per-prompt", "2")[1] == f"{output}: 2 made, 2 were there\n"
    paths = sorted((output / "color").iterdir())
    contents = [path.read_bytes() for path in paths]
    paths[0].write_bytes(contents[0][: len(contents[0]) // 2])
    paths[1].unlink()
    times = [path.stat().st_mtime_ns for path in paths[2:]]
    assert not is_whole(paths[0]) and not is_whole(paths[1]) and is_whole(paths[2])
    assert run(capsys, *options, "--per-prompt", "2")[1] == f"{output}: 2 made, 2 were there\n"
    assert [path.read_bytes() for path in paths] == contents
    assert [path.stat().st_mtime_ns for path in paths[2:]] == times
    status, _, error = run(capsys, *options, "--num-frames", "17")
    assert status == 2 and "made with num_frames None, not 17: name another folder" in error


def test_a_video_that_ends_early_is_not_whole(tmp_path: Path) -> None:
    """The index in front says more frames than there are."""
    frames = [bytes_frame(level) for level in range(0, 240, 10)]
    path = tmp_path / "a.mp4"
    export_to_video(frames, path)
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:-400])
    assert not is_whole(path)


def bytes_frame(level: int) -> np.ndarray:
    noise = np.random.default_rng(level).integers(0, 16, (64, 64, 3))
    return (noise + level).astype(np.uint8)


def test_interrupted(model: Path, lists: Path, tmp_path: Path) -> None:
    """A signal ends it between or in videos; what has its name is whole, and nothing else stays."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "trainer_misc.vbench", str(lists), str(output)]
    command += ["--model", str(model), "--per-prompt", "1000"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(output.glob("color/*.mp4")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1].startswith("trainer_misc.vbench: interrupted, ")
    made = [path for path in output.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert [path.name for path in made if path.name.rpartition("-")[0] not in PROMPTS] == []
    assert [path.name for path in made if not is_whole(path)] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["prompts", "out", "--gpus", "2"], "start a process for each GPU with --part"),
        (["prompts", "out", "--part", "3/2"], "must be like 1/4"),
        (["prompts", "out", "--per-prompt", "0"], "at least 1"),
        (["prompts", "out", "--num-frames", "50"], "49 and 57"),
        (["none.txt", "out"], "none.txt"),
        (["empty", "out"], "there are no text files in empty"),
        (["prompts", "prompts/color.txt/a"], "is not a folder"),
        (["prompts", "out", "--model", "./nowhere/at/all"], "nowhere"),
    ],
)
def test_what_is_refused(
    lists: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(lists.parent)
    Path("empty").mkdir()
    try:
        status = main(options)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        status = ended.code
    assert status == 2 and message in capsys.readouterr().err
    assert not Path("out").exists()
