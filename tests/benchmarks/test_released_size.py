"""The benchmark of the released size: the folder that it makes, what it refuses, what it finds."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from golden import PROJECT_ROOT
from safetensors import safe_open

from benchmarks import random_checkpoint, released_size
from benchmarks.random_checkpoint import check_whole, checkpoint_parts, write_random_checkpoint
from benchmarks.released_size import Setup, make_checkpoint
from benchmarks.report import Report, number
from pyramid_dit.checkpoints.folder import CheckpointFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "random"
    make_checkpoint(path, "tiny", agreed=True)
    return path


def keys(folder: Path) -> set[str]:
    """Names of all weights in a folder."""
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= set(file.keys())
    return found


# ---- the folder -------------------------------------------------------------------------------


def test_the_released_size_has_the_released_parameters() -> None:
    sizes = {
        part.folder: sum(value.numel() for value in part.weights().values())
        for part in checkpoint_parts("released")
    }
    assert sizes["diffusion_transformer_384p"] == 1_972_059_200
    assert sizes["text_encoder"] == pytest.approx(123e6, rel=0.01)
    assert sizes["text_encoder_2"] == pytest.approx(4.76e9, rel=0.01)
    assert sum(sizes.values()) * 2 == pytest.approx(14.4e9, rel=0.01)


def test_the_folder_is_a_checkpoint_in_the_released_layout(folder: Path) -> None:
    check_whole(folder)
    found = CheckpointFolder.open(folder)
    assert (found.variant, found.model_dtype) == ("diffusion_transformer_384p", "bf16")
    assert not (folder / "model_index.json").exists()
    assert "text_model.embeddings.token_embedding.weight" in keys(folder / "text_encoder")
    assert "shared.weight" in keys(folder / "text_encoder_2")
    assert [path.name for path in folder.parent.iterdir()] == ["random"]  # nothing temporary


def test_weights_are_written_a_shard_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_checkpoint, "SHARD", "50KB")
    part = checkpoint_parts("tiny")[0]
    part.write(tmp_path)
    files = sorted((tmp_path / part.folder).glob("*.safetensors"))
    assert len(files) > 1
    assert all(path.stat().st_size < 60_000 for path in files)
    index = json.loads((tmp_path / part.folder / f"{part.stem}.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == part.weights().keys() == keys(tmp_path / part.folder)


def test_a_whole_folder_is_used_again_and_a_damaged_one_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    make_checkpoint(copy, "tiny", agreed=True)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    weights = copy / "text_encoder_2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated or damaged"):
        make_checkpoint(copy, "tiny", agreed=True)
    with pytest.raises(FileNotFoundError, match="is not a checkpoint folder"):
        make_checkpoint(tmp_path, "tiny", agreed=True)


def test_a_full_disk_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3e9))
    target = tmp_path / "deep" / "random"
    with pytest.raises(OSError, match=r"takes 14\.4 GB, and its disk has 3\.0 GB left"):
        write_random_checkpoint(target, checkpoint_parts("released"))
    assert not target.parent.exists()


@pytest.mark.parametrize(("answer", "made"), [("y", True), ("", False), ("no", False)])
def test_it_asks_first(
    answer: str, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or answer)
    target = tmp_path / "random"
    if made:
        make_checkpoint(target, "tiny", agreed=False)
    else:
        with pytest.raises(ValueError, match="with --yes one is made"):
            make_checkpoint(target, "tiny", agreed=False)
    assert target.exists() == made
    assert len(questions) == 1 and str(target) in questions[0]


# ---- the runs ---------------------------------------------------------------------------------


def test_command_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"  # another commit, which is this one
    other.mkdir()
    for name in ("pyramid_dit", "video_vae"):
        (other / name).symlink_to(PROJECT_ROOT / name)
    path = tmp_path / "found.json"
    memory = ["--memory", "0.1GB", "--beside", str(other)]
    released_size.main([str(folder), "--tiny", *memory, "--json", str(path)])
    found = Report.load(path)
    assert found.markdown() in capsys.readouterr().out
    parts = ["loading", "text", "transformer", "decoding", "rest", "all"]
    assert [row["part"] for row in found.rows] == 2 * parts
    for code, rows in (("this", found.rows[:6]), ("other", found.rows[6:])):
        assert {row["code"] for row in rows} == {code}
        assert all(number(row, "CPU s") > 0 for row in rows)
        total = sum(number(row, "s") for row in rows[:-1])
        assert number(rows[-1], "s") == pytest.approx(total)
        peaks = [row["peak, GB"] for row in rows if row["peak, GB"] is not None]
        assert number(rows[-1], "peak, GB") == max(peaks) > number(rows[-1], "of it in files, GB")
    assert "9 frames of 64x64" in found.settings
    assert [bar.what for bar in found.bars] == [
        "peak with memory 0.1GB",
        "CPU time with memory 0.1GB, of the other commit's",
    ]


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    checkout = tmp_path / "broken"
    checkout.mkdir()
    (checkout / "pyramid_dit.py").write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="the run of broken with memory auto failed, status 3"):
        Setup(checkout, "auto").run(tmp_path, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "much"], "memory must be one of auto"),
        (["--frames", "8"], "must be 8n + 1, got 8"),
        (["--steps", "0", "1"], "--steps must be at least 1, got 0"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--size", "640x380"], "must be multiples of 64"),
        (["--beside", "/"], "/ has no folder pyramid_dit"),
        (["--device", "cuda"], "python -m benchmarks.gpu of a GPU"),
        ([], "there is no checkpoint in nowhere; with --yes one is made"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        released_size.main(["nowhere", "--tiny", *arguments])
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
