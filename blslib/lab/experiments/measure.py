"""How contenders are compared: interleaved in one run, on one clock, with the data checked."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.baselines import IalltoallvWindow, MpiAlltoallv
from blslib.collective.exchange import Arrival, Block
from blslib.theory.maxplus import Cost, makespan

Item = TypeVar("Item")

CONTENDERS = ("mpi", "bls", "messages", "window", "mpi-equal", "gloo", "torch")
SYNCHRONOUS = ("mpi", "mpi-equal", "gloo")
_CHANNELS = {"bls": "auto", "messages": "messages"}


class Contender(NamedTuple):
    """An exchange to be measured, with its bound.

    ``mpi`` is MPI_Alltoallv, ``bls`` bounded lag, ``messages`` the same with messages to all peers, ``window`` k
    outstanding MPI_Ialltoallv, and ``mpi-equal`` MPI_Alltoall, for equal counts. ``gloo`` and ``torch`` are torch's
    all_to_all_single, over gloo and over bounded lag.
    """

    name: str
    bound: int

    def build(
        self, comm: MPI.Intracomm, send_counts: Sequence[int], recv_counts: Sequence[int], slot_bytes: int
    ) -> Any:
        """The exchange, for float32 blocks. Collective.

        Raises:
            ValueError: there is no such contender.
        """
        if self.name in ("bls", "messages"):
            options: dict[str, Any] = {"recv_counts": recv_counts, "channel": _CHANNELS[self.name]}
            return BoundedLagAlltoallv(comm, bound=self.bound, slot_bytes=slot_bytes, **options)
        if self.name == "window":
            return IalltoallvWindow(comm, bound=self.bound, send_counts=send_counts, recv_counts=recv_counts)
        if self.name in ("gloo", "torch"):
            from blslib.lab.experiments.torch_exchange import (
                TorchAlltoallv,  # here, since not every rank has need of torch
            )

            backend = "bls" if self.name == "torch" else self.name
            counts = {"send_counts": send_counts, "recv_counts": recv_counts}
            return TorchAlltoallv(comm, backend=backend, bound=self.bound, slot_bytes=slot_bytes, **counts)
        if self.name not in CONTENDERS:
            raise ValueError(f"no contender {self.name!r}: choose from {', '.join(CONTENDERS)}")
        equal = self.name == "mpi-equal"
        return MpiAlltoallv(comm, send_counts=send_counts, recv_counts=recv_counts, equal=equal)


def contenders(names: Sequence[str], bounds: Sequence[int]) -> list[Contender]:
    """Each named contender at each bound; the synchronous ones once."""
    found: list[Contender] = []
    for name in names:
        found += [Contender(name, bound) for bound in ([0] if name in SYNCHRONOUS else bounds)]
    return found


def interleaved(repeats: int, items: Sequence[Item]) -> Iterator[Item]:
    """Every contender once per repeat, in an order that moves on by one, so that none always follows the same."""
    for repeat in range(repeats):
        shift = repeat % len(items)
        yield from [*items[shift:], *items[:shift]]


def warm_up(exchange: Any, blocks: Sequence[Block]) -> None:
    """Use every slot once, so that no run pays for touching memory the first time."""
    for _ in range(2 * (exchange.bound + 1)):
        exchange.post(blocks)
    exchange.drain()


class Timed:
    """An exchange that notes when each call of ``post`` was entered and returned; costs about 0.2 us a call."""

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange
        self.rank, self.size, self.bound = exchange.rank, exchange.size, exchange.bound
        self.collect = exchange.collect
        self.restart()

    def restart(self) -> None:
        """Forget all calls; the clock starts now."""
        self.entered_s: list[float] = []
        self.returned_s: list[float] = []
        self.drain_entered_s = self.drain_returned_s = 0.0
        self.first = -1
        self.started_s = time.perf_counter()

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        self.entered_s.append(time.perf_counter())
        arrivals = self.exchange.post(blocks)
        self.returned_s.append(time.perf_counter())
        return arrivals

    def drain(self) -> list[Arrival]:
        self.drain_entered_s = time.perf_counter()
        arrivals = self.exchange.drain()
        self.drain_returned_s = time.perf_counter()
        return arrivals

    def close(self) -> None:
        self.exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.exchange.__exit__(kind, error, trace)


class Run(NamedTuple):
    """One run of one contender, all ranks on one clock (``time.perf_counter`` is shared by the processes of a host).

    Attributes:
        entered_s, returned_s: (P, N) seconds since the first rank started.
        drained_s: (P, 2) when each rank entered and left the drain.
        ended_s: (P,) when each rank was done.
    """

    started_s: np.ndarray
    entered_s: np.ndarray
    returned_s: np.ndarray
    drained_s: np.ndarray
    ended_s: np.ndarray

    @property
    def calls(self) -> int:
        """N."""
        return self.entered_s.shape[1]

    @property
    def measured_s(self) -> float:
        """From the first start to the last end."""
        return float(self.ended_s.max())

    @property
    def work_s(self) -> np.ndarray:
        """(P, N) seconds of own work before each call: the ``c`` of the max-plus recurrence."""
        return self.entered_s - np.column_stack([self.started_s, self.returned_s[:, :-1]])

    @property
    def waiting_s(self) -> np.ndarray:
        """(P,) seconds inside the calls of the exchange, transfer included."""
        return (self.returned_s - self.entered_s).sum(axis=1) + self.drained_s[:, 1] - self.drained_s[:, 0]

    @property
    def lag(self) -> int:
        """The most that calls returned at one rank exceeded calls entered at another, at any instant."""
        ranks, calls = self.entered_s.shape
        worst = 0
        for returned in self.returned_s:
            for entered in self.entered_s:
                ahead = np.arange(1, calls + 1) - np.searchsorted(entered, returned, side="right")
                worst = max(worst, int(ahead.max()))
        return worst

    def predicted_s(self, bound: int, cost: Cost | None = None) -> float:
        """``measured_s`` by the max-plus recurrence, from the realised work; by default the exchange costs nothing."""
        before_s = self.drained_s[:, 0] - self.returned_s[:, -1]
        after_s = self.ended_s - self.drained_s[:, 1]
        return makespan(self.work_s, bound, cost=cost, before_drain_s=before_s, after_drain_s=after_s)


def gather(comm: MPI.Intracomm, timed: Timed, ended_s: float) -> Run:
    """Put the calls of all ranks side by side. Collective; the result is on every rank."""
    numbers = [timed.started_s, ended_s, timed.drain_entered_s, timed.drain_returned_s]
    mine = np.array([*numbers, *timed.entered_s, *timed.returned_s])
    everybody = np.empty((comm.size, len(mine)))
    comm.Allgather(mine, everybody)
    everybody -= everybody[:, 0].min()
    calls = len(timed.entered_s)
    return Run(
        everybody[:, 0],
        everybody[:, 4 : 4 + calls],
        everybody[:, 4 + calls :],
        everybody[:, 2:4],
        everybody[:, 1],
    )
