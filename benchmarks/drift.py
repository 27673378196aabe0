"""Whether a video without end stays what it was at the start, and follows new sentences.

    python -m benchmarks.drift
    python -m benchmarks.drift --way "window=12 sink=0" --way "window=4 sink=1" --repeats 20

A shape gets a new sentence every three seconds: it moves left, right, up, down, left ... Every
scene is judged from its second unit on, for a new sentence may show one unit late. A checkpoint
that draws moving shapes is needed, as the bundled one. A way reads `window=UNITS sink=UNITS`, how
much of the history a unit sees; without one, what `stream` does where nothing is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from pyramid_dit import PyramidDiTForVideoGeneration
from pyramid_dit.checks import Whole
from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.flow.sizes import TEMPORAL_FACTOR
from pyramid_dit.media.figures import picture_grid
from pyramid_dit.sampling.fast_mode import FastMode
from trainer_misc.toy.evaluation import evaluation_prompts
from trainer_misc.toy.judge import Verdict, as_frames, judge
from trainer_misc.toy.moving_shapes import DIRECTIONS, Combination, described

from .measure import device_name
from .report import Bar, Cell, Report, finish, option_parser

KEPT = ("color", "shape", "background")
KEPT_BAR, MOTION_BAR = 90.0, 80.0  # percent
BATCH = 4
USUAL = "as it is"


@dataclass(frozen=True)
class Scenes:
    """What one video shows, and what it should show, scene by scene."""

    wanted: Sequence[Combination]
    found: Sequence[Verdict]
    last_frames: Sequence[np.ndarray] = ()
    """Of each scene, uint8 `[h, w, 3]`."""

    def kept(self, name: str, scene: int) -> bool:
        """Whether an attribute of the start is right in a scene."""
        return getattr(self.found[scene], name) == getattr(self.wanted[scene], name)

    def moves(self) -> list[bool]:
        """Whether the motion is right, by scene."""
        pairs = zip(self.wanted, self.found, strict=True)
        return [wanted.motion == found.motion for wanted, found in pairs]


def parse_way(text: str) -> FastMode:
    """Read a way as the head of this file describes it.

    Raises:
        ValueError: It is none.
    """
    values: dict[str, int] = {}
    for part in text.split():
        name, _, value = part.partition("=")
        if name not in ("window", "sink"):
            raise ValueError(f"a way must be like 'window=12 sink=1', got {text!r}")
        values[f"history_{name}"] = Whole(0).parse(value)
    return FastMode(**values)


def starts(runs: int) -> list[Combination]:
    """What the videos show: colors, shapes and backgrounds in turn."""
    prompts = evaluation_prompts(100)
    spread = (described(text) for text in cycle(prompts))
    return list(islice(spread, runs))


def videos(
    model: PyramidDiTForVideoGeneration,
    shown: Sequence[Combination],
    *,
    scenes: int,
    units_a_scene: int,
    seed: int,
) -> Iterator[Scenes]:
    """Make videos of so many scenes, some at a time, and judge them."""
    wanted = [
        [replace(what, motion=motion) for motion in islice(cycle(DIRECTIONS), scenes)]
        for what in shown
    ]
    for first in range(0, len(shown), BATCH):
        group = wanted[first : first + BATCH]
        sentences = [[scene.caption for scene in story] for story in group]

        def next_prompt(unit: int, sentences: list[list[str]] = sentences) -> list[str] | None:
            scene, rest = divmod(unit, units_a_scene)
            return None if rest or scene >= scenes else [story[scene] for story in sentences]

        verdicts: list[list[Verdict]] = [[] for _ in group]
        endings: list[list[np.ndarray]] = [[] for _ in group]
        scene: list[list[np.ndarray]] = [[] for _ in group]
        stream = model.live(
            [story[0] for story in sentences],
            next_prompt=next_prompt,
            seed=[seed + first + number for number in range(len(group))],
        )
        for unit, pieces in enumerate(islice(stream, scenes * units_a_scene)):
            if unit % units_a_scene:
                for frames, piece in zip(scene, pieces, strict=True):
                    frames.append(as_frames(piece))
            if (unit + 1) % units_a_scene == 0:
                for found, seen, frames in zip(verdicts, endings, scene, strict=True):
                    found.append(judge(np.concatenate(frames)))
                    seen.append(frames[-1][-1])
                    frames.clear()
        stream.close()
        yield from map(Scenes, group, verdicts, endings)


def share(values: Sequence[bool]) -> float:
    """Percent that hold."""
    return 100 * sum(values) / len(values)


def row(way: str, found: Sequence[Scenes], seconds: float) -> dict[str, Cell]:
    """What became of the videos of one way."""
    middle = len(found[0].wanted) // 2
    all_kept = [all(video.kept(name, -1) for name in KEPT) for video in found]
    halfway = [all(video.kept(name, middle) for name in KEPT) for video in found]
    return {
        "history": way,
        "videos": len(found),
        **{f"{name}, %": share([video.kept(name, -1) for video in found]) for name in KEPT},
        "all three at the end, %": share(all_kept),
        "halfway, %": share(halfway),
        "motion, %": share([right for video in found for right in video.moves()]),
        "first half, %": share([right for video in found for right in video.moves()[:middle]]),
        "seconds a video": seconds / len(found),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, and write what was found."""
    parser = option_parser(__doc__, repeats=20)
    parser.add_argument("--model", metavar="FOLDER", help="by default the bundled checkpoint")
    parser.add_argument("--way", action="append", default=[], metavar="TEXT")
    parser.add_argument("--seconds", type=Whole().parse, default=60, help="of a video")
    parser.add_argument("--scene", type=Whole().parse, default=3, help="seconds of a sentence")
    parser.add_argument("--sheet", type=Path, help="picture to write: the end of each scene")
    options = parser.parse_args(arguments)
    try:
        ways = {text: parse_way(text) for text in options.way} or {USUAL: FastMode()}
    except ValueError as error:
        parser.error(str(error))

    if options.tiny:
        options.repeats, options.seconds, options.scene = 2, 2, 1
    keep_freed_memory()
    model = PyramidDiTForVideoGeneration.from_pretrained(options.model, device=options.device)
    model.set_progress_bar_config(disable=True)
    units_a_scene = options.scene * model.defaults.frames_per_second // TEMPORAL_FACTOR
    scenes = options.seconds // options.scene
    report = Report(
        "drift",
        device_name(model.device),
        f"{options.repeats} videos of {options.seconds} s, a new sentence every {options.scene} s",
    )
    ends: list[list[Image.Image]] = []
    for name, fast_mode in ways.items():
        model.video_generator.fast_mode = fast_mode
        began = time.perf_counter()
        shown = starts(options.repeats)
        found = [*videos(model, shown, scenes=scenes, units_a_scene=units_a_scene, seed=0)]
        report.rows.append(row(name, found, time.perf_counter() - began))
        ends += [[Image.fromarray(frame) for frame in video.last_frames] for video in found]
    if options.sheet is not None:
        titles = [f"{(scene + 1) * options.scene} s" for scene in range(scenes)]
        picture_grid(ends, column_labels=titles, side=64).save(options.sheet)
    kept, motion = (report.rows[0][key] for key in ("all three at the end, %", "motion, %"))
    report.bars = [
        Bar("color, shape and background at the end", float(kept or 0), KEPT_BAR, "%"),
        Bar("motion of each scene", float(motion or 0), MOTION_BAR, "%"),
    ]
    finish(report, options)


if __name__ == "__main__":
    main()
