"""MPI_Alltoallv behind the interface of an exchange: what recommenders use today."""

from typing import Any

from mpi4py import MPI

from blslib.collective.baselines import MpiAlltoallv

BOUNDED = False


def build(comm: MPI.Intracomm, bound: int, *, slot_bytes: int, **how: Any) -> MpiAlltoallv:
    """With counts known beforehand and buffers made once."""
    return MpiAlltoallv(comm, **how)
