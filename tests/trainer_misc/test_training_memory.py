"""`python -m trainer_misc.memory`: what it computes is what the trainer's own batches keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import PROJECT_ROOT
from tiny_checkpoint import write_tiny_checkpoint
from torch import Tensor
from training_files import VARIANT, write_latents

from trainer_misc import memory
from trainer_misc.dit_options import GROUPS
from trainer_misc.memory import TrainingMemory
from trainer_misc.options import parse
from trainer_misc.train_dit import Trainer

pytest.importorskip("peft")

DEEPER = {
    "pyramid_flux": {"num_layers": 2, "num_single_layers": 5, "num_attention_heads": 3},
    "pyramid_mmdit": {"num_layers": 5, "num_attention_heads": 4, "caption_projection_dim": 64},
}
TRAININGS = [
    ("pyramid_flux", "fp32", "--lora_rank 2"),
    ("pyramid_flux", "bf16", "--lora_rank 2 --train_text_encoder"),
    pytest.param("pyramid_flux", "bf16", "--ema_update", marks=pytest.mark.slow),
    ("pyramid_flux", "fp32", "--gradient_checkpointing --gradient_checkpointing_ratio 0.5"),
    pytest.param("pyramid_mmdit", "bf16", "--lora_rank 2", marks=pytest.mark.slow),
    ("pyramid_mmdit", "fp32", "--gradient_checkpointing"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    write_latents(folder / "latents", frames=4, size=16)
    for name, config in DEEPER.items():
        write_tiny_checkpoint(folder / name, name, variant=VARIANT, dit_config=config)
    return folder


def options_of(arguments: str) -> Any:
    return parse(None, GROUPS, arguments.split())


@pytest.mark.parametrize(("model", "dtype", "more"), TRAININGS)
def test_what_a_batch_keeps_is_what_is_computed(
    model: str, dtype: str, more: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(
        f"--model_name {model} --model_path {files / model} --model_dtype {dtype} {more} "
        f"--anno_file {files}/latents/annotations.jsonl --output_dir {tmp_path} "
        f"--use_temporal_pyramid --max_frames 4 --batch_size 4 --resolution 128x128 --device cpu "
        f"--load_text_encoder --num_workers 0 --report_to none"
    )
    trainer = Trainer(options)
    texts = trainer.model.text_encoder(trainer.batches[0]["text"])
    length = int(texts.prompt_attention_mask.sum(dim=1).max())
    monkeypatch.setattr(memory, "T5_LENGTH", length)  # the prompts are short here
    computed = TrainingMemory.of(options)
    weights = [
        tensor
        for module in (trainer.model.dit, trainer.model.text_encoder)
        for tensor in (*module.parameters(), *module.buffers())
    ]
    trained = [p for p in weights if p.requires_grad]
    sizes = computed.always
    assert sizes["trained weights"] == sum(p.numel() * p.element_size() for p in trained)
    frozen = sum(size for name, size in sizes.items() if name.startswith("frozen"))
    assert frozen == pytest.approx(bytes_of(weights) - bytes_of(trained), rel=0.02)

    most = 0
    for number in range(4):  # every length of the clips
        trainer.model.accumulate_steps = number
        seen = {tensor.untyped_storage()._cdata for tensor in weights}
        kept: list[Tensor] = []

        def keep(tensor: Tensor, seen: set[int] = seen, kept: list[Tensor] = kept) -> Tensor:
            if tensor.untyped_storage()._cdata not in seen:
                seen.add(tensor.untyped_storage()._cdata)
                kept.append(tensor)
            return tensor

        batch = trainer.batches[0] | {"number": number}
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, trainer.loop.accelerator.autocast():
            trainer.loss((number, batch))
        most = max(most, sum(tensor.untyped_storage().nbytes() for tensor in kept))
    copies = sizes["weights in the dtype that is computed in"]
    with_it = options.gradient_checkpointing
    assert computed.checkpointing[with_it] + copies == pytest.approx(most, rel=0.2)


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.slow
def test_more_takes_more() -> None:
    toy = (
        f"--model_path {PROJECT_ROOT}/pyramid_dit/toy --model_variant diffusion_transformer_128p "
        "--resolution 64x64 --use_temporal_pyramid --max_frames 2"
    )

    def peak(more: str) -> int:
        return TrainingMemory.of(options_of(f"{toy} {more}")).peak

    rank = peak("--lora_rank 4")
    assert rank < peak("--lora_rank 64")
    assert rank < peak("--lora_rank 4 --ema_update")
    assert rank < peak("--lora_rank 4 --load_text_encoder") < peak("--lora_rank 4 --load_vae")
    assert peak("--lora_rank 4 --ema_update --load_model_ema_to_cpu") == rank
    assert rank < peak("--lora_rank 4 --resolution 128x128")
    assert rank < peak("--opt muon") < peak("")


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    folder = PROJECT_ROOT / "pyramid_dit/toy"
    given = ["--model_path", str(folder), "--model_variant", "diffusion_transformer_128p"]
    memory.main([*given, "--resolution", "64x64", "--max_frames", "1", "--lora_rank", "2"])
    shown = capsys.readouterr().out
    assert "| **most at any time** |" in shown and "4 samples of 1 frames of 64x64" in shown
    with pytest.raises(SystemExit, match="holds a pyramid_flux, not a pyramid_mmdit"):
        memory.main([*given, "--model_name", "pyramid_mmdit"])
    with pytest.raises(SystemExit, match="--lora_alpha is for a LoRA"):
        memory.main([*given, "--lora_alpha", "2"])
