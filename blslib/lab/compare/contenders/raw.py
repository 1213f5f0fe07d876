"""MPI_Alltoallv as a bare mpi4py loop, without any interface of ours: MPI in its strongest form."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from mpi4py import MPI

BOUNDED = False


class Raw(ExitStack):
    """Fixed buffers, filled where MPI sends from, and a loop of its own for ``compare.loop`` to run."""

    bound = 0

    def __init__(self, comm: MPI.Intracomm, send_counts: Sequence[int], recv_counts: Sequence[int]) -> None:
        super().__init__()
        self._comm = comm.Dup()
        self.callback(self._comm.Free)
        received = np.empty(sum(recv_counts), np.float32)
        self._blocks = np.split(received, np.cumsum(recv_counts)[:-1])
        self._counts, self._spec = list(send_counts), [received, (list(recv_counts), None), MPI.FLOAT]
        self.memory_bytes = received.nbytes

    def loop(self, loop: Any, calls: int) -> None:
        """What ``Loop.run`` does, with a call of MPI in the place of ``post``."""
        call, blocks = self._comm.Alltoallv, self._blocks
        sent, received = [loop.sent, (self._counts, None), MPI.FLOAT], self._spec
        for i in range(calls):
            loop.fill(i)
            call(sent, received)
            loop.read(blocks)


def build(comm: MPI.Intracomm, bound: int, *, send_counts: Sequence[int], recv_counts: Sequence[int], **_: Any) -> Raw:
    """With counts known beforehand and buffers made once."""
    return Raw(comm, send_counts, recv_counts)
