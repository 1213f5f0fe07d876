"""The max-plus recurrence by itself, in one process: what simulating many ranks costs."""

import time
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blslib.lab.options import Given, Row
from blslib.theory.delays import Constant, named
from blslib.theory.maxplus import makespans

if TYPE_CHECKING:
    from mpi4py import MPI

COLUMNS = "ranks iterations bound seconds ns_each peak_bytes repeats"
OPTIONS: dict = {}
RANKS = (1000, 10_000, 100_000)
BASE_S = 1e-3


@dataclass(frozen=True)
class Config:
    """A streamed simulation on one rank: work of ``BASE_S``, and as much again by a law.

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


def plan(given: Given) -> list[tuple[Config, int]]:
    """Every number of ranks, of iterations, and bound, on one live rank."""
    repeats = given.repeats or (1 if given.quick else 3)
    return [
        (Config(ranks=ranks, iterations=iterations, bound=bound, repeats=repeats), 1)
        for bound in given.bounds or (4,)
        for ranks in given.ranks
        for iterations in ((100, 1000) if given.quick else (100, 300, 1000))
    ]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Simulate; a row a repeat."""
    law = Constant(BASE_S) + named(config.law, BASE_S, config.ranks)

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
    setting = {"law": config.law, "ranks": config.ranks, "iterations": config.iterations, "bound": config.bound}
    return [
        {**setting, "repeat": repeat, "seconds": each, "ns_each": 1e9 * each / size, "peak_bytes": peak_bytes}
        for repeat, each in enumerate(seconds)
    ]
