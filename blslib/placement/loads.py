"""What a placement asks of each rank: stored bytes, lookups, bytes sent, and time.

Equal lookups are not equal time: a row from a table of gigabytes takes ten times as long as one from a table that the
caches hold, and every table costs a call. So the weight of a shard is a time, measured or by ``LookupCost``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from blslib.placement.shards import Placement, Shard
from blslib.placement.tables import Table

Curve = tuple[tuple[float, float], ...]
"""Pairs of bytes of a table, ascending, and nanoseconds of a lookup in it."""


@dataclass(frozen=True)
class LookupCost:
    """Time of pooled lookups on one core: ``call_us`` a shard, and a time a lookup by the bytes of shard and row.

    The defaults were measured with uniform ids and float32 values on one core (docs/placement.md says of what); ratios
    carry over to other machines better than times.

    Attributes:
        batch: B, samples of a batch.
        call_us: microseconds of one call, whatever it looks up.
        block_ns: nanoseconds of a lookup more where a shard has part of the rows: ids are translated.
        row_bytes: widths of a narrow and a wide row; between and beyond them a lookup's time is a straight line.
        narrow, wide: of tables with such rows; between their sizes, a straight line over the logarithm.
    """

    batch: int = 512
    call_us: float = 10.0
    block_ns: float = 1.5
    row_bytes: tuple[float, float] = (64, 512)
    narrow: Curve = ((64e3, 0.7), (1.28e6, 1.6), (6.4e6, 4.8), (1.92e7, 10.0), (6.4e7, 10.0))
    wide: Curve = ((512e3, 2.8), (1.02e7, 8.0), (5.12e7, 15.7), (1.54e8, 17.1), (5.12e8, 18.0))

    def batch_us(self, lookups: np.ndarray, row_bytes: np.ndarray, size_bytes: np.ndarray) -> np.ndarray:
        """Microseconds of each shard for one batch.

        Args:
            lookups: (n,) ids a sample.
            row_bytes: (n,) bytes of a row of the shard.
            size_bytes: (n,) bytes of the shard.
        """
        place = np.log(np.maximum(size_bytes, 1.0))
        narrow_ns, wide_ns = (np.interp(place, np.log(c[0]), c[1]) for c in map(np.transpose, (self.narrow, self.wide)))
        between = (row_bytes - self.row_bytes[0]) / (self.row_bytes[1] - self.row_bytes[0])
        each_ns = np.maximum(narrow_ns + between * (wide_ns - narrow_ns), narrow_ns / 2)
        return self.call_us + 1e-3 * self.batch * lookups * each_ns


class Loads(NamedTuple):
    """Of each shard, or of each rank.

    Attributes:
        bytes: stored.
        lookups: ids a sample, in whole rows: one in half of the columns counts half.
        sent_bytes: float32 pooled sums handed over for one batch; 0 for what is replicated.
        time_us: of the lookups of one batch.
    """

    bytes: np.ndarray
    lookups: np.ndarray
    sent_bytes: np.ndarray
    time_us: np.ndarray


def of_shards(shards: Sequence[Shard], tables: Sequence[Table], cost: LookupCost, ranks: int = 1) -> Loads:
    """(n,) what each shard asks of a rank that holds it.

    A table's measured time, if it has one, is shared out among its shards as the model would share the modelled one.

    Args:
        shards: of these tables.
        tables: T tables.
        cost: for time.
        ranks: P; a replicated shard looks up a P-th of the batch on each rank.
    """
    numbers = [
        (t.rows, t.dim, t.item_bytes, t.pooling, np.nan if t.time_us is None else t.time_us, t.bytes) for t in tables
    ]
    held = [(s.table, len(s.rows), len(s.columns), s.rank is None) for s in shards]
    rows, dim, item, pooling, measured_us, whole_bytes = np.array(numbers, dtype=float).reshape(-1, 6).T
    table, own_rows, width, everywhere = np.array(held, dtype=int).reshape(-1, 4).T
    share = np.where(everywhere, 1 / ranks, 1.0)
    stored = np.ceil(own_rows * width * item[table])
    ids = pooling[table] * own_rows / rows[table] * share
    time_us = cost.batch_us(ids, width * item[table], stored)
    whole_us = cost.batch_us(pooling, dim * item, whole_bytes)[table]
    time_us *= np.nan_to_num(measured_us[table] / whole_us, nan=1.0)
    time_us += np.where(own_rows < rows[table], 1e-3 * cost.batch * ids * cost.block_ns, 0)
    return Loads(stored, ids * width / dim[table], np.where(everywhere, 0, 4 * cost.batch * width), time_us)


def of_ranks(placement: Placement, tables: Sequence[Table], cost: LookupCost) -> Loads:
    """(P,) what the placement asks of each rank."""
    each = of_shards(placement.shards, tables, cost, placement.ranks)
    owners = np.array([-1 if s.rank is None else s.rank for s in placement.shards], dtype=int)

    def total(values: np.ndarray) -> np.ndarray:
        alone = np.bincount(owners[owners >= 0], values[owners >= 0], placement.ranks)
        return alone + values[owners < 0].sum()

    return Loads(*map(total, each))


def imbalance(values: Iterable[float]) -> float:
    """The greatest over the mean; 1 where there is nothing."""
    values = np.asarray(list(values), dtype=float)
    return float(values.max() / values.mean()) if values.any() else 1.0
