"""The DLRM inference loop in a scenario, every contender at every bound: throughput, response, waiting, prediction."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, NamedTuple, cast

import numpy as np
from mpi4py import MPI

from blslib.collective.exchange import Exchange
from blslib.diagnosis.traces import RECORD_COLUMNS
from blslib.dlrm.inference import Inference
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import largest_block_bytes, own_rows, recv_counts, send_counts
from blslib.lab import scenarios
from blslib.lab.compare.measure import Contender, Run, Timed, contenders, delaying, exchanges, interleaved, judged
from blslib.lab.rows import Row, spread

WARM_UP = 4
"""Steps of the loop before the clock starts."""


@dataclass(frozen=True)
class RecommendConfig:
    """One scenario, every contender at every bound.

    Attributes:
        scenario: a name of ``scenarios.SCENARIOS``.
        law, mean_delay_s: delays by sleep on top of it, a name of ``theory.delays.LAWS`` and their mean.
        batch_size: B.
        max_rows: cap on the rows of a table.
        iterations: N batches of each run.
    """

    scenario: str = "rotating"
    law: str = "none"
    mean_delay_s: float = 0.0
    names: tuple[str, ...] = ("mpi", "bls", "window")
    bounds: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)
    iterations: int = 100
    batch_size: int = 512
    max_rows: int = 200_000
    repeats: int = 5
    seed: int = 1


class Measured(NamedTuple):
    """One run of one contender.

    Attributes:
        run: the calls of the exchange.
        response_s: (N,) from the start of a batch's lookup to its scores, on this rank.
        scores: (N, rows) float32, of the samples of this rank.
        exchange: the one that ran; closed by now.
    """

    run: Run
    response_s: np.ndarray
    scores: np.ndarray
    exchange: Any


def run(comm: MPI.Intracomm, config: RecommendConfig) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    A batch's response time runs from the start of its lookup to its scores, on the rank where that takes longest.
    Batches follow each other without a pause (closed loop), so it says nothing about a service under load. Percentiles
    are over all batches of all repeats; of fewer than 100 the 99th would be the greatest of them.
    """
    source, measured = measure(comm, config)
    reference = next(iter(measured.values()))[0].scores
    rows = []
    for item, found in measured.items():
        runs = [each.run for each in found]
        measured_s = np.array([each.measured_s for each in runs])
        baseline_s = [each.run.measured_s for each in measured.get(Contender("mpi", 0), found)]
        waiting_s = np.array([each.waiting_s for each in runs])
        response_s = np.concatenate([each.response_s for each in found])
        comm.Allreduce(MPI.IN_PLACE, response_s, op=MPI.MAX)
        p50_s, p95_s, p99_s = np.percentile(response_s, [50, 95, 99]).tolist()
        same = all(np.array_equal(reference, each.scores) for each in found)
        rows.append(
            {
                "contender": item.name,
                "scenario": config.scenario,
                "law": config.law,
                "source": source,
                "bound": item.bound,
                "ranks": comm.size,
                "batch_size": config.batch_size,
                "iterations": config.iterations,
                "repeats": config.repeats,
                **spread("batches_per_s", config.iterations / measured_s),
                **spread("speedup_over_mpi", baseline_s / measured_s),
                **judged(item.bound, runs),
                **spread("iteration_s", measured_s / config.iterations),
                **spread("waiting_s", waiting_s.mean(axis=1)),
                "waiting_by_rank_s": " ".join(f"{seconds:.6f}" for seconds in np.median(waiting_s, axis=0)),
                "speedups": " ".join(f"{speedup:.6f}" for speedup in baseline_s / measured_s),
                "lag": max(each.lag for each in runs),
                "response_p50_s": p50_s,
                "response_p95_s": p95_s,
                "response_p99_s": p99_s if len(response_s) >= 100 else None,
                "responses": len(response_s),
                "memory_bytes": found[0].exchange.memory_bytes,
                "identical_scores": bool(comm.allreduce(same, op=MPI.LAND)),
            }
        )
    return rows


def record(comm: MPI.Intracomm, config: RecommendConfig) -> list[Row]:
    """One run at the first bound, call by call, as ``traces.save`` has it. Collective; the rows are on every rank."""
    _, measured = measure(comm, replace(config, names=("bls",), bounds=config.bounds[:1], repeats=1))
    [(run, _, _, exchange)] = measured[Contender("bls", config.bounds[0])]
    return [
        dict(zip(RECORD_COLUMNS, (rank, i, exchange.bound, exchange.slot_bytes, *call_s), strict=True))
        for rank, calls_s in enumerate(np.stack([run.entered_s, run.returned_s], axis=-1).tolist())
        for i, call_s in enumerate(calls_s)
    ]


def measure(comm: MPI.Intracomm, config: RecommendConfig) -> tuple[str, dict[Contender, list[Measured]]]:
    """The runs of each contender, one per repeat, and where the data are from. Collective."""
    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, config.seed)
    with prepared(comm, config) as (here, model, made):

        def once(item: Contender) -> Measured:
            timed = Timed(comm, made[item])
            inference = Inference(model, cast(Exchange, timed), before_post=delay)
            timed.start()
            scored = list(inference.run(here.pool[i] for i in here.order))
            run = timed.end()
            response_s = np.array([one.response_s for one in scored])
            return Measured(run, response_s, np.array([one.scores for one in scored]), made[item])

        return here.source, interleaved(config.repeats, contenders(config.names, config.bounds), once)


@contextmanager
def prepared(
    comm: MPI.Intracomm, config: RecommendConfig
) -> Iterator[tuple[scenarios.Scenario, DLRM, dict[Contender, Any]]]:
    """This rank's view of the scenario, its part of the model, and each contender's exchange, warmed up. Collective."""
    here = scenarios.build(
        config.scenario,
        ranks=comm.size,
        rank=comm.rank,
        iterations=config.iterations,
        batch_size=config.batch_size,
        max_rows=config.max_rows,
        seed=config.seed,
    )
    model = DLRM(here.model, seed=config.seed, placement=here.placement, rank=comm.rank)
    mine = own_rows(config.batch_size, comm.rank, comm.size)
    sent = send_counts(here.placement, comm.rank, config.batch_size, here.model.dim).tolist()
    received = recv_counts(here.placement, mine.stop - mine.start, here.model.dim).tolist()
    slot_bytes = largest_block_bytes(here.placement, config.batch_size, here.model.dim)
    with exchanges(comm, contenders(config.names, config.bounds), sent, received, slot_bytes) as made:
        for exchange in made.values():
            for _ in Inference(model, exchange).run(islice(cycle(here.pool), WARM_UP)):
                pass
        yield here, model, made
