"""What a distillation gives: a checkpoint with a fast variant beside the one it learned from."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checkpoints.folder import (
    FAST_SUFFIX,
    VAE_FOLDER,
    VARIANTS,
    CheckpointFolder,
)
from pyramid_dit.checkpoints.weights import resolve_dtype
from pyramid_dit.files import write_folder
from pyramid_dit.pipelines.lora_format import FILE_NAME

from .dit_results import change_index, index_of, link_folder
from .lora import write_adapters

STEPPING = {"solver": "euler", "timestep_spacing": "trailing"}
"""How a student steps."""

CARD = """---
pipeline_tag: text-to-video
library_name: diffusers
---
# {name}

`{fast}` was distilled from `{variant}` of `{source}` by `python -m trainer_misc.distill`: each
stage of the pyramid takes {first} evaluations in the first unit and {later} in the others, without
guidance, which is in the weights. `pyramid-flow --fast`, or `from_pretrained(..., fast=True)`.

| setting | value |
|---|---|
{settings}
"""


def export_student(
    model: PyramidDiTForVideoGeneration,
    options: Namespace,
    *,
    first_steps: Sequence[int],
    later_steps: Sequence[int],
) -> Path:
    """Write `output_dir/model`: the checkpoint, with the student and the light decoder in it.

    A LoRA is written to a file of its own, and into the weights of the student.

    Args:
        model: Whose transformer is the student.
        options: Of the run.
        first_steps: Evaluations in each stage of the first unit.
        later_steps: The same for the other units.

    Returns:
        The folder.
    """
    source = CheckpointFolder.open(options.model_path, options.model_variant)
    fast, light = source.variant + FAST_SUFFIX, VAE_FOLDER + FAST_SUFFIX
    own = index_of(source)
    defaults = dataclasses.replace(
        model.defaults,
        num_inference_steps=list(first_steps),
        video_num_inference_steps=list(later_steps),
        guidance_scale=0.0,
        video_guidance_scale=0.0,
        guidance_in_weights=True,
        negative_prompt="",
    )
    entries: dict[str, Any] = {
        name: value
        for name, value in dataclasses.asdict(defaults).items()
        if value is not None and own.get(name) != value
    } | STEPPING
    former: Mapping[str, Any] = own.get(VARIANTS, {})
    if options.light_vae is not None:
        entries["vae"] = light
    elif "vae" in former.get(fast, {}):
        entries["vae"] = former[fast]["vae"]

    shown = {name: value for name, value in vars(options).items() if value is not None}
    card = CARD.format(
        name=options.output_dir.name,
        fast=fast,
        variant=source.variant,
        source=source.path.name,
        first=_words(first_steps),
        later=_words(later_steps),
        settings="\n".join(
            f"| `{name}` | {value.name if isinstance(value, Path) else value} |"
            for name, value in sorted(shown.items())
        ),
    )
    dit = with_adapters_merged(model, source, options, card) if options.lora_rank else model.dit

    def write(target: Path) -> None:
        link_folder(source.path, target, left_out=("README.md", fast))
        dit.register_to_config(
            generation_defaults=dataclasses.asdict(defaults),
            frame_per_unit=model.frame_per_unit,
            use_gradient_checkpointing=False,
            _name_or_path="",
        )
        dit.save_pretrained(target / fast)
        if options.light_vae is not None:
            link_folder(options.light_vae, target / light)
        change_index(target, {"model_variant": source.variant, VARIANTS: {**former, fast: entries}})
        (target / "README.md").write_text(card, encoding="utf-8")

    folder: Path = options.output_dir / "model"
    write_folder(folder, write)
    return folder


def with_adapters_merged(
    model: PyramidDiTForVideoGeneration, source: CheckpointFolder, options: Namespace, card: str
) -> Any:
    """Write the adapters of `model` as a LoRA; the checkpoint's transformer with them merged in.

    It is merged in float32, from weights that were not quantized, and has the checkpoint's dtype.
    """
    adapters = {n: p.detach() for n, p in model.dit.named_parameters() if p.requires_grad}
    write_adapters(model, {"dit": adapters}, options, (), card)
    whole = PyramidDiTForVideoGeneration.from_pretrained(
        source.path, source.variant, model_dtype="fp32", load_vae=False, load_text_encoder=False
    )
    whole.load_lora_weights(options.output_dir / FILE_NAME)
    whole.dit.fuse_lora()
    whole.dit.unload_lora()
    return whole.dit.to(resolve_dtype(source.model_dtype or "fp32"))


def _words(steps: Sequence[int]) -> str:
    same = len(set(steps)) == 1
    return str(steps[0]) if same else ", ".join(map(str, steps))
