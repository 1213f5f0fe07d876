"""The protocol of one rank, apart from any memory, clock or network.

What is written, published and waited for, and in which order, is here and nowhere else. A call runs straight through to
where it has to wait; only what is left of it then is a generator, and yields while it waits. A test runs the same code
over a memory that notes each operation, and interleaves those of several ranks in any order it likes.

Each ordered pair of ranks has a ring of 2 (bound + 1) slots in the receiver's memory, and one counter of arrivals.
Nobody acknowledges anything: *the bound is the flow control*.

Why that many slots are enough. When s enters call i it has returned from call i - 1, so every rank has entered call
i - 1 - bound. A rank that has entered call m has returned from call m - 1, so it was handed everything up to m - 1 -
bound, and having called again it is done with that. With m = i - 1 - bound: it is done with everything up to i - 2 - 2
bound, which is the iteration whose slot s is about to overwrite, i - 2 (bound + 1). With one slot fewer the overwritten
iteration could still be in use.

All that this takes of s is that it has returned from call i - 1. So from there on, and not only in call i, it may write
its blocks of iteration i where they will be read: *compose* them in place.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from blslib.collective.exchange import Arrival, bare

Steps = Iterable[int]
"""What is left of a call: n, again and again, while this rank waits for everybody's first n blocks."""


class Memory(Protocol):
    """Slots and counters, own and other ranks', as one rank reaches them."""

    def compose(self, slot: int, sizes: Sequence[int]) -> None:
        """Hand this rank's slot at each peer out, to be written until ``write``."""

    def write(self, slot: int, blocks: Sequence[memoryview]) -> bool:
        """Put a block into this rank's slot at each peer, where it is not there already.

        False, and nothing is done, while there is no room yet.
        """

    def publish(self, count: int) -> None:
        """Tell every peer that this rank's first ``count`` blocks are there."""

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

    def compose(self, sizes: Sequence[int]) -> None:
        """Have room handed out for the blocks of the next iteration. Nothing is waited for."""
        self.memory.compose(self.posted % self.slots, sizes)

    def post(self, blocks: Sequence[memoryview]) -> Steps:
        """Send the blocks of the next iteration, then wait until nobody is more than ``bound`` iterations behind."""
        slot = self.posted % self.slots
        self.posted += 1
        return self._publish() if self.memory.write(slot, blocks) else self._write_later(slot, blocks)

    def _write_later(self, slot: int, blocks: Sequence[memoryview]) -> Steps:
        yield self.posted
        while not self.memory.write(slot, blocks):
            yield self.posted
        yield from self._publish()

    def _publish(self) -> Steps:
        # Blocks must be visible before their counter is; and whoever reads the counter may overwrite what this rank was
        # handed before, so its loads must be done as well.
        self.memory.fence()
        self.memory.publish(self.posted)
        return self.wait(self.posted - self.bound)

    def wait(self, count: int) -> Steps:
        """Wait until the first ``count`` iterations are complete here; with 0, look once."""
        ready = self.memory.arrived()
        if ready < count:  # by a moment, as a rule, where ranks keep pace: shorter than giving the core away would take
            ready = self.memory.arrived()
        if ready < count:
            return self._wait_longer(count)
        self.memory.fence()
        self.ready = ready
        return ()

    def _wait_longer(self, count: int) -> Steps:
        yield count
        while (ready := self.memory.arrived()) < count:
            yield count
        self.memory.fence()
        self.ready = ready

    def deliver(self) -> list[Arrival]:
        """Hand out every complete iteration that was not handed out yet, in order."""
        memory, arrivals = self.memory, []
        while (iteration := self.delivered) < self.ready:
            arrivals.append(bare(Arrival, (iteration, memory.read(iteration % self.slots))))
            self.delivered = iteration + 1
        return arrivals
