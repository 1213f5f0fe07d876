"""The DLRM inference loop in a scenario, every contender at every bound: throughput, response, waiting, prediction."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from blslib.collective.clock import Clock
from blslib.collective.mpi import MPI
from blslib.lab import scenarios
from blslib.lab.compare.contest import Contender, contenders, exchanges, interleaved, lag_known, rows
from blslib.lab.compare.run import Run, delaying, gathered, start
from blslib.lab.options import Given, Row, names, settings
from blslib.placement.shards import Placement
from blslib.workloads.scenarios import SCENARIOS

if TYPE_CHECKING:
    from blslib.dlrm.model import DLRM

COLUMNS = "contender scenario bound ranks measured_s speedup lag_effect expected_low expected_high load_balance serialisation transfer memory_bytes identical"  # fmt: skip # noqa: E501
OPTIONS = {"scenarios": names(SCENARIOS, "NAME")}

WARM_UP = 4
"""Steps of the loop before the clock starts."""


@dataclass(frozen=True)
class Config:
    """One scenario, every contender at every bound.

    Attributes:
        scenario: a name of ``workloads.scenarios.SCENARIOS``.
        law, mean_delay_s: delays by sleep on top of it, a name of ``theory.delays.LAWS`` and their mean.
        batch_size: B.
        max_rows: cap on the rows of a table.
        iterations: N batches of each run.
        repeats, budget_s: at least so many, and until lag's effect is known or so many seconds are spent.
    """

    scenario: str = "rotating"
    law: str = "none"
    mean_delay_s: float = 0.0
    names: tuple[str, ...] = ("mpi", "bls", "window")
    bounds: tuple[int, ...] = (0, 1, 4, 16)
    iterations: int = 64
    batch_size: int = 512
    max_rows: int = 200_000
    repeats: int = 15
    budget_s: float = 60.0
    seed: int = 1


class Measured(NamedTuple):
    """One run of one contender.

    Attributes:
        run: the calls of the exchange.
        response_s: (N,) from the start of a batch's lookup to its scores, on this rank.
        scores: (N, rows) float32, of the samples of this rank.
        processor_s: seconds of a processor that this rank used.
    """

    run: Run
    response_s: np.ndarray
    scores: np.ndarray
    processor_s: float


Runs = dict[Contender, list[Measured]]
"""Of each contender, one per repeat."""


def plan(given: Given) -> list[Config]:
    """One configuration for each scenario."""
    quick = {"bounds": (0, 1, 4), "repeats": 3, "iterations": 48}
    return [Config(scenario, **settings(given, quick)) for scenario in given.scenarios or ("rotating", "balanced")]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    A batch's response time runs from the start of its lookup to its scores, on the rank where that takes longest.
    Batches follow each other without a pause (closed loop), so it says nothing about a service under load.
    ``processor_s`` is of all ranks together, what they use to look whether others have come included.
    """
    source, made, runs = measure(comm, config)
    return rows_of(comm, config, {"source": source}, made, runs)


def rows_of(comm: "MPI.Intracomm", config: Config, setting: Row, made: dict[Contender, Any], runs: Runs) -> list[Row]:
    """A row for each run; its scores are compared with those of the first. Collective.

    Args:
        comm, config: of the runs.
        setting: what else was run.
        made: the exchange of each contender.
        runs: of each contender, one per repeat.
    """
    reference = next(iter(runs.values()))[0].scores
    names = ("scenario", "law", "mean_delay_s", "batch_size", "iterations")
    setting = {name: getattr(config, name) for name in names} | {"ranks": comm.size} | setting

    def told(item: Contender, repeat: int, each: Measured) -> Row:
        alone = runs.get(item._replace(bound=0), runs[item])[repeat]
        comm.Allreduce(MPI.IN_PLACE, each.response_s, op=MPI.MAX)
        p50_s, p95_s = np.percentile(each.response_s, [50, 95]).tolist()
        same = np.array_equal(reference, each.scores)
        return {
            **each.run.measures(item.bound, alone.run),
            "processor_s": comm.allreduce(each.processor_s),
            "response_p50_s": p50_s,
            "response_p95_s": p95_s,
            "memory_bytes": made[item].memory_bytes,
            "identical": comm.allreduce(same, op=MPI.LAND),
        }

    return rows(runs, setting, told)


def record(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """One run at the first bound, call by call, as ``traces.save`` has it. Collective; the rows are on every rank."""
    from blslib.diagnosis.traces import RECORD_COLUMNS

    bound = config.bounds[0]
    one = replace(config, names=("bls",), bounds=(bound,), repeats=1, budget_s=0.0)
    _, made, measured = measure(comm, one)
    [exchange], [[(run, *_)]] = made.values(), measured.values()
    return [
        dict(zip(RECORD_COLUMNS, (rank, i, bound, exchange.slot_bytes, *call_s), strict=True))
        for rank, calls_s in enumerate(np.stack([run.entered_s, run.returned_s], axis=-1).tolist())
        for i, call_s in enumerate(calls_s)
    ]


def measure(comm: "MPI.Intracomm", config: Config) -> tuple[str, dict[Contender, Any], Runs]:
    """Where the data are from, each contender's exchange, closed by now, and its runs, one per repeat. Collective."""
    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, config.seed)
    with prepared(comm, config) as (here, model, made):

        def once(item: Contender) -> Measured:
            return one(comm, here, model, made[item], delay)

        found = interleaved(comm, list(made), once, config, lag_known(lambda each: each.run.over_limit))
        return here.source, made, found


def one(
    comm: "MPI.Intracomm", here: scenarios.Scenario, model: "DLRM", exchange: Any, delay: Callable[[int], None]
) -> Measured:
    """One run through all batches. Collective."""
    from blslib.dlrm.inference import Inference

    clock = Clock(exchange)
    inference = Inference(model, clock, before_post=delay)
    started_s, used_s = start(comm), time.process_time()
    scored = list(inference.run(here.pool[i] for i in here.order))
    used_s = time.process_time() - used_s
    run = gathered(comm, clock, started_s)
    response_s = np.array([each.response_s for each in scored])
    return Measured(run, response_s, np.array([each.scores for each in scored]), used_s)


@contextmanager
def prepared(
    comm: "MPI.Intracomm", config: Config, placement: Placement | None = None, groups: int | None = None
) -> "Iterator[tuple[scenarios.Scenario, DLRM, dict[Contender, Any]]]":
    """This rank's view of the scenario, its part of the model, and each contender's exchange, warmed up. Collective."""
    from blslib.dlrm.inference import Inference
    from blslib.dlrm.model import DLRM
    from blslib.dlrm.sharding import largest_block_bytes, recv_counts, send_counts

    here = scenarios.build(config, comm.size, comm.rank, placement, groups)
    model = DLRM(here.model, seed=config.seed, placement=here.placement, rank=comm.rank)
    sent = send_counts(here.placement, comm.rank, config.batch_size).tolist()
    received = recv_counts(here.placement, comm.rank, config.batch_size).tolist()
    slot_bytes = max(4, largest_block_bytes(here.placement, config.batch_size))  # where all is replicated, 0

    def warm_up(exchange: Any) -> None:
        for _ in Inference(model, exchange).run(islice(cycle(here.pool), max(WARM_UP, 2 * (exchange.bound + 1)))):
            pass

    with exchanges(comm, contenders(config.names, config.bounds), sent, received, slot_bytes, warm_up) as made:
        yield here, model, made
