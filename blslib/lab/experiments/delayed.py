"""Delays by sleep around the bare exchange: measured time against the max-plus prediction, bound by bound."""

from dataclasses import dataclass

from mpi4py import MPI

from blslib.lab.compare.measure import Contender, Run, Timed, contenders, delaying, exchanges, interleaved, judged
from blslib.lab.experiments.alltoallv import Loop
from blslib.lab.rows import Row


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
    return [
        {
            "contender": item.name,
            "law": config.law,
            "bound": item.bound,
            "ranks": comm.size,
            "bytes_per_block": config.bytes_per_block,
            "iterations": config.iterations,
            "repeats": config.repeats,
            **judged(item.bound, runs),
            "lag": max(each.lag for each in runs),
        }
        for item, runs in measure(comm, config).items()
    ]


def measure(comm: MPI.Intracomm, config: DelayedConfig) -> dict[Contender, list[Run]]:
    """The runs of each contender, one per repeat. Collective; raises as ``run`` does."""
    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, config.seed, config.base_s)
    counts = [config.bytes_per_block // 4] * comm.size
    loop = Loop(comm, counts)

    def once(item: Contender) -> Run:
        timed = Timed(comm, made[item])
        timed.start()
        loop.run(timed, config.iterations, before_post=delay)
        run = timed.end()
        loop.check(config.iterations)
        return run

    items = contenders(config.names, config.bounds)
    with exchanges(comm, items, counts, counts, config.bytes_per_block) as made:
        return interleaved(config.repeats, items, once)
