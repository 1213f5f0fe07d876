"""MPI_Alltoall, which is quicker where all counts are equal."""

from typing import Any

from mpi4py import MPI

from blslib.collective.baselines import MpiAlltoallv

BOUNDED = False


def build(comm: MPI.Intracomm, bound: int, *, slot_bytes: int, **counts: Any) -> MpiAlltoallv:
    """For equal counts alone."""
    return MpiAlltoallv(comm, equal=True, **counts)
