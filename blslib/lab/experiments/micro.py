"""The bare exchange, call by call: bounded lag against MPI_Alltoallv over block sizes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from blslib.collective.baselines import MpiAlltoallv
from blslib.collective.exchange import Arrival
from blslib.lab.experiments.measure import Contender, contenders, interleaved, warm_up
from blslib.lab.ranks.progress import report
from blslib.lab.results.records import Row, spread

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
    loop = _Loop(comm, config.bytes_per_block // 4)
    counts = [config.bytes_per_block // 4] * comm.size
    exchanges = {item: item.build(comm, counts, counts, config.bytes_per_block) for item in items}
    for exchange in exchanges.values():
        warm_up(exchange, loop.blocks)
    calls = _calls(comm, loop, exchanges)
    times_us: dict[tuple[Contender, bool], list[float]] = {(item, copy): [] for item in items for copy in (False, True)}
    for step, item in enumerate(interleaved(config.repeats, items)):
        report(step, config.repeats * len(items))
        for copy in (False, True):
            times_us[item, copy].append(loop.time_us(exchanges[item], calls, copy))
    for exchange in exchanges.values():
        exchange.close()
    rows = []
    for (item, copy), found in times_us.items():
        baseline = times_us.get((Contender("mpi", 0), copy), found)
        rows.append(
            {
                "contender": item.name,
                "bound": item.bound,
                "ranks": comm.size,
                "bytes_per_block": config.bytes_per_block,
                "copied_out": copy,
                "calls": calls,
                "repeats": config.repeats,
                **spread("time_us", found),
                **spread("share_of_mpi", np.divide(found, baseline)),
            }
        )
    return rows


def _calls(comm: MPI.Intracomm, loop: "_Loop", exchanges: dict[Contender, Any]) -> int:
    once_us = loop.time_us(next(iter(exchanges.values())), LEAST_CALLS, copy=False)
    return int(comm.bcast(np.clip(TARGET_S * 1e6 / once_us, LEAST_CALLS, MOST_CALLS)))


class _Loop:
    """The timed loop, with its blocks and the buffer to copy into made once."""

    def __init__(self, comm: MPI.Intracomm, items: int) -> None:
        self._comm = comm
        self._sent = np.empty((comm.size, items), np.float32)
        self._sent[:] = np.arange(comm.size * items).reshape(comm.size, items) % 8191 + comm.rank
        self.blocks = tuple(self._sent)
        self._stamps = self._sent[:, 0]
        self._copied = np.empty((comm.size, items), np.float32)
        self._room = list(self._copied)
        row = comm.rank * items
        self._expected = np.arange(row, row + items) % 8191 + np.arange(comm.size)[:, None]
        self._next = self._wrong = 0

    def time_us(self, exchange: Any, calls: int, copy: bool) -> float:
        # What MPI receives lies in one contiguous buffer already.
        take = self._copy if copy and not isinstance(exchange, MpiAlltoallv) else self._look
        self._next = self._wrong = 0
        stamps = self._stamps
        self._comm.Barrier()
        started_s = time.perf_counter()
        for i in range(calls):
            stamps[:] = i
            take(exchange.post(self.blocks))
        last = exchange.drain()
        take(last)
        elapsed_s = time.perf_counter() - started_s
        self._check(calls, last)
        return self._comm.allreduce(elapsed_s, op=MPI.MAX) / calls * 1e6

    def _look(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            for block in arrival.blocks:
                if block[0] != self._next:
                    self._wrong += 1
            self._next += 1

    def _copy(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            for room, block in zip(self._room, arrival.blocks, strict=True):
                room[:] = block
                if block[0] != self._next:
                    self._wrong += 1
            self._next += 1

    def _check(self, calls: int, last: Sequence[Arrival]) -> None:
        if last:
            arrived = np.array(last[-1].blocks)
            self._wrong += int((arrived[:, 1:] != self._expected[:, 1:]).sum())
        if self._wrong or self._next != calls:
            raise RuntimeError(f"rank {self._comm.rank}: {self._wrong} wrong items, {self._next} of {calls} arrivals")
