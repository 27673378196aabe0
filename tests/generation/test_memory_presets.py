"""Memory presets: what they take, which one is chosen, and that they change no frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import DIT_CONFIGS, QUICK_INDEX, write_tiny_checkpoint
from torch import Tensor, nn

from pyramid_dit import (
    PyramidDiTForVideoGeneration,
    PyramidFlowMatchEulerDiscreteScheduler,
    PyramidFlowPipeline,
    PyramidFluxTransformer,
)
from pyramid_dit.checkpoints.architectures import ARCHITECTURES
from pyramid_dit.generation.components import Components
from pyramid_dit.generation.memory_presets import (
    PRESETS,
    Needs,
    choose_preset,
    main,
    released_models,
    weights,
)

BUDGETS = {"12GB": 12e9, "8GB": 8e9, "6GB": 6e9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=QUICK_INDEX)


def latents(pipeline: PyramidFlowPipeline) -> Tensor:
    """Of a video, always of the same noise; decoded as well, which is not returned."""
    kept: list[Tensor] = []

    def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> None:
        kept[:] = [tensors["latents"]]

    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    (video,) = pipeline("a red circle", generator=generator, callback_on_step_end=keep).frames
    assert len(video) == 9
    return kept[0]


# ---- what they take ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    return {name: released_models(name) for name in ("pyramid_flux", "pyramid_mmdit")}


def test_weights_of_the_released_models(released: dict[str, Any]) -> None:
    # parameters as in the papers and model cards, in millions
    expected = {"pyramid_flux": (1972, 335, [123, 4762]), "pyramid_mmdit": (2028, 335, None)}
    for name, (dit, vae, encoders) in released.items():
        parameters, vae_parameters, text = expected[name]
        assert round(dit.num_parameters() / 1e6) == parameters
        assert round(vae.num_parameters() / 1e6) == vae_parameters
        if text is not None:
            assert [round(e.num_parameters() / 1e6) for e in encoders] == text
        assert weights(vae) == 2 * vae.num_parameters()


def test_presets_keep_their_names_promise(released: dict[str, Any]) -> None:
    for models in released.values():
        for height, width in ((384, 640), (768, 1280), (1280, 768)):
            needs = Needs.of(*models, height=height, width=width, num_frames=241)
            peaks = {name: needs.peak(preset) for name, preset in PRESETS.items()}
            assert list(peaks.values()) == sorted(peaks.values(), reverse=True)
            for name, budget in BUDGETS.items():
                assert peaks[name] <= 0.9 * budget
            assert needs.peak(PRESETS["12GB"], whole_pictures=True) >= peaks["12GB"]
            assert needs.moved(PRESETS["max-speed"]) == 0
            assert needs.moved(PRESETS["12GB"]) > needs.moved(PRESETS["6GB"]) > 20e9


def test_weights_in_eight_bits_are_foreseen() -> None:
    dit = PyramidFluxTransformer(**DIT_CONFIGS["pyramid_flux"]).to(torch.bfloat16)
    needs = Needs.of(dit, None, [], height=64, width=64, num_frames=9)
    assert needs.transformer == weights(dit)
    dit.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert needs.transformer_float8 == weights(dit) < needs.transformer


def test_longer_and_larger_videos_need_more(released: dict[str, Any]) -> None:
    def needs(height: int, num_frames: int) -> Needs:
        models = released["pyramid_flux"]
        return Needs.of(*models, height=height, width=640, num_frames=num_frames)

    small, long, tall = needs(384, 121), needs(384, 241), needs(768, 121)
    assert small.step < long.step < tall.step
    assert small.decode == long.decode < tall.decode
    assert small.decode_tiles == tall.decode_tiles
    assert 2 * small.frames > long.frames > small.frames


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--num-frames", "9"])
    said = capsys.readouterr().out
    assert said.startswith("Computed, not measured")
    assert said.count("\n| pyramid_") == 4 * len(PRESETS)
    with pytest.raises(SystemExit):
        main(["--num-frames", "10"])
    assert "8n + 1" in capsys.readouterr().err


# ---- which one is chosen ----------------------------------------------------------------------


def flux(released: dict[str, Any]) -> Components:
    dit, vae, encoders = released["pyramid_flux"]
    statistics = ARCHITECTURES["pyramid_flux"].released_statistics
    scheduler = PyramidFlowMatchEulerDiscreteScheduler()
    text = nn.ModuleList(encoders)
    return Components(dit, scheduler, statistics, vae=vae, text_encoder=text)


def test_the_fastest_that_fits_is_chosen(
    released: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = flux(released)
    for free, name in ((24e9, "max-speed"), (11e9, "12GB"), (7e9, "8GB"), (5e9, "6GB")):
        monkeypatch.setattr(
            "pyramid_dit.generation.memory_presets.free_memory", lambda _, f=free: f
        )
        assert choose_preset(model, torch.device("cuda")) == name
    assert not caplog.records
    monkeypatch.setattr("pyramid_dit.generation.memory_presets.free_memory", lambda _: 2e9)
    assert choose_preset(model, torch.device("xpu")) == "6GB"
    assert "2.0 GB are free on xpu" in caplog.text
    assert choose_preset(model, torch.device("cpu")) == "max-speed"


def test_a_size_is_kept_to_where_more_is_free(
    released: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = flux(released)
    monkeypatch.setattr("pyramid_dit.generation.memory_presets.free_memory", lambda _: 80e9)
    for size, name in ((24e9, "max-speed"), (16e9, "12GB"), (10e9, "8GB"), (5e9, "6GB")):
        assert choose_preset(model, torch.device("cuda"), most=size) == name


def test_an_unknown_preset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pyramid_dit.checkpoints.hub.CheckpointFolder.open", lambda *_: pytest.fail("opened")
    )
    for kind in (PyramidFlowPipeline, PyramidDiTForVideoGeneration):
        for name in ("low", "16", "0GB", "-1GB", "16gb", 16):
            said = f"auto, max-speed, 12GB, 8GB, 6GB, or a size such as 16GB, got {name!r}"
            with pytest.raises(ValueError, match=said):
                kind.from_pretrained(folder, memory=name)


# ---- at work ----------------------------------------------------------------------------------


def test_presets_change_no_frame(folder: Path) -> None:
    pipeline = PyramidFlowPipeline.from_pretrained(folder)
    expected = latents(pipeline)
    assert not pipeline.vae.use_tiling
    for name in ("8GB", "12GB", "max-speed", "auto"):
        pipeline.enable_memory_preset(name, "cpu")
        by_layer = next(pipeline.text_encoder_2.parameters()).is_meta
        assert by_layer == (name == "8GB")
        assert hasattr(pipeline.transformer, "_hf_hook") == (name in BUDGETS)
        assert pipeline.batched_guidance is (False if name == "8GB" else None)
        assert pipeline.vae.use_tiling
        torch.testing.assert_close(latents(pipeline), expected)
    pipeline.enable_memory_preset("6GB", "cpu")
    linear = pipeline.transformer.transformer_blocks[0].ff.net[2]
    assert linear.weight.dtype == torch.float8_e4m3fn
    rough = latents(pipeline)
    assert 0 < (rough - expected).norm() < 0.3 * expected.norm()


def test_one_model_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # "cpu:0" is another device than "cpu" to all that compares devices
    pipeline = PyramidFlowPipeline.from_pretrained(folder, memory="12GB", device_map="cpu:0")
    moves: list[tuple[str, str]] = []
    original = nn.Module.to

    def record(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if args and isinstance(args[0], str | torch.device):
            moves.append((type(self).__name__, str(args[0])))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", record)
    latents(pipeline)
    there: set[str] = set()
    order = []
    for name, device in moves:
        if device == "cpu:0" and name not in there:
            there.add(name)
            order.append(name)
        elif device == "cpu":
            there.discard(name)
        assert len(there) <= 1
    assert not there
    text = ["CLIPTextModel", "T5EncoderModel"]
    assert order == [*text, *text, "PyramidFluxTransformer", "CausalVideoVAE"]


def test_the_other_class_takes_presets_too(folder: Path) -> None:
    plain = PyramidDiTForVideoGeneration.from_pretrained(folder)
    preset = PyramidDiTForVideoGeneration.from_pretrained(folder, memory="8GB", device="cpu")
    assert preset.batched_guidance is False
    made = []
    for model in (plain, preset):
        model.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made.append(model.generate("a red circle", generator=generator, output_type="latent"))
    torch.testing.assert_close(*made)


def test_adapters_are_loaded_under_a_preset(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    pipeline = PyramidFlowPipeline.from_pretrained(folder)
    base = latents(pipeline)
    pipeline.enable_memory_preset("8GB", "cpu")
    fresh = PyramidFluxTransformer(**DIT_CONFIGS["pyramid_flux"])
    fresh.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    state = peft.get_peft_model_state_dict(fresh)
    torch.manual_seed(0)
    adapter = {f"transformer.{k}": torch.randn_like(v) for k, v in state.items()}
    pipeline.load_lora_weights(adapter)
    assert next(pipeline.text_encoder_2.parameters()).is_meta
    assert hasattr(pipeline.transformer, "_hf_hook")
    assert not torch.allclose(latents(pipeline), base, rtol=1e-2)

    made = []
    for memory in (None, "8GB"):
        model = PyramidDiTForVideoGeneration.from_pretrained(folder, memory=memory, device="cpu")
        model.set_progress_bar_config(disable=True)
        model.load_lora_weights(adapter)
        assert next(model.text_encoder.text_encoder_2.parameters()).is_meta == (memory == "8GB")
        generator = torch.Generator().manual_seed(0)
        made.append(model.generate("a red circle", generator=generator, output_type="latent"))
    torch.testing.assert_close(*made)
