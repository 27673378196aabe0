"""What `pyramid-flow doctor` found out: facts, and what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .status import one_line

NAME_WIDTH = 14


@dataclass
class Report:
    """Facts and problems, printed while they are found out; as JSON at the end."""

    as_json: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, name: str, text: str) -> None:
        """Add a fact, and print it."""
        self.facts[name] = text
        if not self.as_json:
            sys.stdout.write(f"{name:{NAME_WIDTH}} {text}\n")
            sys.stdout.flush()

    def wrong(self, problem: str) -> None:
        """Add a line that says what is wrong; one that was said already is left out."""
        if problem not in self.problems:
            self.problems.append(problem)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Make a problem of whatever is raised within the block.

        Args:
            what: Was tried.
        """
        try:
            yield
        except Exception as error:  # libraries raise anything over a damaged file
            self.wrong(f"{what}: {one_line(error)}")

    def end(self) -> None:
        """Print what is wrong; as JSON all of it."""
        if self.as_json:
            found = {"facts": self.facts, "problems": self.problems}
            sys.stdout.write(f"{json.dumps(found, indent=2, ensure_ascii=False)}\n")
            return
        lines = [f"- {problem}" for problem in self.problems]
        heading = {0: "nothing is wrong", 1: "1 thing is wrong:"}
        sys.stdout.write(f"\n{heading.get(len(lines), f'{len(lines)} things are wrong:')}\n")
        sys.stdout.writelines(f"{line}\n" for line in lines)
