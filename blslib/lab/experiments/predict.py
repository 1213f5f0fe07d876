"""Does the prediction hold, and the bound that it recommends? And what does predicting cost at scale?

The exchange is measured beforehand, in balanced runs: what it takes at the widest bound is each rank's own time in a
call, and what it takes more than that at bound 0 is the way of the messages, which lag can hide. Runs with delays, or
with other batches, are then predicted from their realised work and these two numbers.
"""

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from blslib.lab.compare.measure import Contender, Run
from blslib.lab.experiments import delayed
from blslib.lab.experiments import dlrm as recommend
from blslib.lab.rows import Row, spread
from blslib.theory import imbalance
from blslib.theory.delays import Constant, named
from blslib.theory.maxplus import Cost, makespans

BASE_S = 1e-3
CALIBRATIONS, RECORDED = 5, 3

Runs = dict[Contender, list[Run]]


@dataclass(frozen=True)
class PredictConfig:
    """Sleeps of at least ``BASE_S`` around the bare exchange, or the DLRM loop with real compute.

    Attributes:
        law: a name of ``theory.delays.LAWS``; with ``loop`` one of ``scenarios.SCENARIOS``.
        loop: the DLRM loop of ``recommend`` instead of sleeps.
        mean_delay_s: of the law, on top of ``BASE_S``.
        bounds: those measured; the recommended one joins them.
    """

    law: str = "exponential"
    loop: bool = False
    mean_delay_s: float = 1e-3
    bounds: tuple[int, ...] = (0, 1, 4, 16, 64)
    iterations: int = 150
    repeats: int = 5
    seed: int = 1


@dataclass(frozen=True)
class SimulateConfig:
    """A streamed simulation on one rank: sleeps of ``BASE_S``, and as much again by a law.

    Attributes:
        law: a name of ``theory.delays.LAWS``.
        ranks, iterations, bound: P, N and k of the simulated run.
    """

    law: str = "exponential"
    ranks: int = 100_000
    iterations: int = 1000
    bound: int = 4
    repeats: int = 3
    seed: int = 1


def run(comm: MPI.Intracomm, config: PredictConfig | SimulateConfig) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    return [_scale(config)] if isinstance(config, SimulateConfig) else _live(comm, config)


def exchange_cost(balanced: Runs) -> Cost:
    """What the exchange costs, from runs in which every rank had the same to do, at bound 0 and at a wide one."""
    exposed_s = {
        item.bound: float(np.median([(each.measured_s - each.predicted_s(item.bound)) / each.calls for each in found]))
        for item, found in balanced.items()
    }
    call_s = max(0.0, exposed_s[max(exposed_s)])
    return Cost(call_s, alpha_s=max(0.0, exposed_s[0] - call_s))


def _live(comm: MPI.Intracomm, config: PredictConfig) -> list[Row]:
    def measure(what: str, bounds: Sequence[int], repeats: int) -> Runs:
        settings: dict[str, Any] = {"bounds": tuple(bounds), "repeats": repeats, "iterations": config.iterations}
        settings |= {"names": ("bls",), "seed": config.seed}
        if config.loop:
            _, measured = recommend.measure(comm, recommend.RecommendConfig(what, **settings))
            return {item: [each.run for each in found] for item, found in measured.items()}
        return delayed.measure(comm, delayed.DelayedConfig(what, config.mean_delay_s, BASE_S, **settings))

    balanced = measure("balanced" if config.loop else "none", sorted({0, max(config.bounds)}), CALIBRATIONS)
    cost = exchange_cost(balanced)
    # What an engineer would record: the synchronous run, often enough that a passing disturbance does not count.
    [recorded] = measure(config.law, (0,), RECORDED).values()
    work_s = np.median([each.work_s for each in recorded], axis=0)
    advice = imbalance.recommend(work_s, exchange_s=float(cost.call_s), travel_s=cost.alpha_s, replicas=1)
    found = measure(config.law, sorted({*config.bounds, advice.bound}), config.repeats)
    measured_s = {item: np.array([each.measured_s for each in runs]) for item, runs in found.items()}
    best_s = min(measured_s.values(), key=np.median)
    rows = []
    for item, runs in found.items():
        predicted_s = [each.predicted_s(item.bound, cost) for each in runs]
        rows.append(
            {
                "law": f"dlrm {config.law}" if config.loop else config.law,
                "ranks": comm.size,
                "bound": item.bound,
                "iterations": config.iterations,
                "repeats": config.repeats,
                **spread("measured_s", measured_s[item]),
                **spread("predicted_s", predicted_s),
                **spread("error", measured_s[item] / predicted_s - 1),
                **spread("over_best", measured_s[item] / best_s),
                "recommended": item.bound == advice.bound,
                "call_s": cost.call_s,
                "alpha_s": cost.alpha_s,
            }
        )
    return rows


def _scale(config: SimulateConfig) -> Row:
    law = BASE_S * Constant() + named(config.law, BASE_S, config.ranks)

    def simulate() -> float:
        started_s = time.perf_counter()
        rng = np.random.default_rng(config.seed)
        makespans(law.columns(rng, config.ranks, config.iterations), [config.bound])
        return time.perf_counter() - started_s

    seconds = [simulate() for _ in range(config.repeats)]
    tracemalloc.start()  # for a run of its own, since it slows down what it watches
    simulate()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = config.ranks * config.iterations
    return {
        "law": config.law,
        "ranks": config.ranks,
        "iterations": config.iterations,
        "bound": config.bound,
        "repeats": config.repeats,
        **spread("seconds", seconds),
        **spread("ns_each", [1e9 * each / size for each in seconds]),
        "peak_bytes": peak_bytes,
    }
