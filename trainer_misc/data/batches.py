"""What trainers take batches from, and the loader that gets them ready ahead of time."""

from __future__ import annotations

import itertools
import logging
import pickle
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from math import floor
from os import PathLike
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pyramid_dit.checks import SEED, Number, Whole

from .annotations import TEXTS, Annotations, Record
from .schedule import Schedule
from .skipped import SampleError, Skip, Skipped, Tally

logger = logging.getLogger(__name__)

_THREADS = 16  # that look at files at the start, which is mostly waiting
_SHARE = Number(0, 1)
_Found = TypeVar("_Found")


class Batches(Protocol):
    """Batches by number, from 0 on over all epochs; those of this process.

    A batch is a pure function of its number, the seed and the process: a resumed run goes on with
    the next one, whatever the number of workers.
    """

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The whole batch."""
        ...


@runtime_checkable
class Texts(Protocol):
    """What can tell all its texts."""

    def texts(self) -> Iterator[str]:
        """Of all samples."""
        ...


def loader(
    batches: Batches, *, start: int = 0, workers: int = 0, pin_memory: bool = False
) -> Iterator[dict[str, Any]]:
    """Batches `start`, `start + 1`, ... in order and without end.

    Args:
        batches: Where they come from.
        start: Number of the first.
        workers: Processes that get them ready; 0 for none but this one. They end with this one.
        pin_memory: Whether the tensors are put where an accelerator gets them faster.

    Raises:
        ValueError: Too many samples cannot be used, see `Skipped`.
    """
    loaded = DataLoader(
        _Reported(batches),
        batch_size=None,
        sampler=_From(start),
        num_workers=workers,
        pin_memory=pin_memory and torch.accelerator.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals if workers else None,
    )
    counters = _counters(batches)
    for batch, tallies, error in loaded:
        for counter, tally in zip(counters, tallies, strict=True):
            counter.count(tally)
        if error is not None:
            raise error
        yield batch


@dataclass(eq=False, repr=False)
class BucketedBatches(ABC):
    """Batches of samples that annotations name, in buckets of those that fit together.

    A sample that cannot be used is counted, named, and replaced by another: of its bucket, or of
    the next one where nothing in that can be used.

    Args:
        anno_file: JSON lines, a folder or WebDataset shards, see `Annotations.open`.
        batch_size: Samples in a batch.
        seed: Of the order and of every draw.
        rank: Which process this is.
        world: How many there are, each with batches of its own.
        max_skipped: The share of the samples that may fail.
        skipped_to: Folder where `skipped.jsonl` names those that fail.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Too many samples cannot be used.

    Attributes:
        skipped: Counts the samples that cannot be used.
    """

    anno_file: str | PathLike[str]
    _: KW_ONLY
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    max_skipped: float = 0.05
    skipped_to: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        Whole(1)("batch_size", self.batch_size)
        SEED("seed", self.seed)
        Whole(1)("world", self.world)
        Whole(0, self.world - 1)("rank", self.rank)
        _SHARE("max_skipped", self.max_skipped)
        self._annotations = Annotations.open(self.anno_file, self._columns()[0])
        count = len(self._annotations)
        counter = Skipped(count, self.max_skipped, self.skipped_to, self.world)
        self.skipped = [counter]
        self._failed: set[int] = set()
        self._news = Tally(0, [])
        buckets: dict[Any, list[int]] = {}
        skips = []
        for index, found in enumerate(_in_threads(self._look, count)):
            if isinstance(found, Skip):
                skips.append(found)
            else:
                buckets.setdefault(found, []).append(index)
        counter.count(Tally(count if skips else 0, skips), quiet=self.rank > 0)
        if not buckets:
            raise ValueError(f"no sample of {self.anno_file} can be used")
        self.buckets = dict(sorted(buckets.items()))
        self._schedule = Schedule(
            [np.array(indices) for indices in self.buckets.values()],
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world=self.world,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this process in which every sample of its part comes once."""
        return self._schedule.batches_per_epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The batch of a number.

        Raises:
            ValueError: Too many samples cannot be used, or none of a bucket can.
        """
        Whole(0, 2**63 - 1)("the number of a batch", number)
        epoch, which, indices = self._schedule(number)
        try:
            for bucket, dealt in self._dealt(which, indices, [self.seed, number]):
                if samples := self._samples(dealt.tolist(), bucket, epoch):
                    return self._batch(samples, bucket, number)
        finally:
            if get_worker_info() is None:
                self.skipped[0].count(*self.take())
        raise ValueError(f"none of the samples of {self.anno_file} can be used")

    def texts(self) -> Iterator[str]:
        """The texts of all samples, as far as annotations have them."""
        for index in range(len(self._annotations)):
            with suppress(SampleError):
                record = self._annotations[index]
                storyboard = record.get(TEXTS, {})
                several = storyboard.values() if isinstance(storyboard, dict) else ()
                yield from (t for t in (record.get("text"), *several) if isinstance(t, str))

    def take(self) -> list[Tally]:
        """What happened since the last call, for the one of `skipped`."""
        taken, self._news = self._news, Tally(0, [])
        return [taken]

    @abstractmethod
    def _columns(self) -> Sequence[str]:
        """What annotations must have; the first names a sample in messages."""

    @abstractmethod
    def _bucket(self, record: Record) -> Hashable:
        """What a sample has in common with those that it fits; quick. Raises SampleError."""

    @abstractmethod
    def _sample(self, record: Record, bucket: Any, source: np.random.Generator) -> Any:
        """The sample; what is random about it comes from `source`. Raises SampleError."""

    @abstractmethod
    def _batch(self, samples: list[Any], bucket: Any, number: int) -> dict[str, Any]:
        """Samples of a bucket as one batch, that of a number."""

    def _look(self, index: int) -> Hashable | Skip:
        try:
            return self._bucket(self._annotations.checked(index, self._columns()))
        except SampleError as error:
            return self._skip(index, error)

    def _skip(self, index: int, error: SampleError) -> Skip:
        name = self._annotations.called(index, self._columns()[0])
        return Skip(index, name, error.kind, str(error))

    def _dealt(
        self, which: int, indices: np.ndarray, seed: list[int]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """A bucket and samples of it; then others, where nothing in it can be used."""
        buckets = list(self.buckets)
        yield buckets[which], indices
        source = np.random.default_rng(seed)
        for bucket in buckets[which + 1 :] + buckets[:which]:
            yield bucket, np.resize(source.permutation(self.buckets[bucket]), len(indices))

    def _samples(self, indices: list[int], bucket: Any, epoch: int) -> list[Any]:
        """The samples at `indices`, or for those that cannot be used the first usable ones of
        others of the bucket, shuffled; no samples where there is none."""
        samples = []
        for slot, index in enumerate(indices):
            for candidate in itertools.chain([index], self._others(index, bucket, epoch)):
                if candidate in self._failed:
                    continue
                source = np.random.default_rng([self.seed, epoch, candidate, slot])
                self._news.tried += 1
                try:
                    record = self._annotations.checked(candidate, self._columns())
                    samples.append(self._sample(record, bucket, source))
                    break
                except SampleError as error:
                    self._failed.add(candidate)
                    self._news.skips.append(self._skip(candidate, error))
            else:
                return []
        return samples

    def _others(self, index: int, bucket: Any, epoch: int) -> Iterator[int]:
        source = np.random.default_rng([self.seed, epoch, index])
        yield from source.permutation(self.buckets[bucket]).tolist()


class MixedBatches:
    """Batches of one source among those of another, at even distances.

    All processes take them at the same time.

    Args:
        usual: Of these are the rest, as of videos.
        others: Of these is the share, as of images.
        share: From 0 to 1, the part of the batches that are of the others.
        seed: Of where the first of the others is.

    Raises:
        TypeError: `share` is no number.
        ValueError: `share` is outside its range.
    """

    def __init__(self, usual: Batches, others: Batches, share: float, *, seed: int = 0) -> None:
        _SHARE("share", share)
        self._usual = usual
        self._others = others
        self._share = share
        self._offset = np.random.default_rng(seed).random()
        self.skipped: list[Skipped] = _counters(usual) + _counters(others)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The batch of a number; its `number` is that among the batches of its kind."""
        before, after = self._others_before(number), self._others_before(number + 1)
        of_others = after > before
        own = before if of_others else number - before
        return (self._others if of_others else self._usual)[own] | {"number": own}

    def texts(self) -> Iterator[str]:
        """The texts of all samples of both."""
        for source in (self._usual, self._others):
            if isinstance(source, Texts):
                yield from source.texts()

    def take(self) -> list[Tally]:
        """What happened since the last call, for each of `skipped`."""
        return _tallies(self._usual) + _tallies(self._others)

    def _others_before(self, number: int) -> int:
        return floor(number * self._share + self._offset)


class _From:
    """The whole numbers from `start` on."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


class _Reported(Dataset[Any]):
    """Batches with what happened on the way: tallies, and the error that ended it or None.

    An error goes to the main process as it is, and not as the text of a traceback.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> tuple[dict[str, Any], list[Tally], Exception | None]:
        try:
            batch, problem = self._batches[number], None
        except Exception as error:
            logger.debug("batch %d", number, exc_info=True)
            batch, problem = {}, _sendable(error)
        return batch, _tallies(self._batches), problem


def _counters(batches: Batches) -> list[Skipped]:
    return getattr(batches, "skipped", [])


def _tallies(batches: Batches) -> list[Tally]:
    """One for each of `batches.skipped`."""
    take: Callable[[], list[Tally]] | None = getattr(batches, "take", None)
    return [] if take is None else take()


def _sendable(error: Exception) -> Exception:
    """`error`, or its words where it does not survive the way between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _leave_signals(worker: int) -> None:
    """Have a worker go on at Ctrl-C and at the first SIGTERM, which whole process groups get.

    The main process ends it, once it has taken what it still needs.
    """

    def wait(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, wait)


def _in_threads(look: Callable[[int], _Found], count: int) -> Iterator[_Found]:
    """`look(0)`, `look(1)`, ..., `look(count - 1)`, many at a time."""
    parts = np.array_split(np.arange(count), min(count, 8 * _THREADS))
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda part: [look(index) for index in part.tolist()], parts):
            yield from found
