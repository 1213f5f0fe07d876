"""What all ranks must agree on before an exchange is built, so that all of them raise where one is wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blslib.collective.mpi import MPI
from blslib.collective.waiting import complete

CHANNELS = ("auto", "ring", "messages")
DEFAULT_TIMEOUT_S = 60.0


def agree(
    comm: MPI.Intracomm,
    bound: int,
    slot_bytes: int,
    dtype: np.typing.DTypeLike,
    recv_counts: Sequence[int] | None,
    timeout_s: float,
    channel: str,
) -> tuple[np.dtype, list[int] | None]:
    """Check every rank's arguments on every rank, so that all of them raise together."""
    kind: np.dtype = np.dtype(np.uint8)
    counts = np.zeros(comm.size, np.int64)
    problem = None
    try:
        kind = np.dtype(dtype)
        counts = counts if recv_counts is None else np.asarray(recv_counts)
    except (TypeError, ValueError) as error:
        problem = str(error)
    if kind.hasobject or not kind.itemsize:
        problem = f"dtype {kind} has no bytes to send: choose one of fixed size, without python objects"
    elif not isinstance(bound, int | np.integer) or bound < 0:
        problem = f"bound is a whole number of iterations >= 0, got {bound!r}"
    elif not isinstance(slot_bytes, int | np.integer) or slot_bytes < 1:
        problem = f"slot_bytes is a whole number >= 1, got {slot_bytes!r}"
    elif not isinstance(timeout_s, int | float | np.number) or not timeout_s > 0:
        problem = f"timeout_s is a time > 0, got {timeout_s!r}"
    elif channel not in CHANNELS:
        problem = f"channel is one of {', '.join(CHANNELS)}, got {channel!r}"
    elif counts.shape != (comm.size,) or counts.dtype.kind not in "iu" or counts.min() < 0:
        problem = f"recv_counts is one whole number >= 0 per rank ({comm.size}), got {recv_counts!r}"
    # Twice, so that a rank which comes too late to the first does not go on alone to calls that block in C.
    for _ in range(2):
        complete(comm.Ibarrier(), "building the exchange", DEFAULT_TIMEOUT_S if problem else timeout_s)
    settings = {"bound": bound, "slot_bytes": slot_bytes, "dtype": str(kind), "channel": channel}
    everybody = comm.allgather((problem, settings))
    for rank, (wrong, _) in enumerate(everybody):
        if wrong:
            raise ValueError(f"rank {rank}: {wrong}")
    for rank, (_, theirs) in enumerate(everybody):
        for name, value in everybody[0][1].items():
            if theirs[name] != value:
                raise ValueError(f"ranks differ in {name}: rank 0 has {value}, rank {rank} has {theirs[name]}")
    return kind, None if recv_counts is None else (counts * kind.itemsize).tolist()


def same_host(comm: MPI.Intracomm, channel: str) -> list[int]:
    """The ranks of ``comm`` that share memory with this one."""
    node: Any = comm.Split(comm.rank) if channel == "messages" else comm.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = node.allgather(comm.rank)
    node.Free()
    if channel == "ring" and len(ranks) < comm.size:
        raise ValueError(f"channel 'ring' needs all {comm.size} ranks on one host, only ranks {ranks} share this one")
    return ranks
