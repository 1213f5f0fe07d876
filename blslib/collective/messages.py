"""Messages: how a rank reaches the peers of other hosts, over whatever network MPI has.

The receiver's slots are the same as for shared rings, only that MPI fills them. On entering call m a rank has its
receives posted through iteration m + bound + 1, the furthest that a peer can have sent, so a message always finds its
slot waiting. The sender copies a block to one of 2 (bound + 1) staging slots and uses that one again when its send has
completed. A counter counts the messages that were received, in order.

Beyond the network, what a call costs is its calls into MPI, so these are few: every slot keeps its requests, which are
started again and again, and one look at an iteration asks for the blocks of all peers at once.

Small messages travel by themselves. Large ones (MPI's rendezvous) move only while both sides are inside MPI: every wait
here also moves them, but a sender that goes away to compute may hold such a block back until its next call. For those
the lag that is sure to be masked is bound - 1.
"""

import ctypes
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from blslib.collective.building import Fence
from blslib.collective.layout import HEADER_BYTES, Layout, as_slot
from blslib.collective.mpi import MPI
from blslib.collective.notices import Notice
from blslib.collective.ring import Ring
from blslib.collective.segments import Segment

_BLOCK, _LARGE, _NOTICE = 1, 2, 3
"""Tags. Messages of one pair and tag are received in the order in which they were sent."""


class Messages(Ring):
    """A rank's memory where some peers are behind messages; those of its own host are reached as ever."""

    def __init__(
        self,
        comm: "MPI.Comm",
        fence: Fence,
        segments: dict[int, Segment],
        layout: Layout,
        dtype: np.dtype,
        expected: list[int] | None,
    ) -> None:
        super().__init__(comm.rank, fence, segments, layout, dtype, expected)
        self._comm = comm
        self._remote = [r for r in range(comm.size) if r not in self.peers]
        every_slot = range(layout.slots)
        # By slot, then by remote peer: where a block to send waits, with its request; where one is received.
        self._stages = [[as_slot(memoryview(bytearray(layout.stride))) for _ in self._remote] for _ in every_slot]
        for _, size, _ in chain(*self._stages):
            size[0] = -1  # unlike any block: nothing was sent from there yet
        self._sends: list[list[MPI.Prequest]] = [[MPI.Prequest() for _ in self._remote] for _ in every_slot]
        own = [[self.slots[slot][peer] for peer in self._remote] for slot in every_slot]
        self._incoming = [[size for _, size, _ in row] for row in own]
        self._receives = [
            [comm.Recv_init([whole, MPI.BYTE], r, _BLOCK) for r, (whole, _, _) in zip(self._remote, row, strict=True)]
            for row in own
        ]
        self._started = self._complete = 0  # iterations: receives posted; here from all remote peers
        self._large_sends: list[list[MPI.Request]] = [[] for _ in every_slot]
        self._large_receives: dict[int, MPI.Request] = {}
        self._large: dict[tuple[int, int], np.ndarray] = {}  # by slot and source
        self._heard: dict[int, Notice] = {}
        self._news = False
        self._status = MPI.Status()
        self._hearing: tuple[int, bytearray, MPI.Request] | None = None
        self._told: list[MPI.Request] = []
        for _ in range(layout.bound + 1):
            self._receive()

    def _receive(self) -> None:
        MPI.Prequest.Startall(self._receives[self._started % self.layout.slots])
        self._started += 1

    def write(self, slot: int, blocks: Sequence[memoryview]) -> bool:
        if not MPI.Request.Testall(self._sends[slot] + self._large_sends[slot]):
            return False
        self._large_sends[slot].clear()
        self._receive()
        super().write(slot, blocks)
        for n, peer in enumerate(self._remote):
            block, (whole, header, room) = blocks[peer], self._stages[slot][n]
            size, length = len(block), HEADER_BYTES
            self.sent_bytes += size
            if size <= self.layout.slot_bytes:
                room[:size] = block
                length += size
            else:
                self.large_blocks += 1
                self._large_sends[slot].append(self._comm.Isend([bytes(block), MPI.BYTE], dest=peer, tag=_LARGE))
            if size != header[0]:
                if self._sends[slot][n]:
                    self._sends[slot][n].Free()
                header[0] = size
                self._sends[slot][n] = self._comm.Send_init([whole[:length], MPI.BYTE], dest=peer, tag=_BLOCK)
        return True

    def publish(self, count: int) -> None:
        super().publish(count)
        MPI.Prequest.Startall(self._sends[(count - 1) % self.layout.slots])

    def arrived(self) -> int:
        counters, slots, most = self.counters, self.layout.slots, self.layout.slot_bytes
        while self._complete < self._started and MPI.Request.Testall(self._receives[self._complete % slots]):
            if any(size[0] > most for size in self._incoming[self._complete % slots]):
                self._count()
                if self._complete == (complete := min(counters[peer] for peer in self._remote)):
                    break
                self._complete = complete
            else:
                self._complete += 1
                for peer in self._remote:
                    counters[peer] = max(counters[peer], self._complete)
        return super().arrived()

    def counts(self) -> list[int]:
        """How many blocks of each source are here, those included that a look at whole iterations leaves out."""
        self._count()
        return super().counts()

    def _count(self) -> None:
        """Count what is here peer by peer; large blocks, too, are asked for in the order in which they were sent."""
        for n, peer in enumerate(self._remote):
            while (count := self.counters[peer]) < self._started and self._is_here(n, peer, count % self.layout.slots):
                self.counters[peer] = count + 1

    def _is_here(self, n: int, peer: int, slot: int) -> bool:
        if not self._receives[slot][n].Test():
            return False
        if (size := self._incoming[slot][n][0]) <= self.layout.slot_bytes:
            return True
        if peer not in self._large_receives:
            room = self._large[slot, peer] = np.empty(size, np.uint8)
            self._large_receives[peer] = self._comm.Irecv([room, MPI.BYTE], source=peer, tag=_LARGE)
        if not self._large_receives[peer].Test():
            return False
        del self._large_receives[peer]
        return True

    def array(self, slot: int, source: int, size: int) -> np.ndarray:
        large = self._large.pop((slot, source), None)
        return super().array(slot, source, size) if large is None else large.view(self.dtype)

    # --- news --------------------------------------------------------------------------------------------------------

    def tell(self, notice: Notice) -> None:
        """Leave a notice for everybody on this host, and send it to all others."""
        super().tell(notice)
        for peer in self._remote:
            self._told.append(self._comm.Isend([notice.pack(), MPI.BYTE], dest=peer, tag=_NOTICE))

    def alarmed(self) -> bool:
        # Asked for by name once one is there: a receive from any source, left open while blocks arrive over both shared
        # memory and a network, has been seen to lose messages (MPICH 5.0).
        if self._hearing is None and self._comm.Iprobe(MPI.ANY_SOURCE, _NOTICE, self._status):
            source, words = self._status.Get_source(), bytearray(self._status.Get_count(MPI.BYTE))
            self._hearing = source, words, self._comm.Irecv([words, MPI.BYTE], source=source, tag=_NOTICE)
        if self._hearing is not None and self._hearing[2].Test():
            source, words, _ = self._hearing
            self._heard[source] = Notice.unpack(words)
            self._hearing, self._news = None, True
        return self._news or super().alarmed()

    def notices(self) -> dict[int, Notice]:
        """The latest notice of every rank of this host, and of every other rank that has sent one."""
        self._news = False
        return super().notices() | self._heard

    def flushed(self) -> bool:
        """Whether everything that was sent has left this rank. Receives meanwhile: the peers may be asking the same."""
        self._count()
        self.arrived()
        return MPI.Request.Testall([*chain(*self._sends, *self._large_sends), *self._told])

    def free(self, failed: bool) -> bool:
        """Take back the receives that nobody will answer, and all requests; whether nothing is under way any more.

        After a failure, MPI may use the buffers of what cannot be taken back until the process ends, and it ends after
        Python has cleaned up: so those are never given back.
        """
        clean = False
        try:
            requests: list[Any] = list(filter(None, chain(*self._receives, *self._sends)))
            for receive in chain(*self._receives):
                if not receive.Test():
                    receive.Cancel()
                    if not failed:
                        receive.Wait()
            others = [*chain(*self._large_sends), *self._large_receives.values(), *self._told]
            if clean := MPI.Request.Testall([*requests, *others]):
                for request in requests:
                    request.Free()
            else:  # requests know their buffers
                ctypes.pythonapi.Py_IncRef(ctypes.py_object([*requests, *others, self._hearing]))
        finally:
            super().free(failed)
        return clean
