"""The benchmark of steps: how ways are read, what is counted, and what it finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from benchmarks import steps
from benchmarks.report import Report
from benchmarks.steps import Way, charts, default_ways, own_way, stepping
from pyramid_dit import PyramidDiTForVideoGeneration


def run(tmp_path: Path, *arguments: str) -> Report:
    files = ["--json", str(tmp_path / "found.json"), "--png", str(tmp_path / "charts.png")]
    steps.main(["--tiny", *files, *arguments])
    return Report.load(tmp_path / "found.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab2 3/2", Way("ab2 3/2", "ab2", (3,), (2,), {})),
        ("euler  4", Way("euler 4", "euler", (4,), (4,), {})),
        ("euler-trailing 3,2,2/2,2,2", Way("", "euler-trailing", (3, 2, 2), (2,), {})),
        ("ab2 2 history_cache=2", Way("", "ab2", (2,), (2,), {"history_cache": 2})),
        ("ab2 2 guidance_interval=0,1", Way("", "ab2", (2,), (2,), {"guidance_interval": (0, 1)})),
    ],
)
def test_a_way_is_read(text: str, expected: Way) -> None:
    found = Way.parse(text)
    assert found.name == " ".join(text.split())
    assert found.solver == expected.solver
    assert (found.first, found.later) == (expected.first, expected.later)
    assert found.fast_mode == expected.fast_mode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab2", "a way must be like 'ab2 3/2', got 'ab2'"),
        ("rk4 3/2", "the solver must be one of euler, euler-trailing, ab2, got 'rk4'"),
        ("ab2 3/", "'' is not a whole number"),
        ("ab2 0/2", "it must be at least 1, got 0"),
        ("ab2 3/2 cache=2", "the approximation must be one of history_cache"),
        ("ab2 3/2 history_cache=x", "'x' is not a whole number"),
        ("ab2 3/2 guidance_interval=0.5", "could not convert string to float: ''"),
        ("ab2 3/2 guidance_interval=0.5,0.2", "guidance_interval must ascend within 0 to 1"),
    ],
)
def test_other_text_is_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Way.parse(text)
    with pytest.raises(SystemExit):
        steps.main(["--way", text])
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_usual_ways_have_every_solver_and_every_split() -> None:
    ways = default_ways((4, 2, 3), stages=2)
    names = [way.name for way in ways]
    assert len(set(names)) == len(names)
    assert {way.kind for way in ways} == {
        "euler", "euler-trailing", "ab2", "first unit", "stage 0", "stage 1",
        "cache", "interval", "cache+interval",
    }  # fmt: skip
    assert {"euler 4/4", "ab2 3/2", "ab2 2,3/2,3", "ab2 3/3 history_cache=2"} <= set(names)


def test_a_student_is_measured_beside_what_it_was_distilled_from(tmp_path: Path) -> None:
    fast = "diffusion_transformer_768p_fast"
    none = {"guidance_scale": 0, "video_guidance_scale": 0, "guidance_in_weights": True}
    write_tiny_checkpoint(tmp_path / "model", index=QUICK_INDEX)
    flags = ["--model", str(tmp_path / "model"), "--prompt", "a red circle"]
    flags += ["--way", "ab2 1/1", "--way", "student euler-trailing 2/1"]
    with pytest.raises(SystemExit, match="has no fast variant"):
        run(tmp_path, *flags)
    index = QUICK_INDEX | {"variants": {fast: none}}
    write_tiny_checkpoint(tmp_path / "model", variant=fast, index=index, seed=1)
    report = run(tmp_path, *flags)
    assert [row["way"] for row in report.rows] == ["ab2 1/1", "student euler-trailing 2/1"]
    assert [row["evaluations"] for row in report.rows] == [2 * 6, 6 + 3]  # guided, and not
    assert report.rows[1]["latent error"] != report.rows[0]["latent error"]


def test_any_checkpoint_is_measured_by_evaluations_and_error(tmp_path: Path) -> None:
    index = QUICK_INDEX | {"num_inference_steps": [2, 1, 1], "timestep_spacing": "trailing"}
    folder = write_tiny_checkpoint(tmp_path / "model", index=index)
    ways = ["ab2 4/4", "ab2 2/1", "ab2 2/2", "ab2 2/2 history_cache=2"]
    ways += ["euler 4 guidance_interval=0,0.5", "euler-trailing 1"]
    flags = [part for way in ways for part in ("--way", way)]
    prompts = ["--prompt", "a red circle"]
    found = run(tmp_path, "--model", str(folder), "--fine", "4", *prompts, *flags)
    assert [row["way"] for row in found.rows] == ways
    # two units of three stages; with guidance two for a step
    assert [row["evaluations"] for row in found.rows] == [48, 18, 24, 24, 36, 12]
    errors = [row["latent error"] for row in found.rows]
    assert errors[0] == found.rows[0]["latent error, first frame"] == 0
    assert min(errors[1:]) > 0.01
    assert errors[2] != errors[3]
    assert "all four, %" not in found.rows[0]
    assert "settings are `euler-trailing 2,1,1/1`" in found.settings
    with Image.open(tmp_path / "charts.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 2


def test_the_bundled_checkpoint_is_judged(tmp_path: Path) -> None:
    found = run(tmp_path, "--way", "ab2 2/2", "--way", "euler 2/2", "--fine", "8")
    ab2, euler = found.rows
    assert ab2["evaluations"] == euler["evaluations"] == 24
    assert ab2["latent error"] < euler["latent error"]
    for row in found.rows:
        assert row["all four, %"] in (0, 100)
    drawn = charts(found, [Way.parse(str(row["way"])) for row in found.rows])
    assert drawn[0].lines.keys() == {"ab2", "euler"}
    assert drawn[0].lines["ab2"] == [(24, ab2["latent error"])]


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, index=QUICK_INDEX | {"solver": "ab2"})
    model = PyramidDiTForVideoGeneration.from_pretrained(folder, load_vae=False)
    scheduler, fast_mode = model.scheduler, model.fast_mode
    with stepping(model, Way.parse("euler-trailing 2 history_cache=2")):
        assert model.scheduler.config.timestep_spacing == "trailing"
        assert model.fast_mode.history_cache == 2
    assert model.scheduler is scheduler
    assert model.fast_mode == fast_mode
    assert own_way(model).name == "ab2 1/1"
