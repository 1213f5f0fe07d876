"""Bounded lag: ``BoundedLagAlltoallv``, through shared memory on one host and through messages between hosts."""

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv

BOUNDED = True


def build(
    comm: MPI.Intracomm,
    bound: int,
    *,
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    slot_bytes: int,
    **how: Any,
) -> BoundedLagAlltoallv:
    """With slots for the largest block."""
    return BoundedLagAlltoallv(comm, bound=bound, slot_bytes=slot_bytes, recv_counts=recv_counts, **how)
