"""The record of arguments: its order, its ranges at every door, and the way of one option."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.cli.options import FLAGS, UsageError, parse_options
from pyramid_dit.generation.arguments import (
    OPTIONS,
    ImageToVideo,
    TextToVideo,
    VideoToVideo,
)
from pyramid_dit.page.settings import ON_PAGE, ModelCard

REFERENCE_ORDER = {
    "generate": "prompt height width temp num_inference_steps video_num_inference_steps",
    "generate_i2v": "prompt input_image temp num_inference_steps",
}
REFERENCE_TAIL = (
    "guidance_scale video_guidance_scale min_guidance_scale use_linear_guidance alpha "
    "negative_prompt num_images_per_prompt generator output_type save_memory cpu_offloading "
    "inference_multigpu callback"
)
OUT_OF_RANGE: dict[str, list[Any]] = {
    "num_frames": [0, 100_001, 10**400, True],
    "seconds": [0, -1.0, 1e6, float("nan"), -float("inf"), 10**400],
    "num_inference_steps": [0, 1001, [8, 8, 0], [1.5, 1, 1], []],
    "video_num_inference_steps": [0, 1001],
    "guidance_scale": [-0.1, 100.5, float("nan"), float("inf"), 10**400],
    "video_guidance_scale": [-1, 101],
    "seed": [-1, 2**63, 1.5, 10**5000],
    "max_sequence_length": [0, -3, 1.0, 10**6],
    "height": [0, 8256, 64.0],
    "temp": [0, 12_501],
    "alpha": [float("nan")],
    "num_images_per_prompt": [0, True],
    "guidance_scales": [{0: 101.0}, {0: float("nan")}, {-1: 2.0}, {"0": 2.0}],
    "prompts": [{0: 3}, {1: "a"}, "a"],
    "output_type": ["gif", None, 3],
    "save_memory": ["yes"],
    "callback": ["stop"],
    "latents": [torch.tensor([float("nan")]), "noise"],
    "generator": [3],
    "prompt_suffix": [3],
    "solver": ["heun", "Euler", 3],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=QUICK_INDEX)


@pytest.fixture(scope="module")
def model(folder: Path) -> PyramidDiTForVideoGeneration:
    model = PyramidDiTForVideoGeneration.from_pretrained(folder)
    model.set_progress_bar_config(disable=True)
    return model


@pytest.mark.parametrize("name", REFERENCE_ORDER)
def test_arguments_by_position_are_the_references(name: str) -> None:
    shown = inspect.signature(getattr(PyramidDiTForVideoGeneration, name)).parameters.values()
    positional = [p.name for p in shown if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", *REFERENCE_ORDER[name].split(), *REFERENCE_TAIL.split()]


def test_every_option_is_explained() -> None:
    for name, option in OPTIONS.items():
        assert option.help.endswith("."), name
        assert bool(option.label) <= bool(option.flag), f"{name}: the page names it by its flag"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in OUT_OF_RANGE.items()
        for number, value in enumerate(values)
    ],
)
def test_a_value_outside_its_range_is_refused_everywhere(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name) as refusal:
        TextToVideo(**{"prompt": None if name == "prompts" else "a", name: value})
    assert len(str(refusal.value)) < 300
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if name in FLAGS and numeric and name != "prompt_suffix":
        word = str(value) if value < 10**4000 else "1" + "0" * 400
        with pytest.raises(UsageError, match=FLAGS[name].flag) as complaint:
            parse_options(["a", str(FLAGS[name].flag), word])
        assert "\n" not in str(complaint.value)


def test_values_that_exclude_each_other() -> None:
    for record, arguments, message in (
        (TextToVideo, {"temp": 1, "seconds": 1.0}, "only one of temp, seconds"),
        (TextToVideo, {"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        (TextToVideo, {"prompt": "a", "prompts": {0: "b"}}, "either prompt or prompts"),
        (VideoToVideo, {"resume": "run", "num_frames": 8}, "keeps its own num_frames"),
        (VideoToVideo, {"resume": "run", "max_sequence_length": 7}, "keeps its own max_sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            record(**arguments)  # type: ignore[operator]


def test_what_a_mode_does_not_have_is_refused() -> None:
    for record, name in ((ImageToVideo, "height"), (TextToVideo, "video"), (VideoToVideo, "width")):
        with pytest.raises(TypeError, match=name):
            record(**{name: 64})


# ---- the way of one option: max_sequence_length -------------------------------------------------

LONG = "a red circle moves left on a white background " * 3
RUN: dict[str, Any] = {"seed": 1, "temp": 2, "output_type": "latent"}


def test_it_decides_how_much_of_a_prompt_is_read(model: PyramidDiTForVideoGeneration) -> None:
    def make(**options: Any) -> torch.Tensor:
        return model.generate(LONG, **RUN, **options)

    assert torch.equal(make(), make(max_sequence_length=128))
    assert not torch.equal(make(), make(max_sequence_length=4))
    assert model.text_encoder(["a"], max_sequence_length=9)[0].shape[1] == 9


def test_the_tokenizer_limits_it(model: PyramidDiTForVideoGeneration) -> None:
    most = model.text_encoder.max_sequence_length
    assert most == 512  # of a tokenizer that knows no limit
    model.generate("a", max_sequence_length=most, seed=1, temp=1)
    with pytest.raises(ValueError, match="max_sequence_length must be at most 512.*got 513"):
        model.stream("a", max_sequence_length=most + 1)
    tokenizer = model.text_encoder.tokenizers[model.text_encoder.parts()[-1].encoder]
    usual, tokenizer.model_max_length = tokenizer.model_max_length, 100
    try:
        with pytest.raises(ValueError, match="at most 100"):
            model.stream("a", max_sequence_length=101)
    finally:
        tokenizer.model_max_length = usual


def test_a_resumed_run_keeps_it(model: PyramidDiTForVideoGeneration, tmp_path: Path) -> None:
    whole = model.generate(LONG, max_sequence_length=4, **RUN)
    stream = model.stream(LONG, max_sequence_length=4, **RUN)
    next(stream)
    stream.close()
    stream.save_latents(tmp_path / "run")
    assert torch.equal(model.generate_v2v(resume=tmp_path / "run", output_type="latent"), whole)


def test_what_was_saved_before_the_option_was_there_is_resumed(
    model: PyramidDiTForVideoGeneration, tmp_path: Path
) -> None:
    stream = model.stream(LONG, **RUN)
    next(stream)
    stream.close()
    stream.save_latents(tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    assert settings.pop("arguments") == {"max_sequence_length": 128}
    metadata["settings"] = json.dumps(settings)
    save_file(tensors, tmp_path / "old", metadata)
    whole = model.generate(LONG, **RUN)
    assert torch.equal(model.generate_v2v(resume=tmp_path / "old", output_type="latent"), whole)
    metadata["settings"] = json.dumps(settings | {"arguments": {"max_sequence_length": -1}})
    save_file(tensors, tmp_path / "bad", metadata)
    with pytest.raises(ValueError, match="max_sequence_length must be at least 1"):
        model.generate_v2v(resume=tmp_path / "bad")


def test_every_door_has_it(model: PyramidDiTForVideoGeneration, folder: Path) -> None:
    whole = model.generate(LONG, max_sequence_length=4, **RUN)
    pipe = PyramidFlowPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(1)
    made = pipe(LONG, max_sequence_length=4, num_frames=9, generator=source, output_type="latent")
    torch.testing.assert_close(made.frames, whole)
    embeds = pipe.encode_prompt(LONG, max_sequence_length=4)["prompt_embeds"]
    assert embeds.shape[1] == 4

    options = parse_options(["a", "--max-sequence-length", "4"])
    assert options.max_sequence_length == 4
    card = ModelCard.of(CheckpointFolder.open(folder), "tiny")
    settings = card.settings()
    assert settings.options["max_sequence_length"] == 128
    assert ON_PAGE["max_sequence_length"] == "max_sequence_length"
    chosen = replace(settings, options={**settings.options, "max_sequence_length": 4})
    assert type(settings).from_json(chosen.to_json()) == chosen
    assert chosen.arguments(24)["max_sequence_length"] == 4
