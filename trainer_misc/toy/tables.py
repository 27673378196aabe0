"""Verdicts on clips as tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from pyramid_dit.media.figures import evenly_spaced, picture_grid

from .judge import ATTRIBUTES, Verdict, as_frames, judge
from .moving_shapes import described

GROUPS = ("trained", "held-out", "all clips")

Frames: TypeAlias = np.ndarray | Sequence[Image.Image]


@dataclass(frozen=True)
class Judged:
    """A clip's caption and what the clip shows."""

    caption: str
    verdict: Verdict

    @property
    def group(self) -> str:
        return "held-out" if described(self.caption).is_held_out else "trained"

    def right(self, attribute: str) -> bool:
        """Whether an attribute, or ``"all"`` four, is what the caption says."""
        agreement = self.verdict.agreement(self.caption)
        return all(agreement.values()) if attribute == "all" else agreement[attribute]


@dataclass(frozen=True)
class Table:
    """Verdicts on clips, and the rates at which they agree with the captions."""

    judged: tuple[Judged, ...]

    def members(self, group: str) -> list[Judged]:
        """Clips of one of :data:`GROUPS`."""
        if group not in GROUPS:
            raise ValueError(f"group is {group!r}, must be one of {GROUPS}")
        return [clip for clip in self.judged if group in (clip.group, "all clips")]

    def rate(self, group: str, attribute: str) -> float:
        """Share of a group's clips whose attribute (or ``"all"`` four) is right; nan if empty."""
        right = [clip.right(attribute) for clip in self.members(group)]
        return sum(right) / len(right) if right else math.nan

    def markdown(self) -> str:
        """The rates as a markdown table."""
        rows = [
            ["clips", "number", *ATTRIBUTES, "all four"],
            ["---", *["--:"] * (len(ATTRIBUTES) + 2)],
        ]
        for group in GROUPS:
            if members := self.members(group):
                rates = [f"{self.rate(group, name):.0%}" for name in (*ATTRIBUTES, "all")]
                rows.append([group, str(len(members)), *rates])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def as_dict(self) -> dict[str, Any]:
        """Rates and single verdicts, ready for json."""
        rates = {
            group: {name: self.rate(group, name) for name in (*ATTRIBUTES, "all")}
            for group in GROUPS
            if self.members(group)
        }
        clips = [
            {"caption": clip.caption, "right": clip.right("all"), **asdict(clip.verdict)}
            for clip in self.judged
        ]
        return {"rates": rates, "clips": clips}


def evaluate_frames(clips: Iterable[tuple[Frames, str]]) -> Table:
    """Judge pairs of a clip (see :func:`~trainer_misc.toy.judge.as_frames`) and its caption.

    Raises:
        ValueError: there are no clips, or a caption is not one of the set.
    """
    judged = tuple(Judged(caption, judge(frames)) for frames, caption in clips)
    if not judged:
        raise ValueError("there are no clips to evaluate")
    return Table(judged)


def contact_sheet(clips: Sequence[Frames], table: Table, columns: int = 6) -> Image.Image:
    """A few frames of every clip beside its caption, which says what is wrong with the clip."""
    labels = []
    for judged in table.judged:
        wrong = [name for name in ATTRIBUTES if not judged.right(name)]
        labels.append(judged.caption + (f"\nWRONG: {', '.join(wrong)}" if wrong else ""))
    rows = [
        [Image.fromarray(frame) for frame in evenly_spaced(list(as_frames(clip)), columns)]
        for clip in clips
    ]
    return picture_grid(rows, row_labels=labels, side=64)
