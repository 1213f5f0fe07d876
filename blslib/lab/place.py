"""Where should these tables lie? ``python -m blslib place TABLES``: every strategy, and what the best would buy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blslib.lab.options import Row
from blslib.placement.loads import Loads, LookupCost, imbalance, of_ranks, of_shards
from blslib.placement.optimum import optimum
from blslib.placement.shards import Placement, whole
from blslib.placement.strategies import STRATEGIES, ImpossibleError, NoneFoundError, Options
from blslib.placement.tables import Table
from blslib.theory.imbalance import Split

MOST = 400
"""Tables above which the optimum is not asked for: it would take minutes."""
LIMIT_S = 5.0
"""Seconds that the optimum may take; what it has found by then is shown with its gap."""
BEST = "optimum"
"""The name under which the optimum of whole tables stands beside the strategies."""


class Placed(NamedTuple):
    """What a strategy made of the tables: a placement, what it asks of each rank, and what to know besides."""

    strategy: str
    placement: Placement
    loads: Loads
    told: str = ""


def placed(
    tables: Sequence[Table], ranks: int, options: Options, names: Sequence[str] = (*STRATEGIES, BEST)
) -> tuple[list[Placed], dict[str, str]]:
    """Every strategy on the same tables; and of those that found no placement, why."""
    found, failed, given = [], {}, (tables, ranks, options)
    for name in names:
        try:
            placement, told = _best(*given) if name == BEST else (STRATEGIES[name](*given), "")
        except (NoneFoundError, ImpossibleError) as error:
            failed[name] = str(error)
        else:
            found.append(Placed(name, placement, of_ranks(placement, tables, options.cost), told))
    return found, failed


def _best(tables: Sequence[Table], ranks: int, options: Options) -> tuple[Placement, str]:
    if len(tables) > MOST:
        raise NoneFoundError(f"not asked for above {MOST} tables: it would take minutes")
    shapes = [table.shape for table in tables]
    each = of_shards(whole(shapes, [0] * len(tables), 1).shards, tables, options.cost)
    best = optimum(each.time_us, each.bytes, ranks, cap=options.cap_bytes, limit_s=LIMIT_S)
    return whole(shapes, best.owners.tolist(), ranks), f"of whole tables, within {1 - best.bound / best.load:.1%}"


def requests(placement: Placement, tables: Sequence[Table]) -> np.ndarray:
    """(P,) requests that each rank answers for a batch, if one process asks: one a net of which it has tables."""
    pairs = {(shard.rank, tables[shard.table].net) for shard in placement.shards if shard.rank is not None}
    return np.bincount([rank for rank, _ in pairs], minlength=placement.ranks)


def in_turn_us(placement: Placement, tables: Sequence[Table], cost: LookupCost) -> float:
    """Microseconds of a batch if nets follow each other: the busiest rank's lookups of each net, summed over nets."""
    spent_us: dict[str, np.ndarray] = {table.net: np.zeros(placement.ranks) for table in tables}
    each_us = of_shards(placement.shards, tables, cost, placement.ranks).time_us
    for shard, one_us in zip(placement.shards, each_us, strict=True):
        spent_us[tables[shard.table].net][slice(None) if shard.rank is None else shard.rank] += one_us
    return float(sum(net_us.max() for net_us in spent_us.values()))


def rows(found: Sequence[Placed], tables: Sequence[Table]) -> list[Row]:
    """A row for each strategy and rank."""
    table = []
    for strategy, placement, loads, _ in found:
        asked = requests(placement, tables).tolist()
        for rank, own in enumerate(placement.of_rank):
            held = len({shard.table for shard in (*own, *placement.replicated)})
            line = {name: float(values[rank]) for name, values in loads._asdict().items()}
            table.append({"strategy": strategy, "shard": rank, "tables": held, **line, "requests": asked[rank]})
    return table


def overview(found: Sequence[Placed], tables: Sequence[Table], options: Options) -> list[Row]:
    """A row for each strategy: of each load the greatest over the mean, and what the busiest rank has.

    ``sent`` is over what whole tables send, ``in_turn_us`` if nets follow each other, ``over_optimum`` the time of the
    busiest rank over the least of whole tables, if that was sought.
    """
    whole_sent = 4 * options.cost.batch * sum(table.dim for table in tables)
    uncut = [each for each in found if len(each.placement.shards) == len(tables) and not each.placement.replicated]
    # A solver that stops within its gap may be behind a strategy.
    sought = BEST in {each.strategy for each in found}
    lowest_us = min(each.loads.time_us.max() for each in uncut) if sought else np.nan
    return [
        {
            "strategy": strategy,
            "pieces": len(placement.shards),
            "replicated": len(placement.replicated),
            **{f"{name}_over_mean": imbalance(values) for name, values in loads._asdict().items()},
            "sent": float(loads.sent_bytes.sum() / whole_sent),
            "requests": int(requests(placement, tables).sum()),
            "most_mib": float(loads.bytes.max() / 2**20),
            "busiest_us": float(loads.time_us.max()),
            "in_turn_us": in_turn_us(placement, tables, options.cost),
            "over_optimum": float(loads.time_us.max() / lowest_us),
            "told": told,
        }
        for strategy, placement, loads, told in found
    ]


def chosen(found: Sequence[Placed]) -> Placed | None:
    """The one with the least time on its busiest rank.

    The whole model everywhere is no answer; None if there is no other.
    """
    there = [each for each in found if len(each.placement.replicated) < len(each.placement.shards)]
    return min(there, key=lambda each: each.loads.time_us.max(), default=None)


def audited(placement: Placement, tables: Sequence[Table], options: Options, path: str) -> Placed:
    """A plan made elsewhere, beside the strategies."""
    loads = of_ranks(placement, tables, options.cost)
    above = f", above the cap on {(loads.bytes > options.cap_bytes).sum()} ranks"
    return Placed("plan", placement, loads, path + above * bool(loads.bytes.max() > options.cap_bytes))


def bought(found: Placed, parts: Split) -> float:
    """Share of a run's time that the placement would save, if its lookups are all of the ranks' work."""
    left_s = (imbalance(found.loads.time_us) - 1) * parts.useful_s
    return (parts.static_s - left_s) / parts.total_s


def text(found: Sequence[Placed], best: Placed | None, tables: Sequence[Table], options: Options) -> str:
    """All strategies, a line each, then the best one, if there is any, rank by rank."""
    import pandas as pd

    lines = pd.DataFrame(overview(found, tables, options)).set_index("strategy")
    lines.columns = lines.columns.str.replace("_over_mean", "*").str.replace("_", " ").str.replace("told", "")
    shown = [lines.to_string(float_format="{:,.4g}".format), "* the greatest of a rank over the mean"]
    if best:
        shown += [
            "",
            f"least time: {best.strategy}, {imbalance(best.loads.time_us):.3f} times the mean on its busiest rank",
        ]
        each = pd.DataFrame(rows([best], tables)).drop(columns="strategy").set_index("shard")
        shown.append(each.to_string(float_format="{:,.0f}".format))
    return "\n".join(map(str.rstrip, "\n".join(shown).split("\n")))
