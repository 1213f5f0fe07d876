"""Batches made from numbers alone: rows, pooling factors and a law of lookups."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import ArrayLike

from blslib.workloads.batch import Batch
from blslib.workloads.published import CRITEO_DENSE
from blslib.workloads.skew import DENSE, LENGTHS, UNIFORM, Key, Zipf

Pooling = ArrayLike | Callable[[int], ArrayLike]
"""Ids per sample: one number, one per table, or a function of the iteration that returns either."""


@dataclass(frozen=True)
class Synthetic:
    """A stream of made batches, the same for every number of ranks.

    Dense features are U(0, 1). Ids depend on (seed, table, iteration) only, so that every rank makes the same; it keeps
    what it needs with :meth:`Batch.only`. Iterate over it, or ask for one iteration with :meth:`batch`.

    Attributes:
        rows: T row counts.
        batch_size: B.
        pooling: ids per sample, not negative. A whole number is given to every sample alike; of a fraction every sample
            gets the number below or above it, at random, so that the mean is right.
        skew: the law of lookups.
        dense_features: F.
        seed: not negative.
        iterations: batches to make; None never ends.

    Raises:
        ValueError: an argument does not fit the others; from :meth:`batch`, when the pooling factors do not.
    """

    rows: Sequence[int]
    batch_size: int
    pooling: Pooling = 1
    skew: Zipf = UNIFORM
    dense_features: int = CRITEO_DENSE
    seed: int = 0
    iterations: int | None = None

    def __post_init__(self) -> None:
        if not self.rows or min(self.rows) < 1 or self.batch_size < 1:
            raise ValueError(
                f"rows and batch_size must be 1 or more, got rows={tuple(self.rows)} and batch_size={self.batch_size}"
            )

    def pooling_at(self, iteration: int) -> np.ndarray:
        """(T,) float64: mean ids per sample of one iteration."""
        given = self.pooling(iteration) if callable(self.pooling) else self.pooling
        pooling = np.asarray(given, dtype=np.float64)
        if pooling.shape not in ((), (len(self.rows),)) or not (np.isfinite(pooling) & (pooling >= 0)).all():
            raise ValueError(
                f"pooling of iteration {iteration} must be a number >= 0, or one for each of the {len(self.rows)} "
                f"tables, got {pooling.tolist()}"
            )
        return np.broadcast_to(pooling, len(self.rows))

    def batch(self, iteration: int) -> Batch:
        """The batch of one iteration, counted from 0; the same whenever and wherever it is asked for."""
        dense = Key(self.seed, 0, iteration).rng(DENSE).random((self.batch_size, self.dense_features), dtype=np.float32)
        ids, offsets = [], []
        for table, mean in enumerate(self.pooling_at(iteration)):
            key = Key(self.seed, table, iteration)
            lengths = np.full(self.batch_size, int(mean), dtype=np.int64)
            if mean % 1:
                lengths += key.rng(LENGTHS).random(self.batch_size) < mean % 1
            offsets.append(np.concatenate([[0], np.cumsum(lengths)]))
            size = int(offsets[-1][-1])
            ids.append(self.skew.draw(self.rows[table], size, key) if size else np.empty(0, dtype=np.int64))
        return Batch(dense, tuple(ids), tuple(offsets))

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, count() if self.iterations is None else range(self.iterations))
