"""How much memory a host has left, so that too large an exchange is an error and not the end of other programs."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from blslib.collective.building import Building
from blslib.collective.ring import Layout
from blslib.collective.segments import SHARED_DIR

BOOKS_BYTES = 2500
"""What Python keeps for a slot of a source besides its memory: 1,500 to 2,500 bytes, measured."""


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process can have without taking it from others; None where the system does not say (not Linux).

    The least of what the machine has available and what is left below the limits of this process's control groups
    (cgroup v2 and v1), in which files that are only cached count as free.
    """
    try:
        meminfo = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        groups = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    left = [int(meminfo["MemAvailable"].split()[0]) * 1024]
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            left += _below_limits(cgroups, group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            left += _below_limits(cgroups / "memory", group, *names)
    return max(min(left), 0)


def _below_limits(root: Path, group: str, limit: str, used: str, cached: str) -> Iterator[int]:
    """What is left below the limit of a group, and of every group around it; a container may see the outermost only."""
    path = PurePosixPath(group)
    for folder in (path, *path.parents):
        try:
            within = root / folder.relative_to("/")
            most, now = (within / limit).read_text().strip(), int((within / used).read_text())
            stat = dict(line.split() for line in (within / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            yield int(most) - now + int(stat.get(cached, 0))


def check_room(building: Building, ranks_here: int, layout: Layout) -> None:
    """See that every host has room for its ranks, with what they share and what each needs for itself. Collective.

    Raises:
        MemoryError: on every rank, before anything is allocated; says what is needed, what there is, and the cure.
    """
    staged_bytes = (building.size - ranks_here) * layout.slots * layout.stride
    own_bytes = staged_bytes + building.size * layout.slots * BOOKS_BYTES
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
