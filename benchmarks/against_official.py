"""Beside the official code itself: one step of the transformer, decoding, and a whole run.

    python -m benchmarks.against_official --reference CHECKOUT --python PYTHON

CHECKOUT is a folder with the official repository. PYTHON is an interpreter that can import it, of
an environment of its own with a current PyTorch, in which the packages it names are installed. The
models are the narrow ones of the other benchmarks, and for the whole run those of the bundled
checkpoint's size; all weights of the official side are random. Each side is a process that waits
while the other one works. One step of ours pays for all that is computed once per stage.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyramid_dit import PyramidFluxTransformer
from pyramid_dit.checkpoints.hub import open_checkpoint
from pyramid_dit.flow.sizes import SPATIAL_FACTOR, frames_of, temp_of
from pyramid_dit.flow.temporal_pyramid import history_plan
from pyramid_dit.json_files import read_json
from video_vae import CausalVideoVAE

from .dit_step import LATE_UNIT
from .flops import STAGES
from .generate import run_arguments
from .measure import alternate, beside_code, device_name, speed_up
from .official_run import WARM_UP
from .report import Cell, Report, finish, median, option_parser, rounds, spread
from .setups import FLUX_CONFIGS, SIZES, TINY_SIZES, VAE_CONFIGS

OFFICIAL, OURS = "official", "ours"
FRAMES = 33
"""That are decoded."""
DESCRIPTIONS = {
    **{name: f"step at {name}" for name in SIZES},
    "decoding": f"decoding of {FRAMES} frames",
    "video": "whole run",
}
"""Of the tasks."""
TASKS = tuple(DESCRIPTIONS)
ROOT = Path(__file__).parents[1]


class Side:
    """A process that does tasks.

    Args:
        name: `official` or `ours`.
        python: The interpreter.
        checkout: Whose code it imports.
        job: For `official_run`.
        log: File for what it prints.
    """

    def __init__(
        self, name: str, python: str, checkout: Path, job: dict[str, Any], log: Path
    ) -> None:
        self.name, self._log = name, log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                beside_code(python, "official_run.py", name, json.dumps(job)),
                cwd=checkout,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()  # the end of its input is its own

    def wait(self, word: str) -> None:
        """Wait for `word` on a line of its output.

        Raises:
            RuntimeError: It failed; the message has its last words.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != word:
            self._process.wait()
            words = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise RuntimeError("\n".join([f"the {self.name} side failed:", *words[-20:]]))

    def do(self, task: str) -> None:
        """Have one of `TASKS` done.

        Raises:
            RuntimeError: It failed; the message has its last words.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: why, `wait` says
            self._process.stdin.write(f"{task}\n")
            self._process.stdin.flush()
        self.wait("done")


def make_job(*, tiny: bool, bf16: bool) -> dict[str, Any]:
    """What both sides need to know, see `official_run`."""
    size, sizes = ("tiny", TINY_SIZES) if tiny else ("narrow", SIZES)
    with torch.device("meta"):
        transformer = dict(PyramidFluxTransformer(**FLUX_CONFIGS[size]).config)
        vae = dict(CausalVideoVAE(**VAE_CONFIGS[size]).config)
    channels = vae["decoder_in_channels"]

    def clip(batch: int, frames: int, height: int, width: int, side: int = 1) -> list[int]:
        side *= SPATIAL_FACTOR
        return [batch, channels, frames, height // side, width // side]

    last = STAGES - 1
    history = history_plan(LATE_UNIT, last)
    steps = {
        name: [
            *(clip(2, c.stop - c.start, *pixels, 2 ** (last - c.stage)) for c in history),
            clip(2, 1, *pixels),
        ]
        for name, pixels in {WARM_UP: (64, 64), **sizes}.items()
    }
    folder = open_checkpoint(None)
    video = run_arguments(folder.defaults, tiny=tiny)
    del video["negative_prompt"]  # the official side reads no text
    return {
        "threads": torch.get_num_threads(),
        "bf16": bf16,
        "transformer": transformer,
        "vae": vae,
        "steps": steps,
        "latents": clip(1, temp_of(9 if tiny else FRAMES), *sizes["384p"]),
        "video_transformer": read_json(folder.path / folder.variant / "config.json"),
        "video_vae": read_json(folder.path / folder.vae_folder / "config.json"),
        "video": video,
    }


def measure(
    reference: Path,
    python: str,
    tasks: Sequence[str],
    *,
    repeats: int,
    bf16: bool = False,
    tiny: bool = False,
) -> Report:
    """Do `tasks` on both sides, in turn.

    Args:
        reference: Folder of the official repository.
        python: Interpreter that can import it.
        tasks: Some of `TASKS`.
        repeats: Rounds of each task.
        bf16: Under autocast to bfloat16 on both sides, else in float32.
        tiny: Everything very small.

    Raises:
        RuntimeError: A side failed.
    """
    job = make_job(tiny=tiny, bf16=bf16)
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        sides = [
            stack.enter_context(Side(name, interpreter, checkout, job, Path(logs, name)))
            for name, interpreter, checkout in (
                (OFFICIAL, python, reference),
                (OURS, sys.executable, ROOT),
            )
        ]
        for side in sides:
            side.wait("ready")
        for task in tasks:
            times = alternate(
                {side.name: partial(side.do, task) for side in sides},
                repeats=repeats,
                device=torch.device("cpu"),
                warm_up=False,  # both begin with a short one
            )
            rows += [
                {
                    "what": DESCRIPTIONS[task],
                    "way": way,
                    "median, s": median(times[way]),
                    "range, s": spread(times[way]),
                    "speed-up": speed_up(times, OFFICIAL, way),
                }
                for way in times
            ]
    return Report(
        benchmark="against_official",
        device=device_name(torch.device("cpu")),
        settings=(
            f"Transformer and VAE `{'tiny' if tiny else 'narrow'}` in "
            f"{'bfloat16 by autocast' if bf16 else 'float32'}, whole run of "
            f"{frames_of(job['video']['temp'])} frames of "
            f"{job['video']['width']}x{job['video']['height']} with the bundled checkpoint's "
            f"sizes, {rounds(repeats)}"
        ),
        rows=rows,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = option_parser(__doc__, repeats=3)
    parser.add_argument(
        "--reference", type=Path, required=True, help="folder of the official repository"
    )
    parser.add_argument("--python", required=True, help="interpreter that can import it")
    parser.add_argument("--only", choices=TASKS, action="append", help="default: all")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16 on both sides")
    options = parser.parse_args(arguments)
    if options.device.type != "cpu":
        parser.error("both sides are compared on the CPU")
    if not (options.reference / "pyramid_dit").is_dir():
        parser.error(f"{options.reference} has no folder pyramid_dit")
    if shutil.which(options.python) is None:
        parser.error(f"there is no interpreter {options.python}")
    report = measure(
        options.reference,
        str(Path(shutil.which(options.python)).absolute()),
        options.only or TASKS,
        repeats=options.repeats,
        bf16=options.bf16,
        tiny=options.tiny,
    )
    finish(report, options)


if __name__ == "__main__":
    main()
