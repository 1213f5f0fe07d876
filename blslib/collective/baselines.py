"""What bounded lag is measured against: MPI's own alltoallv, and a window of outstanding MPI_Ialltoallv.

They carry the methods of ``BoundedLagAlltoallv``, so that every experiment takes the exchange as an argument. To make
them as quick as they can be: counts are known beforehand, buffers are made once, and blocks that are composed lie in
the buffer that they are sent from. Others are packed into it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from blslib.collective.agreement import check_comm, wrong_bound, wrong_counts, wrong_dtype
from blslib.collective.blocks import as_bytes
from blslib.collective.errors import ExchangeError
from blslib.collective.exchange import Arrival, Block, Exchange, bare
from blslib.collective.mpi import MPI
from blslib.collective.waiting import complete


class Baseline(Exchange):
    """What all share: counts, buffers, what is outstanding, and the rules of an exchange that is open or closed.

    There are ``bound`` + 1 buffers to receive: so many iterations can be outstanding, and what the last call handed out
    has had its time when the next one receives. ``rooms`` is the number of those to pack blocks into, by default as
    many.

    Attributes:
        memory_bytes: buffers of this rank, to send and to receive.
        in_place: for ``lab.compare.loop``, that blocks are to be composed.
    """

    in_place = True

    def __init__(
        self,
        comm: "MPI.Intracomm",
        bound: int,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        dtype: np.typing.DTypeLike,
        *,
        equal: bool = False,
        rooms: int | None = None,
    ) -> None:
        check_comm(comm)
        problem = wrong_bound(bound) or wrong_dtype(dtype)
        for name, counts in (("send_counts", send_counts), ("recv_counts", recv_counts)):
            problem = problem or wrong_counts(name, counts, comm.size, dtype)
        if problem:
            raise ValueError(problem)
        self.rank, self.size, self.bound, self.dtype = comm.rank, comm.size, int(bound), np.dtype(dtype)
        self._send_sizes, self._recv_sizes = (
            [int(n) * self.dtype.itemsize for n in counts] for counts in (send_counts, recv_counts)
        )
        if equal and len({*self._send_sizes, *self._recv_sizes}) > 1:
            raise ValueError(f"equal=True needs equal counts, got {list(send_counts)} and {list(recv_counts)}")
        self._comm = comm.Dup()
        self._rooms = [np.empty(sum(self._send_sizes), np.uint8) for _ in range(rooms or self.bound + 1)]
        self._buffers = [np.empty(sum(self._recv_sizes), np.uint8) for _ in range(self.bound + 1)]
        starts = np.cumsum(self._send_sizes)[:-1]
        self._composed = [tuple(each.view(self.dtype) for each in np.split(room, starts)) for room in self._rooms]
        self._counts = [int(n) for n in send_counts]
        ends = np.cumsum(self._recv_sizes)[:-1]
        self._received = [[each.view(self.dtype) for each in np.split(buffer, ends)] for buffer in self._buffers]
        self.memory_bytes = sum(buffer.nbytes for buffer in self._rooms + self._buffers)
        self._outstanding: deque[Any] = deque()
        self._posted = 0
        self._closed = False

    def compose(self, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
        """The buffer that the next iteration is sent from, in P pieces, of ``send_counts`` items."""
        self._check()
        asked = counts if type(counts) is list else np.asarray(counts).tolist()
        if asked != self._counts:
            raise ValueError(f"this exchange sends {self._counts} items in every iteration, got {counts}")
        return self._composed[self._posted % len(self._rooms)]

    def _check(self) -> None:
        if self._closed:
            raise ExchangeError("exchange is closed")
        if len(self._outstanding) > self.bound:  # after a deadline: its buffers are MPI's as long as it is not complete
            raise ExchangeError(f"iteration {self._posted - self.bound - 1} is late: collect it before posting another")

    def _room(self, blocks: Sequence[Block]) -> int:
        """Which of the rooms to send from: all blocks are in it by then, one behind the other."""
        self._check()
        slot = self._posted % len(self._rooms)
        if blocks is not self._composed[slot]:
            views, _ = as_bytes(blocks, self.size, self.dtype)
            for peer, (view, size) in enumerate(zip(views, self._send_sizes, strict=True)):
                if len(view) != size:
                    raise ValueError(
                        f"rank {self.rank} -> rank {peer}: block has {len(view)} bytes, send_counts says {size}"
                    )
            self._rooms[slot][:] = np.concatenate(views)  # not at once: they may be parts of the room in another order
        return slot

    def collect(self, through: int | None = None) -> list[Arrival]:
        """Wait for everything up to iteration ``through``; without it, return what is complete."""
        if through is not None and through >= self._posted:
            raise ValueError(f"iteration {through} was not posted yet: the next one is {self._posted}")
        return self._take(0 if through is None else through + 1)

    def drain(self) -> list[Arrival]:
        """Wait for all that was posted."""
        return self._take(self._posted)

    def _take(self, count: int, looks: bool = True) -> list[Arrival]:
        """The arrivals before iteration ``count``, and those that are there if it ``looks``; none where post waits."""
        arrivals: list[Arrival] = []
        while self._outstanding:
            iteration = self._posted - len(self._outstanding)
            due = iteration < count
            if not (due or looks) or not self._finished(self._outstanding[0], iteration, due):
                break
            self._outstanding.popleft()
            arrivals.append(Arrival(iteration, self._received[iteration % len(self._received)].copy()))
        return arrivals

    def _finished(self, request: Any, iteration: int, wait: bool) -> bool:
        """Whether the oldest request, that of ``iteration``, is complete; with ``wait``, not before it is."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish what is outstanding and free the communicator. Collective."""
        if not self._closed:
            self._take(self._posted)
            self._closed = True
            self._comm.Free()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()


class MpiAlltoallv(Baseline):
    """``MPI_Alltoallv`` behind the interface of an exchange: synchronous, so every call returns its own iteration.

    Collective, with ``bound`` 0. Completes: as ``BoundedLagAlltoallv``; arrivals are views of one buffer, valid until
    the next call, in a list that is the same in every call.

    Args:
        comm: duplicated once here, freed by ``close``.
        send_counts, recv_counts: P numbers of items of ``dtype`` that this rank sends and receives in every iteration.
        dtype: of the blocks and of the arrays handed out.
        equal: use ``MPI_Alltoall``, which is quicker where all counts are equal.

    Raises:
        ValueError: counts are not P whole numbers, or not all equal with ``equal``; in ``post``, a block that does not
            match its count.
        TypeError: ``comm`` is no intra-communicator.

    Cost: one MPI call, and a copy of blocks that were not composed.
    """

    def __init__(
        self,
        comm: "MPI.Intracomm",
        *,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        dtype: np.typing.DTypeLike = np.float32,
        equal: bool = False,
    ) -> None:
        super().__init__(comm, 0, send_counts, recv_counts, dtype, equal=equal)
        self._equal = equal
        self._call = self._comm.Alltoall if equal else self._comm.Alltoallv
        self._blocks = self._received[0]
        self._specs = self._spec(self._rooms[0], self._send_sizes), self._spec(self._buffers[0], self._recv_sizes)

    def _spec(self, buffer: np.ndarray, sizes: list[int]) -> list[Any]:
        return [buffer, MPI.BYTE] if self._equal else _spec(buffer, sizes)

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Exchange this iteration's blocks and return them."""
        self._room(blocks)
        self._call(*self._specs)
        self._posted = (iteration := self._posted) + 1
        return [bare(Arrival, (iteration, self._blocks))]


class IalltoallvWindow(Baseline):
    """A window of ``bound`` outstanding ``MPI_Ialltoallv``: bounded lag as an expert writes it today, with what MPI
    offers.

    The delivery rule is that of ``BoundedLagAlltoallv``. The difference lies below: MPI moves the data of these calls
    only while ranks are inside MPI, so one that is away to compute holds the others up.

    Collective; arguments and errors as ``MpiAlltoallv``, plus ``timeout_s`` for every wait (``LateError``).

    Cost: bound + 1 buffers to send and to receive, and a copy of blocks that were not composed.
    """

    def __init__(
        self,
        comm: "MPI.Intracomm",
        *,
        bound: int,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        dtype: np.typing.DTypeLike = np.float32,
        timeout_s: float = 60.0,
    ) -> None:
        super().__init__(comm, bound, send_counts, recv_counts, dtype)
        self._timeout_s = timeout_s
        self._send_specs = [_spec(buffer, self._send_sizes) for buffer in self._rooms]
        self._recv_specs = [_spec(buffer, self._recv_sizes) for buffer in self._buffers]

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Start this iteration's exchange, then wait until at most ``bound`` are outstanding."""
        slot = self._room(blocks)
        self._outstanding.append(self._comm.Ialltoallv(self._send_specs[slot], self._recv_specs[slot]))
        self._posted += 1
        return self._take(self._posted - self.bound)

    def _finished(self, request: "MPI.Request", iteration: int, wait: bool) -> bool:
        if not wait:
            return request.Test()
        complete(request, f"iteration {iteration}", self._timeout_s)
        return True


def _spec(buffer: np.ndarray, sizes: Sequence[int]) -> list[Any]:
    """Buffer and sizes in bytes, one behind the other, as ``Alltoallv`` takes them."""
    return [buffer, (list(sizes), None), MPI.BYTE]  # lists: mpi4py takes half a microsecond longer for arrays
