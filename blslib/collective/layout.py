"""Where things are in the memory of a rank, and how much of it there is: the one place that counts slots in bytes.

Every rank owns one segment of memory: a control page, then its rings, 2 (bound + 1) x P slots for the blocks that
others write to it.

====================  ==================================================================================
control page          P counters of arrivals, a cache line each; an alarm; this rank's notice to the others
slot s of source r    a header of one cache line (the block's size in bytes), then ``slot_bytes`` of room
====================  ==================================================================================
"""

from blslib.collective.notices import TEXT_BYTES
from blslib.collective.protocol import slots

LINE_BYTES = 64
"""A cache line: headers, counters and alarms keep this distance, so that no two writers share one."""

HEADER_BYTES = LINE_BYTES
_PAGE_BYTES = 4096


def round_up(n: int, unit: int) -> int:
    """The least multiple of ``unit`` that is not below ``n``."""
    return -(-n // unit) * unit


class Layout:
    """Where things are in a rank's segment; the same on every rank.

    Attributes:
        slots: per source, 2 (bound + 1).
        stride: bytes from one slot to the next.
        ring_bytes: of the rings of all P sources.
        control_bytes, segment_bytes: the control page; all together. Whole pages.
    """

    def __init__(self, size: int, bound: int, slot_bytes: int) -> None:
        self.size, self.bound, self.slot_bytes = size, bound, slot_bytes
        self.slots = slots(bound)
        self.stride = HEADER_BYTES + slot_bytes
        self.ring_bytes = self.rings_bytes(size)
        self.control_bytes = round_up((size + 2) * LINE_BYTES + TEXT_BYTES, _PAGE_BYTES)
        self.segment_bytes = round_up(self.control_bytes + self.ring_bytes, _PAGE_BYTES)

    def rings_bytes(self, peers: int) -> int:
        """Slots for so many peers, to receive or to send: 2 (bound + 1) x (slot + header) each."""
        return peers * self.slots * self.stride

    def slot(self, slot: int, source: int) -> int:
        """Offset of a slot's header."""
        return self.control_bytes + (slot * self.size + source) * self.stride


Slot = tuple[memoryview, memoryview, memoryview]
"""A slot as a whole, its header (the size of the block in it, as one int64), and the room for the block."""


def as_slot(whole: memoryview) -> Slot:
    """The parts of a slot's memory."""
    return whole, whole[:8].cast("q"), whole[HEADER_BYTES:]
