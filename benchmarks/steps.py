"""How few steps a checkpoint needs: error and accuracy against evaluations of the transformer.

    python -m benchmarks.steps
    python -m benchmarks.steps --model FOLDER --device cuda --steps 4 8 16 --repeats 4
    python -m benchmarks.steps --way "ab2 3/2" --way "ab2 3,2,2/2 history_cache=2"

Every way makes the same videos from the same seeds. Latents are compared with a fine solution of
the same equations; frames are judged where the checkpoint draws moving shapes. A way reads

    [student] SOLVER FIRST/LATER [history_cache=N] [guidance_interval=FROM,TO] [history_window=N]

SOLVER is `euler` (with the reference's last step, which hardly moves the latents),
`euler-trailing` (without it) or `ab2`; FIRST and LATER are the steps of the first unit and of the
others, one number or one per stage. FIRST alone serves all units. `student` is the transformer that
was distilled from the checkpoint's, with its own decoder; where there is one, it is measured at one
and at two steps.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checks import STEPS, OneOf, Whole, steps_per_stage
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.media.charts import Chart, draw_charts
from pyramid_dit.page.examples import general_examples
from pyramid_dit.sampling.fast_mode import FastMode
from trainer_misc.toy.evaluation import evaluation_prompts
from trainer_misc.toy.tables import evaluate_frames
from trainer_misc.toy.text import CAPTION

from .fast_mode import BATCH, approximately, decode, make_latents
from .measure import device_name
from .report import RESULTS, Cell, Report, finish, number, option_parser

SOLVERS = {
    "euler": ("euler", "linspace"),
    "euler-trailing": ("euler", "trailing"),
    "ab2": ("ab2", "trailing"),
}
"""Solver and spacing of the timesteps, by the name in a way."""
SPLIT = "ab2"  # the solver whose splits are measured
STUDENT = "student"
STUDENT_WAYS = ("euler-trailing 1/1", "euler-trailing 2/1", "euler-trailing 2/2")
LADDER = (2, 3, 4, 8)
FINE = 32
FAST_MODES = (
    "history_cache=2",
    "guidance_interval=0,0.67",
    "history_cache=2 guidance_interval=0,0.67",
)
SHORT = {"history_cache": "cache", "guidance_interval": "interval", "history_window": "window"}
"""Approximations, and what the charts call them."""
CALLS, ERROR, RIGHT = "evaluations", "latent error", "all four, %"


# ---- ways --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How videos are made; `parse` reads it from text.

    Attributes:
        name: The text.
        solver: One of `SOLVERS`.
        first, later: Steps of the first unit and of the others, one number or one per stage.
        fast_mode: What to approximate, arguments of `enable_fast_mode`.
        student: Whether the distilled transformer makes them.
    """

    name: str
    solver: str
    first: tuple[int, ...]
    later: tuple[int, ...]
    fast_mode: Mapping[str, Any]
    student: bool = False

    @classmethod
    def parse(cls, text: str) -> Way:
        """Read a way as the head of this file describes it.

        Raises:
            ValueError: It is none; the message says why.
        """
        words = text.split()
        student = words[:1] == [STUDENT]
        if len(words) < 2 + student:
            raise ValueError(f"a way must be like 'ab2 3/2', got {text!r}")
        solver, steps, *parts = words[student:]
        try:
            OneOf(tuple(SOLVERS))("the solver", solver)
            first, slash, later = steps.partition("/")
            fast_mode = dict(_fast_mode(part) for part in parts)
            FastMode(**fast_mode)
            return cls(
                name=" ".join(words),
                solver=solver,
                first=_steps(first),
                later=_steps(later if slash else first),
                fast_mode=fast_mode,
                student=student,
            )
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from error

    def arguments(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        first, later = (
            steps[0] if len(steps) == 1 else list(steps) for steps in (self.first, self.later)
        )
        return {
            "solver": SOLVERS[self.solver][0],
            "num_inference_steps": first,
            "video_num_inference_steps": later,
        }

    @property
    def kind(self) -> str:
        """What is special of it: the name of its line in the charts."""
        if self.student:
            return STUDENT
        if self.fast_mode:
            return "+".join(SHORT[name] for name in self.fast_mode)
        if len(self.first) > 1:
            return f"stage {self.first.index(max(self.first))}"
        return self.solver if self.first == self.later else "first unit"


def _steps(text: str) -> tuple[int, ...]:
    return _fewest(tuple(STEPS.parse(part) for part in text.split(",")))


def _fewest(steps: tuple[int, ...]) -> tuple[int, ...]:
    """One number where all stages have the same."""
    return steps[:1] if len(set(steps)) == 1 else steps


def _fast_mode(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    OneOf(tuple(SHORT))("the approximation", name)
    if name != "guidance_interval":
        return name, Whole().parse(value)
    start, _, stop = value.partition(",")
    return name, (float(start), float(stop))


def default_ways(ladder: Sequence[int], stages: int) -> list[Way]:
    """All solvers with the steps of the ladder, alike and with more in the first unit; of `SPLIT`
    also more in one of the stages, and the fast mode."""
    ladder = sorted(set(ladder))
    texts = [f"{solver} {count}/{count}" for solver in SOLVERS for count in ladder]
    for count, more in zip(ladder, ladder[1:], strict=False):
        texts += [f"{solver} {more}/{count}" for solver in SOLVERS]
        for stage in range(stages):
            split = ",".join(str(count + (other == stage)) for other in range(stages))
            texts.append(f"{SPLIT} {split}/{split}")
        texts += [f"{SPLIT} {more}/{more} {fast_mode}" for fast_mode in FAST_MODES]
    return [Way.parse(text) for text in texts]


def own_way(model: PyramidDiTForVideoGeneration) -> Way:
    """What the model does where a caller does not say."""
    config, defaults = model.scheduler.config, model.defaults
    spacing = config.timestep_spacing if config.solver == "euler" else "trailing"
    solver = next(name for name, said in SOLVERS.items() if said == (config.solver, spacing))
    first, later = (
        ",".join(map(str, _fewest(tuple(steps_per_stage("steps", steps, config.stages)))))
        for steps in (defaults.num_inference_steps, defaults.video_num_inference_steps)
    )
    return Way.parse(f"{solver} {first}/{later}")


# ---- measuring ---------------------------------------------------------------------------------


@contextmanager
def stepping(model: PyramidDiTForVideoGeneration, way: Way) -> Iterator[None]:
    """The spacing of the way's timesteps and its fast mode, while the context is open."""
    scheduler = model.scheduler
    spacing = SOLVERS[way.solver][1]
    model.scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing=spacing)
    try:
        with approximately(model, **way.fast_mode):
            yield
    finally:
        model.scheduler = scheduler


@contextmanager
def counted_evaluations(model: PyramidDiTForVideoGeneration) -> Iterator[list[int]]:
    """The samples of each call of the transformer: with guidance two for a video."""
    samples: list[int] = []
    dit: Any = model.dit
    denoise = dit.denoise

    def counting(latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        samples.append(len(latents))
        return denoise(latents, *args, **kwargs)

    dit.denoise = counting
    try:
        yield samples
    finally:
        del dit.denoise


def measure(
    model: PyramidDiTForVideoGeneration,
    ways: Sequence[Way],
    prompts: Sequence[str],
    *,
    fine: Way,
    temp: int,
    judged: bool,
    student: PyramidDiTForVideoGeneration | None = None,
) -> Report:
    """Evaluations, error and accuracy of `ways`.

    Args:
        model: What makes the videos.
        ways: How to make them.
        prompts: One for each video.
        fine: The way that they are compared with.
        temp: Latent frames of a video.
        judged: Whether prompts are captions of moving shapes, and the frames are judged.
        student: What was distilled from the model, if a way asks for it.
    """
    on_cpu = model.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    batch = BATCH if judged else 1  # other models are large
    make_latents(model, prompts[:1], min(temp, 2), num_inference_steps=1)  # to warm up
    with stepping(model, fine):
        reference, _ = make_latents(model, prompts, temp, batch=batch, **fine.arguments())
    rows: list[dict[str, Cell]] = []
    for way in ways:
        maker = student if way.student else model
        assert maker is not None  # main has looked for it
        with stepping(maker, way), counted_evaluations(maker) as samples:
            began = clock()
            latents, _ = make_latents(maker, prompts, temp, batch=batch, **way.arguments())
            seconds = clock() - began
        difference = latents - reference
        row: dict[str, Cell] = {
            "way": way.name,
            CALLS: sum(samples) // len(prompts),
            "transformer, CPU s" if on_cpu else "transformer, s": seconds,
            f"{ERROR}, first frame": _relative(difference[:, :, :1], reference[:, :, :1]),
            ERROR: _relative(difference, reference),
        }
        if judged:
            table = evaluate_frames(zip(decode(maker, latents), prompts, strict=True))
            row["shape, %"] = 100 * table.rate("all clips", "shape")
            row[RIGHT] = 100 * table.rate("all clips", "all")
        rows.append(row)
    videos = "1 video" if len(prompts) == 1 else f"{len(prompts)} videos"
    return Report(
        benchmark="steps",
        device=device_name(model.device),
        settings=(
            f"{videos} of {8 * (temp - 1) + 1} frames; the checkpoint's own settings are "
            f"`{own_way(model).name}`; evaluations are those of one video, two for a guided step; "
            "the latent error is a root mean square, relative to the latents' deviation, beside "
            f"`{fine.name}`"
        ),
        rows=rows,
    )


def _relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.float().square().mean().sqrt() / reference.float().std())


# ---- the charts --------------------------------------------------------------------------------


def charts(report: Report, ways: Sequence[Way]) -> list[Chart]:
    """Error, and accuracy where there is one, against evaluations: by solver, by split, by
    approximation. A chart without lines is left out."""
    rows = {str(row["way"]): row for row in report.rows}

    def lines(quantity: str, chosen: Sequence[Way]) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for way in chosen:
            point = number(rows[way.name], CALLS), number(rows[way.name], quantity)
            if point[1] > 0:  # the axis is logarithmic
                found.setdefault(way.kind, []).append(point)
        return {kind: sorted(points) for kind, points in found.items()}

    plain = [way for way in ways if way.kind in (*SOLVERS, STUDENT)]
    even = [way for way in plain if way.solver == SPLIT]
    rest = [way for way in ways if way.solver == SPLIT and way not in plain]
    fast = [way for way in rest if way.fast_mode]
    split = [way for way in rest if way not in fast]
    wanted = [
        (ERROR, plain, "by solver"),
        (RIGHT, plain, "by solver"),
        (ERROR, even + split if split else [], "more steps in"),
        (ERROR, even + fast if fast else [], "approximations"),
    ]
    return [
        Chart(f"{quantity}: {title}", f"{CALLS} of a video", drawn)
        for quantity, chosen, title in wanted
        if quantity in report.rows[0] and (drawn := lines(quantity, chosen))
    ]


def _student(options: Namespace, *, needed: bool) -> PyramidDiTForVideoGeneration | None:
    """What was distilled from the model; None where there is none, which `needed` refuses."""
    try:
        return PyramidDiTForVideoGeneration.from_pretrained(
            options.model, options.variant, fast=True, device=options.device
        )
    except FileNotFoundError as error:
        if needed:
            raise SystemExit(f"error: {error}") from error
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=12)
    parser.add_argument("--model", help="folder or hub id (default: the bundled checkpoint)")
    parser.add_argument("--variant", help="which of its variants, such as 384p")
    parser.add_argument(
        "--way", action="append", help="measure this one; may be given often (default: many)"
    )
    parser.add_argument(
        "--steps", type=int, nargs="+", default=LADDER, help="the numbers of steps in those many"
    )
    parser.add_argument("--prompt", action="append", help="of a video; may be given often")
    parser.add_argument("--temp", type=int, default=4, help="latent frames of a video")
    parser.add_argument(
        "--fine", type=int, default=FINE, help="steps in each stage of what ways are compared with"
    )
    parser.add_argument("--png", type=Path, default=RESULTS / "steps.png", help="the charts")
    options = parser.parse_args(arguments)
    try:
        asked = [Way.parse(text) for text in options.way or ()]
        fine = Way.parse(f"{SPLIT} {options.fine}/{options.fine}")
        for count in options.steps:
            STEPS("--steps", count)
    except ValueError as error:
        parser.error(str(error))

    keep_freed_memory()
    model = PyramidDiTForVideoGeneration.from_pretrained(
        options.model, options.variant, device=options.device
    )
    student = _student(options, needed=any(way.student for way in asked))
    for one in (model, student):
        if one is not None:
            one.set_progress_bar_config(disable=True)
    count, temp = (1, 2) if options.tiny else (options.repeats, options.temp)
    judged = options.prompt is None and model.defaults.known_sentence == CAPTION
    if judged:
        prompts = evaluation_prompts(count)
    else:
        prompts = list(islice(cycle(options.prompt or general_examples().prompts), count))
    usual = [own_way(model), *default_ways(options.steps, model.scheduler.config.stages)]
    if student is not None:
        usual += [Way.parse(f"{STUDENT} {way}") for way in STUDENT_WAYS]
    ways = list({way.name: way for way in asked or usual}.values())
    report = measure(model, ways, prompts, fine=fine, temp=temp, judged=judged, student=student)
    draw_charts(charts(report, ways), options.png)
    finish(report, options)


if __name__ == "__main__":
    main()
