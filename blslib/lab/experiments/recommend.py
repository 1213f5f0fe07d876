"""The DLRM inference loop in a scenario, every contender at every bound: throughput, response, waiting, prediction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from blslib.dlrm.inference import Inference
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import largest_block_bytes, own_rows, recv_counts, send_counts
from blslib.lab.diagnosis.traces import RECORD_COLUMNS
from blslib.lab.experiments import scenarios
from blslib.lab.experiments.measure import Contender, Run, Timed, contenders, gather, interleaved
from blslib.lab.ranks.progress import report
from blslib.lab.results.records import Row, spread
from blslib.theory.delays import delays
from blslib.theory.maxplus import limit

WARM_UP = 4
"""Steps before the clock starts; more where an exchange has more slots."""


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


@dataclass
class _Measured:
    run: Run
    response_s: np.ndarray
    scores: np.ndarray


def run(comm: MPI.Intracomm, config: RecommendConfig) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    A batch's response time runs from the start of its lookup to its scores, on the rank where that takes longest.
    Batches follow each other without a pause (closed loop), so it says nothing about a service under load.
    """
    items = contenders(config.names, config.bounds)
    here, model, exchanges = prepare(comm, config, items)
    sleeps_s = delays(config.law, comm.size, config.iterations, config.mean_delay_s, config.seed)[comm.rank].tolist()
    measured: dict[Contender, list[_Measured]] = {item: [] for item in items}
    for step, item in enumerate(interleaved(config.repeats, items)):
        report(step, config.repeats * len(items))
        measured[item].append(once(comm, model, exchanges[item], here, sleeps_s))
    reference = measured[items[0]][0].scores
    rows = []
    for item, found in measured.items():
        same = all(np.array_equal(reference, each.scores) for each in found)
        baseline = measured.get(Contender("mpi", 0), found)
        rows.append(
            _row(config, comm.size, here.source, item, [each.run for each in found], [each.run for each in baseline])
            | _responses(np.concatenate([_slowest(comm, each.response_s) for each in found]))
            | {
                "memory_bytes": exchanges[item].memory_bytes,
                "identical_scores": bool(comm.allreduce(same, op=MPI.LAND)),
            }
        )
    for exchange in exchanges.values():
        exchange.close()
    return rows


def record(comm: MPI.Intracomm, config: RecommendConfig) -> list[Row]:
    """One run at the first bound, call by call, as ``traces.save`` has it. Collective; the rows are on every rank."""
    item = Contender("bls", config.bounds[0])
    here, model, exchanges = prepare(comm, config, [item])
    sleeps_s = delays(config.law, comm.size, config.iterations, config.mean_delay_s, config.seed)[comm.rank].tolist()
    run = once(comm, model, exchanges[item], here, sleeps_s).run
    exchanges[item].close()
    settings = (item.bound, exchanges[item].slot_bytes)
    return [
        dict(zip(RECORD_COLUMNS, (rank, i, *settings, float(entered_s), float(returned_s)), strict=True))
        for rank, calls in enumerate(zip(run.entered_s, run.returned_s, strict=True))
        for i, (entered_s, returned_s) in enumerate(zip(*calls, strict=True))
    ]


def prepare(
    comm: MPI.Intracomm, config: RecommendConfig, items: Sequence[Contender]
) -> tuple[scenarios.Scenario, DLRM, dict[Contender, Any]]:
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
    exchanges = {item: item.build(comm, sent, received, slot_bytes) for item in items}
    for item, exchange in exchanges.items():
        warm = max(WARM_UP, 2 * (item.bound + 1))
        for _ in Inference(model, exchange).run(here.pool[i % len(here.pool)] for i in range(warm)):
            pass
    return here, model, exchanges


def once(
    comm: MPI.Intracomm, model: DLRM, exchange: object, here: scenarios.Scenario, sleeps_s: list[float]
) -> _Measured:
    """One timed run over all batches of a scenario that was prepared, with a sleep before each post. Collective."""

    def sleep(iteration: int) -> None:
        if sleeps_s[iteration]:
            time.sleep(sleeps_s[iteration])

    timed = Timed(exchange)
    inference = Inference(model, timed, before_post=sleep)
    rows = own_rows(here.pool[0].size, comm.rank, comm.size)
    scores = np.zeros((len(here.order), rows.stop - rows.start), np.float32)
    comm.Barrier()
    timed.restart()
    for scored in inference.run(here.pool[i] for i in here.order):
        scores[scored.iteration] = scored.scores
    ended_s = time.perf_counter()
    return _Measured(gather(comm, timed, ended_s), np.array(inference.times.response_s), scores)


def _slowest(comm: MPI.Intracomm, response_s: np.ndarray) -> np.ndarray:
    worst = np.empty_like(response_s)
    comm.Allreduce(response_s, worst, op=MPI.MAX)
    return worst


def _row(
    config: RecommendConfig, ranks: int, source: str, item: Contender, runs: list[Run], baseline: list[Run]
) -> Row:
    predicted_s = [each.predicted_s(item.bound) for each in runs]
    waiting_s = np.array([each.waiting_s for each in runs])
    return {
        "contender": item.name,
        "scenario": config.scenario,
        "law": config.law,
        "source": source,
        "bound": item.bound,
        "ranks": ranks,
        "batch_size": config.batch_size,
        "iterations": config.iterations,
        "repeats": config.repeats,
        **spread("batches_per_s", [config.iterations / each.measured_s for each in runs]),
        **spread("speedup_over_mpi", [b.measured_s / each.measured_s for each, b in zip(runs, baseline, strict=True)]),
        **spread("measured_s", [each.measured_s for each in runs]),
        **spread("predicted_s", predicted_s),
        **spread("ratio", [each.measured_s / p for each, p in zip(runs, predicted_s, strict=True)]),
        **spread("limit_s", [limit(each.work_s) for each in runs]),
        **spread("iteration_s", [each.measured_s / config.iterations for each in runs]),
        **spread("waiting_s", waiting_s.mean(axis=1)),
        "waiting_by_rank_s": " ".join(f"{seconds:.6f}" for seconds in np.median(waiting_s, axis=0)),
        "speedups": " ".join(f"{b.measured_s / each.measured_s:.6f}" for each, b in zip(runs, baseline, strict=True)),
        "lag": max(each.lag for each in runs),
    }


def _responses(response_s: np.ndarray) -> Row:
    """Percentiles over all batches of all repeats; of fewer than 100 the 99th would be the greatest of them."""
    p50, p95, p99 = np.percentile(response_s, [50, 95, 99])
    return {
        "response_p50_s": float(p50),
        "response_p95_s": float(p95),
        "response_p99_s": float(p99) if len(response_s) >= 100 else None,
        "responses": len(response_s),
    }
