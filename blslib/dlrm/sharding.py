"""Tables spread over ranks, whole tables at a time, and the pooled sums which a rank sends to the others.

Every rank looks its own tables up for the whole batch and sends each rank the samples which that one scores. A message
from rank s to rank r is ``rows_of_r * tables_of_s * D`` float32: its size knows nothing of pooling or skew, which show
as unequal time before the exchange.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from blslib.dlrm.config import ModelConfig
from blslib.workloads.batch import Batch


@dataclass(frozen=True)
class Placement:
    """Which rank holds which table.

    Attributes:
        owners: (T,) the rank of each table; any assignment, a rank may go without.
        ranks: P.

    Raises:
        ValueError: if a table is given to a rank that does not exist.
    """

    owners: tuple[int, ...]
    ranks: int

    def __post_init__(self) -> None:
        for table, owner in enumerate(self.owners):
            if not 0 <= owner < self.ranks:
                raise ValueError(f"table {table} is placed on rank {owner}, there are ranks 0 to {self.ranks - 1}")

    @cached_property
    def tables(self) -> tuple[tuple[int, ...], ...]:
        """P tuples: the tables of each rank, ascending. This is their order in a message."""
        return tuple(
            tuple(table for table, owner in enumerate(self.owners) if owner == rank) for rank in range(self.ranks)
        )

    @cached_property
    def columns(self) -> tuple[slice | list[int], ...]:
        """P selections, where the tables of each rank belong among all T: a slice, twice as quick, for neighbours."""
        return tuple(
            slice(own[0], own[-1] + 1) if own and own[-1] - own[0] + 1 == len(own) else list(own) for own in self.tables
        )


def contiguous(tables: int, ranks: int) -> Placement:
    """Neighbouring tables together, equal in number: the first ``tables mod ranks`` ranks hold one more.

    The split of the reference DLRM; blind to rows and lookups.
    """
    starts = row_starts(tables, ranks)
    return Placement(tuple(rank for rank in range(ranks) for _ in range(starts[rank], starts[rank + 1])), ranks)


@lru_cache(maxsize=1024)
def row_starts(size: int, ranks: int) -> tuple[int, ...]:
    """(P + 1,) where each rank's samples begin: as even as can be, the first ``size mod ranks`` ranks have one more."""
    share, more = divmod(size, ranks)
    return tuple(rank * share + min(rank, more) for rank in range(ranks + 1))


def own_rows(batch_size: int, rank: int, ranks: int) -> slice:
    """The samples of a batch that a rank scores."""
    starts = row_starts(batch_size, ranks)
    return slice(starts[rank], starts[rank + 1])


def recv_counts(placement: Placement, rows_here: int, dim: int) -> np.ndarray:
    """(P,) int64: float32 elements that reach a rank with ``rows_here`` samples from each source, in one iteration."""
    return np.array([rows_here * len(tables) * dim for tables in placement.tables], dtype=np.int64)


def send_counts(placement: Placement, rank: int, batch_size: int, dim: int) -> np.ndarray:
    """(P,) int64: float32 elements that a rank sends to each destination, in one iteration."""
    return np.diff(row_starts(batch_size, placement.ranks)) * len(placement.tables[rank]) * dim


def largest_block_bytes(placement: Placement, batch_size: int, dim: int) -> int:
    """Size of the largest message between any two ranks: the slot that an exchange needs, the same on every rank."""
    return 4 * dim * -(-batch_size // placement.ranks) * max(map(len, placement.tables))


def stream(seed: int, part: int, index: int) -> np.random.Generator:
    """The random numbers of one table or layer: their own, so that weights do not depend on P or on who asks first."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(part, index)))


def initial_table(config: ModelConfig, table: int, seed: int) -> torch.Tensor:
    """(rows, D) float32, uniform within +-sqrt(1 / rows), as in the reference."""
    bound = np.float32(np.sqrt(1.0 / config.rows[table]))
    weight = stream(seed, 0, table).random((config.rows[table], config.dim), dtype=np.float32)
    weight *= 2 * bound
    weight -= bound
    return torch.from_numpy(weight)


class ShardedTables:
    """The tables of one rank; nobody else's are made here.

    Args:
        config: the whole model.
        placement: of all T tables.
        rank: this one.
        seed: of the weights, the same on every rank.

    Attributes:
        weights: table number -> (rows, D) float32, own tables only, ascending.

    Raises:
        ValueError: if placement and model differ in their number of tables, or the rank is outside the placement.
    """

    def __init__(self, config: ModelConfig, placement: Placement, rank: int, seed: int) -> None:
        if len(placement.owners) != config.tables:
            raise ValueError(f"placement is of {len(placement.owners)} tables, the model has {config.tables}")
        if not 0 <= rank < placement.ranks:
            raise ValueError(f"rank {rank} is outside the placement, which has ranks 0 to {placement.ranks - 1}")
        self.config, self.placement, self.rank = config, placement, rank
        self.weights = {table: initial_table(config, table, seed) for table in placement.tables[rank]}
        self._buffer = np.empty(0, dtype=np.float32)
        self._views: dict[int, tuple[np.ndarray, tuple[np.ndarray, ...]]] = {}

    def lookup(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Sum the bags of the own tables for the whole batch.

        Returns:
            P flat float32 arrays, one per destination: (its rows, own tables, D). They are neighbouring slices of one
            buffer, which the next call overwrites; the tuple is the same one for every batch of the same size.

        Raises:
            ValueError: if the batch has another number of tables, or an id outside its table.
        """
        if batch.tables != self.config.tables:
            raise ValueError(f"batch has {batch.tables} tables, the model has {self.config.tables}")
        pooled, blocks = self._views.get(batch.size) or self._make_views(batch.size)
        for column, (table, weight) in enumerate(self.weights.items()):
            ids, offsets = torch.from_numpy(batch.ids[table]), torch.from_numpy(batch.offsets[table])
            if len(offsets) != batch.size + 1:
                raise ValueError(
                    f"table {table} has {len(offsets)} offsets, a batch of {batch.size} needs {batch.size + 1}"
                )
            try:
                bags = embedding_bag(ids, weight, offsets, mode="sum", include_last_offset=True)
            except RuntimeError as error:
                if len(ids) and not (ids.min() >= 0 and ids.max() < len(weight)):
                    raise ValueError(
                        f"table {table} has rows 0 to {len(weight) - 1}, the batch asks for {ids.min()} to {ids.max()}"
                    ) from error
                raise ValueError(f"bad bags for table {table} of {len(weight)} rows: {error}") from error
            # Through numpy, since torch lets nobody write into a tensor made in inference mode from outside it.
            pooled[:, column] = bags.numpy()
        return blocks

    def _make_views(self, size: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Of the buffer: (B, own tables, D), and its part for each rank, flat."""
        values = size * len(self.weights) * self.config.dim
        if values > self._buffer.size:
            self._buffer = np.empty(values, dtype=np.float32)
            self._views.clear()  # they are of the smaller buffer
        pooled = self._buffer[:values].reshape(size, len(self.weights), self.config.dim)
        parts = np.split(pooled, row_starts(size, self.placement.ranks)[1:-1])
        self._views[size] = pooled, tuple(part.reshape(-1) for part in parts)
        return self._views[size]
