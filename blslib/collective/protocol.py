"""The protocol of one rank, apart from any memory, clock or network.

What is written, published and waited for, and in which order, is here and nowhere else. The steps are generators: every
``yield`` is a point at which the other ranks may have moved. Over MPI the caller runs straight through and only pauses
where a step says that it waits; a test can instead interleave the steps of several ranks in any order it likes.

Each ordered pair of ranks has a ring of 2 (bound + 1) slots in the receiver's memory, and one counter of arrivals.
Nobody acknowledges anything: *the bound is the flow control*.

Why that many slots are enough. When s enters call i it has returned from call i - 1, so every rank has entered call
i - 1 - bound. A rank that has entered call m has returned from call m - 1, so it was handed everything up to m - 1 -
bound, and having called again it is done with that. With m = i - 1 - bound: it is done with everything up to i - 2 - 2
bound, which is the iteration whose slot s is about to overwrite, i - 2 (bound + 1). With one slot fewer the overwritten
iteration could still be in use.
"""

from collections.abc import Generator, Sequence
from typing import Protocol

import numpy as np

from blslib.collective.exchange import Arrival

Steps = Generator[int, None, None]
"""Yields 0 where others may move, and n > 0 while this rank waits for everybody's first n blocks."""


class Memory(Protocol):
    """Slots and counters, own and other ranks', as one rank reaches them."""

    def enter(self, iteration: int) -> bool:
        """Get ready to send and receive; False while room for sending is still in use."""

    def write(self, peer: int, slot: int, block: memoryview) -> None:
        """Put a block into this rank's slot at ``peer``."""

    def publish(self, peer: int, count: int) -> None:
        """Tell ``peer`` that this rank's first ``count`` blocks are there."""

    def fence(self) -> object:
        """Order everything before it against everything after it, loads and stores."""

    def arrived(self) -> int:
        """How many iterations are complete here: the least counter over all sources, this rank's own among them."""

    def read(self, slot: int) -> list[np.ndarray]:
        """The P blocks in a slot, by source."""


def slots(bound: int) -> int:
    """Slots per ordered pair of ranks: 2 (bound + 1)."""
    return 2 * (bound + 1)


class BoundedLag:
    """One rank's side of a bounded-lag alltoallv.

    Attributes:
        posted: calls of ``post`` entered.
        delivered: iterations handed out.
        ready: iterations known to be complete here.
    """

    def __init__(self, bound: int, memory: Memory) -> None:
        self.bound = bound
        self.slots = slots(bound)
        self.memory = memory
        self.posted = 0
        self.delivered = 0
        self.ready = 0

    def post(self, blocks: Sequence[memoryview]) -> Steps:
        """Send the blocks of the next iteration, then wait until nobody is more than ``bound`` iterations behind."""
        memory, iteration = self.memory, self.posted
        slot = iteration % self.slots
        self.posted = count = iteration + 1
        while not memory.enter(iteration):
            yield count
        for peer, block in enumerate(blocks):
            memory.write(peer, slot, block)
            yield 0
        # Blocks must be visible before their counter is; and whoever reads the counter may overwrite what this rank was
        # handed before, so its loads must be done as well.
        memory.fence()
        for peer in range(len(blocks)):
            memory.publish(peer, count)
            yield 0
        yield from self.wait(count - self.bound)

    def wait(self, count: int) -> Steps:
        """Wait until the first ``count`` iterations are complete here; with 0, look once."""
        memory = self.memory
        while (ready := memory.arrived()) < count:
            yield count
        memory.fence()
        self.ready = ready

    def deliver(self) -> list[Arrival]:
        """Hand out every complete iteration that was not handed out yet, in order."""
        arrivals = []
        while self.delivered < self.ready:
            iteration = self.delivered
            arrivals.append(Arrival(iteration, self.memory.read(iteration % self.slots)))
            self.delivered = iteration + 1
        return arrivals
