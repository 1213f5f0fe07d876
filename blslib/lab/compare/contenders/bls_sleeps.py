"""Bounded lag whose ranks sleep from the first look on while they wait, and leave their cores to others."""

import time
from typing import Any

from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.waiting import FIRST_SLEEP_S
from blslib.lab.compare.contenders import bls

BOUNDED = True


def build(comm: MPI.Intracomm, bound: int, **sizes: Any) -> BoundedLagAlltoallv:
    """As ``bls``."""
    return bls.build(comm, bound, waiting=lambda _: time.sleep(FIRST_SLEEP_S), **sizes)
