"""Samples that cannot be used: counted, named, and too many of them end the training."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

logger = logging.getLogger(__name__)

FILE_NAME = "skipped.jsonl"


class SampleError(ValueError):
    """A sample cannot be used; the message says why.

    Args:
        kind: What is wrong, in the same words for every sample: "missing file", ...
        reason: What is wrong with this one.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Skip:
    """A sample that was skipped."""

    sample: int
    """Its place among the annotations."""
    name: str
    kind: str
    reason: str


@dataclass
class Tally:
    """What happened since the last look: in a worker, for the process that counts."""

    tried: int
    skips: list[Skip]


class Skipped:
    """Counts the samples that cannot be used.

    Args:
        samples: How many there are.
        most: The share of them that may fail.
        folder: Where `skipped.jsonl` is written, a line for each; None for no file.
        world: So many processes share the samples of an epoch.

    Attributes:
        kinds: Samples by what is wrong with them.
    """

    def __init__(
        self,
        samples: int,
        most: float,
        folder: str | PathLike[str] | None = None,
        world: int = 1,
    ) -> None:
        self.kinds: Counter[str] = Counter()
        self._samples = samples
        self._most = most
        self._file = None if folder is None else Path(folder) / FILE_NAME
        self._least_tried = samples / world
        self._tried = 0
        self._counted: set[int] = set()

    def count(self, tally: Tally, *, quiet: bool = False) -> None:
        """Add what happened; each sample is counted, and named in the log, once.

        Args:
            tally: What happened.
            quiet: Whether another process names them.

        Raises:
            ValueError: More samples fail than may, of those that this process has to do with.
        """
        self._tried += tally.tried
        new = {skip.sample: skip for skip in tally.skips if skip.sample not in self._counted}
        if not new:
            return
        self._counted |= new.keys()
        self.kinds.update(skip.kind for skip in new.values())
        if not quiet:
            self._name(list(new.values()))
        tried = min(self._samples, max(self._tried, self._least_tried))
        if len(self._counted) > self._most * tried:
            last = list(new.values())[-1]
            raise ValueError(
                f"{len(self._counted)} of {round(tried)} samples cannot be used "
                f"({self._listed()}), more than the share of {self._most:g} that may fail; such as "
                f"{last.name}: {last.reason}"
            )

    def say(self) -> None:
        """List in the log how many there were of each kind, if any."""
        if self._counted:
            where = "" if self._file is None else f"; {self._file} names them"
            text = "%d of %d samples were skipped (%s)%s"
            logger.warning(text, len(self._counted), self._samples, self._listed(), where)

    def _listed(self) -> str:
        return ", ".join(f"{kind}: {count}" for kind, count in self.kinds.most_common())

    def _name(self, skips: list[Skip]) -> None:
        for skip in skips:
            logger.warning("skipping %s, %s: %s", skip.name, skip.kind, skip.reason)
        if self._file is None:
            return
        lines = [json.dumps(asdict(skip)) + "\n" for skip in skips]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        known = set(self._file.open(encoding="utf-8")) if self._file.exists() else set()
        with self._file.open("a", encoding="utf-8") as file:
            file.write("".join(line for line in lines if line not in known))
