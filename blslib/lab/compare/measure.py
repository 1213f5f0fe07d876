"""How contenders are compared: interleaved in one run, on one clock, with the data checked."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.baselines import IalltoallvWindow, MpiAlltoallv
from blslib.collective.exchange import Arrival, Block
from blslib.lab.ranks.launch import free_bytes
from blslib.lab.ranks.progress import report
from blslib.lab.rows import Row, spread
from blslib.theory.delays import delays
from blslib.theory.maxplus import Cost, limit, makespan

Item = TypeVar("Item")
Result = TypeVar("Result")

CONTENDERS = ("mpi", "bls", "messages", "window", "mpi-equal", "gloo", "torch", "torch-probed")
SYNCHRONOUS = ("mpi", "mpi-equal", "gloo")


class Contender(NamedTuple):
    """An exchange to be measured, with its bound.

    ``mpi`` is MPI_Alltoallv, ``bls`` bounded lag, ``messages`` the same with messages to all peers, ``window`` k
    outstanding MPI_Ialltoallv, and ``mpi-equal`` MPI_Alltoall, for equal counts. ``gloo`` and ``torch`` are torch's
    all_to_all_single, over gloo and over bounded lag; ``torch-probed`` has not been told the size of blocks, and made a
    small first call.
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
        counts: dict[str, Any] = {"send_counts": send_counts, "recv_counts": recv_counts}
        match self.name:
            case "mpi" | "mpi-equal":
                return MpiAlltoallv(comm, equal=self.name == "mpi-equal", **counts)
            case "bls" | "messages":
                channel = "messages" if self.name == "messages" else "auto"
                return BoundedLagAlltoallv(
                    comm, bound=self.bound, slot_bytes=slot_bytes, recv_counts=recv_counts, channel=channel
                )
            case "window":
                return IalltoallvWindow(comm, bound=self.bound, **counts)
            case "gloo" | "torch" | "torch-probed":
                # Imported here, since not every rank has need of torch.
                from blslib.collective.torch.exchange import TorchAlltoallv

                backend = "gloo" if self.name == "gloo" else "bls"
                known = None if self.name == "torch-probed" else slot_bytes
                return TorchAlltoallv(comm, backend=backend, bound=self.bound, slot_bytes=known, **counts)
        raise ValueError(f"no contender {self.name!r}: choose from {', '.join(CONTENDERS)}")


def contenders(names: Sequence[str], bounds: Sequence[int]) -> list[Contender]:
    """Each named contender at each bound; the synchronous ones once."""
    return [Contender(name, bound) for name in names for bound in ([0] if name in SYNCHRONOUS else bounds)]


@contextmanager
def exchanges(
    comm: MPI.Intracomm,
    items: Sequence[Contender],
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    slot_bytes: int,
) -> Iterator[dict[Contender, Any]]:
    """The exchange of every contender, closed in the end. Collective.

    Every slot has been used once, so that no run pays for touching memory the first time.

    Raises:
        MemoryError: on every rank, if a host has no room for all of them.
    """
    blocks = tuple(np.zeros(count, np.float32) for count in send_counts)
    free = free_bytes()
    with ExitStack() as stack:
        made = {item: stack.enter_context(item.build(comm, send_counts, recv_counts, slot_bytes)) for item in items}
        _check_room(comm, sum(exchange.memory_bytes for exchange in made.values()), free)
        for exchange in made.values():
            for _ in range(2 * (exchange.bound + 1)):
                exchange.post(blocks)
            exchange.drain()
        yield made


def _check_room(comm: MPI.Intracomm, mine: int, free: int) -> None:
    """Before all of it is touched, as the kernel gives more memory away than there is."""
    node: Any = comm.Split_type(MPI.COMM_TYPE_SHARED)
    needed, free = node.allreduce(mine), node.bcast(free)
    node.Free()
    if short := [each for each in comm.allgather((needed, free)) if each[0] > each[1]]:
        needed, free = short[0]
        cure = "ask for smaller blocks, lower bounds or fewer ranks"
        raise MemoryError(f"the exchanges of a host need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free: {cure}")


def interleaved(repeats: int, items: Sequence[Item], once: Callable[[Item], Result]) -> dict[Item, list[Result]]:
    """What ``once`` returns for each item, once per repeat; reports its progress.

    The order moves on by one from repeat to repeat, so that no item always follows the same one.
    """
    found: dict[Item, list[Result]] = {item: [] for item in items}
    for repeat in range(repeats):
        shift = repeat % len(items)
        for done, item in enumerate([*items[shift:], *items[:shift]], repeat * len(items)):
            report(done, repeats * len(items))
            found[item].append(once(item))
    return found


def delaying(
    comm: MPI.Intracomm, law: str, iterations: int, mean_delay_s: float, seed: int, base_s: float = 0.0
) -> Callable[[int], None]:
    """A function that sleeps as long as this rank is to be delayed in the iteration it is called with.

    Args:
        comm: which rank of how many this is.
        law: a name of ``theory.delays.LAWS``.
        iterations: N.
        mean_delay_s: over all ranks and iterations.
        seed: of the law.
        base_s: slept on top of it in every iteration.
    """
    sleeps_s = (base_s + delays(law, comm.size, iterations, mean_delay_s, seed)[comm.rank]).tolist()

    def sleep(iteration: int) -> None:
        if sleeps_s[iteration]:
            time.sleep(sleeps_s[iteration])

    return sleep


class Run(NamedTuple):
    """One run of one contender, all ranks on one clock (``time.perf_counter`` is shared by the processes of a host).

    Attributes:
        entered_s, returned_s: (P, N) seconds since the first rank started.
        drained_s: (P, 2) when each rank entered and left the drain.
        ended_s: (P,) when each rank was done.
        collected_s: (P, N + 1) seconds in ``collect`` before each call, and after the last one.
    """

    started_s: np.ndarray
    entered_s: np.ndarray
    returned_s: np.ndarray
    drained_s: np.ndarray
    ended_s: np.ndarray
    collected_s: np.ndarray = np.zeros((1, 2))  # none, for any P and N

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
        return self.entered_s - np.column_stack([self.started_s, self.returned_s[:, :-1]]) - self.collected_s[:, :-1]

    @property
    def waiting_s(self) -> np.ndarray:
        """(P,) seconds inside the calls of the exchange, transfer included."""
        drains_s = self.drained_s[:, 1] - self.drained_s[:, 0]
        return (self.returned_s - self.entered_s).sum(axis=1) + self.collected_s.sum(axis=1) + drains_s

    @property
    def lag(self) -> int:
        """The most that calls returned at one rank exceeded calls entered at another, at any instant."""
        returned = np.arange(1, self.calls + 1)
        return max(
            0,
            *(
                int((returned - np.searchsorted(entered_s, returned_s, side="right")).max())
                for returned_s in self.returned_s
                for entered_s in self.entered_s
            ),
        )

    def predicted_s(self, bound: int, cost: Cost | None = None) -> float:
        """``measured_s`` by the max-plus recurrence, from the realised work; by default the exchange costs nothing."""
        before_s = self.drained_s[:, 0] - self.returned_s[:, -1] - self.collected_s[:, -1]
        after_s = self.ended_s - self.drained_s[:, 1]
        return makespan(self.work_s, bound, cost=cost, before_drain_s=before_s, after_drain_s=after_s)


class Timed:
    """An exchange that notes when each call was entered and returned; costs about 0.2 us a call.

    Attributes:
        started_s: when the run began, on the clock of ``time.perf_counter``.
        collected_s: seconds in ``collect`` since the last call of ``post``.
    """

    def __init__(self, comm: MPI.Intracomm, exchange: Any) -> None:
        self.rank, self.size = exchange.rank, exchange.size
        self._comm, self._exchange = comm, exchange
        self._entered_s: list[float] = []
        self._returned_s: list[float] = []
        self._collected_s: list[float] = []
        self._drain_s = (0.0, 0.0)
        self.started_s = self.collected_s = 0.0

    def start(self) -> None:
        """All ranks set off together. Collective."""
        self._comm.Barrier()
        self.started_s = time.perf_counter()

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        self._entered_s.append(time.perf_counter())
        arrivals = self._exchange.post(blocks)
        self._returned_s.append(time.perf_counter())
        self._collected_s.append(self.collected_s)
        self.collected_s = 0.0
        return arrivals

    def collect(self, through: int | None = None) -> list[Arrival]:
        entered_s = time.perf_counter()
        arrivals = self._exchange.collect(through)
        self.collected_s += time.perf_counter() - entered_s
        return arrivals

    def drain(self) -> list[Arrival]:
        entered_s = time.perf_counter()
        arrivals = self._exchange.drain()
        self._drain_s = (entered_s, time.perf_counter())
        return arrivals

    def end(self) -> Run:
        """The run, which ends here, with all ranks side by side. Collective; the result is on every rank."""
        mine = np.array([self.started_s, time.perf_counter(), *self._drain_s, *self._entered_s, *self._returned_s])
        everybody, first_s = np.array(self._comm.allgather(mine)), self._comm.allreduce(self.started_s, op=MPI.MIN)
        edges_s, entered_s, returned_s = np.split(everybody - first_s, [4, 4 + len(self._entered_s)], axis=1)
        collected_s = np.array(self._comm.allgather([*self._collected_s, self.collected_s]))
        return Run(edges_s[:, 0], entered_s, returned_s, edges_s[:, 2:], edges_s[:, 1], collected_s)


def judged(bound: int, runs: Sequence[Run]) -> Row:
    """What runs at a bound took, what was predicted, the ratio of the two, and the limit, each with its spread."""
    measured_s, predicted_s = ([run.measured_s for run in runs], [run.predicted_s(bound) for run in runs])
    return {
        **spread("measured_s", measured_s),
        **spread("predicted_s", predicted_s),
        **spread("ratio", np.divide(measured_s, predicted_s)),
        **spread("limit_s", [limit(run.work_s) for run in runs]),
    }
