"""Shared rings: how a rank reaches the peers of its own host.

Every rank owns one segment of shared memory: a control page, then its rings, 2 (bound + 1) x P slots for the blocks
that others write to it. Writing is a plain store into the receiver's segment: the sender completes the transfer alone,
while the receiver may be asleep, and the sender may fall asleep right afterwards.

====================  ==================================================================================
control page          P counters of arrivals, a cache line each; an alarm; this rank's notice to the others
slot s of source r    a header of one cache line (the block's size in bytes), then ``slot_bytes`` of room
====================  ==================================================================================

A block larger than its slot goes to a place beside the rings that belongs to the slot, so the proof of the protocol
covers it as well. Its memory is used again by the next large block of that slot, and given back at the end.
"""

import mmap
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from blslib.collective.protocol import slots
from blslib.collective.segments import SHARED_DIR, share

LINE_BYTES = 64
"""A cache line: headers, counters and alarms keep this distance, so that no two writers share one."""

HEADER_BYTES = LINE_BYTES
TEXT_BYTES = 1920
_PAGE_BYTES = 4096
_WORDS = LINE_BYTES // 8

RUNNING, CLOSED, FAILED, LATE = range(4)


class UnexpectedSize(Exception):
    """A block is not of the size expected. Carries its source, its bytes, and the bytes expected."""


class Notice(NamedTuple):
    """What a rank last told the others of itself: a state, the iterations it has posted, and the words."""

    state: int
    posted: int
    text: str


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


@dataclass(frozen=True)
class Layout:
    """Where things are in a rank's segment; the same on every rank."""

    size: int
    bound: int
    slot_bytes: int

    @property
    def stride(self) -> int:
        """Bytes from one slot to the next."""
        return HEADER_BYTES + self.slot_bytes

    @property
    def ring_bytes(self) -> int:
        """P x 2 (bound + 1) x (slot + header)."""
        return self.size * slots(self.bound) * self.stride

    @property
    def control_bytes(self) -> int:
        return _round_up((self.size + 2) * LINE_BYTES + TEXT_BYTES, _PAGE_BYTES)

    @property
    def segment_bytes(self) -> int:
        return _round_up(self.control_bytes + self.ring_bytes, _PAGE_BYTES)

    def slot(self, slot: int, source: int) -> int:
        """Offset of a slot's header."""
        return self.control_bytes + (slot * self.size + source) * self.stride


class Control:
    """One rank's control page, seen from any process of its host."""

    def __init__(self, segment: memoryview, size: int) -> None:
        words = segment[: (size + 2) * LINE_BYTES].cast("q")
        self.counters = words[: size * _WORDS : _WORDS]
        self.alarm = words[size * _WORDS : size * _WORDS + 1]
        self._notice = words[(size + 1) * _WORDS :]
        self._text = segment[(size + 2) * LINE_BYTES :][:TEXT_BYTES]

    def put(self, notice: Notice) -> None:
        text = notice.text.encode()[:TEXT_BYTES]
        self._text[: len(text)] = text
        self._notice[2] = len(text)
        self._notice[1] = notice.posted
        self._notice[0] = notice.state

    def get(self) -> Notice:
        state, posted, length = self._notice[:3].tolist()
        return Notice(state, posted, bytes(self._text[:length]).decode(errors="replace"))


class Ring:
    """This rank's own rings, and its slots in the rings of the peers on its host."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        ranks: list[int],
        layout: Layout,
        dtype: np.dtype,
        token: str,
        expected: list[int] | None,
    ) -> None:
        """Collective over ``comm``, of which ``ranks`` are on this host.

        ``token`` names this exchange; ``expected`` are the bytes from each source, where that is known.

        Raises:
            MemoryError: on every rank, if a host has too little shared memory; if it is known to have too little,
                before anything is allocated.
        """
        rank = comm.rank
        self.rank, self.layout, self.dtype = rank, layout, dtype
        self._check_room(comm, len(ranks))
        self.segments = share(comm, ranks, layout.segment_bytes, token)
        # Nobody stores to this window: MPI's full fence, which Python has no other name for, needs one.
        self._window = MPI.Win.Allocate_shared(LINE_BYTES, 1, comm=MPI.COMM_SELF)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self.fence = self._window.Sync
        segments = {r: segment.memory for r, segment in self.segments.items()}
        self.peers = {r: Control(segment, layout.size) for r, segment in segments.items()}
        self.own = segments[rank]
        np.frombuffer(self.own, np.uint8).fill(0)  # all pages are there from the first call on
        self._alarm = self.peers[rank].alarm
        self.counters = self.peers[rank].counters
        self._counter_at = {r: control.counters[rank : rank + 1] for r, control in self.peers.items()}
        self._room = {
            r: [self._slot(segment, slot, rank) for slot in range(slots(layout.bound))]
            for r, segment in segments.items()
        }
        self._sizes = [self._headers(slot) for slot in range(slots(layout.bound))]
        self._arrays = [
            [self._slot(self.own, slot, source)[1] for source in range(layout.size)]
            for slot in range(slots(layout.bound))
        ]
        self._seen: list[tuple[list[int], list[np.ndarray]]] = [([], []) for _ in range(slots(layout.bound))]
        self.large: dict[tuple[int, int], np.ndarray] = {}  # (slot, source): came as a message, larger than its slot
        self._expected = expected

    def _check_room(self, comm: MPI.Intracomm, ranks_here: int) -> None:
        need = room = self.layout.segment_bytes * ranks_here
        if os.path.isdir("/dev/shm"):
            stat = os.statvfs("/dev/shm")
            room = stat.f_bavail * stat.f_frsize
        missing, need, room, ranks = max(comm.allgather((need - room, need, room, ranks_here)))
        if missing > 0:
            raise MemoryError(
                f"{ranks} ranks on one host need {need} bytes of shared memory, {room} are free in /dev/shm: "
                f"lower slot_bytes ({self.layout.slot_bytes}) or bound ({self.layout.bound}), or give it more"
            )

    def _slot(self, segment: memoryview, slot: int, source: int) -> tuple[memoryview, memoryview]:
        start = self.layout.slot(slot, source)
        body = start + HEADER_BYTES
        return segment[start : start + 8].cast("q"), segment[body : body + self.layout.slot_bytes]

    def _headers(self, slot: int) -> memoryview:
        """The P sizes of one slot as one strided view, so that reading them is a single operation."""
        start, stride, size = self.layout.slot(slot, 0), self.layout.stride, self.layout.size
        return self.own[start : start + stride * size].cast("q")[:: stride // 8]

    def slot(self, slot: int, source: int) -> memoryview:
        """Header and room of one of this rank's own slots, in one piece."""
        start = self.layout.slot(slot, source)
        return self.own[start : start + self.layout.stride]

    def enter(self, iteration: int) -> bool:
        return True

    def write(self, peer: int, slot: int, block: memoryview) -> None:
        header, room = self._room[peer][slot]
        size = len(block)
        if size <= self.layout.slot_bytes:
            room[:size] = block
        else:
            self._write_beside(peer, slot, block)
        header[0] = size

    def publish(self, peer: int, count: int) -> None:
        self._counter_at[peer][0] = count

    def count(self, source: int) -> None:
        """Count one more block of a source that cannot do so itself."""
        self.counters[source] += 1

    def arrived(self) -> int:
        return min(self.counters.tolist())

    def counts(self) -> list[int]:
        """How many blocks of each source are here."""
        return self.counters.tolist()

    def read(self, slot: int) -> list[np.ndarray]:
        sizes = self._sizes[slot].tolist()
        seen, blocks = self._seen[slot]
        if sizes != seen:
            if self._expected is not None and sizes != self._expected:
                pairs = enumerate(zip(sizes, self._expected, strict=True))
                raise UnexpectedSize(*next((source, *pair) for source, pair in pairs if pair[0] != pair[1]))
            blocks = [self._array(slot, source, size) for source, size in enumerate(sizes)]
            # Views of one slot are the same for equal sizes. Large blocks are mapped anew every time and not kept: each
            # mapping holds a file descriptor.
            self._seen[slot] = (sizes, blocks) if max(sizes) <= self.layout.slot_bytes else ([], [])
        return list(blocks)

    def _array(self, slot: int, source: int, size: int) -> np.ndarray:
        if size <= self.layout.slot_bytes:
            return np.frombuffer(self._arrays[slot][source][:size], dtype=self.dtype)
        if (slot, source) in self.large:
            return self.large.pop((slot, source)).view(self.dtype)
        return np.frombuffer(self._map_beside(slot, source, size), dtype=self.dtype)

    # --- blocks larger than their slot -------------------------------------------------------------------------------

    def _write_beside(self, peer: int, slot: int, block: memoryview) -> None:
        try:
            self.segments[peer].write_beside(slot * self.layout.size + self.rank, block)
        except OSError as error:
            raise MemoryError(
                f"no room in {SHARED_DIR} for a block of {len(block)} bytes from rank {self.rank} to rank {peer}: "
                f"{error.strerror}"
            ) from error

    def _map_beside(self, slot: int, source: int, size: int) -> mmap.mmap:
        try:
            return self.segments[self.rank].map_beside(slot * self.layout.size + source, size)
        except OSError as error:
            raise MemoryError(
                f"rank {self.rank} cannot map a block of {size} bytes from rank {source}: {error.strerror}"
            ) from error

    # --- news --------------------------------------------------------------------------------------------------------

    def tell(self, notice: Notice) -> None:
        """Leave a notice for everybody on this host, and wake them."""
        self.peers[self.rank].put(notice)
        self.fence()
        for control in self.peers.values():
            control.alarm[0] = 1

    def alarmed(self) -> bool:
        """Whether anybody has left a notice since the last time. Cheap: a rank asks on every look of a wait."""
        return self._alarm[0] != 0

    def notices(self) -> dict[int, Notice]:
        """The latest notice of every rank of this host."""
        self._alarm[0] = 0
        self.fence()  # a notice is written before its alarm: whoever clears the alarm first misses none
        return {r: control.get() for r, control in self.peers.items()}

    def flushed(self) -> bool:
        return True

    def free(self) -> None:
        """Give back what is this rank's own; the memory goes with the last view of it."""
        for segment in self.segments.values():
            segment.close()
        self._window.Unlock_all()
        self._window.Free()
