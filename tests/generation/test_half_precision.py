"""float16: what would overflow is computed in float32; and no float64 but on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import relative_error
from tiny_checkpoint import DIT_CONFIGS, LATENT_CHANNELS, QUICK_INDEX, VAE_CONFIG
from tiny_checkpoint import write_tiny_checkpoint as write
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5EncoderModel

from pyramid_dit import (
    PyramidDiffusionMMDiT,
    PyramidDiTForVideoGeneration,
    PyramidFlowMatchEulerDiscreteScheduler,
    PyramidFlowPipeline,
    PyramidFluxTransformer,
)
from pyramid_dit.checkpoints.architectures import ARCHITECTURES
from pyramid_dit.generation.latent_codec import FrameDecoder
from pyramid_dit.models.layers import ResidualLinear
from pyramid_dit.models.text_condition import TextCondition
from pyramid_dit.models.transformer import PyramidTransformer
from pyramid_dit.sampling.guidance import GuidanceSchedule
from pyramid_dit.sampling.prompts import GuidedText
from pyramid_dit.sampling.unit_sampler import UnitSampler, plan_units
from video_vae import CausalVideoVAE

CLASSES = {"pyramid_flux": PyramidFluxTransformer, "pyramid_mmdit": PyramidDiffusionMMDiT}
LARGEST = torch.finfo(torch.float16).max
PROMPT = "a red circle moves left"


def scale_channel(linear: nn.Linear, factor: float) -> None:
    """Have one channel of the result be large, as some are in trained transformers."""
    linear.weight.data[0] *= factor
    if linear.bias is not None:
        linear.bias.data[0] *= factor


@pytest.fixture(scope="module", params=CLASSES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose activations go beyond float16: of transformer, T5 and VAE."""
    name = request.param
    folder = write(tmp_path_factory.mktemp(name), name, index=QUICK_INDEX)
    dit = CLASSES[name].from_pretrained(folder / "diffusion_transformer_768p")
    block = dit.transformer_blocks[0]
    for mlp in (block.ff, block.ff_context):
        mlp.net[0].proj.weight.data *= 100
        scale_channel(mlp.net[2], 5e4)
    for linear in (block.attn.to_out[0], block.attn.to_add_out):
        scale_channel(linear, 5e4)
    dit.save_pretrained(folder / "diffusion_transformer_768p")
    vae = CausalVideoVAE.from_pretrained(folder / "causal_video_vae")
    for conv in (vae.encoder.conv_in.conv, vae.decoder.conv_in.conv):
        conv.weight.data *= 1e6
    vae.save_pretrained(folder / "causal_video_vae")
    text = folder / ("text_encoder_2" if name == "pyramid_flux" else "text_encoder_3")
    t5 = T5EncoderModel.from_pretrained(text)
    scale_channel(t5.encoder.block[0].layer[1].DenseReluDense.wo, 1e7)
    t5.save_pretrained(text)
    return folder


def loaded(folder: Path, dtype: torch.dtype) -> PyramidFlowPipeline:
    pipeline = PyramidFlowPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def made(pipeline: PyramidFlowPipeline, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline(PROMPT, generator=generator, **arguments).frames


class Extremes:
    """The largest values that come out of modules."""

    def __init__(self, *modules: nn.Module) -> None:
        self.value = 0.0
        for module in modules:
            module.register_forward_hook(self._look)

    def _look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.value = max(self.value, float(tensor.abs().max()))


def test_float16_makes_what_float32_makes(folder: Path) -> None:
    wide, half = loaded(folder, torch.float32), loaded(folder, torch.float16)
    assert half.transformer.dtype == torch.float16
    assert half.vae.dtype == torch.float32
    stream = Extremes(*wide.transformer.transformer_blocks)
    pictures = Extremes(wide.vae.decoder.conv_in)
    expected = made(wide, output_type="latent")
    latents = made(half, output_type="latent")
    assert stream.value > 2 * LARGEST
    assert latents.isfinite().all()
    assert relative_error(latents, expected) < 0.02

    frames, wanted = made(half, output_type="pt"), made(wide, output_type="pt")
    assert pictures.value > LARGEST
    assert frames.isfinite().all()
    assert frames.std() > 0.01
    assert relative_error(frames, wanted) < 0.02


def test_a_pipeline_that_is_cast(folder: Path) -> None:
    loaded_so, cast = loaded(folder, torch.float16), loaded(folder, torch.float32)
    assert cast.to("cpu", torch.float16) is cast
    assert cast.vae.dtype == torch.float32
    assert cast.text_encoder.dtype == cast.transformer.dtype == torch.float16
    torch.testing.assert_close(made(cast, output_type="pt"), made(loaded_so, output_type="pt"))


def test_text_in_float16(folder: Path) -> None:
    wide, half = loaded(folder, torch.float32), loaded(folder, torch.float16)
    expected, encoded = wide.encode_prompt(PROMPT), half.encode_prompt(PROMPT)
    t5 = wide.text_encoder_3 or wide.text_encoder_2
    extremes = Extremes(t5.encoder.block[0])
    wide.encode_prompt(PROMPT)
    assert extremes.value > LARGEST
    for name in ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds"):
        assert encoded[name].dtype == torch.float16
        assert relative_error(encoded[name], expected[name]) < 0.01


def test_images_are_encoded_in_float32(folder: Path) -> None:
    name = "pyramid_flux" if "flux" in folder.name else "pyramid_mmdit"
    model = PyramidDiTForVideoGeneration(folder, "fp16", name)
    model.set_progress_bar_config(disable=True)
    image = torch.rand(64, 64, 3).mul(255).byte().numpy()
    pipeline = loaded(folder, torch.float16)
    assert model.vae.dtype == pipeline.vae.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):  # as the reference's scripts have it
        frames = made(pipeline, image=image, num_frames=1, output_type="pt")
    assert frames.isfinite().all()
    assert frames[0, 0].std() > 0.01


def test_without_precautions_float16_overflows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = loaded(folder, torch.float16)
    monkeypatch.setattr("pyramid_dit.models.transformer.residual_dtype", lambda dtype: dtype)
    monkeypatch.setattr(ResidualLinear, "forward", nn.Linear.forward)
    with pytest.raises(FloatingPointError, match="not finite from its step 1"):
        made(half, output_type="latent")


def test_other_dtypes_know_no_residual_of_their_own() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        linear = ResidualLinear(8, 4).to(dtype)
        x = torch.randn(3, 8, dtype=dtype)
        assert torch.equal(linear(x), nn.Linear.forward(linear, x))
    half = ResidualLinear(8, 4).half()
    result = half(torch.full((1, 8), 60000, dtype=torch.float16))
    assert result.dtype == torch.float32
    exact = half.float()(torch.full((1, 8), 60000.0))
    torch.testing.assert_close(result, exact, rtol=2e-3, atol=16)


# ---- float64 ----------------------------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on any device but the CPU, as MPS does."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "cpu":
                assert tensor.dtype not in (torch.float64, torch.complex128), function
        return result


def meta_text(dit: PyramidTransformer) -> TextCondition:
    config = dit.config
    return TextCondition(
        torch.empty(1, 3, config.joint_attention_dim),
        torch.ones(1, 3, dtype=torch.long),
        torch.empty(1, config.pooled_projection_dim),
    )


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_no_float64_leaves_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # nothing of the lengths of prompts can be read where there are no values
    monkeypatch.setattr(
        "pyramid_dit.models.transformer.pack_text", lambda text, mask: (text, [0, 0])
    )
    guidance = GuidanceSchedule(first=7.0, later=5.0)
    steps = [2, 1, 1]
    units = plan_units(3, frame_per_unit=1, first_steps=steps, later_steps=steps, guidance=guidance)
    with torch.device("meta"), NoFloat64():
        dit = CLASSES[name](**DIT_CONFIGS[name])
        vae = CausalVideoVAE(**VAE_CONFIG)
        scheduler = PyramidFlowMatchEulerDiscreteScheduler()
        sampler = UnitSampler(
            dit,
            scheduler,
            texts=[GuidedText(meta_text(dit), meta_text(dit))],
            frame_per_unit=1,
            generator=torch.Generator("cpu"),
        )
        decoder = FrameDecoder(
            vae, ARCHITECTURES[name].released_statistics, device=torch.device("meta"), window=1
        )
        frames = [
            decoder.push(latents)
            for latents in sampler.run(lambda _: torch.empty(1, LATENT_CHANNELS, 1, 8, 8), units)
        ]
    assert [f.shape[1] for f in frames] == [1, 8, 8]
    assert frames[0].device.type == "meta"
