"""The one type that every workload makes and every model reads.

Legend of shapes, here and in ``blslib.dlrm``:

====  ==========================================================================
B     samples of the global batch
T     embedding tables (one per categorical field)
F     dense features
L     lookups per sample and table: the pooling factor; may differ everywhere
D     embedding dimension
P     ranks
====  ==========================================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

Bags = tuple[np.ndarray, np.ndarray]
"""Ids and offsets of one table, as in a :class:`Batch`."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B samples of F dense features and T bags of ids each.

    Attributes:
        dense: (B, F) float32.
        ids: T arrays of int64; ``ids[t]`` holds the bags of table t one after the other.
        offsets: T arrays of int64, (B + 1,) each; sample b of table t looks up
            ``ids[t][offsets[t][b]:offsets[t][b + 1]]``.
        labels: (B,) float32, or None where nothing is known.
    """

    dense: np.ndarray
    ids: tuple[np.ndarray, ...]
    offsets: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None

    @property
    def size(self) -> int:
        """B."""
        return len(self.dense)

    @property
    def tables(self) -> int:
        """T."""
        return len(self.ids)

    @property
    def lookups(self) -> np.ndarray:
        """(T,) int64: lookups per table over the whole batch, that is B times the mean pooling factor."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def only(self, parts: Mapping[int, range], rows: Sequence[int]) -> Self:
        """What a rank needs that holds just those rows: other ids are left out, bags of other tables are empty.

        Do it once, where a batch is made: in every step of a loop it would cost as much as a good part of the lookup.

        Args:
            parts: the rows of each table that is needed at all. Ids stay what they are, counted in the whole table.
            rows: T row counts.

        Raises:
            ValueError: an id is outside its table, or bags do not fit their ids, in a table of which a part is needed.
        """
        bags: list[Bags] = [(np.empty(0, dtype=np.int64), np.zeros(self.size + 1, dtype=np.int64))] * self.tables
        for table, part in parts.items():
            bags[table] = self.ids[table], self.offsets[table]
            if len(part) < rows[table]:
                bags[table] = bags_within(part, *bags[table], table, rows[table])
        return replace(self, ids=tuple(ids for ids, _ in bags), offsets=tuple(offsets for _, offsets in bags))


def bags_within(part: range, ids: np.ndarray, offsets: np.ndarray, table: int, rows: int) -> Bags:
    """Ids and offsets of one table's bags, without the ids of other rows than ``part``.

    Raises:
        ValueError: an id is outside the table, or the offsets do not fit the ids.
    """
    check_ids(ids, table, rows)
    if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        raise ValueError(f"bad bags for table {table} of {rows} rows: offsets must rise from 0 to {len(ids)}, its ids")
    steps = (ids - part.start) // part.step
    kept = (steps >= 0) & (steps < len(part)) & (steps * part.step + part.start == ids)
    return ids[kept], np.concatenate(([0], np.cumsum(kept)))[offsets]


def check_ids(ids: np.ndarray, table: int, rows: int) -> None:
    """See that all ids are of rows that the table has.

    Raises:
        ValueError: some are not.
    """
    if len(ids) and not (ids.min() >= 0 and ids.max() < rows):
        raise ValueError(f"table {table} has rows 0 to {rows - 1}, the batch asks for {ids.min()} to {ids.max()}")
