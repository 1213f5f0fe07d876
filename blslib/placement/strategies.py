"""Strategies: from tables and a number of ranks to a placement. All have one signature and stand in ``STRATEGIES``.

The abstract of arXiv 2011.02084 speaks of three mapping strategies; what they are called and do here is our definition.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np

from blslib.placement.loads import Loads, LookupCost, imbalance, of_ranks, of_shards
from blslib.placement.shards import Placement, Shard, contiguous, whole
from blslib.placement.tables import Table

LEAST_COLUMNS = 32
"""Values of a row that a column piece keeps: narrower ones cost nearly as much time as wider ones."""
FACTORS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.25)
"""Cut factors that are tried: no piece asks for more than so much of a rank's mean share."""


class NoneFoundError(ValueError):
    """A strategy found no placement; another one may."""


class ImpossibleError(ValueError):
    """There is no placement: simple sums, or the optimum, say so."""


@dataclass(frozen=True)
class Options:
    """What a strategy may use and has to keep.

    Attributes:
        cap_bytes: on each rank, replicas included.
        cost: the time of a shard, its weight.
        slack: what strategies that cut or replicate tables balance besides time, by names of ``Loads``, and how much
            above the mean is good enough.
        sent: how much they may send, in all, as a multiple of what whole tables would.
        spare_bytes: that each rank may give to replicas of small tables.
        seed: of what is drawn.
    """

    cap_bytes: float = math.inf
    cost: LookupCost = field(default_factory=LookupCost)
    slack: Mapping[str, float] = field(default_factory=lambda: {"bytes": 1.25})
    sent: float = 1.2
    spare_bytes: float = 256 * 2**20
    seed: int = 0


Strategy = Callable[[Sequence[Table], int, Options], Placement]


Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From (P, K) loads and the (K,) weights of a piece to (P,): what is to be small if that rank gets it."""


def worst(load: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The rank's own load, by its worst criterion."""
    return (load + more).max(axis=1)


def together(load: np.ndarray, more: np.ndarray) -> np.ndarray:
    """What all ranks need who wait for each other in each of K batches."""
    return np.maximum(load + more, load.max(axis=0)).sum(axis=1)


def assign(
    weights: np.ndarray,
    sizes: np.ndarray,
    ranks: int,
    cap: float = math.inf,
    apart: Sequence[Hashable] = (),
    score: Score = worst,
) -> np.ndarray:
    """Greedy, heaviest first, each to the rank that scores least with it and has room for it (LPT).

    Args:
        weights: (n, K) of each piece, by K criteria of like units, or in K batches.
        sizes: (n,) bytes.
        ranks: P.
        cap: bytes of a rank.
        apart: what each piece is of, if no rank is to have two of the same; there must be no more of them than ranks.
        score: of a rank that would get a piece.

    Returns:
        (n,) the rank of each. Ties go to the fewer bytes, then to the lower number; pieces of equal weight go by more
        bytes, then by the lower number. O(n P K).

    Raises:
        NoneFoundError: no rank had room for a piece; its ``args[1]`` is the piece.
    """
    load, held = np.zeros((ranks, weights.shape[1])), np.zeros(ranks)
    owners = np.zeros(len(sizes), dtype=int)
    has: dict[Hashable, list[int]] = {}
    for piece in np.lexsort((-sizes, -weights.max(axis=1, initial=0))):
        scores = score(load, weights[piece])
        if cap < math.inf:
            scores[held + sizes[piece] > cap] = math.inf
        if apart:
            scores[has.setdefault(apart[piece], [])] = math.inf
        least = scores.min()
        if least == math.inf:
            raise NoneFoundError(f"no rank has room for {sizes[piece]:,.0f} bytes more", int(piece))
        ties = np.flatnonzero(scores == least)
        owners[piece] = rank = ties[held[ties].argmin()]
        load[rank] += weights[piece]
        held[rank] += sizes[piece]
        if apart:
            has[apart[piece]].append(rank)
    return owners


def exchanged(owners: np.ndarray, weights: np.ndarray, sizes: np.ndarray, ranks: int, cap: float) -> np.ndarray:
    """(n,) better owners: pieces of the heaviest rank are exchanged for lighter ones, or moved, while that helps.

    Args:
        owners: (n,) the rank of each piece.
        weights, sizes: (n,) of the pieces.
        ranks: P.
        cap: bytes of a rank.
    """
    nothing = np.zeros(ranks)  # on each rank something that weighs nothing: to move is to exchange for that
    weights, sizes = np.append(weights, nothing), np.append(sizes, nothing)
    owners = np.append(owners, np.arange(ranks))
    for _ in owners:
        load, held = np.bincount(owners, weights), np.bincount(owners, sizes)
        top = load.argmax()
        here, there = np.flatnonzero(owners == top), np.flatnonzero(owners != top)
        less, fewer = np.subtract.outer(weights[here], weights[there]), np.subtract.outer(sizes[here], sizes[there])
        after = np.maximum(load[top] - less, load[owners[there]] + less)
        after[(held[top] - fewer > cap) | (held[owners[there]] + fewer > cap)] = math.inf
        if not after.size or after.min() >= load[top] * (1 - 1e-9):
            break
        one, other = np.unravel_index(after.argmin(), after.shape)
        owners[here[one]], owners[there[other]] = owners[there[other]], top
    return owners[:-ranks]


def possible(tables: Sequence[Table], pieces: Sequence[Shard], sizes: np.ndarray, ranks: int, cap: float) -> None:
    """Refuse what simple sums rule out.

    Raises:
        ImpossibleError: one piece is larger than the cap, or all are larger than all caps.
    """
    if len(sizes) and sizes.max() > cap:
        name = tables[pieces[int(sizes.argmax())].table].name
        raise ImpossibleError(
            f"impossible: table {name} needs {sizes.max():,.0f} bytes in one piece, a rank has {cap:,.0f}: "
            "cut tables (row-split, column-split), or raise the cap"
        )
    _enough(sizes, ranks, cap)


def _enough(sizes: np.ndarray, ranks: int, cap: float) -> None:
    if sizes.sum() > ranks * cap:
        raise ImpossibleError(
            f"impossible: the tables have {sizes.sum():,.0f} bytes, {ranks} ranks of {cap:,.0f} have {ranks * cap:,.0f}"
        )


def _pieces(tables: Sequence[Table], counts: Iterable[tuple[int, int]]) -> list[Shard]:
    """Tables cut into (row blocks, column strips) each: every n-th row, and neighbouring columns of like width.

    They wait for a rank on rank 0.
    """
    found = []
    for number, (table, (blocks, strips)) in enumerate(zip(tables, counts, strict=True)):
        cuts = [table.dim * k // strips for k in range(strips + 1)]
        found += [
            Shard(number, range(k, table.rows, blocks), range(a, b), 0)
            for a, b in pairwise(cuts)
            for k in range(blocks)
        ]
    return found


def _placed(tables: Sequence[Table], pieces: Sequence[Shard], weights: np.ndarray, sizes: np.ndarray, ranks: int,
            options: Options, kept: Sequence[Shard] = (), score: Score = worst) -> Placement:  # fmt: skip
    """The pieces by ``assign``, with ``kept`` on every rank."""
    room = options.cap_bytes - of_shards(kept, tables, options.cost).bytes.sum()
    possible(tables, pieces, sizes, ranks, room)
    try:
        # A rank with two row blocks of a table would translate all ids twice, and send two sums.
        strips = [(piece.table, piece.columns) for piece in pieces]
        owners = assign(weights, sizes, ranks, room, strips if len(set(strips)) < len(strips) else (), score)
        if weights.shape[1] == 1:
            owners = exchanged(owners, weights[:, 0], sizes, ranks, room)
    except NoneFoundError as error:
        name = tables[pieces[error.args[1]].table].name
        raise NoneFoundError(
            f"found none: {error.args[0]} of table {name}; another strategy or the optimum may find a placement"
        ) from None
    placed = [piece._replace(rank=int(rank)) for piece, rank in zip(pieces, owners, strict=True)]
    return Placement((*placed, *kept), ranks)


def _uncut(tables: Sequence[Table]) -> list[Shard]:
    return _pieces(tables, [(1, 1)] * len(tables))


def _whole(weigh: Callable[[Table, float], float]) -> Strategy:
    """Whole tables, by a weight of each and of the time of its lookups."""

    def strategy(tables: Sequence[Table], ranks: int, options: Options = Options()) -> Placement:
        pieces = _uncut(tables)
        loads = of_shards(pieces, tables, options.cost)
        weights = np.array([[weigh(*each)] for each in zip(tables, loads.time_us, strict=True)], dtype=float)
        return _placed(tables, pieces, weights, loads.bytes, ranks, options)

    return strategy


def _given(owners: Callable[[int, int, int], Sequence[int | None]]) -> Strategy:
    """Whole tables, by a rule that looks at their number, at P and at a seed alone; refused above the cap."""

    def strategy(tables: Sequence[Table], ranks: int, options: Options = Options()) -> Placement:
        placement = whole([table.shape for table in tables], owners(len(tables), ranks, options.seed), ranks)
        held = of_ranks(placement, tables, options.cost).bytes
        if held.max() > options.cap_bytes:
            raise NoneFoundError(
                f"found none: rank {held.argmax()} would hold {held.max():,.0f} bytes of {options.cap_bytes:,.0f}; "
                "this strategy does not look at the cap, another one may find a placement"
            )
        return placement

    return strategy


def net_specific(tables: Sequence[Table], ranks: int, options: Options = Options()) -> Placement:
    """Ranks are given to nets by their bytes, one at least; no rank holds tables of two. Within a net LPT over bytes.

    Raises:
        NoneFoundError: there are fewer ranks than nets.
    """
    size: dict[str, int] = {}
    for table in tables:
        size[table.net] = size.get(table.net, 0) + table.bytes
    if ranks < len(size):
        raise NoneFoundError(f"found none: {len(size)} nets need as many ranks at least, there are {ranks}")
    given = dict.fromkeys(size, 1)
    for _ in range(ranks - len(given)):  # each to the net whose ranks would hold most
        given[max(given, key=lambda net: size[net] / given[net])] += 1
    shards: list[Shard] = []
    first = 0
    for net, many in given.items():
        pieces = [piece for piece in _uncut(tables) if tables[piece.table].net == net]
        sizes = of_shards(pieces, tables, options.cost).bytes
        try:
            own = _placed(tables, pieces, sizes[:, None], sizes, many, options)
        except ImpossibleError as error:  # with so many ranks for this net
            raise NoneFoundError(f"found none: {many} ranks for net {net!r} are too few: {error}") from None
        shards += [shard._replace(rank=first + (shard.rank or 0)) for shard in own.shards]
        first += many
    return Placement(tuple(shards), ranks)


def _cuts(tables: Sequence[Table], wanted: np.ndarray, ranks: int, rows: bool, columns: bool) -> list[tuple[int, int]]:
    """(row blocks, column strips) of each table for so many pieces: strips first, since they cost no bytes to send."""
    counts = []
    for table, pieces in zip(tables, np.ceil(wanted).astype(int).tolist(), strict=True):
        strips = min(pieces, max(1, table.dim // LEAST_COLUMNS)) if columns else 1
        counts.append((min(-(-pieces // strips), table.rows, ranks) if rows else 1, strips))
    return counts


def _searched(ways: Sequence[tuple[bool, bool]], replicas: bool = False) -> Strategy:
    """The best of all cut factors, of ways to cut (rows, columns), and of sizes up to which tables are replicated.

    That is the one with the least time, within 1 % the one which sends least, of those that keep ``Options.slack`` and
    ``Options.sent``, or come closest to that.
    """

    def strategy(tables: Sequence[Table], ranks: int, options: Options = Options()) -> Placement:
        uncut = _uncut(tables)
        each = of_shards(uncut, tables, options.cost)
        _enough(each.bytes, ranks, options.cap_bytes)
        tried, seen = [], set[tuple]()
        limits = _limits(each.bytes, options) if replicas else [0.0]
        for limit, factor, (rows, columns) in product(limits, FACTORS, ways):
            small = each.bytes <= limit
            wanted = np.where(small, 1, _shares(each, options, ~small).max(axis=1) * ranks / factor)
            cuts = _cuts(tables, wanted, ranks, rows, columns)
            if (limit, *cuts) in seen:  # neighbouring factors often cut alike
                continue
            seen.add((limit, *cuts))
            pieces = [piece for piece in _pieces(tables, cuts) if not small[piece.table]]
            kept = [piece._replace(rank=None) for piece in uncut if small[piece.table]]
            loads = of_shards(pieces, tables, options.cost)
            try:
                placement = _placed(tables, pieces, _shares(loads, options), loads.bytes, ranks, options, kept)
            except (NoneFoundError, ImpossibleError):  # with these pieces, and beside these replicas
                continue
            got = of_ranks(placement, tables, options.cost)
            over = [imbalance(getattr(got, what)) / far for what, far in options.slack.items()]
            over.append(got.sent_bytes.sum() / each.sent_bytes.sum() / options.sent)
            tried.append((max(1.0, *over), got.time_us.max(), got.sent_bytes.max(), placement))
        if not tried:
            raise NoneFoundError(f"found none of {len(seen)} ways that keeps {options.cap_bytes:,.0f} bytes on a rank")
        good = [each for each in tried if each[0] <= min(each[0] for each in tried)]
        quick = [each for each in good if each[1] <= 1.01 * min(each[1] for each in good)]
        return min(quick, key=lambda each: each[2])[3]

    return strategy


def _shares(loads: Loads, options: Options, of: np.ndarray | slice = slice(None)) -> np.ndarray:
    """(n, K) time and what has a slack, each as a share of the sum over some, so that 1 / P is good enough."""
    parts = [(getattr(loads, what), far) for what, far in {"time_us": 1.0, **options.slack}.items()]
    return np.stack([part / ((part[of].sum() or 1.0) * far) for part, far in parts], axis=1)


def _limits(sizes: np.ndarray, options: Options) -> list[float]:
    """Sizes up to which all tables are replicated: none, and those that take up all, half ... of what is spare."""
    sizes = np.sort(sizes)
    spare = min(options.spare_bytes, options.cap_bytes) / 2.0 ** np.arange(8)
    fit = np.searchsorted(sizes.cumsum(), spare, side="right")
    return sorted({0.0, *(float(sizes[count - 1]) for count in fit if count)})


def correlated(tables: Sequence[Table], ranks: int, loads_us: np.ndarray, options: Options = Options()) -> Placement:
    """Whole tables, such that those which are hot in the same batches lie apart: loads are packed batch by batch.

    Args:
        tables: T tables.
        ranks: P.
        loads_us: (T, K) time of each table in K batches that stand for the stream.
        options: what has to be kept.

    Raises:
        NoneFoundError, ImpossibleError: as of every strategy.
    """
    pieces = _uncut(tables)
    sizes = of_shards(pieces, tables, options.cost).bytes
    return _placed(tables, pieces, loads_us, sizes, ranks, options, score=together)


def _drawn(tables: int, ranks: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(ranks, size=tables).tolist()


STRATEGIES: dict[str, Strategy] = {
    "singular": _given(lambda tables, ranks, seed: [None] * tables),
    "one-shard": _given(lambda tables, ranks, seed: [0] * tables),
    "contiguous": _given(lambda tables, ranks, seed: [s.rank for s in contiguous([(1, 1)] * tables, ranks).shards]),
    "random": _given(_drawn),
    "capacity-balanced": _whole(lambda table, _: table.bytes),
    "load-balanced": _whole(lambda _, time_us: time_us),
    "net-specific": net_specific,
    "size-greedy": _whole(lambda table, _: table.rows * table.dim),
    "lookup-greedy": _whole(lambda table, _: table.dim * table.pooling),
    "dim-greedy": _whole(lambda table, _: table.dim),
    "size-lookup-greedy": _whole(lambda table, _: table.dim * table.pooling * math.log10(table.rows)),
    "row-split": _searched([(True, False)]),
    "column-split": _searched([(False, True)]),
    "replicated": _searched([(False, False)], replicas=True),
    "searched": _searched([(True, False), (False, True), (True, True)], replicas=True),
}
"""By name. ``singular`` has the whole model everywhere, ``one-shard`` all tables on rank 0: what sending costs, and
nothing gained by it. ``contiguous`` is the reference DLRM's. Those with "greedy" are the baselines of DreamShard's code
(daochenzha/dreamshard, dreamshard/sharders.py), which ignores a table that fits nowhere; here that is refused."""
