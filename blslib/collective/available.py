"""How much memory a host has left for this process; asked without MPI."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


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
