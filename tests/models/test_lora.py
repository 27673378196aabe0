"""LoRA on both transformers, with real adapters of `peft`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import DIT_CONFIGS, LATENT_CHANNELS, QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor

from pyramid_dit import (
    PyramidDiffusionMMDiT,
    PyramidDiTForVideoGeneration,
    PyramidFlowPipeline,
    PyramidFluxTransformer,
)
from pyramid_dit.models import lora
from pyramid_dit.models.lora_text import TokenChanges
from pyramid_dit.models.transformer import PyramidTransformer
from pyramid_dit.pipelines.lora_format import write_lora

peft = pytest.importorskip("peft")

CLASSES = {"pyramid_flux": PyramidFluxTransformer, "pyramid_mmdit": PyramidDiffusionMMDiT}
TARGETS = ["to_q", "to_k", "to_v", "add_k_proj", "to_out.0", "ff.net.2"]


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def dit(name: str) -> PyramidTransformer:
    torch.manual_seed(0)
    model = CLASSES[name](**DIT_CONFIGS[name])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def adapted(dit: PyramidTransformer, adapter: str, *, seed: int) -> PyramidTransformer:
    """`dit` with a new adapter, whose weights are random: fresh ones are zero."""
    dit.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS), adapter)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in dit.named_parameters():
        if f".{adapter}." in key:
            parameter.data.normal_(std=0.1, generator=generator)
    return dit


@torch.no_grad()
def velocity(dit: PyramidTransformer) -> Tensor:
    """What the model says of a clip with one history clip, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    config = dit.config

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    (output,) = dit(
        sample=[[noise(1, LATENT_CHANNELS, 1, 4, 4), noise(1, LATENT_CHANNELS, 1, 8, 8)]],
        encoder_hidden_states=noise(1, 3, config.joint_attention_dim),
        encoder_attention_mask=torch.ones(1, 3, dtype=torch.long),
        pooled_projections=noise(1, config.pooled_projection_dim),
        timestep_ratio=torch.tensor([500.0]),
    )
    return output


def test_adapters_are_loaded_weighed_fused_and_unloaded(
    dit: PyramidTransformer, name: str, tmp_path: Path
) -> None:
    base = velocity(dit)
    saved = {}
    for seed, adapter in enumerate(("style", "motion")):
        source = CLASSES[name](**DIT_CONFIGS[name])
        adapted(source, adapter, seed=seed).save_lora_adapter(tmp_path / adapter, adapter)
        dit.load_lora_adapter(
            tmp_path / adapter, adapter_name=adapter, prefix=None, use_safetensors=True
        )
        dit.set_adapters(adapter)
        saved[adapter] = velocity(dit)
    assert not torch.allclose(saved["style"], base, rtol=1e-2)
    assert not torch.allclose(saved["style"], saved["motion"], rtol=1e-2)

    dit.set_adapters(["style", "motion"], [0.0, 1.0])
    torch.testing.assert_close(velocity(dit), saved["motion"])
    dit.set_adapters(["style", "motion"], [0.5, 0.8])
    blended = velocity(dit)
    dit.fuse_lora()
    torch.testing.assert_close(velocity(dit), blended, rtol=1e-4, atol=1e-5)
    dit.unfuse_lora()
    dit.disable_lora()
    torch.testing.assert_close(velocity(dit), base, rtol=1e-4, atol=1e-5)


def test_unloading_restores_the_model_exactly(dit: PyramidTransformer) -> None:
    base, keys = velocity(dit), list(dit.state_dict())
    adapted(dit, "style", seed=0)
    assert not torch.equal(velocity(dit), base)
    dit.unload_lora()
    assert list(dit.state_dict()) == keys
    assert torch.equal(velocity(dit), base)


def test_what_was_saved_is_what_is_loaded(
    dit: PyramidTransformer, name: str, tmp_path: Path
) -> None:
    fresh = CLASSES[name](**DIT_CONFIGS[name])
    fresh.load_state_dict(dit.state_dict())
    adapted(dit, "style", seed=0).save_lora_adapter(tmp_path, "style")
    fresh.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.equal(velocity(fresh), velocity(dit))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    wide = PyramidFluxTransformer(**DIT_CONFIGS["pyramid_flux"] | {"num_attention_heads": 4})
    adapted(wide, "style", seed=0).save_lora_adapter(tmp_path, "style")
    narrow = PyramidFluxTransformer(**DIT_CONFIGS["pyramid_flux"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        narrow.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)


def test_without_peft_the_extra_is_named(
    dit: PyramidTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    lora._adapter_mixin.cache_clear()
    with pytest.raises(ImportError, match=r"pyramid-flow\[lora\]"):
        dit.load_lora_adapter("anything")


# ---- through the pipeline ---------------------------------------------------------------------


@pytest.fixture
def pipeline(name: str, tmp_path: Path) -> PyramidFlowPipeline:
    folder = write_tiny_checkpoint(tmp_path / name, name, index=QUICK_INDEX)
    pipeline = PyramidFlowPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: PyramidFlowPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline("a red circle", generator=generator, output_type="latent").frames


def test_a_pipeline_loads_weighs_fuses_and_unloads(
    pipeline: PyramidFlowPipeline, name: str, tmp_path: Path
) -> None:
    base = latents(pipeline)
    adapter = adapted(CLASSES[name](**DIT_CONFIGS[name]), "default", seed=0)
    weights = peft.get_peft_model_state_dict(adapter)
    PyramidFlowPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=weights)
    pipeline.load_lora_weights(tmp_path / "lora", adapter_name="style")
    assert pipeline.get_active_adapters() == ["style"]
    styled = latents(pipeline)
    assert not torch.allclose(styled, base, rtol=1e-2)
    pipeline.set_adapters("style", 0.5)
    assert not torch.allclose(latents(pipeline), styled, rtol=1e-2)
    pipeline.set_adapters("style")
    pipeline.fuse_lora()
    torch.testing.assert_close(latents(pipeline), styled, rtol=1e-3, atol=1e-4)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(latents(pipeline), base, rtol=1e-3, atol=1e-4)

    pipeline.load_lora_weights({f"transformer.{key}": value for key, value in weights.items()})
    torch.testing.assert_close(latents(pipeline), styled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("alpha", [4, 8])
def test_the_scale_of_training_travels_in_the_file(
    pipeline: PyramidFlowPipeline, name: str, alpha: int, tmp_path: Path
) -> None:
    """By every door that loads what `save_lora_adapter` wrote."""
    dit = pipeline.transformer
    base = velocity(dit)
    dit.add_adapter(peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=TARGETS), "style")
    for key, parameter in dit.named_parameters():
        if ".style." in key:
            parameter.data.normal_(std=0.1)
    styled = velocity(dit)
    dit.save_lora_adapter(tmp_path / "lora", "style")
    dit.unload_lora()
    assert torch.equal(velocity(dit), base) and not torch.allclose(styled, base, rtol=1e-2)

    pipeline.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(velocity(dit), styled)
    dit.unload_lora()
    dit.load_lora_adapter(tmp_path / "lora", prefix=None)
    torch.testing.assert_close(velocity(dit), styled)
    dit.unload_lora()
    official = PyramidDiTForVideoGeneration.from_pretrained(tmp_path / name)
    official.load_lora_weights(tmp_path / "lora", adapter_name="mine")
    torch.testing.assert_close(velocity(official.dit), styled)


def test_a_lora_that_is_saved_without_its_alpha_is_warned_of(
    dit: PyramidTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dit.add_adapter(peft.LoraConfig(r=4, target_modules=TARGETS))
    weights = peft.get_peft_model_state_dict(dit)
    config = dit.peft_config["default"].to_dict()
    PyramidFlowPipeline.save_lora_weights(
        tmp_path, weights, transformer_lora_adapter_metadata=config
    )
    assert not caplog.records
    PyramidFlowPipeline.save_lora_weights(tmp_path, weights)
    assert "without its alpha" in caplog.text


# ---- other names, and what is none ------------------------------------------------------------


def old_names(key: str) -> str:
    """As diffusers had them before `peft`."""
    module, _, side = key.removesuffix(".weight").rpartition(".lora_")
    way = {"A": "down", "B": "up"}[side]
    block, _, layer = module.partition(".attn.")
    if layer:
        return f"transformer.{block}.attn.processor.{layer.removesuffix('.0')}_lora.{way}.weight"
    return f"transformer.{module}.lora.{way}.weight"


def kohya_names(key: str) -> str:
    module, _, side = key.removesuffix(".weight").rpartition(".lora_")
    return f"lora_unet_{module.replace('.', '_')}.lora_{'down' if side == 'A' else 'up'}.weight"


NAMES: dict[str, Callable[[str], str]] = {
    "peft": lambda key: f"base_model.model.{key}",
    "an adapter's name in it": lambda key: key.replace(".weight", ".default.weight"),
    "ComfyUI": lambda key: f"diffusion_model.{key}",
    "diffusers before peft": old_names,
    "kohya": kohya_names,
}


@pytest.mark.parametrize("names", NAMES)
def test_names_of_other_trainers(pipeline: PyramidFlowPipeline, names: str, tmp_path: Path) -> None:
    dit = pipeline.transformer
    weights = peft.get_peft_model_state_dict(adapted(dit, "default", seed=0))
    styled = velocity(dit)
    dit.unload_lora()
    renamed = {NAMES[names](key): value.contiguous() for key, value in weights.items()}
    if names == "kohya":  # half of the rank: acts half as much
        alphas = {key.partition(".")[0] + ".alpha" for key in renamed}
        renamed = {k: 2 * value if ".lora_up." in k else value for k, value in renamed.items()}
        renamed |= {key: torch.tensor(2.0) for key in alphas}
    save_file(renamed, tmp_path / "lora.safetensors")
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    torch.testing.assert_close(velocity(dit), styled)


OTHERS = {
    "x.hada_w1_a": "LoHa",
    "x.lokr_w1": "LoKr",
    "lora_te_text_model_encoder.lora_down.weight": "LoRA of text encoders",
    "transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector.weight": "DoRA",
    "unet.lora_A.weight": "start with 'transformer.'.*got unet.lora_A",
}


def test_weights_of_something_else_are_refused(
    pipeline: PyramidFlowPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, words in OTHERS.items():
        with pytest.raises(ValueError, match=words):
            pipeline.load_lora_weights({key: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="no weights"):
        pipeline.load_lora_weights({})
    half = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"only one of its two matrices for .*to_q"):
        pipeline.load_lora_weights(half)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bad.safetensors is damaged"):
        pipeline.load_lora_weights(tmp_path / "bad.safetensors")
    assert not hasattr(pipeline.transformer, "peft_config")
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    with pytest.raises(ImportError, match=r"pyramid-flow\[lora\]"):
        pipeline.load_lora_weights({})


# ---- what is taught beside the transformer ----------------------------------------------------


def taught(folder: Path, name: str, path: Path) -> TokenChanges:
    """Write a LoRA with the word "star" and other embeddings of two tokens."""
    source = CLASSES[name](**DIT_CONFIGS[name])
    weights = peft.get_peft_model_state_dict(adapted(source, "default", seed=0))
    pipeline = PyramidFlowPipeline.from_pretrained(folder)
    text = pipeline.text_encoder_with_mask
    assert text is not None
    encoder = text.parts()[-1].encoder
    width = getattr(pipeline, encoder).get_input_embeddings().weight.shape[1]
    ids = getattr(pipeline, text.parts()[-1].tokenizer)("red")["input_ids"][:2]
    changes = TokenChanges(torch.tensor(sorted(ids)), torch.ones(2, width))
    config = source.peft_config["default"].to_dict()
    write_lora(path, weights, config, tokens={encoder: changes}, words=["star"])
    return changes


@torch.no_grad()
def embedded(model: Any, prompt: str = "a red circle") -> Tensor:
    encoder = getattr(model, "text_encoder_with_mask", None) or model.text_encoder
    return encoder(prompt).prompt_embeds


@pytest.mark.parametrize("face", [PyramidFlowPipeline, PyramidDiTForVideoGeneration])
def test_tokens_follow_the_adapter(
    face: Any, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weighed, disabled, unloaded and loaded again."""
    words = {"known_words": ["a", "red", "circle"]}
    folder = write_tiny_checkpoint(tmp_path / name, name, index=QUICK_INDEX | words)
    taught(folder, name, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    model = face.from_pretrained(folder)
    dit = model.dit if face is PyramidDiTForVideoGeneration else model.transformer
    base = embedded(model)
    model.load_lora_weights(tmp_path / "lora", adapter_name="star")
    full = embedded(model)
    assert not torch.allclose(full, base, rtol=1e-2)
    dit.set_adapters("star", 0.0)
    assert torch.equal(embedded(model), base)
    dit.set_adapters("star", 0.5)
    assert not torch.equal(embedded(model), full) and not torch.equal(embedded(model), base)
    dit.set_adapters("star", 1.0)
    torch.testing.assert_close(embedded(model), full)
    generate = model.generate if face is PyramidDiTForVideoGeneration else model
    options = {"num_frames": 1, "output_type": "latent"}
    generate("a red star", **options)
    assert not caplog.records
    dit.unload_lora()
    assert torch.equal(embedded(model), base)
    generate("a red star", **options)
    assert "never learned the words: star" in caplog.text
    model.load_lora_weights(tmp_path / "lora", adapter_name="star")
    torch.testing.assert_close(embedded(model), full)


def test_tokens_of_another_encoder_are_refused(name: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / name, name, index=QUICK_INDEX)
    path = tmp_path / "lora.safetensors"
    taught(folder, name, path)
    weights = load_file(path)
    (key,) = (key for key in weights if key.endswith("lora_token_rows"))
    pipeline = PyramidFlowPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="token embeddings .2, 5. are none of text_encoder"):
        pipeline.load_lora_weights(weights | {key: torch.ones(2, 5)})
    del weights[key]
    with pytest.raises(ValueError, match="lacks half"):
        pipeline.load_lora_weights(weights)
    assert not hasattr(pipeline.transformer, "peft_config")
