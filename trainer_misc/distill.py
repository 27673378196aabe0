"""Distill a model into a student of one or two steps a stage: `python -m trainer_misc.distill`.

A stage is a short, almost straight path, so one evaluation can learn where a teacher ends it. The
student has the teacher's weights, and each of its evaluations is regressed to the velocity from
where it stands to the end of the stage that the teacher reaches in many guided steps: guidance is
then in the weights, and a step is one pass. Rounds alternate: rollouts are recorded, and learned
from together with those of the rounds before. From the second round on the student goes its own
way and the teacher only says where each stage ends, so that the student learns from the histories
that it makes (Ross et al., arXiv 1011.0686).
"""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyramid_dit.checkpoints.folder import CheckpointFolder
from pyramid_dit.checkpoints.weights import read_transformer, resolve_dtype
from pyramid_dit.checks import steps_per_stage
from pyramid_dit.distributed.launcher import launched_process
from pyramid_dit.flow.scheduler import PyramidFlowMatchEulerDiscreteScheduler
from pyramid_dit.sampling.guidance import GuidanceSchedule

from .data import Batches, MixedBatches
from .data.batches import Texts
from .distill_data import (
    STUDENT,
    check,
    load_model,
    load_trained,
    open_pictures,
    read_prompts,
    write_trained,
)
from .distill_options import GROUPS, completed
from .distill_results import STEPPING, export_student
from .distributed import init_distributed_mode
from .dit_results import unwrapped
from .encoded_texts import EncodedTexts
from .log import SAMPLES, Figures
from .loop import TrainingLoop
from .loop_config import new_accelerator
from .lora import add_adapters
from .options import parse
from .recorder import Recorder
from .rollouts import StageSolver
from .runs import log_to_people, numbered, run_or_say
from .stage_batches import RecordedStages, StageBatches
from .student_objective import StudentObjective
from .train_dit import loop_config, new_optimizer

logger = logging.getLogger(__name__)

VALIDATION_BATCHES = 8


class Distillation:
    """A teacher, its student, and the rounds in which it learns.

    Args:
        options: As `parse` gives them.

    Attributes:
        model: What the student is the transformer of.

    Raises:
        FileNotFoundError: A file or a folder is missing.
        ValueError: Settings do not fit each other, or a file is damaged.
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options = completed(options)
        check(options)
        if options.dist_on_itp or launched_process() is not None:
            init_distributed_mode(options)
        self._until = time.monotonic() + 60 * options.max_minutes if options.max_minutes else None
        self.model = load_model(options)
        self.config = loop_config(options)
        self.accelerator = new_accelerator(self.config, cpu=options.device == "cpu")
        self._place = self.accelerator.process_index, self.accelerator.num_processes
        device = self.accelerator.device
        for module in (self.model.text_encoder, self.model.vae):
            if module is not None:
                module.to(device)
        if options.negative_prompt is None:
            options.negative_prompt = self.model.defaults.negative_prompt
        pictures = open_pictures(options, self.model)
        suffix = self.model.defaults.prompt_suffix
        prompts = [prompt + suffix for prompt in read_prompts(options)]
        every = [*prompts, options.negative_prompt]
        if isinstance(pictures, Texts):
            every += [text + suffix for text in pictures.texts()]
        padded = not self.model.dit.config.get("use_t5_mask", True)
        self.texts = EncodedTexts(self.model.text_encoder, every, padded=padded)
        self.model.text_encoder = None  # it has done its part, and may be the largest
        self.recorder = Recorder(
            self.model, self.texts, prompts, options, pictures=pictures, place=self._place
        )
        self._prepare(device)
        first, later = self.student_steps()
        self._objective = StudentObjective(
            self.student_scheduler(),
            first_steps=first,
            later_steps=later,
            frame_per_unit=self.model.frame_per_unit,
        )

    def _prepare(self, device: torch.device) -> None:
        """Put the student on `device`, with its adapters or the weights that it starts from."""
        options, model = self.options, self.model
        if options.lora_rank:
            add_adapters(model, options)
        else:
            model.dit.requires_grad_(True)
        model.dit.to(device)
        if options.student is not None:
            load_trained(model.dit, options.student)

    # ---- rounds --------------------------------------------------------------------------------

    def run(self) -> None:
        """Go through all rounds that are not done yet."""
        for number in range(1, self.options.rounds + 1):
            folder = self._folder(number)
            done = folder / STUDENT
            if done.exists():
                load_trained(unwrapped(self.model.dit), done)
                continue
            if not (self._record(number) and self._learn(number)):
                logger.info("the time is up in round %d", number)
                return
        first, later = self.student_steps()
        self.model.dit = unwrapped(self.model.dit)
        if self.accelerator.is_main_process:
            export_student(self.model, self.options, first_steps=first, later_steps=later)
        self.accelerator.wait_for_everyone()

    def _folder(self, number: int) -> Path:
        folder: Path = self.options.output_dir / f"round-{number}"
        return folder

    def _record(self, number: int) -> bool:
        """Make the rollouts of a round; whether there was time for all."""
        dit = unwrapped(self.model.dit)
        own_way = number > 1 or self.options.student is not None
        dit.eval()
        done = self.recorder.record(
            self._folder(number) / "rollouts",
            number,
            self.teacher(),
            self.student() if own_way else None,
            until=self._until,
        )
        self.accelerator.wait_for_everyone()
        everyone: list[bool] = self.accelerator.gather_for_metrics([done], use_gather_object=True)
        return all(everyone)

    def _learn(self, number: int) -> bool:
        """Train on what was recorded so far; whether there was time for all steps."""
        options, model = self.options, self.model
        folder = self._folder(number)
        recorded = self._recorded(number)
        batches = self._batches(recorded, validation=False)
        held_back = self._batches(recorded, validation=True) if options.validate_steps else []
        dit = unwrapped(model.dit)
        dit.train()
        config = replace(self.config, output=folder)
        if self._until is not None:
            config.max_minutes = max(0.01, (self._until - time.monotonic()) / 60)
        modules: dict[str, nn.Module] = {"dit": dit}
        optimizer = new_optimizer(options, modules)
        loop = TrainingLoop(config, modules, optimizer, self.accelerator)
        model.dit = loop.modules["dit"]
        mixed: Batches = batches[0]
        if len(batches) == 2:
            first, later = batches
            mixed = MixedBatches(later, first, options.first_share, seed=options.seed)
        finished = loop.run(
            lambda batch: self.loss(batch[1]),
            batches=lambda start: numbered(mixed, start, options),
            validate=(lambda: self.validation(held_back)) if held_back else None,
        )
        if finished:
            loop.adopt_average()
            loop.on_main(lambda: write_trained(dit, folder / STUDENT))
        self.accelerator.free_memory()  # it would keep the state of this round's optimizer
        return finished

    def _recorded(self, number: int) -> RecordedStages:
        """What was recorded up to a round."""
        files = [
            path
            for earlier in range(1, number + 1)
            for path in sorted((self._folder(earlier) / "rollouts").glob("*.safetensors"))
        ]
        return RecordedStages(files, self.texts.numbers, self.model.frame_per_unit)

    def _batches(self, recorded: RecordedStages, *, validation: bool) -> list[StageBatches]:
        """Of first units and of the others, as far as there are any."""
        options = self.options
        share = {"held_back": options.held_back, "validation": validation}
        return [
            StageBatches(
                recorded,
                self.texts.lengths,
                batch_size=options.first_batch_size if first else options.batch_size,
                first=first,
                seed=options.seed,
                rank=self._place[0],
                world=self._place[1],
                **share,
            )
            for first in (True, False)
            if any(True for _ in recorded.units(first=first, **share))
        ]

    # ---- solvers -------------------------------------------------------------------------------

    def teacher(self) -> StageSolver:
        """The checkpoint as it is, with its own steps and guidance or those of the options."""
        options, defaults, stages = (
            self.options,
            self.model.defaults,
            self.model.scheduler.config.stages,
        )
        first = options.teacher_guidance
        later = options.teacher_video_guidance
        dit: Any = unwrapped(self.model.dit)
        around = self.accelerator.autocast
        if options.lora_rank:
            around = self._without_adapters
        else:
            folder = CheckpointFolder.open(options.model_path, options.model_variant)
            dit = read_transformer(folder, dtype=resolve_dtype(options.model_dtype))
            dit = dit.requires_grad_(False).to(self.model.device)
        return StageSolver(
            dit=dit,
            scheduler=self.model.scheduler,
            first_steps=_steps(options.teacher_steps, defaults.num_inference_steps, stages),
            later_steps=_steps(
                options.teacher_video_steps, defaults.video_num_inference_steps, stages
            ),
            solver=options.teacher_solver or self.model.scheduler.config.solver,
            guidance=GuidanceSchedule(
                defaults.guidance_scale if first is None else first,
                defaults.video_guidance("text") if later is None else later,
            ),
            around=around,
        )

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """The weights as they were, which adapters leave alone."""
        dit: Any = unwrapped(self.model.dit)
        dit.disable_adapters()
        try:
            with self.accelerator.autocast():
                yield
        finally:
            dit.enable_adapters()

    def student(self) -> StageSolver:
        """What is trained: steps of Euler, without guidance."""
        first, later = self.student_steps()
        return StageSolver(
            dit=unwrapped(self.model.dit),
            scheduler=self.student_scheduler(),
            first_steps=first,
            later_steps=later,
            solver="euler",
            guidance=GuidanceSchedule(0.0, 0.0),
            around=self.accelerator.autocast,
        )

    def student_steps(self) -> tuple[list[int], list[int]]:
        """Evaluations in each stage of the first unit, and of the others."""
        options, stages = self.options, self.model.scheduler.config.stages
        first, later = options.student_steps, options.student_video_steps
        return _steps(first, 1, stages), _steps(later, 1, stages)

    def student_scheduler(self) -> PyramidFlowMatchEulerDiscreteScheduler:
        """The model's, with equal steps of Euler."""
        config = self.model.scheduler.config
        scheduler: PyramidFlowMatchEulerDiscreteScheduler = type(self.model.scheduler).from_config(
            config, **STEPPING
        )
        return scheduler

    # ---- the loss ------------------------------------------------------------------------------

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, Figures]:
        """The loss of a batch of units, and figures for the log."""
        device = self.accelerator.device
        text = self.texts.rows(batch["texts"]).to(device, unwrapped(self.model.dit).dtype)
        loss, figures = self._objective(self.model.dit, batch, text, device)
        return loss, figures | {SAMPLES: float(len(batch["texts"]))}

    @torch.no_grad()
    def validation(self, held_back: Sequence[StageBatches]) -> Figures:
        """Figures of rollouts that were not learned from, always the same ones."""
        sums: dict[str, list[float]] = {}
        for batches in held_back:
            for number in range(min(VALIDATION_BATCHES, batches.batches_per_epoch)):
                _, figures = self.loss(batches[number])
                for name, value in figures.items():
                    if name != SAMPLES:
                        sums.setdefault(f"validation_{name}", []).append(value)
        return {name: sum(values) / len(values) for name, values in sums.items()}


def _steps(given: Sequence[int] | None, otherwise: int | Sequence[int], stages: int) -> list[int]:
    """Steps of each stage; one number serves all."""
    if given is None:
        return steps_per_stage("steps", otherwise, stages)
    return steps_per_stage("steps", given[0] if len(given) == 1 else given, stages)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and distill."""
    log_to_people()
    options = parse(__doc__, GROUPS, arguments)
    run_or_say(lambda: Distillation(options).run())


if __name__ == "__main__":
    main()
