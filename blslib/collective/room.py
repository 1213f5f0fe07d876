"""Whether a host has room for an exchange, so that too large a one is an error and not the end of other programs."""

import os

from blslib.collective.available import available_bytes
from blslib.collective.building import Building
from blslib.collective.layout import Layout
from blslib.collective.segments import SHARED_DIR

BOOKS_BYTES = 2500
"""What Python keeps for a slot of a source besides its memory: 1,500 to 2,500 bytes, measured."""


def check_room(building: Building, ranks_here: int, layout: Layout) -> None:
    """See that every host has room for its ranks, with what they share and what each needs for itself. Collective.

    Raises:
        MemoryError: on every rank, before anything is allocated; says what is needed, what there is, and the cure.
    """
    own_bytes = layout.rings_bytes(building.size - ranks_here) + building.size * layout.slots * BOOKS_BYTES
    shared, whole = ranks_here * layout.segment_bytes, ranks_here * (layout.segment_bytes + own_bytes)
    rooms = [(whole, available_bytes(), "memory", "are available to this process: other programs and limits count too")]
    if os.path.isdir("/dev/shm"):
        stat = os.statvfs(SHARED_DIR)
        rooms.append((shared, stat.f_bavail * stat.f_frsize, "shared memory", f"are free in {SHARED_DIR}"))
    short = [(need - room, need, room, what, where) for need, room, what, where in rooms if room is not None]
    worst = max(building.gather((*max(short, default=(0, 0, 0, "", "")), ranks_here)))
    missing, need, room, what, where, ranks = worst
    if missing > 0:
        cure = f"lower slot_bytes ({layout.slot_bytes}) or bound ({layout.bound}), or give it more"
        raise MemoryError(f"{ranks} ranks on one host need {need} bytes of {what}, {room} {where}: {cure}")
