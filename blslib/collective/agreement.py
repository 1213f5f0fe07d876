"""What all ranks must agree on before an exchange is built, so that all of them raise where one is wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from blslib.collective.building import Building
from blslib.collective.segments import whereabouts

CHANNELS = ("auto", "ring", "messages")
DEFAULT_TIMEOUT_S = 60.0


class Settings(NamedTuple):
    """One rank's arguments, looked at by itself.

    Attributes:
        problem: what is wrong with them; empty if nothing is.
        dtype: of the blocks.
        expected: bytes from each source, where they are known.
        timeout_s: for building the exchange.
    """

    problem: str
    dtype: np.dtype
    expected: list[int] | None
    timeout_s: float


def whole(value: object, least: int) -> bool:
    """Whether it is a whole number, and no less than ``least``. True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def examine(
    comm: MPI.Intracomm,
    bound: int,
    slot_bytes: int,
    dtype: np.typing.DTypeLike,
    recv_counts: Sequence[int] | None,
    timeout_s: float,
    channel: str,
) -> Settings:
    """Look at this rank's arguments; raises TypeError for ``comm``, without which nobody can be told."""
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        given = "MPI.COMM_NULL" if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL else type(comm).__name__
        raise TypeError(f"comm is an intra-communicator of mpi4py, got {given}")
    kind: np.dtype = np.dtype(np.uint8)
    counts = np.zeros(comm.size, np.int64)
    problem = ""
    try:
        kind = np.dtype(dtype)
        counts = counts if recv_counts is None else np.asarray(recv_counts)
    except (TypeError, ValueError, OverflowError) as error:
        problem = str(error)
    timed = isinstance(timeout_s, int | float | np.number) and not isinstance(timeout_s, bool) and timeout_s > 0
    if kind.hasobject or not kind.itemsize:
        problem = f"dtype {kind} has no bytes to send: choose one of fixed size, without python objects"
    elif not whole(bound, 0):
        problem = f"bound is a whole number of iterations >= 0, got {bound!r}"
    elif not whole(slot_bytes, 1):
        problem = f"slot_bytes is a whole number >= 1, got {slot_bytes!r}"
    elif not timed:
        problem = f"timeout_s is a time > 0, got {timeout_s!r}"
    elif channel not in CHANNELS:
        problem = f"channel is one of {', '.join(CHANNELS)}, got {channel!r}"
    elif (
        counts.shape != (comm.size,)
        or counts.dtype.kind not in "iu"
        or counts.min() < 0
        or counts.max() > np.iinfo(np.int64).max // kind.itemsize
    ):
        problem = (
            f"recv_counts is one whole number >= 0 per rank ({comm.size}), of less than 2**63 bytes, "
            f"got {recv_counts!r}"
        )
    expected = None if recv_counts is None or problem else (counts * kind.itemsize).tolist()
    return Settings(problem, kind, expected, float(timeout_s) if timed else DEFAULT_TIMEOUT_S)


def agree(building: Building, settings: Settings, bound: int, slot_bytes: int, channel: str) -> None:
    """Hold all ranks' arguments against each other, so that all of them raise together. Collective.

    Raises:
        ValueError: a rank's arguments are wrong, or ranks differ; names the rank.
    """
    mine = {"bound": bound, "slot_bytes": slot_bytes, "dtype": str(settings.dtype), "channel": channel}
    everybody = building.gather((settings.problem, None if settings.problem else mine))
    for rank, (problem, _) in enumerate(everybody):
        if problem:
            raise ValueError(f"rank {rank}: {problem}")
    for rank, (_, theirs) in enumerate(everybody):
        for name, value in everybody[0][1].items():
            if theirs[name] != value:
                raise ValueError(f"ranks differ in {name}: rank 0 has {value}, rank {rank} has {theirs[name]}")


def same_host(building: Building, channel: str) -> list[int]:
    """The ranks that share memory with this one. Collective."""
    if channel == "messages":
        return [building.rank]
    places = building.gather(whereabouts())
    ranks = [rank for rank, place in enumerate(places) if place == places[building.rank]]
    if channel == "ring" and len(ranks) < building.size:
        text = f"channel 'ring' needs all {building.size} ranks on one host, only ranks {ranks} share this one"
        raise ValueError(text)
    return ranks
