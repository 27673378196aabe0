"""The solver of a run: its steps, who decides on it, and that every face has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor

from pyramid_dit import (
    PyramidDiTForVideoGeneration,
    PyramidFlowMatchEulerDiscreteScheduler,
    PyramidFlowPipeline,
)
from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.cli.options import UsageError, parse_options
from pyramid_dit.page.settings import ModelCard, Settings
from pyramid_dit.sampling.guidance import StageVelocity

PROMPT = "a red circle"
RUN: dict[str, Any] = {
    "num_frames": 17,
    "seed": 3,
    "num_inference_steps": [2, 3, 2],
    "video_num_inference_steps": [3, 2, 4],
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=QUICK_INDEX)


@pytest.fixture
def model(folder: Path) -> PyramidDiTForVideoGeneration:
    return load(folder)


def load(folder: Path) -> PyramidDiTForVideoGeneration:
    model = PyramidDiTForVideoGeneration.from_pretrained(folder)
    model.set_progress_bar_config(disable=True)
    return model


def pipeline_of(folder: Path, **components: Any) -> PyramidFlowPipeline:
    pipeline = PyramidFlowPipeline.from_pretrained(folder, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def made(pipeline: PyramidFlowPipeline, **arguments: Any) -> Tensor:
    """Latents of `RUN` by the other face."""
    options = {name: value for name, value in RUN.items() if name != "seed"}
    source = torch.Generator().manual_seed(RUN["seed"])
    return pipeline(PROMPT, generator=source, **options | arguments).frames


def with_scheduler(model: Any, **config: str) -> None:
    model.scheduler = type(model.scheduler).from_config(model.scheduler.config, **config)


def close(made: Tensor, expected: Tensor) -> bool:
    """The same run, though other instances of the weights may round otherwise."""
    return bool(torch.allclose(made, expected, rtol=1e-3, atol=1e-4))


# ---- the steps of a run -------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [{}, {"history_cache": 2}, {"guidance_interval": (0.2, 0.7)}])
@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_every_step_is_the_solvers(
    solver: str,
    fast: dict[str, Any],
    model: PyramidDiTForVideoGeneration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """v + h / (2 h') (v - v') for v, but at the first step of each stage; equal steps."""
    before: list[tuple[Tensor, Tensor]] = []
    after: list[Tensor] = []
    velocity_at = StageVelocity.__call__

    def spy(self: StageVelocity, latents: Tensor, timestep: float, **kwargs: Any) -> Tensor:
        velocity = velocity_at(self, latents, timestep, **kwargs)
        before.append((latents, velocity))
        return velocity

    def on_step(pipe: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> None:
        after.append(tensors["latents"])

    monkeypatch.setattr(StageVelocity, "__call__", spy)
    with_scheduler(model, timestep_spacing="trailing")
    model.enable_fast_mode(**fast)
    model.generate(PROMPT, solver=solver, callback_on_step_end=on_step, **RUN)
    first, later = RUN["num_inference_steps"], RUN["video_num_inference_steps"]
    stages = [*first, *later, *later]
    assert len(before) == len(after) == sum(stages)
    entries = iter(zip(before, after, strict=True))
    for steps in stages:
        previous = None
        for _ in range(steps):
            (latents, velocity), stepped = next(entries)
            direction = velocity
            if solver == "ab2" and previous is not None:
                direction = 1.5 * velocity - 0.5 * previous
            torch.testing.assert_close(stepped, latents - direction / steps, rtol=1e-5, atol=1e-6)
            previous = velocity


def test_with_one_step_a_stage_all_solvers_are_one(model: PyramidDiTForVideoGeneration) -> None:
    one = RUN | {"num_inference_steps": 1, "video_num_inference_steps": 1}
    euler, ab2 = (model.generate(PROMPT, solver=name, **one) for name in ("euler", "ab2"))
    assert torch.equal(euler, ab2)
    assert not torch.equal(
        model.generate(PROMPT, solver="euler", **RUN), model.generate(PROMPT, solver="ab2", **RUN)
    )


def test_three_steps_are_nearer_to_many_than_four_of_the_reference() -> None:
    """Less than half as far, with the bundled checkpoint."""
    model = PyramidDiTForVideoGeneration.from_pretrained(load_vae=False)
    model.set_progress_bar_config(disable=True)
    still: dict[str, Any] = {"temp": 1, "seed": 1, "output_type": "latent"}
    prompt = "a red circle moves left on a white background"

    def make(solver: str, steps: int) -> Tensor:
        return model.generate(prompt, solver=solver, num_inference_steps=steps, **still)

    fine = make("euler", 64)
    reference, ab2 = ((make(*way) - fine).square().mean() for way in (("euler", 4), ("ab2", 3)))
    assert ab2 < reference / 2**2


# ---- every mode, every way to go on -------------------------------------------------------------


def test_a_stream_and_a_resumed_run_have_it(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    whole = model.generate(PROMPT, solver="ab2", **RUN)
    stream = model.stream(PROMPT, solver="ab2", **RUN)
    units = [next(stream)]
    stream.save_latents(tmp_path / "run")
    assert torch.equal(torch.cat([*units, *stream], dim=2), whole)
    resumed = model.generate_v2v(resume=tmp_path / "run", output_type="latent")
    assert torch.equal(resumed, whole)
    with pytest.raises(ValueError, match="a resumed run keeps its own solver"):
        model.generate_v2v(resume=tmp_path / "run", solver="ab2")

    with safe_open(tmp_path / "run", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    assert [unit["solver"] for unit in settings["units"]] == ["ab2", "ab2"]
    for unit in settings["units"]:
        unit["solver"] = "heun"
    save_file(tensors, tmp_path / "bad", metadata | {"settings": json.dumps(settings)})
    with pytest.raises(ValueError, match="holds no saved latents: solver must be one of"):
        model.generate_v2v(resume=tmp_path / "bad")


def test_latents_from_before_there_were_solvers_go_on_with_euler(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    whole = model.generate(PROMPT, solver="euler", **RUN)
    stream = model.stream(PROMPT, solver="euler", **RUN)
    next(stream)
    stream.save_latents(tmp_path / "run")
    with safe_open(tmp_path / "run", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    for unit in settings["units"]:
        del unit["solver"]
    save_file(tensors, tmp_path / "old", metadata | {"settings": json.dumps(settings)})
    with_scheduler(model, solver="ab2")  # that of new runs
    assert torch.equal(model.generate_v2v(resume=tmp_path / "old", output_type="latent"), whole)


def test_images_videos_and_storyboards_have_it(model: PyramidDiTForVideoGeneration) -> None:
    steps: dict[str, Any] = {"seed": 1, "num_inference_steps": 2, "output_type": "latent"}
    clip = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    image = torch.randn(1, 4, 1, 8, 8)
    asked = (
        lambda solver: model.generate_i2v(
            image_latents=image, num_frames=9, solver=solver, **steps
        ),
        lambda solver: model.generate_v2v(video=clip, num_frames=8, solver=solver, **steps),
        lambda solver: model.generate(
            prompts={0: PROMPT, 1: "a blue square"}, guidance_scales={1: 3.0}, solver=solver, **RUN
        ),
    )
    for make in asked:
        assert torch.equal(make("ab2"), make("ab2"))
        assert not torch.equal(make("ab2"), make("euler"))


# ---- who decides --------------------------------------------------------------------------------


def test_argument_before_index_before_scheduler(folder: Path, tmp_path: Path) -> None:
    plain = load(folder)
    assert plain.scheduler.config.solver == "euler"
    euler, ab2 = (plain.generate(PROMPT, solver=name, **RUN) for name in ("euler", "ab2"))
    assert torch.equal(plain.generate(PROMPT, **RUN), euler)
    with_scheduler(plain, solver="ab2")
    assert torch.equal(plain.generate(PROMPT, **RUN), ab2)
    assert torch.equal(plain.generate(PROMPT, solver="euler", **RUN), euler)

    stated = write_tiny_checkpoint(tmp_path / "stated", index=QUICK_INDEX | {"solver": "ab2"})
    assert close(load(stated).generate(PROMPT, **RUN), ab2)
    pipeline = pipeline_of(stated)
    assert close(made(pipeline), ab2)
    assert close(made(pipeline, solver="euler"), euler)

    pipeline.save_pretrained(tmp_path / "saved")
    config = tmp_path / "saved" / "scheduler" / "scheduler_config.json"
    assert json.loads(config.read_text())["solver"] == "ab2"
    index = tmp_path / "saved" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"solver": "euler"}))
    for loaded in (load(tmp_path / "saved"), pipeline_of(tmp_path / "saved")):
        assert loaded.scheduler.config.solver == "euler"
    given = PyramidFlowMatchEulerDiscreteScheduler(solver="ab2")
    assert pipeline_of(tmp_path / "saved", scheduler=given).scheduler is given


def test_a_scheduler_is_put_in_place_of_another_as_in_diffusers(
    folder: Path, tmp_path: Path
) -> None:
    stated = write_tiny_checkpoint(tmp_path / "stated", index=QUICK_INDEX | {"solver": "ab2"})
    pipeline = pipeline_of(stated)
    with_scheduler(pipeline, shift=2.0)  # does not change the solver
    assert pipeline.scheduler.config.solver == "ab2"
    with_scheduler(pipeline, shift=1.0, solver="euler", timestep_spacing="trailing")
    changed = made(pipeline)
    reference, trailing = load(folder), load(folder)
    with_scheduler(trailing, timestep_spacing="trailing")
    assert close(changed, trailing.generate(PROMPT, **RUN))
    assert not close(changed, reference.generate(PROMPT, **RUN))

    pipeline.save_pretrained(tmp_path / "saved")
    for loaded in (load(tmp_path / "saved"), pipeline_of(tmp_path / "saved")):
        config = loaded.scheduler.config
        assert (config.solver, config.timestep_spacing) == ("euler", "trailing")
    again = pipeline_of(tmp_path / "saved")
    assert close(made(again), changed)
    parts = PyramidFlowPipeline(**again.components)
    parts.set_progress_bar_config(disable=True)
    assert torch.equal(made(parts), made(again))


@pytest.mark.parametrize("face", [load, pipeline_of])
def test_a_scheduler_of_another_class_is_refused(face: Any, folder: Path) -> None:
    model = face(folder)
    model.scheduler = UniPCMultistepScheduler()
    ask = model.generate if face is load else model
    with pytest.raises(TypeError, match="must be a PyramidFlowMatchEuler.*got a UniPCMultistep"):
        ask(PROMPT, num_frames=9)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("solver", "solver must be one of euler, ab2, got 'rk4'"),
        ("timestep_spacing", "timestep_spacing must be one of linspace, trailing, got 'rk4'"),
    ],
)
def test_a_bad_word_in_a_file_is_refused_with_the_file(
    key: str, message: str, folder: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    pipeline_of(folder).save_pretrained(saved)
    for name in ("scheduler/scheduler_config.json", "model_index.json"):
        path = saved / name
        content = path.read_text()
        path.write_text(json.dumps(json.loads(content) | {key: "rk4"}))
        with pytest.raises(ValueError) as refused:
            CheckpointFolder.open(saved)
        assert str(refused.value) == f"{path}: {message}"
        path.write_text(content)
    assert CheckpointFolder.open(saved).stepping[key] in ("euler", "linspace")


# ---- the other faces ----------------------------------------------------------------------------


def test_the_command_line_and_the_page_have_it(folder: Path, tmp_path: Path) -> None:
    assert parse_options([PROMPT, "--solver", "ab2"]).solver == "ab2"
    assert parse_options([PROMPT]).solver is None
    with pytest.raises(UsageError, match=r"--solver: it must be one of euler, ab2, got 'rk4'"):
        parse_options([PROMPT, "--solver", "rk4"])
    with pytest.raises(UsageError, match="--solver does not go with --resume-latents"):
        parse_options(["--resume-latents", "run", "--solver", "ab2"])

    stated = write_tiny_checkpoint(tmp_path / "stated", index=QUICK_INDEX | {"solver": "ab2"})
    for path, solver in ((folder, "euler"), (stated, "ab2")):
        settings = ModelCard.of(CheckpointFolder.open(path), "tiny").settings()
        assert settings.options["solver"] == solver
        assert settings.arguments(24)["solver"] == solver
    chosen = replace(settings, options={**settings.options, "solver": "euler"})
    assert Settings.from_json(chosen.to_json()) == chosen
    record = json.loads(settings.to_json())
    record.pop("solver")  # of a video from before there were solvers
    assert Settings.from_json(json.dumps(record)) == chosen
    record["solver"] = "rk4"
    with pytest.raises(ValueError, match="solver must be one of euler, ab2"):
        Settings.from_json(json.dumps(record))
