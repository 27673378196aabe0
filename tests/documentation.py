"""What the pages of the documentation hold, and their blocks as commands that a test can afford.

`BlockRunner` runs the blocks of a page as they stand, in real processes. The programs that they
start (`python`, `torchrun`, `pyramid-flow`) are this file, which starts the real one with less of
everything: `LESS` says of what.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from golden import PROJECT_ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash", "console")
PROCESSES = 2


def blocks_of(text: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks in one of the languages."""
    return [(found[1], found[2]) for found in FENCE.finditer(text) if found[1] in languages]


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks of `page` in one of the languages."""
    return [text for _, text in blocks_of(page.read_text(encoding="utf-8"), *languages)]


def prose(page: Path) -> str:
    """`page` without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def sections(page: Path) -> dict[str, list[tuple[str, str]]]:
    """Language and text of the blocks that can be run, by the `##` heading that they stand under.

    Raises:
        ValueError: One stands before the first heading.
    """
    start, *parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if blocks_of(start, *SHELL, "python"):
        raise ValueError(f"{page.name} has a block before its first section")
    found = {part.splitlines()[0]: blocks_of(part, *SHELL, "python") for part in parts}
    return {heading: inside for heading, inside in found.items() if inside}


def commands_of(block: str) -> Iterator[list[str]]:
    """Commands of a shell block, each as its words, without environment variables."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while re.match(r"\w+=", command[0]):
                command = command[1:]
            yield command


# ---- less of everything -----------------------------------------------------------------------


@dataclass(frozen=True)
class Less:
    """How a command is cut.

    Attributes:
        most: Options whose number is lowered to this one where it is given.
        set: Options that are added at the end, where they replace what was given.
    """

    most: Mapping[str, int] = field(default_factory=dict)
    set: str = ""

    def of(self, arguments: list[str]) -> list[str]:
        """The arguments of a command, cut."""
        cut = list(arguments)
        for place, (option, value) in enumerate(zip(cut, cut[1:], strict=False), 1):
            if option in self.most:
                cut[place] = str(min(int(value), self.most[option]))
        return cut + self.set.split()


_TRAINING = "--num_workers 0 --model_dtype fp32 --device cpu --report_to none --print_freq 1"
LESS = {
    "trainer_misc.train_dit": Less(
        set=f"--steps 1 {_TRAINING} --batch_size 4 --image_batch_size 4 --image_sample_ratios 1,2,1"
    ),
    "trainer_misc.train_vae": Less(
        most={"--disc_start": 1}, set=f"--steps 2 {_TRAINING} --resolution 64 --batch_size 2"
    ),
    "trainer_misc.extract_features": Less(
        most={"--width": 64, "--height": 64, "--num_frames": 17}, set="--device cpu"
    ),
    "trainer_misc.round_trip": Less(most={"--resolution": 64}),
    "trainer_misc.vbench": Less(
        set="--per-prompt 1 --num-frames 9 --size 64x64 --steps 1 --device cpu"
    ),
    "trainer_misc.experiments.real_video": Less(set="--quick --batch_size 1"),
    "trainer_misc.toy.latents": Less(set="--pictures 8 --clips 4"),
    "trainer_misc.toy.long_clips": Less(set="--count 2 --seconds 5 --num_workers 0 --device cpu"),
    "trainer_misc.toy.new_word": Less(most={"--count": 4, "--known": 4}, set="--num-frames 17"),
    "trainer_misc.evaluation": Less(set="--prompts 1 --num-frames 33 --device cpu"),
    "pyramid_dit": Less(set="--num-frames 9 --size 128x128 --steps 2 --device cpu"),
}
PIXELS = Less(set="--resolution 64x64,128x64")
"""Of trainings of the transformer that encode pixels."""
SETTINGS = {
    **{"WIDTH": "64", "HEIGHT": "64", "NUM_FRAMES": "17"},
    **{"PROCESSES": str(PROCESSES), "STEPS": "1"},
}
"""Environment variables of the scripts, unless a block sets them."""


def shorter(arguments: list[str]) -> list[str]:
    """The arguments of Python, so that a training or a video takes seconds."""
    modules = [place for place, word in enumerate(arguments[:-1]) if word == "-m"]
    if not modules:
        return arguments
    start = modules[-1] + 1
    module, rest = arguments[start], arguments[start + 1 :]
    launcher = Less(most={"--nproc-per-node": PROCESSES}).of(arguments[:start])
    cut = LESS.get(module, Less()).of(rest)
    if module == "trainer_misc.train_dit" and "--load_vae" in rest:
        cut = PIXELS.of(cut)
    return [*launcher, module, *cut]


class BlockRunner:
    """Runs blocks of documentation in a folder.

    Args:
        folder: Holds what the page presupposes.
        programs: A folder for the programs that blocks start; made if it is not there.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._programs = programs
        programs.mkdir(exist_ok=True)
        starts = {"python": "", "torchrun": "-m torch.distributed.run", "pyramid-flow": ""}
        starts["pyramid-flow"] = "-m pyramid_dit"
        for name, start in starts.items():
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {start} "$@"\n')
            path.chmod(0o755)

    def shell(self, block: str, **settings: str) -> str:
        """Run a shell block, which ends at the first command that fails; return what it prints.

        Raises:
            AssertionError: A command failed.
        """
        environment = {
            **os.environ,
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            **SETTINGS,
            **settings,
        }
        done = subprocess.run(
            ["sh", "-ec", block], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr[-5000:]}"
        return done.stdout

    def python(self, block: str) -> str:
        """Run a Python block in a process of its own; return what it prints.

        Raises:
            AssertionError: It raises an exception.
        """
        (self.folder / "block.py").write_text(block, encoding="utf-8")
        return self.shell("python block.py")

    def run(self, language: str, block: str) -> str:
        """Run a block of either kind."""
        return self.python(block) if language == "python" else self.shell(block)


if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, *shorter(sys.argv[1:])])
