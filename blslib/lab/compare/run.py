"""One run of one contender, all ranks on one clock, and what follows from its times."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from blslib.collective.clock import Clock
from blslib.collective.mpi import MPI
from blslib.lab.options import Row
from blslib.theory.delays import delays
from blslib.theory.maxplus import Cost, Recurrence, ahead, limit


class Run(NamedTuple):
    """The calls of one run; seconds count from when the first rank started.

    ``time.perf_counter`` is one clock for all processes of a host.

    Attributes:
        started_s: (P,) when each rank set off.
        entered_s, returned_s: (P, N) of each ``post``.
        collected_s: (P, N + 1) seconds in ``collect`` before each ``post``, and after the last one.
        drained_s: (P, 2) when each rank entered and left the drain.
        ended_s: (P,) when each rank was done.
    """

    started_s: np.ndarray
    entered_s: np.ndarray
    returned_s: np.ndarray
    collected_s: np.ndarray
    drained_s: np.ndarray
    ended_s: np.ndarray

    @property
    def calls(self) -> int:
        """N."""
        return self.entered_s.shape[1]

    @property
    def measured_s(self) -> float:
        """From the first start to the last end."""
        return float(self.ended_s.max())

    @property
    def work_s(self) -> np.ndarray:
        """(P, N) seconds of own work before each call: the ``c`` of the max-plus recurrence."""
        return self.entered_s - np.column_stack([self.started_s, self.returned_s[:, :-1]]) - self.collected_s[:, :-1]

    @property
    def over_limit(self) -> float:
        """``measured_s`` over the work of the busiest rank: 1 if nobody ever waits, and noise in the work cancels."""
        return self.measured_s / limit(self.work_s)

    @property
    def lag(self) -> int:
        """The most that calls returned at one rank exceeded calls entered at another, at any instant."""
        return max(0, int(ahead(self.entered_s, self.returned_s).max()))

    def waits(self, bound: int) -> tuple[np.ndarray, np.ndarray]:
        """Whom each call waits for, and how long; the drain counts as one more call.

        Call i waits for the rank whose call i - ``bound`` comes last, the drain for the one whose last call does; of
        ranks that come at the same instant, for the first.

        Returns:
            (N + 1,) ranks, -1 for the first calls, which wait for nobody; and (P, N + 1) seconds until that rank has
            come, 0 where it was there already.
        """
        needed = np.append(np.arange(self.calls) - bound, self.calls - 1)
        came_s = np.where(needed < 0, -np.inf, self.entered_s[:, np.maximum(needed, 0)])
        entered_s = np.column_stack([self.entered_s, self.drained_s[:, 0]])
        return np.where(needed < 0, -1, came_s.argmax(axis=0)), np.maximum(came_s.max(axis=0) - entered_s, 0.0)

    def predicted_s(self, bound: int, cost: Cost | None = None) -> float:
        """``measured_s`` by the max-plus recurrence, from the realised work; by default the exchange costs nothing."""
        before_s = self.drained_s[:, 0] - self.returned_s[:, -1] - self.collected_s[:, -1]
        after_s = self.ended_s - self.drained_s[:, 1]
        run = Recurrence(len(self.work_s), [min(bound, self.calls)], cost=cost)
        for column_s in self.work_s.T:
            run.step(column_s)
        return float(run.finish(before_s, after_s)[0])

    def measures(self, bound: int, alone: "Run | None" = None) -> Row:
        """What a row says of a run at this bound.

        Seconds measured; predicted for its own work; foreseen at this bound from the work of ``alone``, the run of the
        same contender at bound 0 in the same repeat; of the busiest rank's work, and of the mean; and the
        greatest lag.
        """
        return {
            "measured_s": self.measured_s,
            "predicted_s": self.predicted_s(bound),
            "foreseen_s": (alone or self).predicted_s(bound),
            "limit_s": limit(self.work_s),
            "useful_s": float(self.work_s.sum(axis=1).mean()),
            "lag": self.lag,
        }


def start(comm: "MPI.Intracomm") -> float:
    """All ranks set off together: when this one does. Collective."""
    comm.Barrier()
    return time.perf_counter()


def gathered(comm: "MPI.Intracomm", clock: Clock, started_s: float) -> Run:
    """The run that ends here, with all ranks side by side. Collective; the result is on every rank."""
    ended_s, calls = time.perf_counter(), clock.calls
    posts = [call for call in calls if call.kind == "post"]
    collected_s = np.zeros(len(posts) + 1)
    for call in calls:
        if call.kind == "collect":
            collected_s[call.iteration] += call.returned_s - call.entered_s
    drain = next((call for call in reversed(calls) if call.kind == "drain"), posts[-1]._replace(entered_s=ended_s))
    first_s = comm.allreduce(started_s, op=MPI.MIN)
    entered_s, returned_s = np.array([(call.entered_s, call.returned_s) for call in posts]).T - first_s
    drained_s = np.array([drain.entered_s, max(drain.returned_s, drain.entered_s)]) - first_s
    mine = started_s - first_s, entered_s, returned_s, collected_s, drained_s, ended_s - first_s
    return Run(*map(np.array, zip(*comm.allgather(mine), strict=True)))


def delaying(
    comm: "MPI.Intracomm", law: str, iterations: int, mean_delay_s: float, seed: int, base_s: float = 0.0
) -> Callable[[int], None]:
    """A function that sleeps as long as this rank is to be delayed in the iteration it is called with.

    Args:
        comm: which rank of how many this is.
        law: a name of ``theory.delays.LAWS``.
        iterations: N.
        mean_delay_s: over all ranks and iterations.
        seed: of the law.
        base_s: slept on top of it in every iteration.
    """
    sleeps_s = (base_s + delays(law, comm.size, iterations, mean_delay_s, seed)[comm.rank]).tolist()

    def sleep(iteration: int) -> None:
        if sleeps_s[iteration]:
            time.sleep(sleeps_s[iteration])

    return sleep
