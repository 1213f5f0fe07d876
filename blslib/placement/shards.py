"""Shards and placements: which part of which table lies on which rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

MOST_RANKS = 2**20


class PlacementError(ValueError):
    """A placement does not hold every row and column exactly once."""


class Shard(NamedTuple):
    """Part of a table.

    Attributes:
        table: its number.
        rows: of the table: neighbours, ``range(a, b)``, or every n-th, ``range(k, rows, n)``.
        columns: of the D values of a row, neighbours.
        rank: that holds it; None if every rank does (replicated, "data parallel"): then each looks it up for the
            samples that it scores itself, and nothing is sent.
    """

    table: int
    rows: range
    columns: range
    rank: int | None


@dataclass(frozen=True)
class Placement:
    """All shards of a model's tables over P ranks.

    Attributes:
        shards: sorted by table, column and row.
        ranks: P.

    Raises:
        PlacementError: a shard is given to a rank that does not exist.
    """

    shards: tuple[Shard, ...]
    ranks: int

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= MOST_RANKS:
            raise PlacementError(f"a placement is over 1 to {MOST_RANKS:,} ranks, got {self.ranks}")
        for shard in self.shards:
            if shard.rank is not None and not 0 <= shard.rank < self.ranks:
                raise PlacementError(
                    f"table {shard.table} is placed on rank {shard.rank}, there are ranks 0 to {self.ranks - 1}"
                )
        ordered = sorted(self.shards, key=lambda shard: (shard.table, shard.columns.start, shard.rows.start))
        object.__setattr__(self, "shards", tuple(ordered))

    @cached_property
    def of_rank(self) -> tuple[tuple[Shard, ...], ...]:
        """P tuples: the shards that each rank holds alone, in order: that of their columns in its messages."""
        held: list[list[Shard]] = [[] for _ in range(self.ranks)]
        for shard in self.shards:
            if shard.rank is not None:
                held[shard.rank].append(shard)
        return tuple(map(tuple, held))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """P numbers: the values that each rank sends for each sample, the columns of all shards it holds alone."""
        return tuple(sum(len(shard.columns) for shard in held) for held in self.of_rank)

    def parts(self, rank: int) -> dict[int, range]:
        """The rows that a rank may have to look up, of each table that it holds anything of: what its batches need.

        Of a table with several row blocks here it is all rows from the first to the last; the lookup then sorts the
        ids out in every step.
        """
        found: dict[int, range] = {}
        for table, rows, *_ in (*self.of_rank[rank], *self.replicated):
            other = found.setdefault(table, rows)
            if other != rows:
                found[table] = range(min(other.start, rows.start), max(other.stop, rows.stop))
        return found

    @cached_property
    def replicated(self) -> tuple[Shard, ...]:
        """The shards that every rank holds."""
        return tuple(shard for shard in self.shards if shard.rank is None)

    def spread(self, shapes: Sequence[tuple[int, int]], loads: np.ndarray) -> np.ndarray:
        """(P, N) what each rank has of (T, N) loads of the tables, by its share of their values."""
        found = np.zeros((self.ranks, loads.shape[1]))
        for table, rows, columns, rank in self.shards:
            share = len(rows) * len(columns) / np.prod(shapes[table])
            found[slice(None) if rank is None else rank] += loads[table] * (share / (self.ranks if rank is None else 1))
        return found

    def check(self, shapes: Sequence[tuple[int, int]], names: Sequence[str] = ()) -> None:
        """See that every row and column of every table is held exactly once.

        Args:
            shapes: (rows, D) of each of the T tables.
            names: of the tables, if they have any, for the complaint.

        Raises:
            PlacementError: a table is missing, unknown, held in part, or twice.
        """
        found = {table: list(group) for table, group in groupby(self.shards, key=lambda shard: shard.table)}
        if unknown := found.keys() - set(range(len(shapes))):
            raise PlacementError(f"there is no table {min(unknown)}: the model has {len(shapes)} tables")
        for table, (rows, dim) in enumerate(shapes):
            strips = {c: [s.rows for s in group] for c, group in groupby(found.get(table, ()), lambda s: s.columns)}
            complete = _tiles(list(strips), dim) and all(columns.step == 1 for columns in strips)
            if not complete or not all(_tiles(blocks, rows) for blocks in strips.values()):
                held = ", ".join(f"rows {s.rows} columns {s.columns}" for s in found.get(table, ())) or "nothing"
                raise PlacementError(
                    f"table {names[table] if names else table} of {rows} rows and {dim} columns must be held whole "
                    f"and once, got {held}"
                )


def _tiles(parts: list[range], size: int) -> bool:
    """Whether sorted ranges are all of ``range(size)``: one behind the other, or every n-th."""
    if all(part.step == 1 for part in parts):
        ends = [0, *(part.stop for part in parts)]
        return [part.start for part in parts] == ends[:-1] and ends[-1] == size and all(map(len, parts))
    return parts == [range(k, size, len(parts)) for k in range(len(parts))]


def whole(shapes: Sequence[tuple[int, int]], owners: Sequence[int | None], ranks: int) -> Placement:
    """Every table whole on its owner; None replicates it.

    Args:
        shapes: (rows, D) of each table.
        owners: (T,) the rank of each.
        ranks: P.
    """
    shards = (Shard(t, range(r), range(d), o) for t, ((r, d), o) in enumerate(zip(shapes, owners, strict=True)))
    return Placement(tuple(shards), ranks)


def contiguous(shapes: Sequence[tuple[int, int]], ranks: int) -> Placement:
    """Neighbouring tables together, equal in number: the first ``T mod P`` ranks hold one more.

    The split of the reference DLRM; blind to rows and lookups.
    """
    owners = [rank for rank, part in enumerate(np.array_split(range(len(shapes)), ranks)) for _ in part]
    return whole(shapes, owners, ranks)
