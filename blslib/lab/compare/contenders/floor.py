"""No exchange at all: what a loop takes that fills and reads the same blocks. The blocks sent are those that arrive."""

from contextlib import ExitStack
from typing import Any

from mpi4py import MPI

BOUNDED = False


class Floor(ExitStack):
    """A loop of its own for ``compare.loop`` to run, and nothing to close."""

    memory_bytes = 0
    bound = 0
    own = True
    """What arrives is what this rank has sent, and not what others have sent to it."""

    def loop(self, loop: Any, calls: int) -> None:
        """What ``Loop.run`` does, with nothing in the place of ``post``."""
        for i in range(calls):
            loop.fill(i)
            loop.read(loop.blocks)


def build(comm: MPI.Intracomm, bound: int, **_: Any) -> Floor:
    """Without counts: blocks may be of any size."""
    return Floor()
