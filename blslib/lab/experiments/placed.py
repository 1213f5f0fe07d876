"""The DLRM inference loop under several placements: what placement wins, what lag wins, and what both.

All placements see one and the same stream of batches. The weight of a table is the time of its lookups, measured on
batches of that stream; ``correlated`` knows besides which tables are hot together, and competes with lag.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blslib.lab.experiments import dlrm
from blslib.lab.options import Given, Row, names, settings
from blslib.placement.strategies import STRATEGIES, Options, correlated
from blslib.workloads.scenarios import SCENARIOS

if TYPE_CHECKING:
    from mpi4py import MPI

    from blslib.placement.shards import Placement
    from blslib.placement.tables import Table

COLUMNS = "scenario strategy contender bound measured_s over_groups lag_effect load_balance serialisation transfer identical"  # fmt: skip # noqa: E501
OPTIONS = {"scenarios": names(SCENARIOS, "NAME"), "strategies": names((*STRATEGIES, "correlated"), "NAME")}
RANKS = 2


@dataclass(frozen=True)
class Config(dlrm.Config):
    """One scenario under several placements; else as ``dlrm.Config``.

    Attributes:
        strategies: of ``placement.strategies.STRATEGIES``, and ``correlated``, beside ``rows.BY_GROUP``.
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
    from blslib.lab.rows import BY_GROUP

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
            setting |= {
                "batch_size": config.batch_size,
                "iterations": config.iterations,
                "source": cases[strategy, item][0].source,
            }
            measures = each.run.measures(item.bound, alone[repeat].run)
            rows.append({**setting, "repeat": repeat, **measures, "identical": bool(comm.allreduce(same, op=min))})
    return rows


def placements(comm: "MPI.Intracomm", config: Config) -> "Iterator[tuple[str, Placement | None]]":
    """The strategies and their placements of the scenario's tables, timed on the first rank. Collective."""
    from blslib.lab.rows import BY_GROUP

    tables, loads_us = comm.bcast(weighed(config) if comm.rank == 0 else None)
    yield BY_GROUP, None
    for name in config.strategies:
        given = tables, comm.size
        yield name, correlated(*given, loads_us) if name == "correlated" else STRATEGIES[name](*given, Options())


def weighed(config: Config) -> "tuple[tuple[Table, ...], np.ndarray]":
    """The scenario's tables with the time of their lookups, and (T, N) that time in each iteration."""
    from blslib.lab import scenarios, tables

    size: dict[str, Any] = {
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "max_rows": config.max_rows,
    }
    here = scenarios.build(config.scenario, ranks=1, rank=0, seed=config.seed, groups=config.groups, **size)
    timed = tables.timed(tables.of_batches(here.model.rows, here.model.dim, here.pool), here.pool)
    lookups = np.stack([here.pool[which].lookups for which in here.order], axis=1)
    time_us = np.array([table.time_us for table in timed])
    return timed, time_us[:, None] * lookups / np.maximum(lookups.mean(axis=1, keepdims=True), 1e-300)
