"""Up to k outstanding MPI_Ialltoallv: bounded lag as an expert writes it today."""

from typing import Any

from mpi4py import MPI

from blslib.collective.baselines import IalltoallvWindow

BOUNDED = True


def build(comm: MPI.Intracomm, bound: int, *, slot_bytes: int, **counts: Any) -> IalltoallvWindow:
    """With counts known beforehand and buffers made once."""
    return IalltoallvWindow(comm, bound=bound, **counts)
