"""Batches of recorded stages, for the training of a student of few steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.schedule import Schedule
from .rollouts import Rollout


@dataclass(frozen=True)
class _Kind:
    """Rollouts of one form, joined."""

    latents: Tensor
    starts: Sequence[Tensor]
    ends: Sequence[Tensor]
    texts: np.ndarray
    """Number of the text in each unit, `[n, units]`."""
    given: int


class StageBatches:
    """Batches of a unit each, with all of its stages.

    A batch is a pure function of its number, the seed and the process. It has

    - `unit`: number of the unit in its videos;
    - `history`: what was there before it, normalized latents `[b, c, t, h, w]`, float16; t may
      be 0;
    - `starts`, `ends`: for each stage `[b, c, t, h_k, w_k]`, float16;
    - `texts`: numbers of the texts, `[b]`.

    The prompts of a batch are equally long, as far as there are enough of them, for attention goes
    through prompts of other lengths one after another.

    Args:
        files: Files of rollouts, which are read into memory.
        numbers: Number of each text.
        lengths: Tokens of each text, by number.
        batch_size: Units in a batch.
        first: Whether first units are taken, or the others.
        frame_per_unit: Latent frames of every unit but unit 0.
        held_back: Share of the videos that is kept for validation.
        validation: Whether batches are of these, or of the rest.
        seed: Of the order.
        rank: Which process this is.
        world: How many there are.

    Attributes:
        count: Units to take batches of.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged, or no unit is of the wanted kind.
    """

    def __init__(
        self,
        files: Sequence[Path],
        numbers: Mapping[str, int],
        lengths: Sequence[int],
        *,
        batch_size: int,
        first: bool,
        frame_per_unit: int,
        held_back: float,
        validation: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._unit = frame_per_unit
        self._kinds = _joined(files, numbers, first, frame_per_unit)
        buckets: dict[tuple[int, int, int], list[int]] = {}
        for which, kind in enumerate(self._kinds):
            rows = np.arange(len(kind.texts))
            is_held = np.floor((rows + 1) * held_back) > np.floor(rows * held_back)
            for row in rows[is_held == validation].tolist():
                begin = 1 if kind.given else 0
                for unit in range(begin, 1 if first else kind.texts.shape[1]):
                    if first or unit > 0:
                        key = which, unit, lengths[kind.texts[row, unit]]
                        buckets.setdefault(key, []).append(row)
        if not buckets:
            raise ValueError(
                f"no {'first' if first else 'later'} unit was recorded in {len(files)} files"
                + (" and held back" if validation else "")
            )
        self._keys = sorted(buckets)
        self.count = sum(map(len, buckets.values()))
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
        _, bucket, chosen = self._schedule(number)
        which, unit, _ = self._keys[bucket]
        kind, rows = self._kinds[which], torch.from_numpy(chosen)
        begin, stop = (0, 1) if unit == 0 else (1 + (unit - 1) * self._unit, 1 + unit * self._unit)
        made = slice(begin - kind.given, stop - kind.given)
        return {
            "unit": unit,
            "history": kind.latents[:, :, :begin][rows],
            "starts": [start[:, :, made][rows] for start in kind.starts],
            "ends": [end[:, :, made][rows] for end in kind.ends],
            "texts": torch.from_numpy(kind.texts[chosen, unit]),
        }


def _joined(
    files: Sequence[Path], numbers: Mapping[str, int], first: bool, frame_per_unit: int
) -> list[_Kind]:
    """The rollouts of all files that have units of the kind, those of one form joined."""
    forms: dict[tuple[int, ...], list[Rollout]] = {}
    for path in files:
        rollout = Rollout.read(path)
        *_, frames, height, width = rollout.latents.shape
        if rollout.given == 0 if first else frames > 1:
            if first:
                rollout = _first_unit(rollout)
            form = rollout.given, rollout.latents.shape[2], height, width
            forms.setdefault(form, []).append(rollout)
    kinds = []
    for (given, frames, *_), rollouts in sorted(forms.items()):
        units = 1 + (frames - 1) // frame_per_unit
        texts = [
            [numbers[prompts[row]] for prompts in _by_unit(rollout.storyboard, units)]
            for rollout in rollouts
            for row in range(len(rollout.latents))
        ]
        stages = range(len(rollouts[0].starts))
        kinds.append(
            _Kind(
                torch.cat([rollout.latents for rollout in rollouts]),
                [torch.cat([rollout.starts[stage] for rollout in rollouts]) for stage in stages],
                [torch.cat([rollout.ends[stage] for rollout in rollouts]) for stage in stages],
                np.array(texts),
                given,
            )
        )
    return kinds


def _first_unit(rollout: Rollout) -> Rollout:
    return Rollout(
        latents=rollout.latents[:, :, :1],
        starts=[start[:, :, :1] for start in rollout.starts],
        ends=[end[:, :, :1] for end in rollout.ends],
        storyboard={0: rollout.storyboard[0]},
    )


def _by_unit(storyboard: Mapping[int, Sequence[str]], units: int) -> list[Sequence[str]]:
    """The prompts of each unit."""
    begins = [max(start for start in storyboard if start <= unit) for unit in range(units)]
    return [storyboard[begin] for begin in begins]
