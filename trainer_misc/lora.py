"""LoRA training: adapters of `peft` in a frozen transformer, and what travels with them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checkpoints.weights import resolve_dtype
from pyramid_dit.files import replacing
from pyramid_dit.models.lora import require_peft
from pyramid_dit.models.lora_text import TrainedTokens, changed_tokens
from pyramid_dit.pipelines.lora_format import FILE_NAME, write_lora

from .quantized import quantize_frozen, require_bitsandbytes

ADAPTER = "default"


def check_lora(options: Namespace) -> None:
    """Refuse settings that do not go with a LoRA, or that only a LoRA has (ValueError)."""
    if not options.lora_rank:
        for name in ("lora_alpha", "lora_targets", "quantize_base"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} is for a LoRA: set --lora_rank as well")
        return
    require_peft()
    if options.half_weights:
        raise ValueError("--half_weights does not go with --lora_rank: adapters are always float32")
    if options.initial_share:
        raise ValueError("--initial_share does not go with --lora_rank: give a LoRA a lower scale")
    if options.opt == "muon":
        raise ValueError("--opt muon does not go with --lora_rank: use adamw")
    if options.quantize_base:
        require_bitsandbytes()
        if options.model_dtype == "fp16":
            raise ValueError("--quantize_base with fp16 overflows: bf16 or fp32")
        if options.use_fsdp:
            raise ValueError("--quantize_base does not go with --use_fsdp, which divides weights")


def add_adapters(model: PyramidDiTForVideoGeneration, options: Namespace) -> dict[str, nn.Module]:
    """Freeze the model and put adapters in it; with `train_text_encoder`, changes of its tokens.

    With `quantize_base`, what is frozen is quantized.

    Returns:
        What is trained, by name.

    Raises:
        ValueError: `lora_targets` names no layer of the transformer.
    """
    modules: dict[str, nn.Module] = {"dit": adapt_transformer(model.dit, options)}
    if options.train_text_encoder:
        encoder = model.text_encoder.requires_grad_(False)
        for part in encoder.parts():
            TrainedTokens(encoder.get_submodule(part.encoder))
        modules["text_encoder"] = encoder
    if options.quantize_base:
        for module in (model.dit, model.text_encoder):
            if module is not None:
                quantize_frozen(module, resolve_dtype(options.model_dtype))
    return modules


def adapt_transformer(dit: Any, options: Namespace) -> Any:
    """Freeze a transformer and put adapters in it, which are float32; ValueError as above."""
    from peft import LoraConfig

    dit.requires_grad_(False)
    targets = lora_targets(dit, options.lora_targets)
    alpha = options.lora_rank if options.lora_alpha is None else options.lora_alpha
    config = LoraConfig(r=options.lora_rank, lora_alpha=alpha, target_modules=targets)
    with torch.random.fork_rng():  # the same adapters in all processes
        torch.manual_seed(options.seed)
        dit.add_adapter(config, ADAPTER)
    for parameter in dit.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return dit


def lora_targets(dit: nn.Module, ends: Sequence[str] | None = None) -> list[str]:
    """Names of the linear layers that get an adapter.

    Args:
        dit: The transformer.
        ends: Ends of their names, such as `to_q`; by default all of attention and feed-forward in
            the blocks.

    Raises:
        ValueError: One of `ends` is the end of no linear layer's name.
    """
    layers = [name for name, module in dit.named_modules() if isinstance(module, nn.Linear)]
    if ends is None:
        return [name for name in layers if "blocks." in name and "norm" not in name]
    for end in ends:
        if not any(_ends_with(name, end) for name in layers):
            known = ", ".join(sorted({_without_number(name) for name in layers}))
            raise ValueError(f"no linear layer is called {end}; there are {known}")
    return [name for name in layers if any(_ends_with(name, end) for end in ends)]


def _ends_with(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _without_number(name: str) -> str:
    """A layer's name from after the number of its block on."""
    parts = name.split(".")
    return ".".join(parts[2:] if len(parts) > 2 and parts[1].isdigit() else parts)


def write_adapters(
    model: PyramidDiTForVideoGeneration,
    weights: Mapping[str, Mapping[str, Tensor]],
    options: Namespace,
    words: Sequence[str],
    card: str,
) -> None:
    """Write the LoRA and its model card into the output folder.

    Args:
        model: Whose.
        weights: Of what is trained, whole, by the names that `add_adapters` gave.
        options: Of the run.
        words: What was taught.
        card: Text of the card.
    """
    from peft import get_peft_model_state_dict

    components = model.video_generator.components
    dit: Any = components.dit
    adapters = get_peft_model_state_dict(dit, dict(weights["dit"]), ADAPTER)
    end = ".trained_tokens.change.weight"
    tokens = {
        name.partition(".")[0]: changed_tokens(value)
        for name, value in weights.get("text_encoder", {}).items()
        if name.endswith(end)
    }
    output = options.output_dir
    config = dit.peft_config[ADAPTER].to_dict()
    write_lora(output / FILE_NAME, adapters, config, tokens=tokens, words=words)
    with replacing(output / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
