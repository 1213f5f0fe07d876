"""The DLRM inference loop under several placements: what placement wins, what lag wins, and what both.

All placements see one and the same stream of batches. The weight of a table is the time of its lookups, measured on
batches of that stream, and ``correlated`` knows which tables are hot together from their order.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blslib.lab.experiments import dlrm
from blslib.lab.options import Given, Row, names, settings
from blslib.placement.strategies import STRATEGIES, Options
from blslib.workloads.scenarios import SCENARIOS

if TYPE_CHECKING:
    from mpi4py import MPI

    from blslib.placement.shards import Placement
    from blslib.placement.tables import Table

COLUMNS = "scenario strategy contender bound measured_s placement_effect lag_effect load_balance serialisation transfer identical"  # fmt: skip # noqa: E501
OPTIONS = {"scenarios": names(SCENARIOS, "NAME"), "strategies": names(STRATEGIES, "NAME")}
RANKS = 2

BY_GROUP = "by-group"
"""The placement of the other experiments: whole groups of tables, as many on each rank."""


@dataclass(frozen=True)
class Config(dlrm.Config):
    """One scenario under several placements; else as ``dlrm.Config``.

    Attributes:
        strategies: of ``placement.strategies.STRATEGIES``, beside ``BY_GROUP``.
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
    """Measure; placements and contenders take turns. Collective; the rows are on every rank."""
    from blslib.lab.compare.contest import interleaved
    from blslib.lab.compare.run import delaying

    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, config.seed)
    with ExitStack() as stack:
        cases = {
            (strategy, item): (here, model, exchange)
            for strategy, placement in placements(comm, config)
            for here, model, made in [stack.enter_context(dlrm.prepared(comm, config, placement, config.groups))]
            for item, exchange in made.items()
        }
        found = interleaved(comm, list(cases), lambda case: dlrm.one(comm, *cases[case], delay), config)
    rows = []
    for (strategy, item), runs in found.items():
        alone = found.get((strategy, item._replace(bound=0)), runs)
        for repeat, each in enumerate(runs):
            same = np.allclose(each.scores, found[BY_GROUP, item][0].scores, rtol=1e-5, atol=1e-7)
            setting = {"scenario": config.scenario, "strategy": strategy, "contender": item.name, "bound": item.bound}
            setting |= {"law": config.law, "mean_delay_s": config.mean_delay_s, "ranks": comm.size}
            measures = each.run.measures(item.bound, alone[repeat].run)
            rows.append({**setting, "repeat": repeat, **measures, "identical": bool(comm.allreduce(same, op=min))})
    return rows


def placements(comm: "MPI.Intracomm", config: Config) -> "Iterator[tuple[str, Placement | None]]":
    """The strategies and their placements of the scenario's tables, timed on the first rank. Collective."""
    tables, loads_us = comm.bcast(weighed(config) if comm.rank == 0 else None)
    yield BY_GROUP, None
    for strategy in config.strategies:
        yield strategy, STRATEGIES[strategy](tables, comm.size, Options(loads_us=loads_us))


def weighed(config: Config) -> "tuple[tuple[Table, ...], np.ndarray]":
    """The scenario's tables with the time of their lookups, and (T, N) that time in each iteration."""
    from blslib.lab import scenarios, tables

    whole = scenarios.build(
        config.scenario,
        ranks=1,
        rank=0,
        iterations=config.iterations,
        batch_size=config.batch_size,
        max_rows=config.max_rows,
        seed=config.seed,
        groups=config.groups,
    )
    timed = tables.timed(tables.of_batches(whole.model.rows, whole.model.dim, whole.pool), whole.pool)
    lookups = np.stack([whole.pool[which].lookups for which in whole.order], axis=1)
    time_us = np.array([table.time_us for table in timed])
    return timed, time_us[:, None] * lookups / np.maximum(lookups.mean(axis=1, keepdims=True), 1e-300)
