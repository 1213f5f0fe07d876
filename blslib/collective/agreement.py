"""What all ranks must agree on before an exchange is built, so that all of them raise where one is wrong."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from blslib.collective.building import Building
from blslib.collective.errors import in_words
from blslib.collective.mpi import MPI
from blslib.collective.segments import whereabouts
from blslib.collective.store import StoreComm

CHANNELS = ("auto", "ring", "messages")
DEFAULT_TIMEOUT_S = 60.0
_LONGEST_S = 1e9


class Settings(NamedTuple):
    """One rank's arguments, looked at by itself.

    Attributes:
        problem: what is wrong with them; empty if nothing is.
        dtype: of the blocks.
        expected: bytes from each source, where they are known.
        timeout_s: for building the exchange.
        told: what all ranks must have in common, by name.
    """

    problem: str
    dtype: np.dtype
    expected: list[int] | None
    timeout_s: float
    told: dict[str, Any]


def check_comm(comm: object) -> None:
    """Raises TypeError for what is no intra-communicator."""
    if not isinstance(comm, StoreComm) and (not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL):
        given = "MPI.COMM_NULL" if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL else type(comm).__name__
        raise TypeError(f"comm is an intra-communicator of mpi4py, got {given}")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def wrong_bound(bound: object) -> str:
    """What is wrong with a bound; empty if nothing is, as in all that follow."""
    return "" if _is_whole(bound, 0) else f"bound is a whole number of iterations >= 0, got {bound!r}"


def wrong_dtype(dtype: Any) -> str:
    """What is wrong with the type of the blocks' items."""
    try:
        kind = np.dtype(dtype)
    except Exception as error:  # SyntaxError is among what numpy has for them
        return str(error)
    if kind.hasobject or kind.subdtype or not kind.itemsize:
        return f"dtype {kind} has no bytes to send: choose one of fixed size, without python objects or a shape"
    return ""


def wrong_counts(name: str, counts: Any, size: int, dtype: Any) -> str:
    """What is wrong with a number of items for every rank."""
    try:
        found = np.asarray(counts)
    except (TypeError, ValueError, OverflowError):  # of several lengths, or of more than 64 bits
        found = np.empty(0)
    sizes = [int(n) * np.dtype(dtype).itemsize for n in found.flat] if found.dtype.kind in "iu" else []
    if found.shape == (size,) and min(sizes, default=-1) >= 0 and sum(sizes) < 2**63:
        return ""
    return f"{name} is one whole number >= 0 per rank ({size}), of less than 2**63 bytes in all, got {counts!r}"


def examine(
    comm: Any,
    bound: int,
    slot_bytes: int,
    dtype: np.typing.DTypeLike,
    recv_counts: Sequence[int] | None,
    timeout_s: float,
    channel: str,
) -> Settings:
    """Look at this rank's arguments; raises nothing."""
    kind: np.dtype = np.dtype(np.uint8)
    problem, expected, patience_s = "", None, DEFAULT_TIMEOUT_S
    try:
        patience_s = _seconds(timeout_s) or DEFAULT_TIMEOUT_S
        problem = wrong_dtype(dtype) or wrong_bound(bound)
        if not problem and recv_counts is not None:
            problem = wrong_counts("recv_counts", recv_counts, comm.size, dtype)
        if not _is_whole(slot_bytes, 1):
            problem = problem or f"slot_bytes is a whole number >= 1, got {slot_bytes!r}"
        if not _seconds(timeout_s):
            problem = problem or f"timeout_s is a time > 0, got {timeout_s!r}"
        if not isinstance(channel, str) or channel not in CHANNELS:
            problem = problem or f"channel is one of {', '.join(CHANNELS)}, got {channel!r}"
        if not problem:
            kind = np.dtype(dtype)
            expected = None if recv_counts is None else [int(n) * kind.itemsize for n in recv_counts]
    except Exception as error:  # of an argument that cannot even be looked at; all have to hear of it
        problem = in_words(error)
    told = (
        {}
        if problem
        else {"bound": int(bound), "slot_bytes": int(slot_bytes), "dtype": str(kind), "channel": channel[:]}
    )
    return Settings(problem, kind, expected, patience_s, told)


def _seconds(timeout_s: object) -> float:
    """A time, or 0 for what is none."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float | np.number) or not timeout_s > 0:
        return 0.0
    return float(timeout_s) if timeout_s < _LONGEST_S else _LONGEST_S


def agree(everybody: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Hold all ranks' settings against each other, so that all of them raise together.

    Raises:
        ValueError: a rank's arguments are wrong, or ranks differ; names the rank.
    """
    for rank, (problem, _) in enumerate(everybody):
        if problem:
            raise ValueError(f"rank {rank}: {problem}")
    for rank, (_, theirs) in enumerate(everybody):
        for name, value in everybody[0][1].items():
            if theirs[name] != value:
                raise ValueError(f"ranks differ in {name}: rank 0 has {value}, rank {rank} has {theirs[name]}")


def same_host(building: Building, channel: str) -> list[int]:
    """The ranks that share memory with this one. Collective."""
    without_mpi = isinstance(building.comm, StoreComm)  # and so without messages
    if channel == "messages" and not without_mpi:
        return [building.rank]
    places = building.gather(whereabouts())
    ranks = [rank for rank, place in enumerate(places) if place == places[building.rank]]
    if (channel == "ring" or without_mpi) and len(ranks) < building.size:
        text = f"channel 'ring' needs all {building.size} ranks on one host, only ranks {ranks} share this one"
        raise ValueError(text)
    return ranks
