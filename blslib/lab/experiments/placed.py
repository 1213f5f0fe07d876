"""The DLRM inference loop under several placements: what placement wins, what lag wins, and what both.

All placements see one and the same stream of batches. The weight of a table is the time of its lookups in every second
of them, measured; ``correlated`` knows besides which tables are hot together there, and competes with lag.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from blslib.collective.mpi import MPI
from blslib.lab import scenarios
from blslib.lab.compare.contest import Contender, interleaved
from blslib.lab.compare.run import delaying
from blslib.lab.experiments import dlrm
from blslib.lab.options import BY_GROUP, RANKS, Given, Row, names, settings
from blslib.lab.tables import of_batches, times_us
from blslib.placement.shards import Placement
from blslib.placement.strategies import STRATEGIES, Options, correlated
from blslib.placement.tables import Table
from blslib.theory.maxplus import makespan
from blslib.workloads.scenarios import SCENARIOS

COLUMNS = "scenario strategy contender bound measured_s over_groups lag_effect load_balance serialisation transfer identical"  # fmt: skip # noqa: E501
OPTIONS = {
    "scenarios": names(SCENARIOS, "NAME"),
    "strategies": names((*STRATEGIES, "correlated"), "NAME"),
    "ranks": RANKS | {"default": 2},
}


@dataclass(frozen=True)
class Config(dlrm.Config):
    """One scenario under several placements; else as ``dlrm.Config``.

    Attributes:
        strategies: of ``placement.strategies.STRATEGIES``, and ``correlated``, beside ``options.BY_GROUP``.
        groups: of tables; more than ranks, so that there is something to place.
    """

    scenario: str = "static"
    names: tuple[str, ...] = ("mpi", "bls")
    bounds: tuple[int, ...] = (0, 4)
    max_rows: int = 20_000
    batch_size: int = 256
    strategies: tuple[str, ...] = ("load-balanced", "correlated", "searched")
    groups: int = 8


def plan(given: Given) -> list[Config]:
    """One configuration for each scenario."""
    chosen = settings(given, {"repeats": 3, "iterations": 48})
    chosen |= {"strategies": given.strategies} if given.strategies else {}
    return [Config(scenario, **chosen) for scenario in given.scenarios or ("static", "group-loads", "aliccp-multihot")]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure; placements and contenders take turns. Collective; the rows are on every rank.

    Scores are the same to the bit for all contenders and bounds under one placement.

    Raises:
        RuntimeError: those of two placements differ by more than sums in another order may.
    """
    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, config.seed)
    tables, loads_us = comm.bcast(weighed(config) if comm.rank == 0 else None)
    planned = {BY_GROUP: None, **dict(placements(tables, loads_us[:, ::2], comm.size, config.strategies))}
    with ExitStack() as stack:
        made = {
            strategy: stack.enter_context(dlrm.prepared(comm, config, placement, config.groups))
            for strategy, placement in planned.items()
        }

        def once(case: tuple[str, Contender]) -> dlrm.Measured:
            here, model, exchanges = made[case[0]]
            return dlrm.one(comm, here, model, exchanges[case[1]], delay)

        cases = [(strategy, item) for strategy, (_, _, exchanges) in made.items() for item in exchanges]
        found = interleaved(comm, cases, once, config)
    rows, first = [], found[cases[0]][0].scores
    for strategy, (here, _, exchanges) in made.items():
        runs = {item: found[strategy, item] for item in exchanges}
        if not all(np.allclose(each.scores, first, rtol=1e-5, atol=1e-7) for own in runs.values() for each in own):
            raise RuntimeError(f"{strategy} has other scores than whole groups of tables")
        rows += dlrm.rows_of(comm, config, {"source": here.source, "strategy": strategy}, exchanges, runs)
    return rows


def placements(
    tables: Sequence[Table], loads_us: np.ndarray, ranks: int, strategies: Sequence[str]
) -> Iterator[tuple[str, Placement]]:
    """Strategies by name, and their placements; ``correlated`` alone looks at the loads batch by batch."""
    for name in strategies:
        given = tables, ranks
        yield name, correlated(*given, loads_us) if name == "correlated" else STRATEGIES[name](*given, Options())


def weighed(config: Config) -> tuple[tuple[Table, ...], np.ndarray]:
    """The scenario's tables, and (T, N) microseconds of their lookups in each iteration, measured on this core.

    What is planned must not know what it is judged by: a table's own time is that of the even iterations.
    """
    here = scenarios.build(config, 1, 0, groups=config.groups)
    batches = sorted(set(here.order.tolist()))
    each_us = times_us(here.model.shapes, [here.pool[which] for which in batches])
    loads_us = each_us[np.searchsorted(batches, here.order)].T
    listed = of_batches(here.model.rows, here.model.dim, [here.pool[which] for which in batches[::2]])
    own_us = loads_us[:, ::2].mean(axis=1).tolist()
    return tuple(replace(table, time_us=us) for table, us in zip(listed, own_us, strict=True)), loads_us


def foreseen(config: Config, ranks: Sequence[int]) -> list[Row]:
    """The same on other numbers of ranks by the max-plus law, if lookups are all of the work and the exchange is free.

    Placed by even iterations, judged by odd ones.

    Returns:
        A row for each strategy and number of ranks: ``load_balance``, the mean over the busiest rank's work; and
        ``placement``, ``lag`` and ``both``, what is won over whole groups at bound 0, by lag at the last bound alone,
        and by both.
    """
    tables, loads_us = weighed(config)
    rows, bound, shapes = list[Row](), config.bounds[-1], [table.shape for table in tables]
    for count in ranks:
        made = {BY_GROUP: scenarios.build(config, count, 0, groups=config.groups).placement}
        made |= dict(placements(tables, loads_us[:, ::2], count, config.strategies))
        work_us = {name: placement.spread(shapes, loads_us[:, 1::2]) for name, placement in made.items()}
        groups_us = makespan(work_us[BY_GROUP], 0)
        for name, each_us in work_us.items():
            alone_us, both_us, total_us = makespan(each_us, 0), makespan(each_us, bound), each_us.sum(axis=1)
            won = {"placement": groups_us / alone_us, "lag": alone_us / both_us, "both": groups_us / both_us}
            balance = float(total_us.mean() / total_us.max())
            rows.append({"scenario": config.scenario, "strategy": name, "ranks": count, "load_balance": balance, **won})
    return rows
