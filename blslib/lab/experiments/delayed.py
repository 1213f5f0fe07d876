"""Delays by sleep around the bare exchange: measured time against the max-plus prediction, bound by bound."""

from dataclasses import dataclass
from typing import Any

from blslib.collective.clock import Clock
from blslib.collective.mpi import MPI
from blslib.lab.compare.contest import Contender, contenders, exchanges, interleaved, lag_known, rows
from blslib.lab.compare.loop import Loop
from blslib.lab.compare.run import Run, delaying, gathered, start
from blslib.lab.options import BYTES, Given, Row, names, settings
from blslib.theory.delays import LAWS

COLUMNS = "contender law bound ranks bytes_per_block measured_s ratio lag_effect expected_low load_balance serialisation transfer lag"  # fmt: skip # noqa: E501
OPTIONS = {"bytes": BYTES, "laws": names(LAWS, "LAW")}


@dataclass(frozen=True)
class Config:
    """One law of delay, every contender at every bound.

    Attributes:
        law: a name of ``theory.delays.LAWS``.
        mean_delay_s: over all ranks and iterations.
        base_s: slept on top of it by every rank in every iteration.
        iterations: N of each run.
        bytes_per_block: of every block, a multiple of 4.
        repeats, budget_s: at least so many, and until lag's effect is known or so many seconds are spent.
    """

    law: str = "exponential"
    mean_delay_s: float = 2e-3
    base_s: float = 0.0
    iterations: int = 100
    bytes_per_block: int = 16384
    names: tuple[str, ...] = ("mpi", "bls", "window")
    bounds: tuple[int, ...] = (0, 1, 4, 16, 64)
    repeats: int = 7
    budget_s: float = 60.0
    seed: int = 1


def plan(given: Given) -> list[Config]:
    """One configuration for each law and size."""
    chosen = settings(given, {"bounds": (0, 4, 16), "repeats": 2, "iterations": 60}, full={"iterations": 200})
    # Of those that hit one rank at a time 10 ms each, whatever P.
    means_s = dict.fromkeys(("rotating", "permanent"), 10e-3 / given.ranks)
    return [
        Config(law, means_s.get(law, 1e-3), bytes_per_block=size, **chosen)
        for law in given.laws or ("bernoulli", "exponential", "rotating")
        for size in given.bytes or (16384,)
    ]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure. Collective; the rows are on every rank. Every block is checked.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    counts = [config.bytes_per_block // 4] * comm.size
    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, config.seed, config.base_s)
    items, loop = contenders(config.names, config.bounds), Loop(comm, counts, counts)

    def warm_up(exchange: Any) -> None:
        loop.run(exchange, 2 * (exchange.bound + 1))

    with exchanges(comm, items, counts, counts, config.bytes_per_block, warm_up) as made:

        def once(item: Contender) -> Run:
            clock = Clock(made[item])
            started_s = start(comm)
            loop.run(clock, config.iterations, delay)
            run = gathered(comm, clock, started_s)
            loop.check(config.iterations)
            return run

        runs = interleaved(comm, items, once, config, lag_known(lambda run: run.over_limit))
    setting = {"law": config.law, "mean_delay_s": config.mean_delay_s, "base_s": config.base_s, "ranks": comm.size}
    setting |= {"bytes_per_block": config.bytes_per_block, "iterations": config.iterations}

    def measured(item: Contender, repeat: int, run: Run) -> Row:
        alone = runs.get(item._replace(bound=0), runs[item])[repeat]
        return {**run.measures(item.bound, alone), "memory_bytes": made[item].memory_bytes}

    return rows(runs, setting, measured)
