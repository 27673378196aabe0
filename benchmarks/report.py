"""What a benchmark found: printed, kept as JSON, and put into README.md.

`python -m benchmarks.report` fills the tables of `benchmarks/README.md` from the JSON files in
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
RESULTS = FOLDER / "results"
SECTION = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

Cell = str | int | float | None


@dataclass(frozen=True)
class Bar:
    """A figure and what it should be."""

    what: str
    value: float
    limit: float
    unit: str
    """Behind the number: `x`, ` s`, ` GB`, `%`."""
    at_least: bool = True
    """Whether the figure should be at least `limit`, or at most."""

    @property
    def holds(self) -> bool:
        """Whether the figure is what it should be."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        verdict = "holds" if self.holds else "missed"
        return (
            f"{self.what}: {self.value:.3g}{self.unit}; "
            f"bar {bound} {self.limit:.3g}{self.unit}: {verdict}"
        )


@dataclass
class Report:
    """The outcome of one benchmark."""

    benchmark: str
    device: str
    settings: str
    """What was run, in a line."""
    rows: list[dict[str, Cell]] = field(default_factory=list)
    """A table; the keys are the headings, with units."""
    bars: list[Bar] = field(default_factory=list)

    def markdown(self) -> str:
        """Settings, table and bars."""
        parts = [f"{self.device}. {self.settings}.", markdown_table(self.rows)]
        if self.bars:
            parts.append("\n".join(f"- {bar}" for bar in self.bars))
        return "\n\n".join(parts)

    def save(self, path: Path) -> None:
        """Write JSON to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["bars"] = [Bar(**bar) for bar in values["bars"]]
        return cls(**values)


def markdown_table(rows: Sequence[dict[str, Cell]]) -> str:
    """Rows with the same keys as a table, numbers to three digits, aligned for reading."""
    headings = list(rows[0])
    cells = [headings, *([_text(row[key]) for key in headings] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [not isinstance(rows[0][key], str) for key in headings]
    aligned = [
        " | ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        for line in cells
    ]
    pairs = zip(widths, numeric, strict=True)
    rule = " | ".join("-" * (width - 1) + ":" if right else "-" * width for width, right in pairs)
    return "\n".join(f"| {line} |" for line in (aligned[0], rule, *aligned[1:]))


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        digits = f"{cell:.3g}"
        return f"{cell:.0f}" if "e+" in digits else digits
    return f"{cell:,}" if isinstance(cell, int) else cell


def number(row: dict[str, Cell], heading: str) -> float:
    """A figure of a row.

    Raises:
        TypeError: There is none.
    """
    cell = row[heading]
    if not isinstance(cell, int | float):
        raise TypeError(f"{heading} is {cell!r}, not a number")
    return float(cell)


def spread(seconds: Sequence[float]) -> str:
    """Fastest to slowest, in seconds."""
    return f"{min(seconds):.3g} to {max(seconds):.3g}"


def median(seconds: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(seconds))


def rounds(repeats: int) -> str:
    """How often was measured."""
    return "1 round" if repeats == 1 else f"{repeats} rounds"


# ---- the commands -----------------------------------------------------------------------------


def option_parser(description: str | None, *, repeats: int) -> ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="rounds of timing (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--tiny", action="store_true", help="everything very small, to try the command out"
    )
    return parser


def finish(report: Report, options: Namespace) -> None:
    """Print the report and, where asked, write it to a file."""
    sys.stdout.write(f"{report.benchmark}\n\n{report.markdown()}\n")
    if options.json is not None:
        report.save(options.json)


def fill(readme: Path, results: Path) -> None:
    """Put the reports of the folder `results` between the marks of their names in `readme`.

    Sections without a report stay as they are.

    Raises:
        ValueError: A report has no section.
    """
    reports = {path.stem: Report.load(path) for path in sorted(results.glob("*.json"))}
    text = readme.read_text(encoding="utf-8")
    missing = reports.keys() - {match[2] for match in SECTION.finditer(text)}
    if missing:
        raise ValueError(f"{readme} has no section for {', '.join(sorted(missing))}")

    def section(match: re.Match[str]) -> str:
        report = reports.get(match[2])
        return match[0] if report is None else f"{match[1]}{report.markdown()}\n{match[3]}"

    readme.write_text(SECTION.sub(section, text), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the tables."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    fill(options.readme, options.results)


if __name__ == "__main__":
    main()
