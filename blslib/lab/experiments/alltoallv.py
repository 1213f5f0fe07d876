"""The bare exchange, call by call: bounded lag against MPI_Alltoallv over block sizes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from blslib.collective.exchange import Arrival
from blslib.lab.compare.measure import Contender, contenders, exchanges, interleaved
from blslib.lab.rows import Row, spread

TARGET_S = 0.02
"""Seconds that one loop should last: long against the clock and the scheduler, short enough to interleave often."""

LEAST_CALLS, MOST_CALLS = 20, 1500


@dataclass(frozen=True)
class MicroConfig:
    """One block size, every contender at every bound; views as they come, and copied out into one contiguous buffer.

    Attributes:
        bytes_per_block: of every block, a multiple of 4.
    """

    bytes_per_block: int = 16384
    names: tuple[str, ...] = ("mpi", "mpi-equal", "bls", "window")
    bounds: tuple[int, ...] = (0, 1, 4, 16)
    repeats: int = 9


def run(comm: MPI.Intracomm, config: MicroConfig) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    The time of a call is the slowest rank's whole loop, drain included, over the number of calls. Every block carries
    its iteration, which is checked on arrival in the timed loop; the last arrival is compared in full after it.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    items = contenders(config.names, config.bounds)
    counts = [config.bytes_per_block // 4] * comm.size
    with exchanges(comm, items, counts, counts, config.bytes_per_block) as made:
        loop = Loop(comm, counts)
        calls = loop.calls(made[items[0]])

        def once(turn: tuple[Contender, bool]) -> float:
            item, copied_out = turn
            # What MPI receives lies in one contiguous buffer already.
            return loop.time_us(made[item], calls, copy=copied_out and not item.name.startswith("mpi"))

        times_us = interleaved(config.repeats, [(item, copied) for item in items for copied in (False, True)], once)
    return [
        {
            "contender": item.name,
            "bound": item.bound,
            "ranks": comm.size,
            "bytes_per_block": config.bytes_per_block,
            "copied_out": copied_out,
            "calls": calls,
            "repeats": config.repeats,
            **spread("time_us", found_us),
            **spread("share_of_mpi", np.divide(found_us, times_us.get((Contender("mpi", 0), copied_out), found_us))),
        }
        for (item, copied_out), found_us in times_us.items()
    ]


class Loop:
    """The timed loop, with its blocks and the buffer to copy into made once.

    Args:
        comm: that of the exchanges.
        counts: P numbers of float32 items: of the blocks to each rank, and of those from it.
    """

    def __init__(self, comm: MPI.Intracomm, counts: Sequence[int]) -> None:
        self._comm = comm
        sent = np.concatenate([_block(comm.rank, to, count) for to, count in enumerate(counts)])
        self._blocks = tuple(np.split(sent, np.cumsum(counts)[:-1]))
        self._expected = [_block(source, comm.rank, count) for source, count in enumerate(counts)]
        self._copied = np.empty_like(sent)
        self._next = self._wrong = 0
        self._last: list[np.ndarray] = []

    def calls(self, exchange: Any) -> int:
        """How many calls take about ``TARGET_S``. Collective; the same on every rank."""
        return int(np.clip(TARGET_S * 1e6 / self.time_us(exchange, LEAST_CALLS), LEAST_CALLS, MOST_CALLS))

    def time_us(self, exchange: Any, calls: int, copy: bool = False) -> float:
        """The time of a call in a loop of so many. Collective; the same on every rank.

        Raises:
            RuntimeError: a block arrived with wrong contents.
        """
        self._comm.Barrier()
        started_s = time.perf_counter()
        self.run(exchange, calls, copy)
        slowest_s = self._comm.allreduce(time.perf_counter() - started_s, op=MPI.MAX)
        self.check(calls)
        return slowest_s / calls * 1e6

    def run(
        self, exchange: Any, calls: int, copy: bool = False, before_post: Callable[[int], None] | None = None
    ) -> None:
        """Post so many times, then drain; ``before_post`` is called with each iteration."""
        self._next = self._wrong = 0
        for i in range(calls):
            if before_post is not None:
                before_post(i)
            for block in self._blocks:
                block[0] = i
            self._take(exchange.post(self._blocks), copy)
        self._take(exchange.drain(), copy)

    def check(self, calls: int) -> None:
        """Judge what arrived in so many calls. Before any rank posts again: until then the last arrival holds still.

        Raises:
            RuntimeError: a block had wrong contents, or is missing.
        """
        for block, expected in zip(self._last, self._expected, strict=True):
            self._wrong += int((block[1:] != expected[1:]).sum())
        if self._wrong or self._next != calls:
            raise RuntimeError(f"rank {self._comm.rank}: {self._wrong} wrong items, {self._next} of {calls} arrivals")

    def _take(self, arrivals: Sequence[Arrival], copy: bool) -> None:
        for arrival in arrivals:
            self._last = arrival.blocks
            if copy:
                np.concatenate(self._last, out=self._copied)
            for block in self._last:
                if block[0] != self._next:
                    self._wrong += 1
            self._next += 1


def _block(source: int, to: int, count: int) -> np.ndarray:
    """(count,) float32, whole numbers that differ from block to block; the first gives way to the iteration."""
    return (np.arange(to * count, (to + 1) * count) % 8191 + source).astype(np.float32)
