"""Too large an exchange is refused before it takes the memory of others."""

import re
import sys
from pathlib import Path

import pytest

from blslib.collective.available import available_bytes
from blslib.lab.ranks.launch import mpiexec, rank_environment, run_guarded
from tests.conftest import LONG_S, ROOT

MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\n"
STAT = "anon 5\ninactive_file 300\n"
STAT_1 = "cache 5\ntotal_inactive_file 7000\n"


def system(folder: Path, groups: str, files: dict[str, object]) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(MEMINFO)
    (folder / "proc" / "self" / "cgroup").write_text(groups)
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return folder / "proc", folder / "cgroup"


V2 = {"a/memory.max": 9000, "a/memory.current": 4000, "a/memory.stat": STAT}
V1 = {
    "memory/memory.limit_in_bytes": 90_000,
    "memory/memory.usage_in_bytes": 80_000,
    "memory/memory.stat": STAT_1,
}


@pytest.mark.parametrize(
    ("groups", "files", "bytes_left"),
    [
        ("0::/\n", {}, 500 * 1024),
        ("0::/a\n", V2, 5300),
        ("0::/a/b\n", V2 | {"a/b/memory.max": "max", "a/b/memory.current": 1, "a/b/memory.stat": STAT}, 5300),
        ("0::/a/b\n", V2 | {"a/b/memory.max": 1000, "a/b/memory.current": 900, "a/b/memory.stat": ""}, 100),
        ("0::/a\n", V2 | {"a/memory.current": 9900}, 0),
        ("5:cpu:/x\n4:memory:/docker/not-seen-from-here\n0::/\n", V1, 17_000),
        ("4:cpu,memory:/\n", V1, 17_000),
    ],
)
def test_what_is_left(tmp_path, groups, files, bytes_left):
    assert available_bytes(*system(tmp_path, groups, files)) == bytes_left


def test_unknown_where_the_system_does_not_say(tmp_path):
    assert available_bytes(tmp_path, tmp_path) is None


GROUP = Path("/sys/fs/cgroup/memory/blslib-test")

PROGRAM = r"""if True:
    import os, sys
    from mpi4py import MPI
    from blslib.collective.alltoallv import BoundedLagAlltoallv
    world = MPI.COMM_WORLD
    try:
        BoundedLagAlltoallv(world, bound=int(sys.argv[1]), slot_bytes=int(sys.argv[2]))
    except MemoryError as error:
        os.write(1, f"{world.rank} MemoryError: {error}\n".encode())
    BoundedLagAlltoallv(world, bound=1, slot_bytes=64).close()
    """


@pytest.mark.parametrize(("bound", "slot_bytes"), [(1, 1 << 26), (100_000, 64)], ids=["large slots", "many slots"])
def test_a_limit_of_the_control_group_is_kept(bound, slot_bytes):
    """400 MiB would fit into /dev/shm, and end processes by the kernel's hand."""
    try:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(400 << 20))
    except OSError as error:
        pytest.skip(f"no leave to make a memory control group (cgroup v1): {error}")
    try:
        join = f'echo $$ > {GROUP}/cgroup.procs && exec "$@"'
        command = ["sh", "-c", join, "sh", mpiexec(), "-n", "2", sys.executable, "-c", PROGRAM]
        done = run_guarded([*command, str(bound), str(slot_bytes)], timeout_s=LONG_S, env=rank_environment(), cwd=ROOT)
    finally:
        GROUP.rmdir()
    assert done.returncode == 0, done.stdout
    text = (
        r"^\d MemoryError: 2 ranks on one host need (\d+) bytes of memory, (\d+) are available to this process: other "
        rf"programs and limits count too: lower slot_bytes \({slot_bytes}\) or bound \({bound}\), or give it more$"
    )
    found = re.findall(text, done.stdout, re.MULTILINE)
    assert len(found) == 2, done.stdout
    assert all(int(need) > int(left) and int(left) < 400 << 20 for need, left in found)
