"""Batches of recorded stages, for the training of a student of few steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.schedule import Schedule
from .rollouts import Rollout


@dataclass(frozen=True)
class _Form:
    """Rollouts of one length, size and start, joined."""

    latents: Tensor
    starts: Sequence[Tensor]
    ends: Sequence[Tensor]
    texts: np.ndarray
    """Number of the text in each unit, `[n, units]`."""

    @property
    def given(self) -> int:
        return self.latents.shape[2] - self.ends[0].shape[2]


class RecordedStages:
    """Rollouts in memory.

    Args:
        files: What `Rollout.write` wrote.
        numbers: Number of each text.
        frame_per_unit: Latent frames of every unit but unit 0.

    Attributes:
        forms: The rollouts, those of one form joined.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged, or shows a text that has no number.
    """

    def __init__(
        self, files: Sequence[Path], numbers: Mapping[str, int], frame_per_unit: int
    ) -> None:
        self.frame_per_unit = frame_per_unit
        by_form: dict[tuple[int, ...], list[Rollout]] = {}
        for path in files:
            rollout = Rollout.read(path)
            shown = {text for texts in rollout.storyboard.values() for text in texts}
            if unknown := sorted(shown - numbers.keys()):
                raise ValueError(f"{path} shows {unknown[0]!r}, which is none of the prompts")
            form = rollout.given, *rollout.latents.shape[2:]
            by_form.setdefault(form, []).append(rollout)
        self.forms = []
        for (_, frames, *_), rollouts in sorted(by_form.items()):
            units = 1 + (frames - 1) // frame_per_unit
            texts = [
                [numbers[prompts[row]] for prompts in _by_unit(rollout.storyboard, units)]
                for rollout in rollouts
                for row in range(len(rollout.latents))
            ]
            stages = range(len(rollouts[0].starts))
            self.forms.append(
                _Form(
                    torch.cat([one.latents for one in rollouts]),
                    [torch.cat([one.starts[stage] for one in rollouts]) for stage in stages],
                    [torch.cat([one.ends[stage] for one in rollouts]) for stage in stages],
                    np.array(texts),
                )
            )

    def units(
        self, *, first: bool, held_back: float, validation: bool
    ) -> Iterator[tuple[int, int, int]]:
        """Where first units are, or the others; of the videos that are held back, or of the rest.

        Args:
            first: Which of them.
            held_back: Share of the videos that is held back.
            validation: Whether these are wanted.

        Yields:
            Form, unit and row.
        """
        for which, form in enumerate(self.forms):
            rows = np.arange(len(form.texts))
            is_held = np.floor((rows + 1) * held_back) > np.floor(rows * held_back)
            units = range(0 if form.given == 0 else 1, form.texts.shape[1])
            for unit in units:
                if (unit == 0) == first:
                    for row in rows[is_held == validation].tolist():
                        yield which, unit, row

    def batch(self, which: int, unit: int, rows: np.ndarray) -> dict[str, Any]:
        """One unit of some videos of a form, as `StageBatches` gives it."""
        form, chosen, size = self.forms[which], torch.from_numpy(rows), self.frame_per_unit
        begin, stop = (0, 1) if unit == 0 else (1 + (unit - 1) * size, 1 + unit * size)
        made = slice(begin - form.given, stop - form.given)
        return {
            "unit": unit,
            "history": form.latents[:, :, :begin][chosen],
            "starts": [start[:, :, made][chosen] for start in form.starts],
            "ends": [end[:, :, made][chosen] for end in form.ends],
            "texts": torch.from_numpy(form.texts[rows, unit]),
        }


class StageBatches:
    """Batches of a unit each, with all of its stages.

    A batch is a pure function of its number, the seed and the process. It has

    - `unit`: number of the unit in its videos;
    - `history`: what was there before it, normalized latents `[b, c, t, h, w]`, float16; t may
      be 0;
    - `starts`, `ends`: for each stage `[b, c, t, h_k, w_k]`, float16;
    - `texts`: numbers of the texts, `[b]`.

    The prompts of a batch are equally long, for attention goes through prompts of other lengths one
    after another.

    Args:
        recorded: The rollouts.
        lengths: Tokens of each text, by number.
        batch_size: Units in a batch.
        first: Whether first units are taken, or the others.
        held_back: Share of the videos that is kept for validation.
        validation: Whether batches are of these, or of the rest.
        seed: Of the order.
        rank: Which process this is.
        world: How many there are.

    Raises:
        ValueError: There is no unit of the wanted kind.
    """

    def __init__(
        self,
        recorded: RecordedStages,
        lengths: Sequence[int],
        *,
        batch_size: int,
        first: bool,
        held_back: float = 0.0,
        validation: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._recorded = recorded
        buckets: dict[tuple[int, int, int], list[int]] = {}
        for which, unit, row in recorded.units(
            first=first, held_back=held_back, validation=validation
        ):
            text = recorded.forms[which].texts[row, unit]
            buckets.setdefault((which, unit, lengths[text]), []).append(row)
        if not buckets:
            kind = "first" if first else "later"
            raise ValueError(
                f"of the rollouts, no {kind} unit is {'held back' if validation else 'there'}"
            )
        self._keys = sorted(buckets)
        self._schedule = Schedule(
            [np.array(buckets[key]) for key in self._keys],
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world=world,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this process in which every unit comes once."""
        return self._schedule.batches_per_epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The batch of a number."""
        _, bucket, rows = self._schedule(number)
        which, unit, _ = self._keys[bucket]
        return self._recorded.batch(which, unit, rows)


def _by_unit(storyboard: Mapping[int, Sequence[str]], units: int) -> list[Sequence[str]]:
    """The prompts of each unit."""
    begins = [max(start for start in storyboard if start <= unit) for unit in range(units)]
    return [storyboard[begin] for begin in begins]
