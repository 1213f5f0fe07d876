"""Bounded lag with messages to all peers, as if each were on a host of its own."""

from typing import Any

from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.lab.compare.contenders import bls

BOUNDED = True


def build(comm: MPI.Intracomm, bound: int, **sizes: Any) -> BoundedLagAlltoallv:
    """As ``bls``."""
    return bls.build(comm, bound, channel="messages", **sizes)
