"""Time and memory of a model of the released size on a CPU, each run in a process of its own.

    python -m benchmarks.released_size FOLDER
    python -m benchmarks.released_size FOLDER --memory 14GB --memory auto --beside CHECKOUT

FOLDER is a checkpoint in the released layout. Where there is none, one is made: miniFLUX at 384p
with its text encoders and VAE, random weights in bfloat16, 14 GB. It is kept, and used again.
CHECKOUT is a folder with another commit of this project, which makes the same video in turn.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyramid_dit.checks import STEPS
from pyramid_dit.cli.options import parse_size
from pyramid_dit.flow.sizes import temp_of
from pyramid_dit.generation.memory_presets import check_preset

from .measure import beside_code, device_name
from .random_checkpoint import check_whole, checkpoint_parts, size_on_disk, write_random_checkpoint
from .released_run import ALL, CPU, FILES, PEAK, WALL
from .report import Bar, Cell, Report, finish, option_parser, rounds

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
NONE = "none"
PROMPT = "a red circle moves left on a white background"
NEGATIVE_PROMPT = " ".join(["a gray cross on a black background"] * 7)
"""About as many tokens as the default one of the released models has."""
MEMORY_BAR, TIME_BAR = 14.0, 0.88


@dataclass(frozen=True)
class Setup:
    """Whose code makes the video, and what it is told about memory."""

    checkout: Path
    memory: str

    @property
    def code(self) -> str:
        """For the table."""
        return "this" if self.checkout == ROOT else self.checkout.name

    def run(self, folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make the video in a process of its own; what `released_run` prints.

        Raises:
            RuntimeError: It failed.
        """
        load = {} if self.memory == NONE else {"memory": self.memory, "device": "cpu"}
        options = {"folder": str(folder.absolute()), "load": load, "generate": arguments}
        command = beside_code(sys.executable, "released_run.py", json.dumps(options))
        logger.info("running %s, memory %s", self.code, self.memory)
        done = subprocess.run(
            command, cwd=self.checkout, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"the run of {self.code} with memory {self.memory} failed, status {done.returncode}"
            )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        logger.info("%s", found)  # a run that is cut off leaves what it has found
        return found


Results = dict[Setup, list[dict[str, Any]]]


def measure(
    setups: Sequence[Setup], folder: Path, arguments: dict[str, Any], *, repeats: int
) -> Report:
    """Run all setups in turn, `repeats` times.

    Args:
        setups: What to run; what has another checkout is what the others are compared with.
        folder: The checkpoint.
        arguments: Of `generate`.
        repeats: Number of rounds.

    Raises:
        RuntimeError: A run failed.
    """
    results: Results = {setup: [] for setup in setups}
    order = list(setups)
    for _ in range(repeats):
        for setup in order:
            results[setup].append(setup.run(folder, arguments))
        order.reverse()
    rows: list[dict[str, Cell]] = []
    for setup, runs in results.items():
        for part in runs[0]["parts"]:
            figures = {
                key: _middle([run["parts"][part].get(key) for run in runs])
                for key in (WALL, CPU, PEAK, FILES)
            }
            rows.append({"code": setup.code, "memory": setup.memory, "part": part, **figures})
    first = results[setups[0]][0]
    return Report(
        benchmark="released_size",
        device=device_name(torch.device("cpu")),
        settings=(
            f"Transformer of {first['parameters']:,} parameters, {first['frames']} frames of "
            f"{arguments['width']}x{arguments['height']}, {arguments['num_inference_steps']} and "
            f"{arguments['video_num_inference_steps']} steps in a stage, {rounds(repeats)}; "
            f"`{WALL}` is time that passed, `{CPU}` what all threads were at work"
        ),
        rows=rows,
        bars=list(_bars(results)),
    )


def _middle(values: Sequence[float | None]) -> float | None:
    """The median; None of a part too short to be looked at."""
    there = [value for value in values if value is not None]
    return float(statistics.median(there)) if there else None


def _bars(results: Results) -> list[Bar]:
    """Of every setup that has to save memory."""
    bars = []
    other = next((runs for setup, runs in results.items() if setup.checkout != ROOT), None)
    for setup, runs in results.items():
        if setup.checkout != ROOT or setup.memory == NONE:
            continue
        peak = statistics.median(run["parts"][ALL][PEAK] for run in runs)
        what = f"peak with memory {setup.memory}"
        bars.append(Bar(what, peak, MEMORY_BAR, " GB", at_least=False))
        if other is not None:
            ratio = statistics.median(
                run["parts"][ALL][CPU] / beside["parts"][ALL][CPU]
                for run, beside in zip(runs, other, strict=True)
            )
            what = f"CPU time with memory {setup.memory}, of the other commit's"
            bars.append(Bar(what, ratio, TIME_BAR, "", at_least=False))
    return bars


# ---- the command -------------------------------------------------------------------------------


def make_checkpoint(folder: Path, size: str, *, agreed: bool) -> None:
    """Have a whole checkpoint in `folder`.

    Args:
        folder: Where.
        size: Of `setups`, where it has to be made.
        agreed: Make it without asking.

    Raises:
        ValueError: What is there is damaged, or nobody agreed.
        OSError: What is there is no checkpoint, or the disk has not the room.
    """
    if folder.exists():
        check_whole(folder)
        return
    parts = checkpoint_parts(size)
    question = f"write {size_on_disk(parts) / 1e9:.1f} GB of random weights to {folder}? [y/N] "
    if not agreed and (not sys.stdin.isatty() or input(question).strip().lower() != "y"):
        raise ValueError(f"there is no checkpoint in {folder}; with --yes one is made")
    write_random_checkpoint(folder, parts)


def _memory(text: str) -> str:
    if text != NONE:
        try:
            check_preset(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=1)
    parser.add_argument("folder", type=Path, help="a checkpoint, made where there is none")
    parser.add_argument("--yes", action="store_true", help="make it without asking")
    parser.add_argument(
        "--memory",
        type=_memory,
        action="append",
        help="of `from_pretrained`: none, auto, a preset or a size such as 14GB; may be given "
        "often (default: none and 14GB)",
    )
    parser.add_argument(
        "--beside", type=Path, help="folder of another commit, measured in turn without `memory`"
    )
    parser.add_argument("--frames", type=int, default=9, help="of the video (%(default)s)")
    parser.add_argument("--size", type=parse_size, help="of the video (640x384)")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(2, 1),
        metavar=("FIRST", "LATER"),
        help="in each stage of the first unit and of later ones (2 1)",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    width, height = options.size or ((64, 64) if options.tiny else (640, 384))
    try:
        if options.device.type != "cpu":
            raise ValueError("this is of the CPU, python -m benchmarks.gpu of a GPU")
        if options.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {options.repeats}")
        if options.beside is not None and not (options.beside / "pyramid_dit").is_dir():
            raise ValueError(f"{options.beside} has no folder pyramid_dit")
        for steps in options.steps:
            STEPS("--steps", steps)
        temp = temp_of(options.frames)
        size = "tiny" if options.tiny else "released"
        make_checkpoint(options.folder, size, agreed=options.yes)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    setups = [Setup(ROOT, memory) for memory in options.memory or (NONE, "14GB")]
    if options.beside is not None:
        setups.append(Setup(options.beside.resolve(), NONE))
    generate = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "height": height,
        "width": width,
        "temp": temp,
        "num_inference_steps": [options.steps[0]] * 3,
        "video_num_inference_steps": [options.steps[1]] * 3,
    }
    setups = list(dict.fromkeys(setups))
    finish(measure(setups, options.folder, generate, repeats=options.repeats), options)


if __name__ == "__main__":
    main()
