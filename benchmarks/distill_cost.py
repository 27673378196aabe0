"""What a distillation takes on one GPU: memory and hours. Computed, not measured.

    python -m benchmarks.distill_cost --lora_rank 16 --gradient_checkpointing --size 640x384 \\
        --max_frames 16 --videos 300 --first_units 2000 --batch_size 2 --first_batch_size 8

It takes the flags of `trainer_misc.distill`; without `--model_path` it is a released model, whose
teacher takes 20 and 10 steps a stage. Operations are counted from the token layouts: those of the
rollouts, in which the teacher is guided, and of the training, where the backward pass takes twice
the forward pass, and gradient checkpointing its share of another one. `--tflops` says how fast the
GPU is as it is reached; moving data, the text encoders, the VAE and the writing of files are left
out. Memory is that of `python -m trainer_misc.memory` for the batch of the last unit.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from pyramid_dit.checks import Number
from pyramid_dit.flow.sizes import SPATIAL_FACTOR
from pyramid_dit.models.flux import PyramidFluxTransformer
from pyramid_dit.models.text_encoder import T5_LENGTH
from trainer_misc.distill_options import GROUPS, completed
from trainer_misc.memory import STAGES, Batch, Models, TrainingMemory, table
from trainer_misc.options import Flag, parse
from trainer_misc.runs import run_or_say

from .flops import step_flops, unit_tokens
from .report import markdown_table

TEACHER_STEPS, TEACHER_VIDEO_STEPS = (20,), (10,)
BRANCHES = 2
"""Of a guided step."""
OF_COST = [
    Flag("size", "640x384", "width and height in pixels"),
    Flag("tflops", 300.0, "TFLOP/s of the GPU, as it is reached", check=Number(0, 1e5, above=True)),
]


@dataclass(frozen=True)
class Hours:
    """Operations of a round.

    Attributes:
        teacher: Rollouts, as far as the teacher makes them.
        student: The same of the student, from the second round on.
        training: Of all steps.
    """

    teacher: float
    student: float
    training: float


def operations(dit: PyramidFluxTransformer, options: Namespace, height: int, width: int) -> Hours:
    """Operations of one round of a distillation.

    Args:
        dit: The transformer.
        options: Of the distillation.
        height: Pixels.
        width: Pixels.
    """

    def unit(index: int, steps: Sequence[int]) -> float:
        """One sample through all stages of a unit."""
        counts = list(steps) * STAGES if len(steps) == 1 else steps
        return sum(
            count
            * step_flops(dit, [unit_tokens(height, width, unit=index, stage=stage, text=T5_LENGTH)])
            for stage, count in enumerate(counts)
        )

    def rollouts(first: Sequence[int], later: Sequence[int]) -> float:
        videos = unit(0, first) + sum(unit(index, later) for index in range(1, options.max_frames))
        return options.first_units * unit(0, first) + options.videos * videos

    first, later = options.student_steps, options.student_video_steps
    last = options.max_frames
    middle = sum(unit(index, later) for index in range(1, last)) / max(1, last - 1)
    share = options.first_share if last > 1 else 1.0
    batch = share * options.first_batch_size * unit(0, first)
    batch += (1 - share) * options.batch_size * middle
    again = options.gradient_checkpointing_ratio if options.gradient_checkpointing else 0.0
    teacher = BRANCHES * rollouts(
        options.teacher_steps or TEACHER_STEPS, options.teacher_video_steps or TEACHER_VIDEO_STEPS
    )
    training = options.steps * options.gradient_accumulation_steps * batch * (3 + again)
    return Hours(teacher, rollouts(first, later), training)


def report(options: Namespace) -> str:
    """Memory and hours, as Markdown.

    Raises:
        FileNotFoundError: A folder or a file is missing.
        ValueError: Settings do not fit each other, or the architecture's operations are not known.
    """
    width, height = (int(side) for side in options.size.split("x"))
    dit = Models.of(options).dit
    if not isinstance(dit, PyramidFluxTransformer):
        raise ValueError("operations are counted for pyramid_flux only")
    sides = height // SPATIAL_FACTOR, width // SPATIAL_FACTOR
    batch = Batch(
        STAGES * options.batch_size,
        (1,) * STAGES,
        options.max_frames,
        *sides,
        (options.max_frames,) * STAGES,
        1,
    )
    memory = TrainingMemory.of(options, batch)
    of_round = operations(dit, options, height, width)
    rate = options.tflops * 1e12 * 3600
    rounds = range(1, options.rounds + 1)
    rows = [
        {
            "round": number,
            "rollouts, PFLOP": (of_round.teacher + (number > 1) * of_round.student) / 1e15,
            "hours ": (of_round.teacher + (number > 1) * of_round.student) / rate,
            "training, PFLOP": of_round.training / 1e15,
            "hours": of_round.training / rate,
        }
        for number in rounds
    ]
    return f"{table(memory, options)}\n\nAt {options.tflops:g} TFLOP/s:\n\n{markdown_table(rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    options = completed(parse(__doc__, {**GROUPS, "the cost": OF_COST}, arguments))
    run_or_say(lambda: sys.stdout.write(report(options) + "\n"))


if __name__ == "__main__":
    main()
