"""Delays by sleep around the bare exchange: measured time against the max-plus prediction, bound by bound."""

import time
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from blslib.lab.experiments.measure import Contender, Run, Timed, contenders, gather, interleaved, warm_up
from blslib.lab.ranks.progress import report
from blslib.lab.results.records import Row, spread
from blslib.theory.delays import delays
from blslib.theory.maxplus import limit


@dataclass(frozen=True)
class DelayedConfig:
    """One law of delay, every contender at every bound.

    Attributes:
        law: a name of ``theory.delays.LAWS``.
        mean_delay_s: over all ranks and iterations.
        base_s: slept on top of it by every rank in every iteration.
        iterations: N of each run.
        bytes_per_block: of every block, a multiple of 4.
    """

    law: str = "exponential"
    mean_delay_s: float = 2e-3
    base_s: float = 0.0
    iterations: int = 100
    bytes_per_block: int = 16384
    names: tuple[str, ...] = ("mpi", "bls", "window")
    bounds: tuple[int, ...] = (0, 1, 4, 16, 64)
    repeats: int = 3
    seed: int = 1


def run(comm: MPI.Intracomm, config: DelayedConfig) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    runs = measure(comm, config)
    rows = []
    for item, found in runs.items():
        predicted_s = [each.predicted_s(item.bound) for each in found]
        rows.append(
            {
                "contender": item.name,
                "law": config.law,
                "bound": item.bound,
                "ranks": comm.size,
                "bytes_per_block": config.bytes_per_block,
                "iterations": config.iterations,
                "repeats": config.repeats,
                **spread("measured_s", [each.measured_s for each in found]),
                **spread("predicted_s", predicted_s),
                **spread("ratio", [each.measured_s / p for each, p in zip(found, predicted_s, strict=True)]),
                **spread("limit_s", [limit(each.work_s) for each in found]),
                "lag": max(each.lag for each in found),
            }
        )
    return rows


def measure(comm: MPI.Intracomm, config: DelayedConfig) -> dict[Contender, list[Run]]:
    """The runs of each contender, one per repeat. Collective.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    sleeps_s = delays(config.law, comm.size, config.iterations, config.mean_delay_s, config.seed)[comm.rank]
    sleeps_s = (config.base_s + sleeps_s).tolist()
    items = contenders(config.names, config.bounds)
    counts = [config.bytes_per_block // 4] * comm.size
    exchanges = {item: item.build(comm, counts, counts, config.bytes_per_block) for item in items}
    for exchange in exchanges.values():
        warm_up(exchange, tuple(np.zeros((comm.size, counts[0]), np.float32)))
    runs: dict[Contender, list[Run]] = {item: [] for item in items}
    for step, item in enumerate(interleaved(config.repeats, items)):
        report(step, config.repeats * len(items))
        runs[item].append(_once(comm, exchanges[item], counts, sleeps_s))
    for exchange in exchanges.values():
        exchange.close()
    return runs


def _once(comm: MPI.Intracomm, exchange: object, counts: list[int], sleeps_s: list[float]) -> Run:
    buffer = np.full((comm.size, counts[0]), comm.rank, np.float32)
    blocks = tuple(buffer)
    timed = Timed(exchange)
    expected, wrong = 0, 0
    comm.Barrier()
    timed.restart()
    for i, sleep_s in enumerate(sleeps_s):
        if sleep_s:
            time.sleep(sleep_s)
        buffer[:, 0] = i
        for arrival in timed.post(blocks):
            wrong += any(block[0] != expected for block in arrival.blocks)
            expected += 1
    for arrival in timed.drain():
        wrong += any(block[0] != expected for block in arrival.blocks)
        expected += 1
    ended_s = time.perf_counter()
    if wrong or expected != len(sleeps_s):
        raise RuntimeError(f"rank {comm.rank}: {wrong} wrong arrivals, {expected} of {len(sleeps_s)} delivered")
    return gather(comm, timed, ended_s)
