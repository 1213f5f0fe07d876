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

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

import numpy as np


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

    def only(self, tables: Collection[int]) -> Self:
        """The same with empty bags in all tables but ``tables``: what a rank needs that holds just those."""
        none, flat = np.empty(0, dtype=np.int64), np.zeros(self.size + 1, dtype=np.int64)
        return replace(
            self,
            ids=tuple(ids if table in tables else none for table, ids in enumerate(self.ids)),
            offsets=tuple(offsets if table in tables else flat for table, offsets in enumerate(self.offsets)),
        )
