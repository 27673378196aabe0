"""What a training of the transformer gives beside its loss: validation, samples, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from pyramid_dit import PyramidDiTForVideoGeneration, PyramidFlowPipeline
from pyramid_dit.checkpoints.folder import (
    INDEX_NAME,
    VARIANT_PREFIX,
    VARIANTS,
    CheckpointFolder,
)
from pyramid_dit.checkpoints.weights import read_vae
from pyramid_dit.files import write_folder
from pyramid_dit.flow.objective import FlowObjective
from pyramid_dit.generation.video_generator import VideoGenerator
from pyramid_dit.json_files import read_json
from pyramid_dit.media.figures import evenly_spaced, picture_grid
from pyramid_dit.media.video_files import export_to_video

from .data import Batches
from .log import Figures
from .loop import WHOLE, TrainingLoop
from .lora import write_adapters

VALIDATION_BATCHES = 4
CARD = """---
pipeline_tag: text-to-video
library_name: diffusers
---
# {name}

{what} by `python -m trainer_misc.train_dit` for {steps} optimizer steps from `{source}`.
{average}

| setting | value |
|---|---|
{settings}
"""


def unwrapped(module: Any) -> Any:
    """The module inside of what DDP or `torch.compile` put around it."""
    while isinstance(inner := getattr(module, "module", None), nn.Module):
        module = inner
    return getattr(module, "_orig_mod", module)


@torch.no_grad()
def validation(
    model: PyramidDiTForVideoGeneration,
    batches: Batches,
    objective: FlowObjective,
    empty_text: Any,
) -> Figures:
    """Losses of held-back samples, always with the same draws: by stage, and by units of the clip.

    All processes measure together, each its own samples; what a text encoder drops, it drops here
    too.
    """
    sums: dict[str, list[float]] = {}
    former = model.objective, model.accumulate_steps
    model.objective = objective
    for number in range(VALIDATION_BATCHES):
        batch = batches[number]
        kind = batch["identifier"]
        last = last_units(model, batch)
        lengths = range(1, objective.max_units + 1) if kind == "video" else (1,)
        for units in lengths if last is None else last[:1]:
            seed = torch.Generator().manual_seed(number * 1000 + units)
            _, log = model(
                batch["video"],
                batch["text"],
                [kind],
                empty_text=empty_text,
                units=[units] * model.scheduler.config.stages,
                generator=seed,
            )
            log[f"loss_units_{units}"] = log["loss"]
            for name, value in log.items():
                sums.setdefault(f"validation_{name}", []).append(float(value))
    model.objective, model.accumulate_steps = former
    return {name: sum(values) / len(values) for name, values in sums.items()}


def last_units(
    model: PyramidDiTForVideoGeneration, batch: Mapping[str, Any]
) -> Sequence[int] | None:
    """Units of its clips that each stage trains on, where a batch says that it is all; else None.

    Batches whose clips have several texts say so: the text is that of the last unit.
    """
    if not batch.get("last_unit"):
        return None
    frames: int = batch["video"].shape[2]
    units = 1 + (frames - 1) // model.objective.frame_per_unit
    return [units] * model.scheduler.config.stages


def sample_sheet(
    model: PyramidDiTForVideoGeneration,
    prompts: Sequence[str],
    path: Path,
    source: Path,
    videos_as: str,
) -> None:
    """Short videos of `prompts` with the weights as they are, in one PNG at `path`.

    They are also written as `<videos_as>-0.mp4` and so on. The VAE is that of the folder `source`,
    where the model has none.
    """
    components = model.video_generator.components
    vae = components.vae
    if vae is None:
        folder = CheckpointFolder.open(source, model_variant(source))
        vae = read_vae(folder, dtype=torch.float32).to(components.device)
    own = dataclasses.replace(
        components,
        dit=unwrapped(components.dit),
        text_encoder=unwrapped(components.text_encoder),
        vae=vae,
    )
    generator = VideoGenerator(own)
    generator.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    videos = generator.generate(list(prompts), temp=min(3, 1 + own.frame_per_unit), generator=seeds)
    for number, video in enumerate(videos):
        export_to_video(video, f"{videos_as}-{number}.mp4")
    rows = [evenly_spaced(video, 4) for video in videos]
    picture_grid(rows, row_labels=list(prompts)).save(path, "PNG")


def model_variant(source: Path) -> str | None:
    """The only variant in a folder, else None for the folder's own default."""
    names = [path.name for path in source.glob(f"{VARIANT_PREFIX}*") if path.is_dir()]
    return names[0] if len(names) == 1 else None


def export(
    model: PyramidDiTForVideoGeneration,
    loop: TrainingLoop,
    options: Namespace,
    texts: Iterable[str] = (),
    former: PyramidDiTForVideoGeneration | None = None,
) -> None:
    """Write what was trained, with a model card; all processes come here together.

    It is `output_dir/model`, the checkpoint in the released layout; with `export_pipeline` also
    `output_dir/pipeline`, a pipeline of diffusers. A LoRA is one file in `output_dir`. The weights
    are the moving average, if there is one.

    Args:
        model: What was trained.
        loop: By what.
        options: Of the run.
        texts: On which texts: their words are known from now on, where the checkpoint tells them.
        former: What it began with, of which `initial_share` is mixed into the weights; only the
            main process, which writes, needs it.
    """
    defaults = model.defaults
    words = defaults.unknown_words(texts)
    if options.lora_rank:
        _export_lora(model, loop, options, words)
        return
    defaults = defaults.with_words(words)
    source = CheckpointFolder.open(options.model_path, options.model_variant)
    parts: dict[str, Any] = {}

    def write(target: Path) -> None:
        own = model.video_generator.components
        encoders = model_text_parts(model) if "text_encoder" in parts else []
        _copy_rest(source, target, written=encoders, known_words=defaults.known_words)
        dit = _filled(unwrapped(own.dit), parts["dit"])
        dit.register_to_config(
            generation_defaults=dataclasses.asdict(defaults),
            frame_per_unit=own.frame_per_unit,
            use_gradient_checkpointing=False,
            _name_or_path="",  # else it names a folder of this machine
        )
        dit.save_pretrained(target / source.variant)
        for part in encoders:
            encoder = unwrapped(own.text_encoder).get_submodule(part)
            inside = _under(f"{part}.", parts["text_encoder"])
            encoder.save_pretrained(target / part, state_dict=inside)
        (target / "README.md").write_text(_card(loop, options), encoding="utf-8")

    def write_all() -> None:
        folder = options.output_dir / "model"
        write_folder(folder, write)
        if options.export_pipeline:
            pipeline = PyramidFlowPipeline.from_pretrained(folder, source.variant)
            for part in (pipeline, *pipeline.components.values()):
                if isinstance(part, ConfigMixin):
                    part.register_to_config(_name_or_path="")
            write_folder(options.output_dir / "pipeline", pipeline.save_pretrained)

    with loop.average_in_place():
        for name, module in loop.modules.items():
            parts[name] = get_model_state_dict(unwrapped(module), options=WHOLE)
            if former is not None:
                begun = getattr(former, name).state_dict()
                parts[name] = mixed(parts[name], begun, options.initial_share)
        loop.on_main(write_all)


def _export_lora(
    model: PyramidDiTForVideoGeneration,
    loop: TrainingLoop,
    options: Namespace,
    words: Sequence[str],
) -> None:
    with loop.average_in_place():
        trained = dataclasses.replace(WHOLE, ignore_frozen_params=True)
        weights: Any = {
            name: get_model_state_dict(unwrapped(module), options=trained)
            for name, module in loop.modules.items()
        }
        card = _card(loop, options, what="A LoRA, trained")
        loop.on_main(lambda: write_adapters(model, weights, options, words, card))


def model_text_parts(model: PyramidDiTForVideoGeneration) -> list[str]:
    """Names of the text encoders."""
    return [part.encoder for part in unwrapped(model.text_encoder).parts()]


def mixed(
    trained: Mapping[str, Tensor], begun: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Weights between those of a training's end and of its begin (WiSE-FT, arXiv 2109.01903).

    Args:
        trained: Of the end.
        begun: Of the begin; of all names in `trained`.
        share: How much of `begun`, 0 to 1.
    """
    return {
        name: torch.lerp(value.float(), begun[name].to(value.device).float(), share).to(value.dtype)
        for name, value in trained.items()
    }


def _copy_rest(
    source: CheckpointFolder,
    target: Path,
    *,
    written: Sequence[str],
    known_words: Sequence[str] | None,
) -> None:
    """What is not trained, by links where the file system has them: it can be many gigabytes.

    Folders that are `written` afterwards are left out: what is written into a linked file is
    written into the source.
    """
    link_folder(source.path, target, left_out=("README.md", *written), starts=VARIANT_PREFIX)
    if (target / INDEX_NAME).exists():
        changes: dict[str, Any] = {"model_variant": source.variant}
        if known_words is not None:
            changes["known_words"] = list(known_words)
        if VARIANTS in index_of(source):
            changes[VARIANTS] = {}  # students of the former weights, which are not copied
        change_index(target, changes)


def link_folder(
    source: Path, target: Path, *, left_out: Sequence[str] = (), starts: str = "."
) -> None:
    """Copy a checkpoint, by links where the file system has them: it can be many gigabytes.

    Args:
        source: The folder.
        target: A folder that is there.
        left_out: Names in it that are not copied; nor are those that begin with a dot.
        starts: How names begin that are not copied either.
    """

    def ignored(folder: str, names: list[str]) -> list[str]:
        if Path(folder) != source:
            return []
        return [name for name in names if name.startswith((starts, ".")) or name in left_out]

    def link(path: str, copy: str) -> None:
        try:
            os.link(os.path.realpath(path), copy)
        except OSError:
            shutil.copy2(path, copy)

    shutil.copytree(source, target, ignore=ignored, copy_function=link, dirs_exist_ok=True)


def index_of(source: CheckpointFolder) -> dict[str, Any]:
    """What `model_index.json` of a checkpoint says, nothing where there is none."""
    path = source.path / INDEX_NAME
    return read_json(path) if path.exists() else {}


def change_index(folder: Path, changes: Mapping[str, Any]) -> None:
    """Replace entries of `model_index.json`, which may be a link: the other end stays as it is."""
    index = folder / INDEX_NAME
    content = json.loads(index.read_text(encoding="utf-8-sig")) if index.exists() else {}
    index.unlink(missing_ok=True)
    index.write_text(json.dumps(content | dict(changes), indent=2) + "\n", encoding="utf-8")


def _filled(module: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """A module like `module` with whole `weights`, without a copy of them."""
    with torch.device("meta"):
        copy = type(module).from_config(module.config)
    copy.load_state_dict(weights, assign=True)
    return copy


def _under(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _card(loop: TrainingLoop, options: Namespace, what: str = "Trained") -> str:
    shown = {name: value for name, value in vars(options).items() if value is not None}
    average = f"The weights are their moving average (decay {options.ema_decay})."
    return CARD.format(
        name=options.output_dir.name,
        what=what,
        steps=f"{loop.step:,}",
        source=Path(options.model_path).name,
        average=average if options.ema_update else "The weights are those of the last step.",
        settings="\n".join(
            f"| `{name}` | {value.name if isinstance(value, Path) else value} |"
            for name, value in sorted(shown.items())
        ),
    )
