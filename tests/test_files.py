"""Results on a full disk: whole or not at all, and every rank is told."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blslib import files
from blslib.lab.ranks.launch import run_ranks
from tests.conftest import LONG_S, ROOT
from tests.test_setup import RUN_CSV

FULL = "make room, or choose another folder"

# From here on no file of this process may grow beyond so many bytes, which is how a full disk looks to who writes.
LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"

WRITE = f"""
import sys
from dataclasses import dataclass
from pathlib import Path
import altair as alt, mpi4py.MPI, pandas as pd
from blslib.lab import figures
from blslib.lab import claims, rows as records
from blslib import files

@dataclass
class Config:
    x: int = 1

def rows(n):
    records.write("09-test", "rows", [{{"a": i}} for i in range(n)], [Config()])

def reasons(n):
    claims.write("09-test", [{{"reason": "x" * n}}])

def pictures(n):
    figures.save(alt.Chart(pd.DataFrame({{"x": range(n)}})).mark_point().encode(x="x:Q"), "09-test")

def held():
    return {{path: path.read_bytes() for path in Path(sys.argv[1]).rglob("*.*")}}

for write in (rows, reasons, pictures):
    write(2000)
before = held()
assert len(before) == 5, before
{LIMIT}
for write in (rows, reasons, pictures):
    try:
        write(5000)
    except files.WriteError as error:
        print(error)
assert held() == before
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    environment = {**os.environ, "BLS_OUT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG_S)
    assert done.returncode == 0, done.stderr
    names = ("data/09-test/rows.csv", "data/09-test/claims.json", "figures/09-test.svg")
    assert done.stdout.splitlines() == [f"cannot write {tmp_path / name}: File too large: {FULL}" for name in names]


SAVE = f"""
import sys
import numpy as np
from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.clock import Clock
from blslib.collective.mpi import MPI
from blslib.diagnosis import traces
from blslib import files

comm = MPI.COMM_WORLD
with Clock(BoundedLagAlltoallv(comm, bound=1, slot_bytes=64)) as exchange:
    for _ in range(500):
        exchange.post([np.zeros(1, np.float32)] * comm.size)
    exchange.drain()
{LIMIT}
try:
    traces.save(sys.argv[1], comm, exchange)
except files.WriteError as error:
    print(f"rank {{comm.rank}}: {{error}}\\n", end="", flush=True)
"""


def test_a_record_that_cannot_be_saved_is_told_to_all_ranks(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    done = run_ranks(3, ["-c", SAVE, str(path)], timeout_s=LONG_S)
    expected = [f"rank {rank}: cannot write {path}: File too large: {FULL}" for rank in range(3)]
    assert sorted(done.stdout.splitlines()) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no program mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system can be mounted by root alone: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_diagnose_on_a_full_disk(small_disk: Path) -> None:
    (small_disk / "run.csv").write_text(RUN_CSV)
    (small_disk / "page.html").write_text("old")
    command = [sys.executable, "-m", "blslib", "diagnose", "run.csv", "--html", "page.html"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=small_disk, env=environment, capture_output=True, text=True, timeout=LONG_S)
    assert (done.returncode, done.stderr) == (1, f"cannot write page.html: No space left on device: {FULL}\n")
    assert "dynamic imbalance" in done.stdout  # it is told all the same
    assert (small_disk / "page.html").read_text() == "old"
    assert len(list(small_disk.iterdir())) == 2


def test_files_keep_their_place(tmp_path: Path) -> None:
    """A link leads where it led, a device stays one, and leave to read stays as it was."""
    real, link, device = tmp_path / "real.json", tmp_path / "link.json", Path("/dev/null")
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    files.write({link: json.dumps("new"), device: b"x"})
    assert link.is_symlink() and real.read_text() == '"new"'
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert device.is_char_device()
    assert sorted(tmp_path.iterdir()) == [link, real]


def test_none_of_several_files_is_replaced_if_one_fails(tmp_path: Path) -> None:
    first = tmp_path / "a"
    first.write_text("old")
    with pytest.raises(files.WriteError, match="b: its folder does not exist$"):
        files.write({first: "new", tmp_path / "none" / "b": "new"})
    assert first.read_text() == "old"
    with pytest.raises(files.WriteError, match="Is a directory: name a file in a folder that may be written to"):
        files.check(tmp_path)
    files.check(first)
    assert list(tmp_path.iterdir()) == [first]
