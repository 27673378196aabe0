"""Folders that want code to be run, or all memory: both faces refuse them in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import QUICK_INDEX, write_tiny_checkpoint
from torch import nn

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.checkpoints.weights import load_weights

TRANSFORMER, VAE = "diffusion_transformer_768p", "causal_video_vae"
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"

FACES: dict[str, Callable[[Path], Any]] = {
    "PyramidFlowPipeline": PyramidFlowPipeline.from_pretrained,
    "PyramidDiTForVideoGeneration": PyramidDiTForVideoGeneration.from_pretrained,
}


class MakesAFile:
    """Unpickling it with everything allowed makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "model", index=QUICK_INDEX)


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(face: str, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        FACES[face](folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    assert "weights_only" not in message and "trust_remote_code" not in message
    return message


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", [TRANSFORMER, VAE, "text_encoder", "text_encoder_2"])
def test_pickled_code(face: str, name: str, folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    stem, plain = (
        (DIFFUSERS, DIFFUSERS)
        if (folder / name / f"{DIFFUSERS}.safetensors").exists()
        else (TRANSFORMERS, "pytorch_model")
    )
    (folder / name / f"{stem}.safetensors").unlink()
    torch.save({"weight": MakesAFile(made)}, folder / name / f"{plain}.bin")
    assert "more than tensors" in refused(face, folder)
    assert not made.exists()


@pytest.mark.parametrize("name", ["lora.bin", "transformer.pt"])
def test_pickled_code_in_a_file(name: str, folder: Path, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / name
    torch.save({"weight": MakesAFile(made)}, path)
    with pytest.raises(ValueError, match="more than tensors") as caught:
        load_weights(nn.Linear(1, 1), path, part="dit")
    assert "weights_only" not in str(caught.value)
    assert not made.exists()


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("tokenizer_class", ["Unknown", "CLIPTokenizer"])
def test_code_of_a_tokenizer(face: str, tokenizer_class: str, folder: Path, tmp_path: Path) -> None:
    made, tokenizer = tmp_path / "made", folder / "tokenizer"
    entry = {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}
    edit(tokenizer / "tokenizer_config.json", auto_map=entry, tokenizer_class=tokenizer_class)
    (tokenizer / "code.py").write_text(f"open({str(made)!r}, 'w')\nclass Tokenizer: pass\n")
    if tokenizer_class == "Unknown":
        assert "code of its own" in refused(face, folder)
    else:  # transformers knows the class and needs no other
        FACES[face](folder)
    assert not made.exists()


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (TRANSFORMER, "num_layers", 10**6),
        (TRANSFORMER, "num_attention_heads", 4000),
        (TRANSFORMER, "joint_attention_dim", 10**6),
        (TRANSFORMER, "num_single_layers", 0),
        (TRANSFORMER, "attention_head_dim", -8),
        (TRANSFORMER, "in_channels", "many"),
        (VAE, "decoder_block_out_channels", [10**5] * 4),
        (VAE, "encoder_layers_per_block", [10**7] * 4),
        ("text_encoder", "hidden_size", 10**6),
        ("text_encoder", "num_hidden_layers", 10**7),
        ("text_encoder_2", "vocab_size", 10**9),
        ("text_encoder_2", "num_layers", 10**7),
        ("text_encoder_2", "d_model", 48),
    ],
)
def test_sizes_that_the_weights_do_not_have(
    face: str, name: str, key: str, value: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder / name / "config.json"
    before = json.loads(config.read_text())
    assert key in before
    edit(config, **{key: value})
    if value == 0:  # weights that are left over
        assert "unexpected" in refused(face, folder)
        return
    monkeypatch.setattr(
        "pyramid_dit.checkpoints.weights.load_model", lambda *_, **__: pytest.fail("loaded")
    )
    assert name in refused(face, folder)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_text_encoder_without_some_of_its_weights(face: str, ending: str, folder: Path) -> None:
    """They would be random ones, which nobody sees."""
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder_2" / f"{TRANSFORMERS}.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layer_norm.weight"))
    other = {f"other.{name}": weights.pop(name)}
    path.unlink()
    if ending == "bin":
        torch.save(weights | other, path.with_name("pytorch_model.bin"))
    else:
        save_file(weights | other, path, metadata={"format": "pt"})
    assert "they lack" in refused(face, folder)


def test_pickled_weights_are_read(folder: Path) -> None:
    from safetensors.torch import load_file

    for name in (TRANSFORMER, VAE, "text_encoder", "text_encoder_2"):
        (path,) = (folder / name).glob("*.safetensors")
        stem = "pytorch_model" if path.stem == TRANSFORMERS else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
    expected = PyramidDiTForVideoGeneration.from_pretrained(folder)
    for path in folder.glob("*/*.safetensors"):
        path.unlink()
    found = PyramidDiTForVideoGeneration.from_pretrained(folder)
    for part in ("dit", "vae", "text_encoder"):
        own, same = (getattr(model, part).state_dict() for model in (found, expected))
        assert own.keys() == same.keys()
        assert all(torch.equal(own[key], same[key]) for key in own)
