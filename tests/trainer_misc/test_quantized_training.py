"""`train_dit --quantize_base` and `--opt adamw8bit`: less memory, the same training."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import write_tiny_checkpoint
from training_files import VARIANT, write_latents

from pyramid_dit import PyramidDiTForVideoGeneration
from trainer_misc import train_dit
from trainer_misc.dit_options import GROUPS
from trainer_misc.memory import TrainingMemory
from trainer_misc.options import parse
from trainer_misc.quantized import state_bytes

pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    write_latents(folder / "latents")
    write_tiny_checkpoint(folder / "model", variant=VARIANT)
    return folder


def options_of(files: Path, output: Path, *more: str) -> Namespace:
    given = [
        *("--model_name", "pyramid_flux", "--model_variant", VARIANT, "--use_temporal_pyramid"),
        *("--model_path", str(files / "model"), "--output_dir", str(output), "--lora_rank", "64"),
        *("--anno_file", str(files / "latents" / "annotations.jsonl"), "--batch_size", "4"),
        *("--max_frames", "2", "--num_workers", "0", "--report_to", "none", "--print_freq", "1"),
        *("--lr", "1e-3", "--warmup_steps", "1", "--device", "cpu", "--steps", "3", *more),
    ]
    return parse(None, GROUPS, given)


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").open()]


def test_it_trains_as_the_whole_base_does(files: Path, tmp_path: Path) -> None:
    """Resumed as well; and what it writes is a LoRA like any other."""
    more = ["--opt", "adamw8bit", "--quantize_base", "nf4"]
    trainer = train_dit.Trainer(options_of(files, tmp_path / "small", *more))
    feed_forward = trainer.model.dit.transformer_blocks[0].ff.net[2]
    assert type(feed_forward.base_layer) is bitsandbytes.nn.Linear4bit
    trainer.run()
    train_dit.Trainer(options_of(files, tmp_path / "whole")).run()
    small, whole = losses(tmp_path / "small"), losses(tmp_path / "whole")
    assert small == pytest.approx(whole, rel=0.02) and small != whole

    train_dit.Trainer(options_of(files, tmp_path / "broken", *more, "--steps", "1")).run()
    train_dit.Trainer(options_of(files, tmp_path / "broken", *more)).run()
    file = "pytorch_lora_weights.safetensors"
    one, other = (load_file(tmp_path / name / file) for name in ("small", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    PyramidDiTForVideoGeneration.from_pretrained(files / "model").load_lora_weights(
        tmp_path / "small"
    )


def test_memory_is_what_is_computed(files: Path, tmp_path: Path) -> None:
    more = ["--quantize_base", "nf4", "--load_text_encoder", "--model_dtype", "bf16"]
    options = options_of(files, tmp_path, *more, "--opt", "adamw8bit")
    model = train_dit.Trainer(options).model
    taken: dict[int, int] = {}
    for module in (model.dit, model.text_encoder):
        assert module is not None
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        for name, value in module.state_dict().items():
            # of 4 bits, not what is constant: the values that each code stands for
            if isinstance(value, torch.Tensor) and name not in trained and "quant" not in name:
                taken[value.data_ptr()] = value.numel() * value.element_size()
    computed = TrainingMemory.of(options).always
    frozen = sum(size for name, size in computed.items() if name.startswith("frozen"))
    assert frozen == pytest.approx(sum(taken.values()), rel=0.02)
    whole = options_of(files, tmp_path, *more[2:], "--opt", "adamw")
    plain = TrainingMemory.of(whole).always
    name = "frozen weights of the transformer"
    assert computed[name] < plain[name]
    assert computed["state of the optimizer"] < plain["state of the optimizer"]


def test_the_state_of_the_optimizer_is_what_is_computed() -> None:
    for shape in ((64, 64), (300, 70), (63, 65)):
        weight = torch.nn.Parameter(torch.ones(shape))
        optimizer = bitsandbytes.optim.AdamW8bit([weight])
        weight.grad = torch.ones(shape)
        optimizer.step()
        tensors = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor)]
        assert state_bytes(weight) == sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora_rank", "0", "--quantize_base", "nf4"], "--quantize_base is for a LoRA"),
        (["--model_dtype", "fp16", "--quantize_base", "nf4"], "fp16 overflows: bf16 or fp32"),
        (["--use_fsdp", "--quantize_base", "nf4"], "--quantize_base does not go with --use_fsdp"),
        (["--use_fsdp", "--opt", "adamw8bit"], "--opt adamw8bit does not go with --use_fsdp"),
    ],
)
def test_what_does_not_go_together(
    more: list[str], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_dit.check(options_of(files, tmp_path, *more))
