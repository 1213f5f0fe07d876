"""Bounded lag: ``BoundedLagAlltoallv``, through shared memory on one host and through messages between hosts."""

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv

BOUNDED = True


def build(comm: MPI.Intracomm, bound: int, *, send_counts: Sequence[int], **how: Any) -> BoundedLagAlltoallv:
    """With slots for the largest block, and counts known beforehand of what is received."""
    return BoundedLagAlltoallv(comm, bound=bound, **how)
