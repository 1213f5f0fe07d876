"""Shards of tables on their ranks, and the pooled sums which a rank sends to the others.

Every rank looks its own shards up for the whole batch and sends each rank the samples which that one scores. A message
from rank s to rank r is ``rows_of_r * columns_of_s`` float32: its size knows nothing of pooling or skew, which show
as unequal time before the exchange. Of what is replicated nothing is sent.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from blslib.dlrm.config import ModelConfig
from blslib.placement.shards import Placement, Shard
from blslib.workloads.batch import Bags, Batch, bags_within, check_ids

_CHUNK = 1 << 16
"""Random numbers to draw at a time, where only some are kept."""


Move = tuple[int, int, slice, slice]
"""Where neighbouring columns of what a rank has received belong.

The number of their block of rows (sums of block 0 are put down, others added to what is there); the source rank, where
P is home; where they are in the message from there; where they belong in all T + 1 vectors of a sample side by side.
"""


def moves(placement: Placement, dim: int) -> tuple[Move, ...]:
    """How vectors come together from P blocks and what is at home, in the order that has to be kept.

    First the first block of each table's rows, then all second ones, and so on: partial sums are added by the number of
    their block, whichever rank has it and whenever it arrives, so that the same bits come out. Neighbours that stay
    neighbours move together: whole tables in a row are one slice.
    """
    taken = [0] * placement.ranks + [dim]
    blocks: Counter[int] = Counter()  # met so far, of each strip of columns
    found = [(0, placement.ranks, 0, 0, dim)]  # the dense vectors
    for table, _, columns, rank in placement.shards:
        source = placement.ranks if rank is None else rank
        to = (1 + table) * dim + columns.start
        found.append((blocks[to], source, taken[source], to, len(columns)))
        taken[source] += len(columns)
        blocks[to] += 1
    runs: list[list[int]] = []
    ends: tuple[int, ...] = ()
    for block, source, start, to, width in sorted(found):
        if (block, source, start, to) != ends:
            runs.append([block, source, start, to, 0])
        runs[-1][-1] += width
        ends = block, source, start + width, to + width
    return tuple((block, s, slice(a, a + width), slice(to, to + width)) for block, s, a, to, width in runs)


@lru_cache(maxsize=1024)
def row_starts(size: int, ranks: int) -> tuple[int, ...]:
    """(P + 1,) where each rank's samples begin: as even as can be, the first ``size mod ranks`` ranks have one more."""
    share, more = divmod(size, ranks)
    return tuple(rank * share + min(rank, more) for rank in range(ranks + 1))


def own_rows(batch_size: int, rank: int, ranks: int) -> slice:
    """The samples of a batch that a rank scores."""
    starts = row_starts(batch_size, ranks)
    return slice(starts[rank], starts[rank + 1])


def recv_counts(placement: Placement, rank: int, batch_size: int) -> np.ndarray:
    """(P,) int64: float32 elements that reach a rank from each source, in one iteration."""
    return np.diff(row_starts(batch_size, placement.ranks))[rank] * np.array(placement.widths, dtype=np.int64)


def send_counts(placement: Placement, rank: int, batch_size: int) -> np.ndarray:
    """(P,) int64: float32 elements that a rank sends to each destination, in one iteration."""
    return np.diff(row_starts(batch_size, placement.ranks)) * placement.widths[rank]


def largest_block_bytes(placement: Placement, batch_size: int) -> int:
    """Size of the largest message between any two ranks: the slot that an exchange needs, the same on every rank."""
    return 4 * -(-batch_size // placement.ranks) * max(placement.widths)


def stream(seed: int, part: int, index: int) -> np.random.Generator:
    """The random numbers of one table or layer: their own, so that weights do not depend on P or on who asks first."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(part, index)))


def initial_weights(config: ModelConfig, shard: Shard, seed: int) -> torch.Tensor:
    """(rows, columns) of a shard, float32, uniform within +-sqrt(1 / rows of its table), as in the reference.

    The same numbers as in the whole table, which is not made for it: what lies before a shard is skipped, what lies
    between its rows and beside its columns is drawn by the chunk and dropped.
    """
    dim, rows = config.dim, shard.rows
    generator = stream(seed, 0, shard.table)
    # The generator goes by 64 bits, a float32 takes half of them.
    words, half = divmod(rows.start * dim, 2)
    generator.bit_generator.advance(words)  # type: ignore[attr-defined]  # every PCG64 can
    generator.random(half, dtype=np.float32)
    weight = np.empty((len(rows), len(shard.columns)), dtype=np.float32)
    chunk = max(1, _CHUNK // (rows.step * dim))
    for kept in np.split(weight, range(chunk, len(rows), chunk)):
        drawn = generator.random((len(kept), rows.step, dim), dtype=np.float32)
        kept[:] = drawn[:, 0, shard.columns.start : shard.columns.stop]
    bound = np.float32(np.sqrt(1.0 / config.rows[shard.table]))
    weight *= 2 * bound
    weight -= bound
    return torch.from_numpy(weight)


class ShardedTables:
    """The shards of one rank; nobody else's are made here.

    Args:
        config: the whole model.
        placement: of all T tables.
        rank: this one.
        seed: of the weights, the same on every rank.

    Attributes:
        weights: shard -> (its rows, its columns) float32: first those held here alone, in their order in a message,
            then the replicated ones.

    Raises:
        blslib.placement.shards.PlacementError: the placement does not hold every row and column of the tables once.
        ValueError: the rank is outside the placement.
    """

    def __init__(self, config: ModelConfig, placement: Placement, rank: int, seed: int) -> None:
        placement.check(config.shapes)
        if not 0 <= rank < placement.ranks:
            raise ValueError(f"rank {rank} is outside the placement, which has ranks 0 to {placement.ranks - 1}")
        self.config, self.placement, self.rank = config, placement, rank
        self.weights = {s: initial_weights(config, s, seed) for s in (*placement.of_rank[rank], *placement.replicated)}
        ends = np.cumsum([len(shard.columns) for shard in placement.of_rank[rank]], dtype=int).tolist()
        self._columns = [slice(*ends) for ends in pairwise((0, *ends))]

    def lookup(self, batch: Batch, into: Sequence[np.ndarray] = ()) -> Sequence[np.ndarray]:
        """Sum the bags of the shards held here alone, for the whole batch.

        Args:
            batch: with the ids of these shards.
            into: P flat float32 arrays to be filled, of ``send_counts`` items; new ones if none are given.

        Returns:
            Those arrays, one per destination: (its rows, columns of all shards), flat.

        Raises:
            ValueError: if the batch has another number of tables, an id outside its table, or ``into`` another size.

        Cost: sums are written twice, since torch's ``embedding_bag`` takes no memory to write to.
        """
        if batch.tables != self.config.tables:
            raise ValueError(f"batch has {batch.tables} tables, the model has {self.config.tables}")
        parts = [own_rows(batch.size, rank, self.placement.ranks) for rank in range(self.placement.ranks)]
        width = self.placement.widths[self.rank]
        blocks = into or [np.empty((part.stop - part.start) * width, np.float32) for part in parts]
        rooms = [each.reshape(part.stop - part.start, width) for each, part in zip(blocks, parts, strict=True)]
        for columns, shard in zip(self._columns, self.weights, strict=False):
            # Through numpy, since torch lets nobody write into a tensor made in inference mode from outside it.
            sums = self.sums(shard, *_bags(batch, shard.table)).numpy()
            for room, part in zip(rooms, parts, strict=True):
                room[:, columns] = sums[part]
        return blocks

    def replicas(self, batch: Batch, samples: slice) -> list[torch.Tensor]:
        """Sum the bags of the replicated shards, for some samples: (samples, its columns) of each.

        Raises:
            ValueError: if an id of these samples is outside its table.
        """
        sums = []
        for shard in self.placement.replicated:
            ids, offsets = _bags(batch, shard.table)
            ends = offsets[samples.start : samples.stop + 1]
            sums.append(self.sums(shard, ids[ends[0] : ends[-1]], ends - ends[0]))
        return sums

    def sums(self, shard: Shard, ids: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        """(bags, columns of a shard that is here) float32: the rows of each bag, added up.

        Raises:
            ValueError: if an id is outside the table.
        """
        rows = self.config.rows[shard.table]
        if len(shard.rows) < rows:
            ids, offsets = _local(shard, ids, offsets, rows)
        bags = torch.from_numpy(offsets)
        try:
            return embedding_bag(torch.from_numpy(ids), self.weights[shard], bags, mode="sum", include_last_offset=True)
        except RuntimeError as error:
            check_ids(ids, shard.table, rows)
            raise ValueError(f"bad bags for table {shard.table} of {rows} rows: {error}") from error


def _bags(batch: Batch, table: int) -> Bags:
    """Ids and offsets of a table."""
    offsets = batch.offsets[table]
    if len(offsets) != batch.size + 1:
        raise ValueError(f"table {table} has {len(offsets)} offsets, a batch of {batch.size} needs {batch.size + 1}")
    return batch.ids[table], offsets


def _local(shard: Shard, ids: np.ndarray, offsets: np.ndarray, rows: int) -> Bags:
    """The bags with the ids of a row block alone, counted from its first row; quick for a batch with no others."""
    part = shard.rows
    local = (ids - part.start) // part.step
    of_part = not len(ids) or (local.min() >= 0 and local.max() < len(part))
    if not of_part or (part.step > 1 and not np.array_equal(local * part.step + part.start, ids)):
        ids, offsets = bags_within(part, ids, offsets, shard.table, rows)
        local = (ids - part.start) // part.step
    return local, offsets
