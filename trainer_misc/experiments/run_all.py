"""Trains and samples all arms of the experiments, several at a time on one device.

    python -m trainer_misc.experiments.run_all --device cuda --output output/arms --workers 8

The processes first draw and encode what is trained on. Then each takes the next run, longest first,
and writes its record and samples as it goes on; one that fails leaves a file
`NAME-SEED.error.txt`, and the others go on. With `--budget-seconds` each run gets its share of the
time that the processes have together, and ends there, sampled at what it has reached. If you start
it again with the same folder, what has ended stays and what was interrupted goes on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyramid_dit.devices.cpu import keep_freed_memory
from pyramid_dit.json_files import read_json

from .arms import CLIPS, PICTURES, Arm
from .flags import SEEDS, add_training, new_parser
from .shape_latents import Drawing, Part, parts, read_latents, write_part

if TYPE_CHECKING:
    from .sampling import Judge

RUNS: dict[str, int] = {
    "clips-autoregressive": SEEDS,
    "clips-full-sequence": SEEDS,
    "clips-bidirectional": SEEDS,
    "clips-clean-history": 1,
    "clips-short-training": 1,
    "pictures-3-stages": SEEDS,
    "pictures-1-stage": SEEDS,
    "pictures-2-stages": 1,
    "pictures-gamma-0.2": 1,
    "pictures-gamma-0.05": 1,
}
"""Arms and how many seeds each has; those that take longest come first."""
WEIGHTS = {CLIPS: 2.0, PICTURES: 1.0}
"""Of the time of a run."""
RESERVE_SECONDS = 8.0
"""Of a budget, for what a run may take beyond its share."""
WAIT_SECONDS = 600.0
"""For what other processes draw."""
LATENTS = "latents"
QUICK_DRAWN = {PICTURES: 4, CLIPS: 2}
DRAWN = {"cpu": {PICTURES: 8_000, CLIPS: 1_500}, "cuda": {PICTURES: 8_000, CLIPS: 3_000}}
"""Pictures and clips to train on."""


@dataclass(frozen=True)
class Job:
    """One run, and which share of the whole time it may take."""

    arm: str
    seed: int
    share: float

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm}-{self.seed}"


def jobs_of(runs: Iterable[tuple[str, int]], workers: int) -> list[Job]:
    """Runs, of names of arms and seeds, with their shares of the time of so many processes."""
    runs = list(runs)
    weights = [WEIGHTS[Arm.named(name).data] for name, _ in runs]
    lanes = [0.0] * workers  # what each process does, taking the next run whenever it is free
    for weight in weights:
        lanes[lanes.index(min(lanes))] += weight
    return [Job(*run, weight / max(lanes)) for run, weight in zip(runs, weights, strict=True)]


@dataclass(frozen=True)
class Work:
    """What a process has to know.

    Attributes:
        folder: For records, samples and checkpoints.
        latents: Folder of the latents.
        parts: Those that have to be there.
        device: What to compute on.
        quick: Only try it out.
        threads: Of a process.
        end: When all of it should be done, in seconds since the epoch; None takes its time.
    """

    folder: Path
    latents: Path
    parts: Sequence[Part]
    device: torch.device
    quick: bool
    threads: int
    end: float | None

    def do(self, parts: Any, jobs: Any) -> None:
        """Draw the queue `parts`, then do the runs of the queue `jobs`, in this process."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("high")
        logging.basicConfig(level=logging.WARNING)
        keep_freed_memory()
        for part in _taken(parts):
            with self._noting(part.name):
                write_part(self.latents, part, self.device)
        self._wait()
        from .sampling import Judge

        judge = Judge(self.device)
        whole = None if self.end is None else self.end - time.time() - RESERVE_SECONDS
        for job in _taken(jobs):
            with self._noting(job.name):
                self._run(job, judge, whole)

    def _run(self, job: Job, judge: Judge, whole: float | None) -> None:
        from .training import ArmRun

        began = time.monotonic()
        arm = Arm.named(job.arm)
        drawing = Drawing.of(arm, self.device.type)
        data = read_latents(self.latents, drawing).to(self.device)
        run = ArmRun(arm, job.seed, data, judge, self.folder, quick=self.quick)
        seconds = None
        if whole is not None and self.end is not None:
            left = min(whole * job.share, self.end - RESERVE_SECONDS / 2 - time.time())
            seconds = left - (time.monotonic() - began)
        record = run.run(seconds)
        last = record["points"][-1]
        print(
            f"{job.name}: {last['step']} of {record['steps']} steps, "
            f"{last['rates']['all']:.0%} right, {time.monotonic() - began:.0f} s",
            flush=True,
        )

    def _wait(self) -> None:
        """Until other processes have drawn their parts, or failed to."""
        end = time.monotonic() + WAIT_SECONDS
        missing = [self.latents / part.name for part in self.parts]
        while time.monotonic() < end:
            failed = [path.name for path in missing if self._error_file(path.name).is_file()]
            missing = [p for p in missing if not p.is_file() and p.name not in failed]
            if not missing:
                return
            time.sleep(0.2)

    def _error_file(self, name: str) -> Path:
        return self.folder / f"{name}.error.txt"

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Write down what fails, and go on."""
        try:
            yield
        except Exception:
            text = traceback.format_exc()
            self._error_file(name).write_text(text, encoding="utf-8")
            print(f"{name} failed: {text.splitlines()[-1]}", flush=True)


def _taken(waiting: Any) -> Iterator[Any]:
    """What is in a queue that processes share, one by one, until it is empty."""
    while True:
        try:
            yield waiting.get(timeout=1)
        except queue.Empty:
            return


def run_all(
    folder: Path,
    runs: Iterable[tuple[str, int]],
    *,
    device: str = "cpu",
    workers: int = 1,
    budget: float | None = None,
    quick: bool = False,
    latents: Path | None = None,
) -> list[Path]:
    """Do all runs, and say which records there are.

    Args:
        folder: For records, samples and checkpoints.
        runs: Names of arms and seeds.
        device: What to compute on.
        workers: Processes.
        budget: Seconds that all of it may take; without it each run takes what it needs.
        quick: Only try it out.
        latents: Folder of latents of moving shapes, by default one in `folder`; what is missing
            there is made.

    Raises:
        RuntimeError: Runs have failed; those that have not are there.
    """
    runs = list(runs)
    kind = torch.device(device).type
    records = [folder / f"{name}-{seed}.json" for name, seed in runs]
    runs = [
        run
        for run, path in zip(runs, records, strict=True)
        if not _is_done(path, run[0], kind, quick)
    ]
    if not runs:
        return records
    end = None if budget is None else time.time() + budget
    latents = latents or folder / LATENTS
    for each in (folder, latents):
        each.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.error.txt"):
        old.unlink()
    drawings = [Drawing.of(Arm.named(name), kind) for name, _ in runs]
    wanted = parts(drawings, QUICK_DRAWN if quick else DRAWN["cpu" if kind == "cpu" else "cuda"])
    jobs = jobs_of(runs, workers)
    threads = max(1, (os.cpu_count() or 1) // workers)
    work = Work(
        *(folder, latents, wanted, torch.device(device), quick),
        *(min(threads, torch.get_num_threads()), end),
    )
    context = multiprocessing.get_context("spawn")
    queues = context.Queue(), context.Queue()
    for part in wanted:
        queues[0].put(part)
    for job in jobs:
        queues[1].put(job)
    if workers == 1:
        work.do(*queues)
    else:
        processes = [context.Process(target=work.do, args=queues) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    failed = sorted(path.name.removesuffix(".error.txt") for path in folder.glob("*.error.txt"))
    failed += [path.stem for path in records if not path.is_file() and path.stem not in failed]
    if failed:
        raise RuntimeError(f"not done: {', '.join(failed)}; see the files *.error.txt in {folder}")
    return records


def _is_done(path: Path, name: str, device: str, quick: bool) -> bool:
    """Whether a run of that arm, with the settings of today on that device, is finished."""
    if not path.is_file():
        return False
    arm = Arm.named(name)
    settings = (arm.quick() if quick else arm).as_dict(device)
    record = read_json(path)
    return bool(record["finished"] and record["settings"] == settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = new_parser("run_all", __doc__)
    add_training(parser)
    options = parser.parse_args(arguments)
    runs = [
        (name, seed) for name, seeds in RUNS.items() for seed in range(min(seeds, options.seeds))
    ]
    try:
        run_all(
            options.output,
            runs,
            device=options.device,
            workers=options.workers,
            budget=options.budget_seconds,
            quick=options.quick,
            latents=options.latents,
        )
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
