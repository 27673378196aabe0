"""What the reference's scripts import and call is where they look, as docs/migration.md says.

The page's tables are read: each name in them is imported, each argument looked for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import PROJECT_ROOT
from tiny_checkpoint import write_tiny_checkpoint

import pyramid_dit
import trainer_misc
from pyramid_dit import (
    FluxTextEncoderWithMask,
    PyramidDiffusionMMDiT,
    PyramidDiTForVideoGeneration,
    PyramidFluxTransformer,
    SD3TextEncoderWithMask,
)
from pyramid_dit.checkpoints.defaults import GenerationDefaults
from pyramid_dit.generation.arguments import ImageToVideo, TextToVideo
from pyramid_dit.generation.request import make_request
from pyramid_dit.models.blocks import JointBlock, SingleBlock
from video_vae import CausalVideoVAE, CausalVideoVAELossWrapper

NAMES: dict[str, dict[str, type]] = {
    "pyramid_dit": {
        "JointTransformerBlock": JointBlock,
        "FluxTransformerBlock": JointBlock,
        "FluxSingleTransformerBlock": SingleBlock,
        "FluxTextEncoderWithMask": FluxTextEncoderWithMask,
        "SD3TextEncoderWithMask": SD3TextEncoderWithMask,
    },
    "pyramid_dit.flux_modules": {
        "PyramidFluxTransformer": PyramidFluxTransformer,
        "FluxTextEncoderWithMask": FluxTextEncoderWithMask,
        "FluxTransformerBlock": JointBlock,
        "FluxSingleTransformerBlock": SingleBlock,
    },
    "pyramid_dit.mmdit_modules": {
        "PyramidDiffusionMMDiT": PyramidDiffusionMMDiT,
        "SD3TextEncoderWithMask": SD3TextEncoderWithMask,
        "JointTransformerBlock": JointBlock,
    },
    "video_vae.modeling_causal_vae": {"CausalVideoVAE": CausalVideoVAE},
}


@pytest.mark.parametrize("path", NAMES)
def test_names(path: str) -> None:
    module = import_module(path)
    assert {name: getattr(module, name) for name in NAMES[path]} == NAMES[path]
    assert set(NAMES[path]) <= set(module.__all__)
    if path != "pyramid_dit":
        assert len(module.__all__) == len(NAMES[path])


# ---- the page ---------------------------------------------------------------------------------

PAGE = (PROJECT_ROOT / "docs" / "migration.md").read_text(encoding="utf-8")


def tables(heading: str) -> list[list[list[str]]]:
    """The tables below a heading of the page: rows of cells, without the row of titles."""
    found: list[list[list[str]]] = []
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    inside = False
    for line in re.split(r"^#+ ", section, flags=re.MULTILINE)[0].splitlines():
        if not line.startswith("|"):
            inside = False
        elif not inside:
            inside = True
            found.append([])
        elif not re.fullmatch(r"[|:-]+", line):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    assert all(found)
    return found


def spans(rows: Sequence[Sequence[str]]) -> list[str]:
    """What stands in code in the first column."""
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row[0])]


def statements() -> list[str]:
    """The imports that the page calls the same."""
    (rows,) = tables("Imports")
    same = [row for row in rows if row[0].startswith("`from ")]
    assert all(row[1].startswith("the same") for row in same)
    return spans(same)


@pytest.mark.parametrize("statement", statements())
def test_imports(statement: str) -> None:
    names: dict[str, Any] = {}
    exec(statement, names)
    listed = statement.partition(" import ")[2].split(", ")
    assert listed and all(callable(names[name]) for name in listed)


def positional(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that can be given by position, with their defaults."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    parameters = inspect.signature(function).parameters
    return {n: p.default for n, p in parameters.items() if p.kind in kinds and n != "self"}


CONSTRUCTOR: dict[str, Any] = {
    "model_path": inspect.Parameter.empty,
    "model_dtype": "bf16",
    "model_name": "pyramid_mmdit",
    "use_gradient_checkpointing": False,
    "return_log": True,
    "model_variant": "diffusion_transformer_768p",
    "timestep_shift": 1.0,
    "stage_range": (0, 1 / 3, 2 / 3, 1),
    "sample_ratios": (1, 1, 1),
    "scheduler_gamma": 1 / 3,
    "use_mixed_training": False,
    "use_flash_attn": False,
    "load_text_encoder": True,
    "load_vae": True,
    "max_temporal_length": 31,
    "frame_per_unit": None,  # what the checkpoint says, else 1
    "use_temporal_causal": True,
    "corrupt_ratio": 1 / 3,
    "interp_condition_pos": True,
    "stages": (1, 2, 4),
    "video_sync_group": 8,
    "gradient_checkpointing_ratio": 0.6,
}
TEXT_TO_VIDEO = (
    "prompt height width temp num_inference_steps video_num_inference_steps guidance_scale "
    "video_guidance_scale min_guidance_scale use_linear_guidance alpha negative_prompt "
    "num_images_per_prompt generator output_type save_memory cpu_offloading inference_multigpu "
    "callback"
).split()
NOT_OF_IMAGES = ("height", "width", "video_num_inference_steps")


def test_the_constructor() -> None:
    assert list(positional(PyramidDiTForVideoGeneration).items()) == list(CONSTRUCTOR.items())
    *rows, rest = tables("`PyramidDiTForVideoGeneration(...)`")[0]
    assert sorted(spans(rows)) == sorted(CONSTRUCTOR) and rest[0] == "anything else"


def test_generate(tmp_path: Path) -> None:
    model = PyramidDiTForVideoGeneration
    of_text, of_image = positional(model.generate), positional(model.generate_i2v)
    assert list(of_text) == TEXT_TO_VIDEO
    others = [name for name in TEXT_TO_VIDEO if name not in NOT_OF_IMAGES]
    assert list(of_image) == ["prompt", "input_image", *others[1:]]
    (rows,) = tables("`generate(...)` and `generate_i2v(...)`")
    assert sorted(spans(rows)) == sorted([*TEXT_TO_VIDEO, "input_image"])

    for arguments in (of_text, of_image):
        assert (arguments["min_guidance_scale"], arguments["alpha"]) == (2.0, 0.5)
        assert arguments["output_type"] == "pil" and arguments["save_memory"] is True
        assert arguments["num_images_per_prompt"] == 1
        for name in ("use_linear_guidance", "cpu_offloading", "inference_multigpu"):
            assert arguments[name] is False
    defaults = GenerationDefaults()
    assert (defaults.num_inference_steps, defaults.video_num_inference_steps) == (28, 28)
    assert defaults.negative_prompt.startswith("cartoon style, worst quality, low quality, blurry")
    loaded = model(write_tiny_checkpoint(tmp_path), "fp32", "pyramid_flux")
    image = torch.zeros(1, 4, 1, 8, 8)
    requests: list[tuple[Any, list[float]]] = [
        (TextToVideo(prompt="a", height=64, width=64, temp=2), [7.0, 7.0]),
        (ImageToVideo(prompt="a", image_latents=image, temp=3), [4.0, 4.0]),
    ]
    for request, scales in requests:
        units = make_request(request, loaded.video_generator.components).units
        assert [unit.guidance_scale for unit in units] == scales
        assert [list(unit.steps) for unit in units] == [[28] * 3] * 2

    # what the page says instead of the steps that are not there
    place = {"model": loaded, "pixels": torch.zeros(1, 3, 9, 64, 64), "prompts": ["a", "b"]}
    encode, latents, pyramid = tables("`PyramidDiTForVideoGeneration(...)`")[2]
    calls = [re.findall("`([^`]+)`", row[1])[0] for row in (encode, latents, pyramid)]
    assert eval(calls[0], place).batch == 2
    assert eval(calls[1], place).shape == (1, 4, 2, 8, 8)
    place |= {"pyramid_dit": pyramid_dit, "latents": torch.zeros(1, 4, 2, 8, 8)}
    import_module("pyramid_dit.flow.latents")
    assert [tuple(x.shape[-2:]) for x in eval(calls[2], place)] == [(2, 2), (4, 4), (8, 8)]


def methods(rows: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Names with the arguments that the first column shows in parentheses."""
    calls = (re.fullmatch(r"(\w+)(?:\(([\w, ]*)\))?", span) for span in spans(rows))
    return [(c[1], c[2].split(", ") if c[2] else []) for c in calls if c]


def test_attributes_and_methods() -> None:
    of_model = methods(tables("`PyramidDiTForVideoGeneration(...)`")[1])
    assert len(of_model) == 13
    of_vae, of_wrapper = tables("`CausalVideoVAE` and `CausalVideoVAELossWrapper`")
    constructor, keywords, *rest = of_wrapper
    cases = [
        (PyramidDiTForVideoGeneration, of_model),
        (CausalVideoVAE, methods(of_vae[:-1])),
        (CausalVideoVAELossWrapper, methods(rest[:-1])),
        (trainer_misc, methods(tables("`trainer_misc`")[0])),
    ]
    for holder, entries in cases:
        for name, arguments in entries:
            found = getattr(holder, name)
            if arguments:
                assert list(positional(found))[: len(arguments)] == arguments, name
    ((_, arguments),) = methods([constructor])
    assert list(positional(CausalVideoVAELossWrapper)) == arguments
    given = inspect.signature(CausalVideoVAELossWrapper).parameters
    assert set(given) - set(arguments) == set(spans([keywords]))
    assert set(spans(of_vae[-1:])) <= set(inspect.signature(CausalVideoVAE).parameters)
    assert list(positional(CausalVideoVAELossWrapper.forward)) == ["x", "step", "identifier"]
    assert list(positional(PyramidDiTForVideoGeneration.__call__))[:5] == [
        *("video", "text", "identifier", "use_temporal_pyramid", "accelerator")
    ]


def test_names_of_trainer_misc() -> None:
    there, replaced = map(spans, tables("`trainer_misc`"))
    listed = [name.partition("(")[0] for name in there]
    assert sorted(listed) == sorted(trainer_misc.__all__)
    for name in replaced:
        with pytest.raises(ImportError, match=name):
            getattr(trainer_misc, name)
