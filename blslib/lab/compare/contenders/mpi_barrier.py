"""A barrier, then MPI_Alltoallv: where ranks come at different times it can be the quicker of the two."""

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from blslib.collective.baselines import MpiAlltoallv
from blslib.collective.exchange import Arrival, Block

BOUNDED = False


class BarrierAlltoallv(MpiAlltoallv):
    """``MpiAlltoallv`` that meets before each call (open-mpi/ompi#3255)."""

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Meet, then exchange this iteration's blocks and return them."""
        self._comm.Barrier()
        return super().post(blocks)


def build(comm: MPI.Intracomm, bound: int, *, slot_bytes: int, **counts: Any) -> BarrierAlltoallv:
    """As ``mpi``."""
    return BarrierAlltoallv(comm, **counts)
