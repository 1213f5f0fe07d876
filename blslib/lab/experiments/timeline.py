"""The idea as a picture: what every rank does when, around the bare exchange, with delays."""

import time
from dataclasses import dataclass

import numpy as np

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.clock import Clock
from blslib.collective.mpi import MPI
from blslib.lab.compare.run import gathered, start
from blslib.lab.options import Row
from blslib.theory.delays import delays
from blslib.theory.maxplus import ahead


@dataclass(frozen=True)
class Config:
    """A run to draw.

    Attributes:
        bounds: one run each.
        law, mean_delay_s: a name of ``theory.delays.LAWS``, and the mean of the delays.
        work_s: of every rank in every iteration, before the delay; by sleep, so that ranks need no core for it.
        iterations: N.
    """

    bounds: tuple[int, ...] = (0, 2)
    law: str = "rotating"
    mean_delay_s: float = 12e-3
    work_s: float = 25e-3
    iterations: int = 12
    seed: int = 1


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Run once at each bound, with the same delays. Collective; the rows are on every rank.

    Returns:
        One row for each stretch of time: law, bound, lag (the greatest of that run), rank, iteration, ahead (its lag as
        its call of that iteration returns), whom that call waits for and for how long (waits_for, waits_s), phase
        (work, delay, waiting), and start_s and end_s, since the first rank started. The drain counts as one more
        iteration.
    """
    return [row for bound in config.bounds for row in _once(comm, config, bound)]


def _once(comm: "MPI.Intracomm", config: Config, bound: int) -> list[Row]:
    asked_s = delays(config.law, comm.size, config.iterations, config.mean_delay_s, config.seed)
    delays_s, block = asked_s[comm.rank].tolist(), np.full(1, comm.rank, np.float32)
    worked_s = []
    with Clock(BoundedLagAlltoallv(comm, bound=bound, slot_bytes=block.nbytes)) as clock:
        started_s = start(comm)
        for delay_s in delays_s:
            time.sleep(config.work_s)
            worked_s.append(time.perf_counter() - started_s)
            if delay_s:
                time.sleep(delay_s)
            clock.post([block] * comm.size)
        clock.drain()
        run = gathered(comm, clock, started_s)
    own = comm.rank
    left_s = [run.started_s[own], *run.returned_s[own]]
    stretches = []
    for i, delay_s in enumerate(delays_s):
        between_s, entered_s = run.started_s[own] + worked_s[i], run.entered_s[own, i]
        stretches.append((i, "work", left_s[i], between_s))
        if delay_s:
            stretches.append((i, "delay", between_s, entered_s))
        stretches.append((i, "waiting", entered_s, left_s[i + 1]))
    stretches.append((run.calls, "waiting", left_s[-1], run.ended_s[own]))
    common = {"law": config.law, "bound": bound, "lag": run.lag, "rank": own}
    lags, (whom, waits_s) = [*ahead(run.entered_s, run.returned_s)[own].tolist(), 0], run.waits(bound)
    mine = [
        {**common, "iteration": i, "ahead": lags[i], "waits_for": int(whom[i]), "waits_s": float(waits_s[own, i])}
        | {"phase": phase, "start_s": float(a_s), "end_s": float(b_s)}
        for i, phase, a_s, b_s in stretches
    ]
    return [row for rows in comm.allgather(mine) for row in rows]
