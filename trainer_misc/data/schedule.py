"""Which samples make up which batch: a pure function of its number, the seed and the process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Schedule:
    """Deals the samples of buckets to batches and processes, anew in every epoch.

    - A batch holds samples of one bucket.
    - Every sample is in some batch of every epoch. The last batch of a bucket is filled up with
      samples that begin the epoch.
    - The processes get different batches, at the same time such of one bucket, as far as the sizes
      of the buckets allow. Where the batches are not enough for all, some are given out twice.

    Args:
        buckets: Indices of the samples of each, none empty.
        batch_size: Samples in a batch.
        seed: Of the order.
        rank: Which process this is.
        world: How many there are.

    Attributes:
        batches_per_epoch: Of this process, and of every other.
    """

    def __init__(
        self,
        buckets: Sequence[np.ndarray],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._buckets = buckets
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world = world
        self._groups = self._grouped()
        self.batches_per_epoch = len(self._groups)
        self._epoch = -1
        self._order: np.ndarray = np.zeros(0, np.int64)
        self._shuffled: dict[int, np.ndarray] = {}

    def __call__(self, number: int) -> tuple[int, int, np.ndarray]:
        """Epoch, bucket and the indices `[batch_size]` of the samples of a batch.

        Args:
            number: Of the batch, from 0 on over all epochs.
        """
        epoch, position = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, {}
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._groups))
        bucket, part = self._groups[self._order[position], self._rank]
        return epoch, int(bucket), self._samples(epoch, int(bucket))[part]

    def _grouped(self) -> np.ndarray:
        """Bucket and number in it of the batches that are taken at one time: `[n, world, 2]`."""
        whole, rest = [], []
        for bucket, samples in enumerate(self._buckets):
            count = -(-len(samples) // self._batch_size)
            batches = np.stack([np.full(count, bucket), np.arange(count)], axis=1)
            most = count // self._world * self._world
            whole.append(batches[:most])
            rest.append(batches[most:])
        left = np.concatenate(rest)
        if len(left):
            count = -(-len(left) // self._world) * self._world
            whole.append(np.resize(left, (count, 2)))
        return np.concatenate(whole).reshape(-1, self._world, 2)

    def _samples(self, epoch: int, bucket: int) -> np.ndarray:
        """The samples of a bucket as dealt in an epoch, `[batches, batch_size]`."""
        if bucket not in self._shuffled:
            source = np.random.default_rng([self._seed, epoch, 1 + bucket])
            order = source.permutation(self._buckets[bucket])
            count = -(-len(order) // self._batch_size)
            self._shuffled[bucket] = np.resize(order, (count, self._batch_size))
        return self._shuffled[bucket]
