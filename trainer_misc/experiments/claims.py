"""What the commands of trained claims have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyramid_dit.files import replacing

from .flags import add_training, new_parser
from .report import Measure, Results
from .run_all import run_all


@dataclass(frozen=True)
class Claim:
    """Arms that are compared.

    Attributes:
        name: Of the files, and of the command with underscores.
        title: Of the figure.
        labels: What the arms are called, by their names.
        measures: What is in the table, and in the figure.
        seeds: Most seeds of an arm, where they are not all that are asked for.
        at_the_end: What is told of each run's end, wherever that is.
    """

    name: str
    title: str
    labels: Mapping[str, str]
    measures: Sequence[Measure]
    seeds: int | None = None
    at_the_end: Sequence[Measure] = ()

    def run(
        self,
        description: str | None,
        arguments: Sequence[str] | None,
        more: Callable[[Results], str] = lambda results: "",
    ) -> None:
        """Read the command line, do the runs that are not done, and write what came out.

        The files are `NAME.png` and `NAME.md` in the output folder, beside the records of the runs.

        Args:
            description: Of the command.
            arguments: By default those of this process.
            more: What is said below the table.

        Raises:
            SystemExit: Something was no good (2).
        """
        parser = new_parser(self.name.replace("-", "_"), description)
        add_training(parser)
        options = parser.parse_args(arguments)
        seeds = min(options.seeds, self.seeds or options.seeds)
        try:
            records = run_all(
                options.output,
                [(arm, seed) for arm in self.labels for seed in range(seeds)],
                device=options.device,
                workers=options.workers,
                budget=options.budget_seconds,
                quick=options.quick,
                latents=options.latents,
            )
            text = self.write(Results.read(records, self.labels), options.output, more)
        except (OSError, ValueError, RuntimeError) as error:
            parser.error(str(error))
        print(text)

    def write(
        self, results: Results, folder: Path, more: Callable[[Results], str] = lambda results: ""
    ) -> str:
        """Write figure and table into `folder`; returns the table and what `more` says."""
        text = results.table(self.measures)
        if self.at_the_end:
            text += "\nAt the end of the training:\n\n" + results.table_of_ends(self.at_the_end)
        text += more(results)
        results.draw(folder / f"{self.name}.png", self.title, self.measures)
        with replacing(folder / f"{self.name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        return text
