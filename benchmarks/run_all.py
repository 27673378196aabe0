"""Run all benchmarks of a CPU (or, with `--gpu`, the one of a GPU) and fill README.md.

Each runs in a process of its own, with nothing else on the machine if its figures are to mean
something.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .report import README, RESULTS, fill

CPU_BENCHMARKS = ("dit_step", "generate", "vae_decode", "noise", "scaling", "fast_mode", "steps")
WITH_CHARTS = ("scaling", "steps")
ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CPU_BENCHMARKS, action="append", help="default: all")
    parser.add_argument("--gpu", action="store_true", help="the benchmark of a GPU instead")
    parser.add_argument("--repeats", type=int, help="rounds of timing; default: by benchmark")
    parser.add_argument("--tiny", action="store_true", help="everything very small, to try it out")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.tiny and README in (options.readme, options.results / "README.md"):
        parser.error("--tiny measures nothing: give it a --readme and --results of its own")

    for name in ("gpu",) if options.gpu else options.only or CPU_BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += ["--json", str(options.results.resolve() / f"{name}.json")]
        if name in WITH_CHARTS:
            command += ["--png", str(options.results.resolve() / f"{name}.png")]
        if options.gpu:
            command += ["--device", "cpu" if options.tiny else "cuda"]
        if options.tiny:
            command.append("--tiny")
        if options.repeats is not None:
            command += ["--repeats", str(options.repeats)]
        subprocess.run(command, cwd=ROOT, check=True)
    fill(options.readme, options.results)


if __name__ == "__main__":
    main()
