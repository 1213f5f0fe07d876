"""What ranks tell each other beside the blocks: that they have closed, or failed, and why."""

import struct
from typing import NamedTuple, Self

TEXT_BYTES = 1920
_HEAD = struct.Struct("=qqq")

RUNNING, CLOSED, FAILED, LATE = range(4)


class Notice(NamedTuple):
    """What a rank last told the others of itself: a state, the iterations it has posted, and the words."""

    state: int
    posted: int
    text: str

    def pack(self) -> bytes:
        """As bytes, the state in the first eight of them."""
        text = self.text.encode(errors="replace")[:TEXT_BYTES]
        return _HEAD.pack(self.state, self.posted, len(text)) + text

    @classmethod
    def unpack(cls, packed: memoryview | bytearray) -> Self:
        state, posted, length = _HEAD.unpack_from(packed)
        return cls(state, posted, bytes(packed[_HEAD.size :][:length]).decode(errors="replace"))
