"""The timed loop of the bare exchange: fill every block, exchange, read every item that arrives.

A look-up fills blocks and an interaction reads them; buffers that nobody touches would stay in the caches of both
sides, and make whoever copies less look better or worse than users will find it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blslib.collective.mpi import MPI

TARGET_S = 0.02
"""Seconds that one loop should last: long against the clock and the scheduler, short enough to interleave often."""

LEAST_CALLS, MOST_CALLS = 20, 1500
PERIOD = 61
"""Iterations after which the contents of blocks come again; for blocks from 1 MiB on fewer, 15 for 4 MiB."""


class Loop:
    """Blocks made once, filled and checked in every iteration.

    In iteration i all items of the block from rank s to rank r are the same small whole number, which depends on i, s
    and r. All sums of them are exact in float32, so that one sum checks a block: it reads every item.

    Args:
        comm: that of the exchanges.
        send_counts, recv_counts: P numbers of float32 items to each rank, and from each. Collective.

    Attributes:
        sent: all blocks, one behind the other.
        blocks: the P blocks, views of ``sent``.
    """

    def __init__(self, comm: "MPI.Intracomm", send_counts: Sequence[int], recv_counts: Sequence[int]) -> None:
        self._comm = comm
        self.sent = np.zeros(sum(send_counts), np.float32)
        self.blocks = tuple(np.split(self.sent, np.cumsum(send_counts)[:-1]))
        largest = comm.allreduce(max(1, *send_counts, *recv_counts), op=MPI.MAX)
        peers, most = np.arange(comm.size), max(2, min(PERIOD, ((1 << 24) - 1) // largest))
        i = 7 * np.arange(PERIOD)[:, None]
        self._fills = ((i + 3 * comm.rank + 5 * peers) % most + 1.0).tolist()
        self._own = (np.array(self._fills) * send_counts).tolist()
        self._others = (((i + 3 * peers + 5 * comm.rank) % most + 1) * np.array(recv_counts)).tolist()
        self._expected, self._due, self._wrong = self._others, 0, 0

    def fill(self, iteration: int, blocks: Sequence[np.ndarray] | None = None) -> None:
        """Write every block of an iteration, into ``blocks`` or those given."""
        for block, value in zip(blocks or self.blocks, self._fills[iteration % PERIOD], strict=True):
            block.fill(value)

    def read(self, blocks: Sequence[np.ndarray]) -> None:
        """Read every item of the next arrival, and count what is wrong."""
        for block, expected in zip(blocks, self._expected[self._due % PERIOD], strict=True):
            if np.add.reduce(block) != expected:
                self._wrong += 1
        self._due += 1

    def run(self, exchange: Any, calls: int, before_post: Callable[[int], None] | None = None) -> None:
        """Exchange so many times, then drain; ``before_post`` is called with each iteration first.

        An exchange that says that it is ``in_place`` composes its blocks; one with a ``loop`` of its own runs that.
        """
        self._expected = self._own if getattr(exchange, "own", False) else self._others
        self._due = self._wrong = 0
        if hasattr(exchange, "loop"):
            exchange.loop(self, calls)
            return
        fill, post, read, blocks = self.fill, exchange.post, self.read, self.blocks
        in_place, counts = getattr(exchange, "in_place", False), [len(block) for block in blocks]
        for i in range(calls):
            if before_post is not None:
                before_post(i)
            if in_place:
                blocks = exchange.compose(counts)
            fill(i, blocks)
            for arrival in post(blocks):
                read(arrival.blocks)
        for arrival in exchange.drain():
            read(arrival.blocks)

    def check(self, calls: int) -> None:
        """Judge what arrived in the last run, of so many calls.

        Raises:
            RuntimeError: a block had wrong contents, or is missing.
        """
        if self._wrong or self._due != calls:
            raise RuntimeError(f"rank {self._comm.rank}: {self._wrong} wrong blocks, {self._due} of {calls} arrivals")

    def time_us(self, exchange: Any, calls: int, before_post: Callable[[int], None] | None = None) -> float:
        """The time of a call in a loop of so many: the slowest rank's whole loop, drain included, over their number.

        Collective; the same on every rank. ``before_post`` is that of ``run``.

        Raises:
            RuntimeError: a block arrived with wrong contents.
        """
        self._comm.Barrier()
        started_s = MPI.Wtime()
        self.run(exchange, calls, before_post)
        slowest_s = self._comm.allreduce(MPI.Wtime() - started_s, op=MPI.MAX)
        self.check(calls)
        return slowest_s / calls * 1e6

    def calls(self, exchange: Any, before_post: Callable[[int], None] | None = None) -> int:
        """How many calls take about ``TARGET_S``: a multiple of P, so that delays in turn meet each rank as often.

        Collective; the same on every rank. ``before_post`` is that of ``run``.
        """
        calls = int(np.clip(TARGET_S * 1e6 / self.time_us(exchange, LEAST_CALLS, before_post), LEAST_CALLS, MOST_CALLS))
        return calls + -calls % self._comm.size
