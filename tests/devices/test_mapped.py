"""Weights that lie in files: what is forgotten, what is not, and what a process takes then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import DIT_CONFIGS, QUICK_INDEX, write_t5, write_tiny_checkpoint
from torch import nn

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.devices.mapped import forget_pages, map_weights
from pyramid_dit.devices.memory import free_memory, limit_memory, resident_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are Linux's")

LAYER, LAYERS = 256 * 1024, 4
"""Bytes of a layer's weight, and how many layers there are."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), index=QUICK_INDEX)


@pytest.fixture(autouse=True)
def _no_limit() -> Any:
    yield
    limit_memory(None)


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(LAYERS)))


def from_file(path: Path) -> nn.Sequential:
    """`stack` with weights that are mapped from a file."""
    save_file(stack().state_dict(), path)
    layers = nn.Sequential(*(nn.Linear(256, 256, bias=False, device="meta") for _ in range(LAYERS)))
    layers.load_state_dict(load_file(path), assign=True)
    return layers


def total(module: nn.Module) -> float:
    """Reads all weights."""
    return sum(parameter.detach().double().sum().item() for parameter in module.parameters())


# ---- pages ------------------------------------------------------------------------------------


def test_what_was_read_is_forgotten_and_comes_back(tmp_path: Path) -> None:
    layers = from_file(tmp_path / "weights.safetensors")
    expected = total(layers)
    assert 0.9 * LAYERS * LAYER < forget_pages(layers) <= LAYERS * LAYER
    assert forget_pages(layers) == 0
    assert total(layers) == expected == total(stack())


def test_what_was_written_to_is_kept(tmp_path: Path) -> None:
    layers = from_file(tmp_path / "weights.safetensors")
    weight = layers[1].weight
    weight.data[100] += 1  # as a LoRA is fused; autograd does not hear of it
    expected = total(layers)
    forget_pages(layers)
    assert total(layers) == expected
    torch.testing.assert_close(weight[100], stack()[1].weight[100] + 1)
    assert forget_pages(layers) > (LAYERS - 1) * LAYER


def test_weights_of_no_file_get_one() -> None:
    layers = stack()
    layers[0].weight = layers[2].weight  # tied
    layers[1].to(torch.bfloat16)
    expected = total(layers)
    assert forget_pages(layers) == 0
    map_weights(layers)
    assert layers[0].weight is layers[2].weight
    assert layers[1].weight.dtype == torch.bfloat16
    assert total(layers) == expected
    assert forget_pages(layers) > 2 * LAYER
    assert total(layers) == expected
    layers[3].weight.data.zero_()  # they can still be written to
    forget_pages(layers)
    assert not layers[3].weight.any()


def test_a_full_disk_leaves_weights_where_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layers = stack()
    monkeypatch.setattr("tempfile.tempdir", "/dev/full")
    map_weights(layers)
    assert "weights stay in memory" in caplog.text
    assert forget_pages(layers) == 0
    assert total(layers) == total(stack())


def test_a_limit_of_the_process() -> None:
    device = torch.device("cpu")
    used = resident_memory()
    assert 50e6 < used <= resident_memory(peak=True)
    limit_memory(used + 100e6)
    assert 0 < free_memory(device) < 150e6
    limit_memory(1e6)
    assert free_memory(device) == 0


# ---- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])  # the weights are stored in the first
def test_one_model_at_a_time_is_in_memory(dtype: str, folder: Path) -> None:
    plain = PyramidDiTForVideoGeneration.from_pretrained(folder, model_dtype=dtype)
    small = PyramidDiTForVideoGeneration.from_pretrained(
        folder, model_dtype=dtype, memory="0.001GB", device="cpu"
    )
    others = {"text": small.text_encoder, "vae": small.vae}
    seen: list[dict[str, int]] = []

    def look(*_: Any) -> None:
        seen.append({name: forget_pages(model) for name, model in others.items()})

    made = []
    for model in (plain, small):
        model.set_progress_bar_config(disable=True)
        made.append(model.generate("a red circle", seed=0, output_type="pt", callback=look))
    torch.testing.assert_close(*made, rtol=0, atol=0 if dtype == "fp32" else 0.02)
    assert seen[-1] == {"text": 0, "vae": 0}
    parts = (small.text_encoder, small.dit, small.vae)
    assert [forget_pages(part) for part in parts] == [0, 0, 0]
    total(small.dit)
    assert forget_pages(small.dit) > 0


def test_what_is_chosen_on_a_cpu(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = PyramidFlowPipeline.from_pretrained(folder)
    for name, chosen in (("auto", "max-speed"), ("64GB", "64GB"), ("max-speed", "max-speed")):
        pipeline.enable_memory_preset(name, "cpu")
        assert pipeline._memory_preset == (chosen, torch.device("cpu"))
        total(pipeline.transformer)
        pipeline("a red circle", output_type="latent")
        assert forget_pages(pipeline.transformer) > 0  # it is still there
    assert not caplog.records
    pipeline.enable_memory_preset("0.001GB", "cpu")
    assert "one model at a time" in caplog.text
    pipeline("a red circle", output_type="latent")
    assert forget_pages(pipeline.transformer) == 0


SCRIPT = """
import json, sys
from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.devices.memory import resident_memory

model = PyramidDiTForVideoGeneration.from_pretrained(
    sys.argv[1], model_dtype="fp32", memory=sys.argv[2], device="cpu"
)
model.set_progress_bar_config(disable=True)
model.generate("a red circle", seed=0)
print(json.dumps(resident_memory(peak=True)))
"""


def test_the_peak_of_a_process(tmp_path: Path) -> None:
    dit = DIT_CONFIGS["pyramid_flux"] | {"num_single_layers": 24, "num_attention_heads": 16}
    folder = write_tiny_checkpoint(tmp_path, index=QUICK_INDEX, dit_config=dit)
    write_t5(folder, "_2", feed_forward=2**13, layers=64)
    sizes = [
        sum(file.stat().st_size for file in (folder / name).glob("*.safetensors"))
        for name in ("diffusion_transformer_768p", "text_encoder_2")
    ]
    assert min(sizes) > 60e6
    peaks = {}
    for memory in ("max-speed", "0.001GB"):
        command = [sys.executable, "-c", SCRIPT, str(folder), memory]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[memory] = json.loads(done.stdout.splitlines()[-1])
    assert peaks["max-speed"] - peaks["0.001GB"] > 0.6 * min(sizes)
