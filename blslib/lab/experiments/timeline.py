"""The idea as a picture: what every rank does when, around the bare exchange, with delays."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.clock import Clock
from blslib.lab.compare.measure import Run
from blslib.lab.rows import Row
from blslib.theory.delays import delays, named

_LAWS = [
    ("rotating: one rank in every iteration, in turn", "rotating"),
    ("exponential: every rank in every iteration, so long on average", "exponential"),
    ("bernoulli: every rank in one iteration of ten, at random", "bernoulli"),
    ("permanent: the last rank in every iteration", "permanent"),
]
"""Those of the control, and whom a delay hits."""


@dataclass(frozen=True)
class TimelineConfig:
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


def run(comm: MPI.Intracomm, config: TimelineConfig) -> list[Row]:
    """Run once at each bound, with the same delays. Collective; the rows are on every rank.

    Returns:
        One row for each stretch of time: bound, rank, iteration, phase (work, delay, waiting), and start_s and end_s,
        since the first rank started. The wait of the drain counts as one more iteration.
    """
    asked_s = delays(config.law, comm.size, config.iterations, config.mean_delay_s, config.seed)[comm.rank]
    return [row for bound in config.bounds for row in _once(comm, bound, config.work_s, asked_s.tolist())]


def _once(comm: MPI.Intracomm, bound: int, work_s: float, delays_s: list[float]) -> list[Row]:
    block = np.full(1, comm.rank, np.float32)
    worked_s = []
    with Clock(BoundedLagAlltoallv(comm, bound=bound, slot_bytes=block.nbytes)) as exchange:
        comm.Barrier()
        started_s = time.perf_counter()
        for delay_s in delays_s:
            time.sleep(work_s)
            worked_s.append(time.perf_counter())
            if delay_s:
                time.sleep(delay_s)
            exchange.post([block] * comm.size)
        exchange.drain()
        ended_s = time.perf_counter()
    mine: list[tuple[int, str, float, float]] = []
    left_s = started_s
    for call, between_s in zip(exchange.calls[: len(worked_s)], worked_s, strict=True):
        mine.append((call.iteration, "work", left_s, between_s))
        if delays_s[call.iteration]:
            mine.append((call.iteration, "delay", between_s, call.entered_s))
        mine.append((call.iteration, "waiting", call.entered_s, call.returned_s))
        left_s = call.returned_s
    mine.append((len(delays_s), "waiting", left_s, ended_s))
    first_s = comm.allreduce(started_s, op=MPI.MIN)  # perf_counter is one clock for all processes of a host
    columns = ("bound", "rank", "iteration", "phase", "start_s", "end_s")
    return [
        dict(zip(columns, (bound, rank, i, phase, start_s - first_s, end_s - first_s), strict=True))
        for rank, stretches in enumerate(comm.allgather(mine))
        for i, phase, start_s, end_s in stretches
    ]


def lags(rows: list[Row]) -> dict[int, int]:
    """By bound, the most that calls returned at one rank exceeded calls entered at another in the drawn run."""
    calls, bounds = max(row["iteration"] for row in rows), dict.fromkeys(row["bound"] for row in rows)
    worst, nothing = {}, np.empty(0)
    for bound in bounds:
        waits = [row for row in rows if (row["bound"], row["phase"]) == (bound, "waiting") and row["iteration"] < calls]
        entered_s = np.array([row["start_s"] for row in waits]).reshape(-1, calls)
        returned_s = np.array([row["end_s"] for row in waits]).reshape(-1, calls)
        worst[bound] = Run(nothing, entered_s, returned_s, nothing, nothing).lag
    return worst


def control(ranks: Any, *, cores: int) -> Any:
    """Sliders for bound and delay, and the timeline of a new run on live ranks whenever one of them is let go.

    The delay is that of one rank in one iteration, as it is drawn, and not the mean over all of them. Where the ranks
    are gone, a sentence stands in the place of the picture.

    Args:
        ranks: of ``cluster.engines``.
        cores: of the machine, for the caption.

    Returns:
        A widget to display.
    """
    import ipywidgets as widgets

    from blslib.charts import runs as charts
    from blslib.lab import figures
    from blslib.lab.ranks.cluster import GoneError, experiment

    def redraw(bound: int, delay_ms: int, law: str) -> None:
        # Where the mean of a law is 1, a delay lasts this long; where all are delayed, 1 on average.
        of_mean = getattr(named(law, 1.0, ranks.size), "delay_s", 1.0)
        bounds = (0, bound) if bound else (0,)
        try:
            rows = experiment(ranks, run, TimelineConfig(bounds, law, delay_ms / 1000 / of_mean))
        except GoneError as gone:
            print(str(gone).partition("\n")[0])
        else:
            figures.show(charts.timeline(rows, cores=cores))

    wide: Any = {"style": {"description_width": "9em"}, "layout": {"width": "38em"}}
    return widgets.interactive(
        redraw,
        bound=widgets.IntSlider(2, 0, 8, description="bound", continuous_update=False, **wide),
        delay_ms=widgets.IntSlider(48, 0, 160, 4, description="one delay (ms)", continuous_update=False, **wide),
        law=widgets.Dropdown(options=_LAWS, description="law", **wide),
    )
