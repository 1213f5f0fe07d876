"""Bounded-lag synchronous alltoallv on mpi4py: ``MPI_Alltoallv`` in which the slowest rank may lag by whole iterations.

The idea is that of Dichev, Pawlowski and Yzelman, "Faster Distributed Inference-Only Recommender Systems via Bounded
Lag Synchronous Collectives", arXiv 2512.19342; the protocol is this project's own and is explained in
``docs/protocol.md``.
"""

import math
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Self

import numpy as np
from mpi4py import MPI

from blslib.collective.agreement import DEFAULT_TIMEOUT_S, agree, same_host
from blslib.collective.blocks import as_bytes
from blslib.collective.errors import BlockError, ExchangeError, LateError, PeerError
from blslib.collective.exchange import Arrival, Block
from blslib.collective.messages import Messages
from blslib.collective.protocol import BoundedLag, Steps
from blslib.collective.ring import CLOSED, FAILED, LATE, LINE_BYTES, Layout, Notice, Ring, UnexpectedSize
from blslib.collective.waiting import Policy, complete, yield_then_sleep

_LOOKS_PER_CLOCK = 16
_NOTHING = object()
"""No tuple of blocks that anybody could post."""

_PULSE_S = 0.1
"""How often a rank that waits asks whether those it waits for are alive."""


class Call(NamedTuple):
    """What happened in one call of ``post``, on the clock of ``time.perf_counter``."""

    iteration: int
    entered_s: float
    posted_s: float
    returned_s: float
    waited_s: float
    sent_bytes: int
    delivered: int
    """Iterations delivered so far, those that this call returned included."""


class BoundedLagAlltoallv:
    """An alltoallv that every rank posts once per iteration, and in which the slowest rank may lag by ``bound``
    iterations.

    Collective: every rank of ``comm`` builds it, with equal arguments (``recv_counts`` apart), and closes it; between
    the two, every rank calls ``post`` equally often. No rank returns from its i-th ``post`` before every rank has
    entered its (i - bound)-th; with bound 0 this is the ordinary synchronous collective.

    Completes: blocks are copied out before ``post`` returns, so the caller may reuse them at once. What a call returns
    are views that stay valid until the next call on the exchange; copy what is to be kept. Arrivals come in iteration
    order, each exactly once, bytes identical to ``MPI_Alltoallv``. A *tuple* of blocks is looked at once and recognised
    when it is posted again with new contents, which saves about a microsecond.

    Args:
        comm: any intra-communicator; duplicated once here, freed by ``close``.
        bound: whole iterations (k >= 0).
        slot_bytes: room for one block; rounded up to a cache line. Larger blocks are allowed and slower.
        dtype: of the blocks and of the arrays handed out. Plain buffers are taken as items of this type.
        recv_counts: P numbers of items that each source sends to this rank in every iteration; checked if given.
        timeout_s: the longest that any wait may take, in seconds.
        channel: "auto" (shared rings on the same host, messages to others), or one of "ring" and "messages" for all.
        record: keep a ``Call`` for every ``post``, in ``calls``.
        waiting: what to do between two looks of a wait.

    Raises:
        ValueError: on every rank, for a bad argument on any rank or one on which ranks differ; the text names the rank.
        MemoryError: on every rank, if the shared memory of a host is too small for the slots.
        LateError: another rank did not come to build the exchange in time.

    Cost: per call P stores of a block and P of a counter, no acknowledgement and no barrier; h-relation of the blocks'
    bytes. Memory per rank: P x 2 (bound + 1) x (slot_bytes + 64) bytes of slots (``ring_bytes``) and a control page.

    Example:
        >>> with BoundedLagAlltoallv(MPI.COMM_SELF, bound=1, slot_bytes=64) as exchange:
        ...     first = exchange.post([np.array([1.0, 2.0], dtype=np.float32)])
        ...     [(arrival.iteration, arrival.blocks) for arrival in first + exchange.drain()]
        [(0, [array([1., 2.], dtype=float32)])]
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        *,
        bound: int,
        slot_bytes: int,
        dtype: np.typing.DTypeLike = np.float32,
        recv_counts: Sequence[int] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        channel: str = "auto",
        record: bool = False,
        waiting: Policy = yield_then_sleep,
    ) -> None:
        self.rank, self.size, self.bound, self.timeout_s = comm.rank, comm.size, bound, timeout_s
        self._waiting = waiting
        self.dtype, expected = agree(comm, bound, slot_bytes, dtype, recv_counts, timeout_s, channel)
        self._comm = comm.Dup()
        ranks = same_host(self._comm, channel)
        self._layout = Layout(self.size, bound, -(-slot_bytes // LINE_BYTES) * LINE_BYTES)
        token = self._comm.bcast(secrets.token_hex(6) if self.rank == 0 else None)
        try:
            self._ring = Ring(self._comm, ranks, self._layout, self.dtype, token, expected)
        except MemoryError:  # on every rank, so that all can try again with less
            self._comm.Free()
            raise
        self._memory = self._ring if len(ranks) == self.size else Messages(self._comm, self._ring)
        self._core = BoundedLag(bound, self._memory)
        self._failure: str | None = None
        self._news: Notice | None = None
        self._closed = False
        self._turn = threading.Lock()
        self._felt_s = 0.0
        self._end = math.inf  # iterations of the rank that is known to have closed after the fewest
        self._known: object = _NOTHING
        self._views: list[memoryview] = []
        self.calls: list[Call] = []
        self._record = record
        self.waited_s = 0.0
        complete(self._comm.Ibarrier(), "building the exchange", timeout_s)  # nobody stores into a page not yet cleared

    @property
    def slot_bytes(self) -> int:
        """Room for one block."""
        return self._layout.slot_bytes

    @property
    def ring_bytes(self) -> int:
        """Shared memory of this rank's slots: P x 2 (bound + 1) x (slot + header)."""
        return self._layout.ring_bytes

    @property
    def memory_bytes(self) -> int:
        """What an experiment reports as this exchange's memory: ``ring_bytes``; one control page comes on top."""
        return self._layout.ring_bytes

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Hand over this iteration's blocks, one per destination, and take what has arrived.

        Returns:
            All iterations up to the current one less ``bound`` that were not delivered before, and any later ones that
            are
            complete: in order, P one-dimensional arrays of ``dtype`` each.

        Raises:
            ValueError, TypeError: wrong blocks; nothing was sent, and the exchange can go on.
            PeerError: another rank failed, or closed before an iteration that this one waits for.
            LateError: ``timeout_s`` passed; the text lists every rank that is behind.
            BlockError: a block has another size than ``recv_counts`` says.
            ExchangeError: the exchange is closed, or has failed before.
            MemoryError: no room for a block larger than its slot.
            RuntimeError: another thread is in a call; nothing was sent, and the exchange can go on.
        """
        entered_s = time.perf_counter() if self._record else 0.0
        if self._failure is not None or self._closed or self._memory.alarmed():
            self._check()
        if blocks is self._known:
            views = self._views
        else:
            views, own = as_bytes(blocks, self.size, self.dtype)
            self._known, self._views = (blocks, views) if own and type(blocks) is tuple else (_NOTHING, [])
        waited_s = self.waited_s
        arrivals = self._run(self._core.post(views))
        if self._record:
            returned_s, waited_s = time.perf_counter(), self.waited_s - waited_s
            sent_bytes = sum(map(len, views))
            core = self._core
            self.calls.append(
                Call(
                    core.posted - 1, entered_s, returned_s - waited_s, returned_s, waited_s, sent_bytes, core.delivered
                )
            )
        return arrivals

    def collect(self, through: int | None = None) -> list[Arrival]:
        """Wait for everything up to iteration ``through`` and return it; without it, return what is complete and do not
        wait.

        Raises:
            ValueError: ``through`` was not posted yet.
            PeerError, LateError, BlockError, ExchangeError, MemoryError, RuntimeError: as for ``post``.
        """
        if self._failure is not None or self._closed or self._memory.alarmed():
            self._check()
        if through is not None and through >= self._core.posted:
            raise ValueError(f"iteration {through} was not posted yet: the next one is {self._core.posted}")
        return self._run(self._core.wait(0 if through is None else through + 1))

    def drain(self) -> list[Arrival]:
        """Wait for all that was posted, here and by others; return what is not delivered yet. Raises as ``collect``."""
        if self._failure is not None or self._closed or self._memory.alarmed():
            self._check()
        return self._run(self._last())

    def _last(self) -> Steps:
        """Wait for all that was posted to arrive here, and for what this rank has sent to leave."""
        posted = self._core.posted
        yield from self._core.wait(posted)
        while not self._memory.flushed():
            yield posted

    def _take_turn(self) -> None:
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(
                "another call on this exchange is under way: it serves one thread at a time, so take turns, or build "
                "one for each thread"
            )

    def _run(self, steps: Steps) -> list[Arrival]:
        attempt, started_s = 0, 0.0
        self._take_turn()
        try:
            for need in steps:
                if need:
                    if not attempt:
                        started_s = time.perf_counter()
                    attempt += 1
                    self._pause(attempt, need, started_s)
            if attempt:
                self.waited_s += time.perf_counter() - started_s
            return self._core.deliver()
        except UnexpectedSize as found:
            source, sent, expected = found.args
            error: ExchangeError = BlockError(
                f"rank {source} -> rank {self.rank} sent {sent} bytes in iteration {self._core.delivered}, "
                f"rank {self.rank} expected {expected}"
            )
            self._fail(error)
            raise error from None
        except MPI.Exception as failure:
            error = self._lost(failure)
            self._fail(error)
            raise error from failure
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._turn.release()

    def _lost(self, failure: MPI.Exception) -> PeerError:
        behind = [r for r, n in enumerate(self._ring.counts()) if n < self._core.posted]
        said = str(failure).strip().splitlines()[-1]
        return PeerError(f"MPI cannot go on, a rank among {behind} or the way to it may be gone; it says: {said}")

    def _pause(self, attempt: int, need: int, started_s: float) -> None:
        self._waiting(attempt)
        if need > self._end or self._memory.alarmed():
            self._hear(need)
        if attempt % _LOOKS_PER_CLOCK == 0:
            now_s = time.perf_counter()
            if now_s - started_s > self.timeout_s:
                raise LateError(self._late(need))
            if now_s - self._felt_s > _PULSE_S:
                self._feel(now_s, [rank for rank, n in enumerate(self._memory.counts()) if n < need])

    def _feel(self, now_s: float, ranks: list[int]) -> None:
        """Raise if one of these ranks, for which this one waits, is on this host and not alive."""
        self._felt_s = now_s
        for rank in ranks:
            if rank != self.rank and rank in self._ring.segments and self._ring.segments[rank].ended():
                self._hear(0)  # it may have said why
                raise PeerError(
                    f"rank {rank} is gone: its process ended without a word after posting "
                    f"{self._memory.counts()[rank]} iterations; its launcher or the system's log may say why"
                )

    def _late(self, need: int) -> str:
        posted = self._core.posted
        behind = [(r, n) for r, n in enumerate(self._memory.counts()) if n < need]
        names = ", ".join(f"rank {r} (posted {n}, {posted - n} behind)" for r, n in behind) or "its own sends"
        return f"rank {self.rank} posted {posted} and waited {self.timeout_s:g} s for {names}"

    # --- failure and end ---------------------------------------------------------------------------------------------

    def _hear(self, need: int) -> None:
        """Read the others' notices; raise if one of them means that the first ``need`` iterations never come."""
        for rank, notice in self._memory.notices().items():
            if rank == self.rank:
                continue
            if notice.state in (FAILED, LATE):
                kind = LateError if notice.state == LATE else PeerError
                self._news = notice
                raise kind(notice.text)
            if notice.state == CLOSED:
                self._end = min(self._end, notice.posted)
                if notice.posted < need:
                    raise PeerError(
                        f"rank {rank} closed after {notice.posted} iterations, rank {self.rank} waits for iteration "
                        f"{need - 1}: every rank must post equally often"
                    )

    def _check(self) -> None:
        if self._closed:
            raise ExchangeError("exchange is closed")
        if self._failure is not None:
            raise ExchangeError(f"exchange has failed, only close is legal now: {self._failure}")
        try:
            self._hear(0)
        except ExchangeError as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """Remember the failure and tell the others, once."""
        if self._failure is not None:
            return
        self._failure = f"{type(error).__name__}: {error}"
        if self._news is not None:  # heard from another rank: pass on in its own words
            self._memory.tell(self._news)
            return
        state, posted = LATE if isinstance(error, LateError) else FAILED, self._core.posted
        words = str(error) if isinstance(error, ExchangeError) else self._failure
        text = f"rank {self.rank} failed after posting {posted} iterations: {words}"
        self._memory.tell(Notice(state, posted, text))

    def close(self) -> None:
        """Give everything back. Waits for the other ranks to close as well; does not if a failure came before.

        Raises:
            PeerError: another rank failed meanwhile, or ranks did not post equally often.
            LateError: another rank did not close within ``timeout_s``.
            RuntimeError: another thread is in a call; the exchange stays open.
        """
        if self._closed:
            return
        self._take_turn()
        self._closed = True
        ended: dict[int, int] = {}
        try:
            if self._failure is None:
                self._memory.tell(Notice(CLOSED, self._core.posted, ""))
                ended = self._meet()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._views, self._known = [], _NOTHING
            if self._failure is not None and isinstance(self._memory, Messages):
                self._memory.keep()
            with suppress(*[MPI.Exception] * bool(self._failure)):
                self._memory.free()
            if self._failure is None:
                self._comm.Free()
            del self._memory, self._ring, self._core  # the memory goes with the last view of it
            self._turn.release()
        for rank, posted in ended.items():
            if posted != ended[0]:
                raise PeerError(
                    f"rank 0 closed after {ended[0]} iterations, rank {rank} after {posted}: every rank must post "
                    "equally often"
                )

    def _meet(self) -> dict[int, int]:
        """Wait until every rank has closed and received all that was sent; the frees that follow then cannot block.

        A message left behind would be received by the next exchange, since MPI uses the communicator's number again.

        Returns:
            How many iterations each rank has posted.
        """
        request, attempt, started_s = None, 0, time.perf_counter()
        while request is None or not request.Test():
            if request is None and self._memory.flushed() and not self._open_ranks():
                request = self._comm.Ibarrier()
            attempt += 1
            self._waiting(attempt)
            self._memory.alarmed()  # lets messages in
            self._hear(0)
            now_s = time.perf_counter()
            if now_s - started_s > self.timeout_s:
                names = self._open_ranks() or "its own messages to leave"
                raise LateError(f"rank {self.rank} waited {self.timeout_s:g} s in close for ranks {names}")
            if now_s - self._felt_s > _PULSE_S:
                self._feel(now_s, self._open_ranks())
        return self._ended()

    def _ended(self) -> dict[int, int]:
        """How many iterations each rank has posted that has closed."""
        return {r: notice.posted for r, notice in sorted(self._memory.notices().items()) if notice.state == CLOSED}

    def _open_ranks(self) -> list[int]:
        """The ranks that have not closed, or have sent blocks which are not here yet."""
        ended = self._ended()
        return [r for r, n in enumerate(self._memory.counts()) if r not in ended or n < ended[r]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and not self._closed:
            self._fail(error)
        self.close()
