"""Endurance: exchanges of every kind for so many minutes, every byte checked; running totals.

Every round, chance divides the ranks into groups. Each group opens an exchange of its own with a bound, a channel and a
slot size drawn for it, posts blocks of random sizes (empty ones, and ones larger than a slot, among them), some rounds
with random delays, and closes it, now and then with arrivals outstanding.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blslib.collective.exchange import Arrival
from blslib.lab.options import Given, Row, positive

if TYPE_CHECKING:
    from mpi4py import MPI

COLUMNS = "minutes ranks exchanges blocks bytes wrong rss_slope_bytes_per_s fds_start fds"
OPTIONS = {"minutes": {"type": positive("minutes"), "metavar": "M", "help": "how long (1)"}}

_TEXT_BYTES = 1 << 16
_WARM_UP = 0.25
"""Part of the samples of memory that the slope leaves out: pools and caches of MPI fill first."""


@dataclass(frozen=True)
class Config:
    """How long, the bounds to draw from, and the seed."""

    minutes: float = 1.0
    bounds: tuple[int, ...] = (0, 1, 2, 3, 5, 8)
    seed: int = 1


def plan(given: Given) -> list[Config]:
    """One configuration."""
    bounds = {} if given.bounds is None else {"bounds": given.bounds}
    return [Config(given.minutes or (0.1 if given.quick else 1.0), **bounds)]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Soak. Collective; a row of running totals per minute and one at the end, the same on every rank.

    ``wrong`` counts blocks with other bytes than were sent, and arrivals that were late, missing or out of order;
    ``rss_slope_bytes_per_s`` is that of the rank whose memory grew fastest, by least squares after a warm-up; ``fds``
    is the number of open files of the rank that has most, and ``fds_start`` what it was after the first round.
    """
    import psutil
    from mpi4py import MPI

    from blslib.lab.ranks.progress import report

    text = np.random.default_rng(config.seed).integers(0, 256, _TEXT_BYTES, np.uint8)
    process = psutil.Process()
    totals, exchanges, fds_start = np.zeros(3, np.int64), 0, 0
    rows: list[Row] = []
    samples: list[tuple[float, int]] = []
    started_s = time.monotonic()
    while True:
        totals += _round(comm, np.random.default_rng([config.seed, exchanges]), text, config.bounds)
        exchanges += 1
        elapsed_s = comm.bcast(time.monotonic() - started_s)
        if elapsed_s >= len(samples):  # one a second: the samples themselves are memory
            samples.append((elapsed_s, process.memory_info().rss))
        fds = comm.allreduce(process.num_fds(), op=MPI.MAX)
        fds_start = fds_start or fds
        report(int(elapsed_s), int(60 * config.minutes))
        over = elapsed_s >= 60 * config.minutes
        if over or elapsed_s >= 60 * (len(rows) + 1):
            everybody = comm.allreduce(totals)
            rows.append(
                {
                    "minutes": round(elapsed_s / 60, 2),
                    "ranks": comm.size,
                    "exchanges": exchanges,
                    **dict(zip(("blocks", "bytes", "wrong"), everybody.tolist(), strict=True)),
                    "rss_slope_bytes_per_s": comm.allreduce(_slope(samples), op=MPI.MAX),
                    "fds_start": fds_start,
                    "fds": fds,
                }
            )
        if over:
            return rows


def _slope(samples: list[tuple[float, int]]) -> float:
    """Bytes per second, by least squares over what comes after the warm-up."""
    seconds, rss = np.array(samples[int(_WARM_UP * len(samples)) :], float).T
    return round(float(np.polyfit(seconds, rss, 1)[0]), 1) if len(seconds) > 2 else 0.0


def _round(comm: "MPI.Intracomm", rng: np.random.Generator, text: np.ndarray, bounds: tuple[int, ...]) -> np.ndarray:
    """One exchange in every group; returns this rank's blocks, bytes and wrong ones."""
    from blslib.collective.alltoallv import BoundedLagAlltoallv

    # All ranks of a group draw the same numbers, so each knows what the others send.
    group = int(rng.integers(comm.size, size=comm.size)[comm.rank]) * int(rng.random() < 0.5)
    part: Any = comm.Split(group, int(rng.permutation(comm.size)[comm.rank]))
    iterations, slot_bytes = int(rng.integers(1, 800)), int(2 ** rng.integers(3, 13))
    sizes = rng.integers(0, slot_bytes + 1, (iterations, part.size, part.size))
    sizes[rng.random(sizes.shape) < 0.02] *= int(rng.integers(0, 4))
    starts = rng.integers(0, _TEXT_BYTES - sizes)
    sleeps = rng.random((iterations, part.size))[:, part.rank]
    sleeps = np.where(sleeps < 0.02, 0.1 * sleeps, 0.0) if rng.random() < 0.25 else np.zeros(iterations)
    drains = rng.random() < 0.9
    exchange = BoundedLagAlltoallv(
        part,
        bound=int(rng.choice(bounds)),
        slot_bytes=slot_bytes,
        dtype=np.uint8,
        channel=str(rng.choice(("auto", "messages"))),
    )
    check = Check(part.rank, text, sizes, starts)
    with exchange:
        for i, (row, at, sleep_s) in enumerate(zip(sizes[:, part.rank], starts[:, part.rank], sleeps, strict=True)):
            if sleep_s:
                time.sleep(sleep_s)
            ends = (at + row).tolist()
            check.take(exchange.post([text[a:b] for a, b in zip(at.tolist(), ends, strict=True)]))
            check.wrong += check.due < i + 1 - exchange.bound
        if drains:
            check.take(exchange.drain())
            check.wrong += iterations - check.due
    found = np.array([check.due * part.size, sizes[: check.due, :, part.rank].sum(), check.wrong])
    part.Free()
    return found


class Check:
    """Compares arrivals with what their senders drew from the text.

    Attributes:
        due: the iteration that comes next.
        wrong: blocks with other bytes, and arrivals out of order.
    """

    def __init__(self, rank: int, text: np.ndarray, sizes: np.ndarray, starts: np.ndarray) -> None:
        self.due = self.wrong = 0
        self._text = text.data
        self._begin, self._end = starts[:, :, rank].tolist(), (starts + sizes)[:, :, rank].tolist()

    def take(self, arrivals: list[Arrival]) -> None:
        """Count what is due and what is wrong."""
        for iteration, blocks in arrivals:
            self.wrong += iteration != self.due
            for block, begin, end in zip(blocks, self._begin[self.due], self._end[self.due], strict=True):
                self.wrong += block.data != self._text[begin:end]
            self.due += 1
