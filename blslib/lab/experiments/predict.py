"""Runs with delays, and the DLRM loop where ranks have cores, against what was predicted; the recommended bound.

The exchange is measured beforehand, in balanced runs: what it takes at the widest bound is each rank's own time in a
call, and what it takes more than that at bound 0 is the way of the messages, which lag can hide. Runs with delays, or
with other batches, are then predicted from their realised work and these two numbers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blslib.lab.experiments import delayed, dlrm
from blslib.lab.options import RANKS, Given, Row, at_least, names, settings, several
from blslib.theory import imbalance
from blslib.theory.delays import LAWS
from blslib.theory.maxplus import Cost

if TYPE_CHECKING:
    from mpi4py import MPI

    from blslib.lab.compare.contest import Contender
    from blslib.lab.compare.run import Run

COLUMNS = "law ranks bound measured_s predicted_s error over_best recommended repeats"
OPTIONS = {
    "ranks": RANKS | {"type": several(at_least(1)), "default": (2, 4, 8), "metavar": "P,P,..."},
    "laws": names(LAWS, "LAW"),
    "scenarios": dlrm.OPTIONS["scenarios"],
}
BASE_S = 1e-3
CALIBRATIONS, RECORDED = 5, 3


@dataclass(frozen=True)
class Config:
    """Sleeps of at least ``BASE_S`` around the bare exchange, or the DLRM loop with real compute.

    Attributes:
        law: a name of ``theory.delays.LAWS``; with ``loop`` one of ``workloads.scenarios.SCENARIOS``.
        loop: the DLRM loop instead of sleeps.
        mean_delay_s: of the law, on top of ``BASE_S``.
        bounds: those measured; the recommended one joins them.
    """

    law: str = "exponential"
    loop: bool = False
    mean_delay_s: float = 1e-3
    bounds: tuple[int, ...] = (0, 1, 4, 16, 64)
    iterations: int = 150
    repeats: int = 7
    budget_s: float = 0.0
    seed: int = 1


def plan(given: Given) -> list[tuple[Config, int]]:
    """Each law on each number of ranks; each scenario where ranks have cores of their own."""
    laws = given.laws or ("exponential", *(() if given.quick else ("bernoulli", "rotating", "lognormal")))
    scenarios = given.scenarios or (("rotating",) if given.quick else ("balanced", "rotating", "wandering"))
    chosen = settings(given, {"bounds": (0, 4, 16), "repeats": 3, "iterations": 80})
    # Real compute only where every rank has a core: elsewhere a waiting rank lends its own to a working one.
    own_cores = [ranks for ranks in given.ranks if ranks <= (os.cpu_count() or 1)]
    return [
        *((Config(law, **chosen), ranks) for ranks in given.ranks for law in laws),
        *((Config(name, True, **chosen | {"iterations": 64}), ranks) for ranks in own_cores for name in scenarios),
    ]


def exchange_cost(balanced: "dict[Contender, list[Run]]") -> Cost:
    """What the exchange costs, from runs in which every rank had the same to do, at bound 0 and at a wide one."""
    exposed_s = {
        item.bound: float(np.median([(each.measured_s - each.predicted_s(item.bound)) / each.calls for each in found]))
        for item, found in balanced.items()
    }
    call_s = max(0.0, exposed_s[max(exposed_s)])
    return Cost(call_s, alpha_s=max(0.0, exposed_s[0] - call_s))


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """

    def measure(what: str, bounds: Sequence[int], repeats: int) -> "dict[Contender, list[Run]]":
        how: dict[str, Any] = {"bounds": tuple(bounds), "repeats": repeats, "budget_s": 0.0, "names": ("bls",)}
        how |= {"iterations": config.iterations, "seed": config.seed}
        if config.loop:
            _, _, measured = dlrm.measure(comm, dlrm.Config(what, **how))
            return {item: [each.run for each in found] for item, found in measured.items()}
        return delayed.measure(comm, delayed.Config(what, config.mean_delay_s, BASE_S, **how))[1]

    cost = exchange_cost(measure("balanced" if config.loop else "none", (0, max(config.bounds)), CALIBRATIONS))
    # What an engineer would record: the synchronous run, often enough that a passing disturbance does not count.
    [recorded] = measure(config.law, (0,), RECORDED).values()
    work_s = np.median([each.work_s for each in recorded], axis=0)
    advice = imbalance.recommend(work_s, cost=cost, replicas=1)
    found = measure(config.law, sorted({*config.bounds, advice.bound}), config.repeats)
    best = min(found, key=lambda item: float(np.median([each.measured_s for each in found[item]])))
    return [
        {
            "law": f"dlrm {config.law}" if config.loop else config.law,
            "ranks": comm.size,
            "bound": item.bound,
            "iterations": config.iterations,
            "recommended": item.bound == advice.bound,
            "repeat": repeat,
            "measured_s": each.measured_s,
            "predicted_s": (predicted_s := each.predicted_s(item.bound, cost)),
            "error": each.measured_s / predicted_s - 1,
            "over_best": each.measured_s / found[best][repeat].measured_s,
            "call_s": float(cost.call_s),
            "alpha_s": cost.alpha_s,
        }
        for item, runs in found.items()
        for repeat, each in enumerate(runs)
    ]
