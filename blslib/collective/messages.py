"""Messages: how a rank reaches the peers of other hosts, over whatever network MPI has.

The receiver's slots are the same as for shared rings, only that MPI fills them. On entering call m a rank has its
receives posted through iteration m + bound + 1, the furthest that a peer can have sent, so a message always finds its
slot waiting. The sender copies a block to one of 2 (bound + 1) staging slots and uses that one again when its send has
completed. A counter counts the messages that were received, in order.

Small messages travel by themselves. Large ones (MPI's rendezvous) move only while both sides are inside MPI: every wait
here also moves them, but a sender that goes away to compute may hold such a block back until its next call. For those
the lag that is sure to be masked is bound - 1.
"""

import struct
from collections import deque
from itertools import product

import numpy as np
from mpi4py import MPI

from blslib.collective.protocol import slots
from blslib.collective.ring import HEADER_BYTES, TEXT_BYTES, Notice, Ring

_BLOCK, _LARGE, _NOTICE = 1, 2, 3
"""Tags. Messages of one pair and tag are received in the order in which they were sent."""

_NOTICE_HEAD = struct.Struct("=qq")

_abandoned: list["Messages"] = []
"""After a failure sends and receives may be under way until the process ends, and MPI needs their buffers so long."""


class Messages:
    """A rank's memory where some peers are behind messages; those of its own host stay behind ``ring``."""

    def __init__(self, comm: MPI.Comm, ring: Ring) -> None:
        self._comm, self.ring, self._layout = comm, ring, ring.layout
        self._slots = slots(self._layout.bound)
        self._remote = [r for r in range(comm.size) if r not in ring.peers]
        pairs = list(product(self._remote, range(self._slots)))
        self._staging = {pair: memoryview(bytearray(self._layout.stride)) for pair in pairs}
        self._large: dict[tuple[int, int], bytes] = {}
        self._sends: dict[tuple[int, int], list[MPI.Request]] = {pair: [] for pair in pairs}
        self._receives: dict[int, deque[tuple[int, MPI.Request]]] = {r: deque() for r in self._remote}
        self._heard: dict[int, Notice] = {}
        self._alarm = False
        self._news = bytearray(_NOTICE_HEAD.size + TEXT_BYTES)
        self._listening = comm.Irecv([self._news, MPI.BYTE], source=MPI.ANY_SOURCE, tag=_NOTICE)
        self._told: list[tuple[bytes, MPI.Request]] = []
        self.fence, self.read = ring.fence, ring.read
        for iteration in range(self._layout.bound + 1):
            self._receive(iteration)

    def _receive(self, iteration: int) -> None:
        slot = iteration % self._slots
        for peer, queue in self._receives.items():
            room = [self.ring.slot(slot, peer), MPI.BYTE]
            queue.append((slot, self._comm.Irecv(room, source=peer, tag=_BLOCK)))

    def enter(self, iteration: int) -> bool:
        slot = iteration % self._slots
        if not all(request.Test() for peer in self._remote for request in self._sends[peer, slot]):
            return False
        self._receive(iteration + self._layout.bound + 1)
        return True

    def write(self, peer: int, slot: int, block: memoryview) -> None:
        if peer in self.ring.peers:
            self.ring.write(peer, slot, block)
            return
        room, size = self._staging[peer, slot], len(block)
        room[:8].cast("q")[0] = size
        if size <= self._layout.slot_bytes:
            room[HEADER_BYTES : HEADER_BYTES + size] = block
        else:
            self._large[peer, slot] = bytes(block)

    def publish(self, peer: int, count: int) -> None:
        if peer in self.ring.peers:
            self.ring.publish(peer, count)
            return
        slot = (count - 1) % self._slots
        large, room = self._large.pop((peer, slot), None), self._staging[peer, slot]
        size = HEADER_BYTES + (0 if large is not None else room[:8].cast("q")[0])
        self._sends[peer, slot] = [self._comm.Isend([room[:size], MPI.BYTE], dest=peer, tag=_BLOCK)]
        if large is not None:
            self._sends[peer, slot].append(self._comm.Isend([large, MPI.BYTE], dest=peer, tag=_LARGE))

    def arrived(self) -> int:
        for peer, queue in self._receives.items():
            while queue and queue[0][1].Test():
                slot, _ = queue.popleft()
                size = self.ring.slot(slot, peer)[:8].cast("q")[0]
                if size > self._layout.slot_bytes and (slot, peer) not in self.ring.large:
                    room = self.ring.large[slot, peer] = np.empty(size, np.uint8)
                    queue.appendleft((slot, self._comm.Irecv([room, MPI.BYTE], source=peer, tag=_LARGE)))
                else:
                    self.ring.count(peer)
        return self.ring.arrived()

    # --- news --------------------------------------------------------------------------------------------------------

    def tell(self, notice: Notice) -> None:
        """Leave a notice for everybody on this host, and send it to all others."""
        self.ring.tell(notice)
        words = _NOTICE_HEAD.pack(notice.state, notice.posted) + notice.text.encode()[:TEXT_BYTES]
        for peer in self._remote:
            self._told.append((words, self._comm.Isend([words, MPI.BYTE], dest=peer, tag=_NOTICE)))

    def alarmed(self) -> bool:
        status = MPI.Status()
        if self._listening.Test(status):
            words = bytes(self._news[: status.Get_count(MPI.BYTE)])
            text = words[_NOTICE_HEAD.size :].decode(errors="replace")
            state, posted = _NOTICE_HEAD.unpack_from(words)
            self._heard[status.Get_source()] = Notice(state, posted, text)
            self._listening = self._comm.Irecv([self._news, MPI.BYTE], source=MPI.ANY_SOURCE, tag=_NOTICE)
            self._alarm = True
        return self._alarm or self.ring.alarmed()

    def notices(self) -> dict[int, Notice]:
        """The latest notice of every rank of this host, and of every other rank that has sent one."""
        self._alarm = False
        return self.ring.notices() | self._heard

    def flushed(self) -> bool:
        """Whether everything that was sent has left this rank. Receives meanwhile: the peers may be asking the same."""
        self.arrived()
        waiting = [request for requests in self._sends.values() for request in requests]
        return all(request.Test() for request in waiting + [request for _, request in self._told])

    def free(self, collective: bool) -> None:
        """Take back the receives that nobody will answer; where everybody takes part, give the window back as well."""
        if not collective:
            _abandoned.append(self)
        for request in [self._listening] + [request for queue in self._receives.values() for _, request in queue]:
            request.Cancel()
            request.Free()
        self.ring.free(collective)
