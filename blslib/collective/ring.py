"""Shared rings: how a rank reaches the peers of its own host.

Every rank owns one segment of shared memory, as ``layout`` says. Writing is a plain store into the receiver's segment:
the sender completes the transfer alone, while the receiver may be asleep, and the sender may fall asleep right
afterwards.

A block larger than its slot goes to a place beside the rings that belongs to the slot, so the proof of the protocol
covers it as well. Its memory is used again by the next large block of that slot, and given back at the end.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from blslib.collective.building import Fence
from blslib.collective.layout import LINE_BYTES, Layout, Slot, as_slot
from blslib.collective.notices import Notice
from blslib.collective.segments import SHARED_DIR, Segment

SEALS = sys.flags.dev_mode
_WORDS = LINE_BYTES // 8


class UnexpectedSize(Exception):
    """A block is not of the size expected. Carries its source, its bytes, and the bytes expected."""


class Control:
    """One rank's control page, seen from any process of its host."""

    def __init__(self, segment: memoryview, size: int) -> None:
        words = segment[: (size + 1) * LINE_BYTES].cast("q")
        self.counters = words[: size * _WORDS : _WORDS]
        self.alarm = words[size * _WORDS :][:1]
        self.notice = segment[(size + 1) * LINE_BYTES :]


@contextmanager
def _no_room(what: str) -> Iterator[None]:
    """The system's word for a block larger than its slot, in ours."""
    try:
        yield
    except OSError as error:
        raise MemoryError(f"{what}: {error.strerror}") from error


class Ring:
    """This rank's own rings, and its slots in the rings of the peers on its host."""

    def __init__(
        self,
        rank: int,
        fence: Fence,
        segments: dict[int, Segment],
        layout: Layout,
        dtype: np.dtype,
        expected: list[int] | None,
    ) -> None:
        """Over the segments of all ranks of this host, that of this ``rank`` among them, and their ``fence``.

        ``expected`` are the bytes from each source, where that is known.
        """
        self.rank, self.segments, self.layout, self.dtype, self._expected = rank, segments, layout, dtype, expected
        self.fence, self._give_back = fence
        self.peers = {r: Control(segment.memory, layout.size) for r, segment in self.segments.items()}
        self._alarm, self.counters = self.peers[self.rank].alarm, self.peers[self.rank].counters
        self._counters_at = [control.counters[self.rank : self.rank + 1] for control in self.peers.values()]
        every_slot = range(layout.slots)
        self._rows = [[(r, *self._slot(r, slot, self.rank)[1:]) for r in self.peers] for slot in every_slot]
        self._written = [[-1] * layout.size for _ in every_slot]  # bytes in each, as its header has them
        self._row_bytes = [-len(self.peers)] * layout.slots  # of all of them
        self._composed: list[tuple[Sequence[int], list[memoryview], tuple[np.ndarray, ...]]] = [
            ((), [], ())
        ] * layout.slots
        self.sent_bytes = self.large_blocks = 0
        self.composed: tuple[np.ndarray, ...] = ()
        self.in_place: list[memoryview] | None = None  # the same, as long as they are out
        self.slots = [[self._slot(self.rank, slot, source) for source in range(layout.size)] for slot in every_slot]
        own = self.segments[self.rank].memory
        np.frombuffer(own, np.uint8).fill(0)  # all pages are there from the first call on
        words, apart, row = own.cast("q"), layout.stride // 8, layout.size * layout.stride // 8
        starts = (layout.slot(slot, 0) // 8 for slot in every_slot)
        self._sizes = [words[at : at + row : apart] for at in starts]  # by slot: to read P is a single operation
        self._seen: list[tuple[list[int], list[np.ndarray]]] = [([], []) for _ in every_slot]

    def _slot(self, at: int, slot: int, source: int) -> Slot:
        """A slot of rank ``at``, for the blocks of ``source``."""
        start = self.layout.slot(slot, source)
        return as_slot(self.segments[at].memory[start : start + self.layout.stride])

    def compose(self, slot: int, sizes: Sequence[int]) -> None:
        if self._composed[slot][0] != sizes:
            rooms = {peer: room for peer, _, room in self._rows[slot] if sizes[peer] <= self.layout.slot_bytes}
            # What is for other hosts, or larger than its slot, has memory of its own.
            views = [rooms[r][:n] if r in rooms else memoryview(bytearray(n)) for r, n in enumerate(sizes)]
            self._composed[slot] = sizes, views, tuple(np.frombuffer(view, self.dtype) for view in views)
        _, self.in_place, self.composed = self._composed[slot]
        self._seal(False)

    def _seal(self, sealed: bool) -> None:
        """Let numpy refuse to write to what is composed, or not any more; in Python's development mode alone."""
        for block in self.composed if SEALS else ():
            block.flags.writeable = not sealed

    def write(self, slot: int, blocks: Sequence[memoryview]) -> bool:
        most, written = self.layout.slot_bytes, self._written[slot]
        there, self.in_place = blocks is self.in_place, None
        if there:
            self._seal(True)
        for peer, header, room in self._rows[slot]:
            block = blocks[peer]
            size = len(block)
            if size <= most:
                if not there:
                    room[:size] = block
            else:
                self.large_blocks += 1
                told = f"no room in {SHARED_DIR} for a block of {size} bytes from rank {self.rank} to rank {peer}"
                with _no_room(told):
                    self.segments[peer].write_beside(slot * self.layout.size + self.rank, block)
            if size != written[peer]:
                self._row_bytes[slot] += size - written[peer]
                header[0] = written[peer] = size
        self.sent_bytes += self._row_bytes[slot]
        return True

    def publish(self, count: int) -> None:
        for counter in self._counters_at:
            counter[0] = count

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
            blocks = [self.array(slot, source, size) for source, size in enumerate(sizes)]
            # Views of one slot are the same for equal sizes. Large blocks are mapped anew every time and not kept: each
            # mapping holds a file descriptor.
            self._seen[slot] = (sizes, blocks) if max(sizes) <= self.layout.slot_bytes else ([], [])
        return blocks.copy()

    def array(self, slot: int, source: int, size: int) -> np.ndarray:
        """The block of so many bytes that is in a slot, or beside it."""
        if size <= self.layout.slot_bytes:
            _, _, room = self.slots[slot][source]
            return np.frombuffer(room[:size], dtype=self.dtype)
        with _no_room(f"rank {self.rank} cannot map a block of {size} bytes from rank {source}"):
            beside = self.segments[self.rank].map_beside(slot * self.layout.size + source, size)
        return np.frombuffer(beside, dtype=self.dtype)

    # --- news --------------------------------------------------------------------------------------------------------

    def tell(self, notice: Notice) -> None:
        """Leave a notice for everybody on this host, and wake them."""
        room, packed = self.peers[self.rank].notice, notice.pack()
        room[8 : len(packed)] = packed[8:]
        room[:8] = packed[:8]  # the state at last: whoever sees it, sees the rest
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
        return {r: Notice.unpack(control.notice) for r, control in self.peers.items()}

    def flushed(self) -> bool:
        return True

    def free(self, failed: bool) -> bool:
        """Give back the fence; whoever has made the segments closes them. Nothing is under way then."""
        self._give_back()
        return True
