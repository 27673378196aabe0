"""How much videos of one prompt differ from seed to seed, with the transformer and its student.

    python -m benchmarks.diversity
    python -m benchmarks.diversity --model FOLDER --repeats 16

Measured on first frames, where place and size of a shape are decided: their standard deviation over
seeds, root mean square over prompts. `drawn` are clips of the training set with as many draws. A
checkpoint that draws moving shapes and has a student is needed, as the bundled one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.devices.cpu import keep_freed_memory
from trainer_misc.toy.evaluation import evaluation_prompts
from trainer_misc.toy.judge import as_frames, place_of
from trainer_misc.toy.moving_shapes import described, draw_clip, render_uint8

from .measure import device_name
from .report import Cell, Report, finish, option_parser

PROMPTS = 20

FirstFrames = Callable[[str, Sequence[int]], Sequence[np.ndarray]]
"""Takes a prompt and seeds, returns as many frames, uint8 `[h, w, 3]`."""


def drawn(prompt: str, seeds: Sequence[int]) -> list[np.ndarray]:
    """First frames of the training set."""
    clips = (draw_clip(described(prompt), np.random.default_rng(seed)) for seed in seeds)
    return [render_uint8(clip, [0])[0] for clip in clips]


def made_by(model: PyramidDiTForVideoGeneration) -> FirstFrames:
    """First frames that a model makes."""

    def frames(prompt: str, seeds: Sequence[int]) -> list[np.ndarray]:
        videos = model.generate(
            [prompt] * len(seeds),
            temp=1,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )
        return [as_frames(video)[0] for video in videos]

    return frames


def row(name: str, frames: FirstFrames, prompts: Sequence[str], seeds: int) -> dict[str, Cell]:
    """The spread of places and sizes."""
    variances, missing = [], 0
    for number, prompt in enumerate(prompts):
        found = [
            place_of(frame) for frame in frames(prompt, range(number * seeds, (number + 1) * seeds))
        ]
        places = [place for place in found if place is not None]
        missing += len(found) - len(places)
        if len(places) > 1:
            variances.append(np.var(places, axis=0, ddof=1))
    x, y, log_radius = np.sqrt(np.mean(variances, axis=0)).tolist()
    return {
        "first frames": name,
        "number": len(prompts) * seeds,
        "without a shape": missing,
        "x, pixels": x,
        "y, pixels": y,
        "radius, %": 100 * log_radius,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, and write what was found."""
    parser = option_parser(__doc__, repeats=16)
    parser.add_argument("--model", metavar="FOLDER", help="by default the bundled checkpoint")
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error(f"--repeats is {options.repeats}, at least 2 seeds differ")
    prompts = evaluation_prompts(2 if options.tiny else PROMPTS)
    seeds = 2 if options.tiny else options.repeats
    keep_freed_memory()
    rows = [row("drawn", drawn, prompts, seeds)]
    for name, fast in (("the transformer", False), ("its student", True)):
        model = PyramidDiTForVideoGeneration.from_pretrained(
            options.model, device=options.device, fast=fast
        )
        model.set_progress_bar_config(disable=True)
        rows.append(row(name, made_by(model), prompts, seeds))
    settings = f"{len(prompts)} prompts, {seeds} seeds each; standard deviations over seeds"
    finish(Report("diversity", device_name(model.device), settings, rows=rows), options)


if __name__ == "__main__":
    main()
