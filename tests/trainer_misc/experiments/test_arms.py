"""Arms of the experiments: their files, and what is refused in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_misc.experiments.arms import ARMS, Arm
from trainer_misc.experiments.run_all import RUNS, jobs_of
from trainer_misc.experiments.temporal_pyramid import video_tokens
from trainer_misc.toy.moving_shapes import SHAPES


def test_every_arm_is_run_and_every_run_has_an_arm() -> None:
    assert {path.stem for path in ARMS.glob("*.toml")} == RUNS.keys()
    for name in RUNS:
        arm = Arm.named(name)
        assert arm.name == name
        assert arm.scheduler().config.stages == arm.stages
        assert arm.steps("cpu") > 0 < arm.steps("cuda")


@pytest.mark.parametrize("kind", ["pictures", "clips"])
def test_arms_of_a_kind_have_equal_operations(kind: str) -> None:
    arms = [Arm.named(name) for name in RUNS]
    for device in ("cpu", "cuda"):
        sizes = {
            (a.steps(device), a.step_flops(device), a.pixels(device), a.shapes(device))
            for a in arms
            if a.data == kind
        }
        assert len(sizes) == 1


def test_cpus_have_smaller_pictures_of_fewer_shapes() -> None:
    for name in RUNS:
        arm = Arm.named(name)
        assert (arm.pixels("cpu"), arm.shapes("cpu")) == (64, ("circle", "square"))
        assert (arm.pixels("cuda"), arm.shapes("cuda")) == (128, SHAPES)


def test_settings_are_those_of_the_device() -> None:
    arm = Arm.named("pictures-3-stages")
    on_cpu, on_gpu = arm.as_dict("cpu"), arm.as_dict("cuda")
    assert on_cpu["cpu_shapes"] == ["circle", "square"] and on_gpu["gpu_pixels"] == 128
    assert {name.partition("_")[0] for name in on_cpu.keys() ^ on_gpu.keys()} == {"cpu", "gpu"}
    assert not [name for name in on_cpu if name.startswith("gpu_")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages = 9", "stages .*9"),
        ("stages = 2", "sample_ratios must be 2 numbers"),
        ("gama = 0.2", "no setting is called 'gama', perhaps gamma"),
        ("gamma = 0.5", "gamma .*0.5"),
        ("frames = 3", "pictures have frames = 1"),
        ('data = "clips"\nlast_frames = 9', "last_frames need use_temporal_pyramid"),
        ("cpu_pixels = 96", "cpu_pixels must be a multiple of 64 with 3 stages, got 96"),
        ("gpu_pixels = 16", "gpu_pixels .*16"),
        ('cpu_shapes = ["star"]', r"cpu_shapes must be some of circle, .*, got \['star'\]"),
        ("gpu_shapes = []", r"gpu_shapes must be some of circle, .*, got \[\]"),
        ("samples = 300", "samples must be at most 252, the prompts of 2 shapes, got 300"),
        ('data = "films"', "data must be one of pictures, clips, got 'films'"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Arm.read(path)


def test_unknown_arms_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures-1-stage"):
        Arm.named("pictures-9-stages")


def test_shares_fill_the_time_of_the_busiest_process() -> None:
    runs = [("clips-autoregressive", seed) for seed in range(3)]
    runs += [("pictures-1-stage", seed) for seed in range(2)]
    jobs = jobs_of(runs, workers=2)
    # two processes: clip, clip; clip, picture and picture
    assert [job.share for job in jobs] == [0.5, 0.5, 0.5, 0.25, 0.25]
    assert jobs[0].name == "clips-autoregressive-0"


def test_tokens_are_those_of_the_paper() -> None:
    assert video_tokens(768, 1280, 241) == (15_360, 119_040)
