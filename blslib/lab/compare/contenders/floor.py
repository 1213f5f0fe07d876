"""No exchange at all: what a loop takes that fills and reads the same blocks. The blocks sent are those that arrive."""

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from blslib.collective.exchange import Arrival, Block, Exchange

BOUNDED = False


class Floor(Exchange):
    """Hands out what was posted."""

    memory_bytes = 0
    bound = 0
    own = True
    """What arrives is what this rank has sent, and not what others have sent to it."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.rank, self.size, self._posted = comm.rank, comm.size, 0

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Return the blocks themselves."""
        self._posted += 1
        return [Arrival(self._posted - 1, list(blocks))]

    def collect(self, through: int | None = None) -> list[Arrival]:
        """Nothing: ``post`` has returned all."""
        return []

    def drain(self) -> list[Arrival]:
        """Nothing: ``post`` has returned all."""
        return []

    def close(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def build(comm: MPI.Intracomm, bound: int, **_: Any) -> Floor:
    """Without counts: blocks may be of any size."""
    return Floor(comm)
