"""Whole runs of the reference, every noise recorded: weights, latents, frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_cases, load_golden, relative_error
from PIL import Image
from torch import Tensor

from pyramid_dit import PyramidDiffusionMMDiT, PyramidDiTForVideoGeneration, PyramidFluxTransformer
from pyramid_dit.generation.run import Run
from video_vae import CausalVideoVAE

TOPICS = {
    "generate_flux": ("pyramid_flux", PyramidFluxTransformer),
    "generate_mmdit": ("pyramid_mmdit", PyramidDiffusionMMDiT),
}
VARIANT = "diffusion_transformer_768p"
RUNS = [
    pytest.param(topic, index, id=f"{topic}-{index}-{run['task']}")
    for topic in TOPICS
    for index, run in golden_cases(topic, "runs")
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder for each topic, its weights loaded strictly from the recording."""
    folders = {}
    for topic, (_, dit_class) in TOPICS.items():
        description, tensors = load_golden(topic)
        folder = tmp_path_factory.mktemp(topic)
        for prefix, model_class, name in (
            ("dit", dit_class, VARIANT),
            ("vae", CausalVideoVAE, "causal_video_vae"),
        ):
            model = model_class.from_config(description[f"{prefix}_config"])
            model.load_state_dict(_under(prefix, tensors), strict=True)
            model.save_pretrained(folder / name)
        folders[topic] = folder
    return folders


@pytest.mark.parametrize(("topic", "index"), RUNS)
def test_golden_run(
    checkpoints: dict[str, Path], topic: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    description, tensors = load_golden(topic)
    run = description["runs"][index]
    recorded = _under(str(index), tensors)
    pipeline = PyramidDiTForVideoGeneration(
        checkpoints[topic],
        "fp32",
        TOPICS[topic][0],
        model_variant=VARIANT,
        load_text_encoder=False,
        **run.get("init", {}),
    )
    unused = _replay_block_noise(pipeline, recorded, monkeypatch)
    made = _spy_on_latents(monkeypatch)
    frames = np.stack(_generate(pipeline, run, recorded))

    assert not unused, f"{len(unused)} recorded noises were not asked for"
    assert relative_error(made[0], recorded["latents"]) <= 2e-5
    difference = np.abs(frames.astype(int) - recorded["frames"].numpy().astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


def _spy_on_latents(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list that gets the latents of every run that follows, on their way to the VAE."""
    made: list[Tensor] = []
    add = Run.add

    def spy(run: Run, latents: Tensor) -> None:
        add(run, latents)
        assert run.latents is not None
        made[:] = [run.latents]

    monkeypatch.setattr(Run, "add", spy)
    return made


def _generate(
    pipeline: PyramidDiTForVideoGeneration,
    run: dict[str, Any],
    recorded: dict[str, Tensor],
) -> Any:
    arguments = dict(
        run["kwargs"],
        latents=recorded["noise.initial"],
        prompt_embeds=recorded["prompt.embeds"],
        prompt_attention_mask=recorded["prompt.mask"],
        pooled_prompt_embeds=recorded["prompt.pooled"],
        negative_prompt_embeds=recorded["negative.embeds"],
        negative_prompt_attention_mask=recorded["negative.mask"],
        negative_pooled_prompt_embeds=recorded["negative.pooled"],
    )
    if run["task"] == "t2v":
        return pipeline.generate(**arguments)
    size = (arguments.pop("height"), arguments.pop("width"))
    assert recorded["image"].shape[:2] == size
    arguments["image_latents"] = _image_latents(pipeline.vae, recorded)
    return pipeline.generate_i2v(**arguments)


def _image_latents(vae: CausalVideoVAE, recorded: dict[str, Tensor]) -> Tensor:
    pixels = recorded["image"].float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels.permute(2, 0, 1)[None, :, None]).latent_dist
    return posterior.mean + posterior.std * recorded["posterior.noise"]


@pytest.mark.parametrize(("topic", "index"), RUNS)
def test_golden_image_posterior_is_drawn_after_the_noise(
    checkpoints: dict[str, Path], topic: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image itself, instead of its latents, gives the recorded run when noises are replayed."""
    description, tensors = load_golden(topic)
    run = description["runs"][index]
    if run["task"] != "i2v":
        pytest.skip("no image")
    recorded = _under(str(index), tensors)
    pipeline = PyramidDiTForVideoGeneration(
        checkpoints[topic], "fp32", TOPICS[topic][0], load_text_encoder=False, **run.get("init", {})
    )
    _replay_block_noise(pipeline, recorded, monkeypatch)
    noises = [recorded["noise.initial"], recorded["posterior.noise"]]
    monkeypatch.setattr(
        "pyramid_dit.generation.engine.randn_tensor", lambda *_, **__: noises.pop(0)
    )
    latents = pipeline.generate_i2v(
        input_image=Image.fromarray(recorded["image"].numpy()),
        output_type="latent",
        prompt_embeds=recorded["prompt.embeds"],
        prompt_attention_mask=recorded["prompt.mask"],
        pooled_prompt_embeds=recorded["prompt.pooled"],
        negative_prompt_embeds=recorded["negative.embeds"],
        negative_prompt_attention_mask=recorded["negative.mask"],
        negative_pooled_prompt_embeds=recorded["negative.pooled"],
        **{name: v for name, v in run["kwargs"].items() if name not in ("height", "width")},
    )
    assert relative_error(latents, recorded["latents"]) <= 2e-5


def _replay_block_noise(
    pipeline: PyramidDiTForVideoGeneration,
    recorded: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> list[Tensor]:
    """Hand out the recorded jump noises in order; the list that is returned empties."""
    count = sum(name.startswith("noise.block.") for name in recorded)
    noises = [recorded[f"noise.block.{number}"] for number in range(count)]

    def replay(shape: tuple[int, ...], **_: Any) -> Tensor:
        noise = noises.pop(0)
        assert tuple(shape) == tuple(noise.shape)
        return noise

    monkeypatch.setattr(pipeline.scheduler, "sample_block_noise", replay)
    return noises


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
