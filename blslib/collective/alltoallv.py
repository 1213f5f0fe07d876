"""Bounded-lag synchronous alltoallv on mpi4py: ``MPI_Alltoallv`` in which the slowest rank may lag by whole iterations.

The idea is that of Dichev, Pawlowski and Yzelman, "Faster Distributed Inference-Only Recommender Systems via Bounded
Lag Synchronous Collectives", arXiv 2512.19342; the protocol is this project's own and is explained in
``docs/protocol.md``.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import numpy as np

from blslib.collective.agreement import DEFAULT_TIMEOUT_S, agree, check_comm, examine, same_host, wrong_counts
from blslib.collective.blocks import as_bytes, is_fixed
from blslib.collective.building import Building, meet
from blslib.collective.calls import IS_CLOSED, Calls
from blslib.collective.errors import ExchangeError, PeerError
from blslib.collective.exchange import Arrival, Block, Exchange
from blslib.collective.layout import LINE_BYTES, Layout, round_up
from blslib.collective.messages import Messages
from blslib.collective.mpi import MPI, failures
from blslib.collective.notices import CLOSED, Notice
from blslib.collective.protocol import BoundedLag, Steps
from blslib.collective.ring import Ring
from blslib.collective.room import check_room
from blslib.collective.segments import Segment, share
from blslib.collective.store import Comm
from blslib.collective.turns import IS_FORKED
from blslib.collective.waiting import Policy, yield_then_sleep

_IS_CLOSING = "exchange is being closed"
_NOTHING = object()  # no tuple of blocks that anybody could post


class BoundedLagAlltoallv(Calls, Exchange):
    """An alltoallv that every rank posts once per iteration, and in which the slowest rank may lag by ``bound``
    iterations.

    Collective: every rank of ``comm`` builds it, with equal arguments (``recv_counts`` apart), and closes it; between
    the two, every rank calls ``post`` equally often. No rank returns from its i-th ``post`` before every rank has
    entered its (i - bound)-th; with bound 0 this is the ordinary synchronous collective.

    Completes: blocks are copied out before ``post`` returns, so the caller may reuse them at once. What a call returns
    are views that stay valid until the next call on the exchange; copy what is to be kept. Arrivals come in iteration
    order, each exactly once, bytes identical to ``MPI_Alltoallv``. A *tuple* of arrays is looked at once and recognised
    when it is posted again with new contents, which saves about a microsecond; do not resize its arrays.

    Args:
        comm: any intra-communicator, duplicated once here, freed by ``close``; or a ``store.StoreComm`` of ranks that
            have no MPI and are on one host.
        bound: whole iterations (k >= 0).
        slot_bytes: room for one block; rounded up to a cache line. Larger blocks are allowed and slower.
        dtype: of the blocks and of the arrays handed out. Plain buffers are taken as items of this type.
        recv_counts: P numbers of items that each source sends to this rank in every iteration; checked if given.
        timeout_s: the longest that any wait may take, in seconds.
        channel: "auto" (shared rings on the same host, messages to others), or one of "ring" and "messages" for all.
        waiting: what to do between two looks of a wait.

    Attributes:
        rank, size: of ``comm``.
        bound, timeout_s, dtype: as given.
        slot_bytes: room for one block.
        ring_bytes: this rank's slots: P x 2 (bound + 1) x (slot + header).
        memory_bytes: all that it has allocated: ``ring_bytes``, a control page, and as many slots to send from for
            every peer on another host.

    Raises:
        TypeError: ``comm`` is no intra-communicator.
        ValueError: on every rank, for a bad argument on any rank or one on which ranks differ; the text names the rank.
        MemoryError: on every rank, if a host has too little memory, shared or at all, for the slots.
        OSError: on every rank, if one may not open enough files.
        LateError: the exchange was not built within ``timeout_s``, since a rank did not come or went away.
        PeerError: another rank failed while building it.
        ExchangeError: in a process forked from a rank.

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
        comm: Comm,
        *,
        bound: int,
        slot_bytes: int,
        dtype: np.typing.DTypeLike = np.float32,
        recv_counts: Sequence[int] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        channel: str = "auto",
        waiting: Policy = yield_then_sleep,
    ) -> None:
        super().__init__()
        check_comm(comm)
        settings = examine(comm, bound, slot_bytes, dtype, recv_counts, timeout_s, channel)
        self.rank, self.size, self.timeout_s = comm.rank, comm.size, timeout_s
        self.dtype = settings.dtype
        self._known: object = _NOTHING
        self._views: list[memoryview] = []
        self._asked: list[int] | None = None  # counts that were composed last, and their bytes
        self._sizes: list[int] = []
        self._met = False  # in a barrier, which cannot be taken back
        building = meet(comm, settings.timeout_s, (settings.problem, settings.told))
        try:
            agree(building.words)
            layout = Layout(self.size, int(bound), round_up(int(slot_bytes), LINE_BYTES))
            self.bound, self.slot_bytes = layout.bound, layout.slot_bytes
            self._begin(waiting, self.size, self.bound)
            self.ring_bytes = layout.ring_bytes
            self._build(building, layout, settings.expected, same_host(building, channel))
        except BaseException as error:
            building.give_up(error)
            raise
        self._building, self._comm = building, building.comm

    def _build(self, building: Building, layout: Layout, expected: list[int] | None, ranks: list[int]) -> None:
        """Make the memory. Collective over the whole communicator, of which ``ranks`` are on this host."""
        check_room(building, len(ranks), layout)
        segments: dict[int, Segment] = {}
        try:
            share(building, ranks, layout.segment_bytes, segments)
            known = building.fence(), segments, layout, self.dtype, expected
            self._memory = Messages(building.comm, *known) if len(ranks) < self.size else Ring(self.rank, *known)
            self.memory_bytes = layout.segment_bytes + layout.rings_bytes(self.size - len(ranks))
            self._core = BoundedLag(layout.bound, self._memory)
            building.gather(None)  # nobody stores into a page not yet cleared
        except BaseException as error:
            if hasattr(self, "_core"):  # others may have built the exchange already
                self._fail(error)
                self._free()
            for segment in segments.values():
                segment.close()
            raise

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Hand over this iteration's blocks, one per destination, and take what has arrived.

        Returns:
            All iterations up to the current one less ``bound`` that were not delivered before, and any later ones that
            are complete: in order, P one-dimensional arrays of ``dtype`` each.

        Raises:
            ValueError, TypeError: wrong blocks; nothing was sent, and the exchange can go on.
            PeerError: another rank failed, or closed before an iteration that this one waits for.
            LateError: ``timeout_s`` passed; the text lists every rank that is behind.
            BlockError: a block has another size than ``recv_counts`` says.
            ExchangeError: the exchange is closed, or has failed before.
            MemoryError: no room for a block larger than its slot.
            RuntimeError: another thread is in a call; nothing was sent, and the exchange can go on.
        """
        return self._alone(self._post, blocks)

    def compose(self, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Room for this iteration's blocks where they will be read: post the very tuple, and nothing is copied.

        No call in the sense of arrivals: those that the last one returned stay valid. Fill all of it: the room holds
        what was there before. It is this rank's until it posts; to write to it afterwards is to write what another rank
        reads (with ``python -X dev`` numpy refuses it, of these arrays, though not of views). To post something else is
        legal, and copies that; to compose again gives up what was composed before.

        Args:
            counts: P numbers of items.

        Returns:
            P one-dimensional arrays of ``dtype``, one per destination: for peers of this host in their memory. What is
            for others, or larger than a slot, is in this rank's memory, and copied as ever.

        Raises:
            ValueError: wrong counts.
            MemoryError: no room for blocks larger than their slots, which stay until the counts change.
            ExchangeError: the exchange is closed, or has failed.
            RuntimeError: another thread is in a call. After all but an ExchangeError the exchange can go on.

        Cost: about a microsecond, more where the counts differ from those of this slot's last time. Whatever else is
        posted from then on is copied twice.
        """
        return self._alone(self._compose, counts)

    def collect(self, through: int | None = None) -> list[Arrival]:
        """Wait for everything up to iteration ``through`` and return it; without it, return what is complete and do not
        wait.

        Raises:
            ValueError: ``through`` was not posted yet.
            PeerError, LateError, BlockError, ExchangeError, MemoryError, RuntimeError: as for ``post``.
        """
        return self._alone(self._collect, through)

    def drain(self) -> list[Arrival]:
        """Wait for all that was posted, here and by others; return what is not delivered yet. Raises as ``collect``."""
        return self._alone(lambda _: self._run(self._last, None), None)

    def _post(self, blocks: Sequence[Block]) -> list[Arrival]:
        if blocks is self._known:
            views = self._views
        else:
            views, own = as_bytes(blocks, self.size, self.dtype)
            if self._asked is not None:  # it composes, and blocks may be parts of rooms, of whichever iteration
                views, own = [memoryview(bytes(view)) for view in views], False
            self._known, self._views = (blocks, views) if own and is_fixed(blocks) else (_NOTHING, [])
        arrivals = self._run(self._core.post, views)
        self._lags[self._core.posted - self._core.ready] += 1
        return arrivals

    def _compose(self, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
        if self._over is not None:
            raise ExchangeError(self._over)
        if type(counts) is not list or counts != self._asked:
            if problem := wrong_counts("counts", counts, self.size, self.dtype):
                raise ValueError(problem)
            asked = [int(n) for n in counts]
            # In one go, as no interrupt falls between two stores: the one must not be there without the other.
            self._asked, self._sizes = asked, [n * self.dtype.itemsize for n in asked]
        self._core.compose(self._sizes)
        self._known, self._views = self._memory.composed, self._memory.in_place or []
        return self._memory.composed

    def _collect(self, through: int | None) -> list[Arrival]:
        if through is not None and through >= self._core.posted:
            raise ValueError(f"iteration {through} was not posted yet: the next one is {self._core.posted}")
        return self._run(self._core.wait, 0 if through is None else through + 1)

    def _last(self, _: None) -> Steps:
        """Wait for all that was posted to arrive here, and for what this rank has sent to leave."""
        posted = self._core.posted
        yield from self._core.wait(posted)
        while not self._memory.flushed():
            yield posted

    def close(self) -> None:
        """Give everything back. Waits for the other ranks to close as well; does not if a failure came before.

        Raises:
            PeerError: another rank failed meanwhile, or ranks did not post equally often.
            LateError: another rank did not close within ``timeout_s``.
            RuntimeError: another thread is in a call; the exchange stays open.
        """
        self._alone(self._close, None)

    def _close(self, _: None) -> None:
        if self._over in (IS_CLOSED, IS_FORKED):
            if self._over == IS_FORKED:  # what MPI has in here is the parent's
                self._let_go()
            return
        ended: dict[int, int] = {}
        try:
            if self._over is None:
                self._memory.tell(Notice(CLOSED, self._core.posted, ""))
                ended = self._meet()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._free()
        for rank, posted in ended.items():
            if posted != ended[0]:
                raise PeerError(
                    f"rank 0 closed after {ended[0]} iterations, rank {rank} after {posted}: every rank must post "
                    "equally often"
                )

    def _meet(self) -> dict[int, int]:
        """Wait until every rank has closed and received all that was sent; the frees that follow then cannot block.

        A message left behind would be received by the next exchange, since MPI uses the communicator's number again.
        Returns how many iterations each rank has posted.
        """
        barrier, attempt, started_s = None, 0, time.perf_counter()
        while barrier is None or not barrier.Test():
            if barrier is None and self._memory.flushed() and not self._open_ranks():
                self._met = True
                barrier = self._comm.Ibarrier()
            attempt += 1
            self._waiting(attempt)
            self._memory.alarmed()  # lets messages in
            self._hear(0)
            self._watch(started_s, self._open_ranks, self._late_to_close)
        return self._ended()

    def _ended(self) -> dict[int, int]:
        """How many iterations each rank has posted that has closed."""
        return {r: notice.posted for r, notice in sorted(self._memory.notices().items()) if notice.state == CLOSED}

    def _open_ranks(self) -> list[int]:
        """The ranks that have not closed, or have sent blocks which are not here yet."""
        ended = self._ended()
        return [r for r, n in enumerate(self._memory.counts()) if r not in ended or n < ended[r]]

    def _late_to_close(self) -> str:
        return f"waited {self.timeout_s:g} s in close for ranks {self._open_ranks() or 'its own messages to leave'}"

    def _free(self) -> None:
        """Give back what is this rank's own, and, unless something failed, what needs the others."""
        failed, self._over = self._over is not None, self._over or _IS_CLOSING
        with ExitStack() as last:  # does each of them, whatever happens in the others
            last.callback(self._let_go)
            with suppress(*(failures() if failed else ())):
                clean = self._memory.free(failed)
                if not failed:
                    self._comm.Free()
                elif clean and hasattr(self, "_building") and not self._met:
                    self._building.give_up(ExchangeError(self._over), linger_s=0)  # freed when all others have failed

    def _let_go(self) -> None:
        """Close the files; the memory goes with the last view of it."""
        self.statistics()
        self._known, self._views = _NOTHING, []
        for segment in vars(self._memory).get("segments", {}).values():
            segment.close()
        self._retire(IS_CLOSED)
        vars(self._memory).clear()  # a traceback may hold it, and should hold no memory by it
        del self._memory, self._core.memory

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                self._fail(error)
                deadline_s = time.monotonic() + self.timeout_s
                while self._turn and time.monotonic() < deadline_s:  # a thread in a call will find that it is over
                    time.sleep(1e-4)
            self.close()
        except BaseException as second:  # Ctrl-C may have come before all was told and given back
            if self._over != IS_CLOSED:
                self._fail(second)
                self.close()
            raise

    def __del__(self) -> None:
        """Ctrl-C that comes as the ``with`` block begins or ends can keep ``__exit__`` from being run at all."""
        over = sys.is_finalizing() or ("mpi4py.MPI" in sys.modules and MPI.Is_finalized())
        if hasattr(self, "_comm") and self._over != IS_CLOSED and not over:
            self._fail(ExchangeError("the exchange was dropped without being closed"))
            self._close(None)
