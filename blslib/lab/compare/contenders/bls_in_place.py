"""Bounded lag whose blocks are composed where they will be read, and not copied."""

from typing import Any

from blslib.collective.alltoallv import BoundedLagAlltoallv

BOUNDED = True


class InPlace(BoundedLagAlltoallv):
    """For ``compare.loop``, which looks for the name."""

    in_place = True


def build(comm: Any, bound: int, **how: Any) -> InPlace:
    """With slots for the largest block."""
    return InPlace(comm, bound=bound, slot_bytes=how["slot_bytes"], recv_counts=how["recv_counts"])
