"""Faults that end processes or starve the whole host; and the table of all faults in docs/promises.md.

Run as a program, this file is the ranks.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from blslib.collective.segments import SHARED_DIR
from blslib.lab.ranks.launch import mpiexec, rank_environment, run_guarded
from tests.conftest import ROOT, punctual, until, within
from tests.faults import FAULTS, table
from tests.test_failures import CHANNELS, LIMIT_S, RANKS, build, post

DEADLINE_S = 1.5
KILL_LIMIT_S = 10.0
ATTEMPTS = 8
"""MPICH's launcher, told to let survivors live, does so only where it hears of the death in the right order."""


def note(comm: Any, folder: Path, error: BaseException | None) -> None:
    """What this rank saw, and when. Its own shared memory of MPI's is named: a killed job leaves that behind."""
    maps = Path("/proc/self/maps")
    files = re.findall(r"/\S*/mpich_shm_\w+", maps.read_text()) if maps.exists() else []
    saw = {"kind": type(error).__name__, "text": str(error), "at_s": time.monotonic(), "files": sorted({*files})}
    part = folder / f"{comm.rank}.part"  # not under its name before it is whole: who writes may be killed
    part.write_text(json.dumps(saw))
    part.rename(folder / f"{comm.rank}.json")


def killed(comm: Any, channel: str, folder: Path, how: str) -> None:
    """Rank 2 ends without a word, with large blocks out."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by which MPICH's launcher tells the survivors, or ends them
    try:
        with build(comm, channel, bound=1) as exchange:
            post(exchange, 19)
            note(comm, folder, None)
            comm.Barrier()
            exchange.timeout_s = DEADLINE_S
            post(exchange, 1, items=50_000 if channel == "auto" else 100)
            if comm.rank == 2 and how == "kill, its child lives":
                leave_a_child(folder)
            if comm.rank == 2 and how != "exit":
                note(comm, folder, None)
                os.kill(os.getpid(), signal.SIGKILL)
            if comm.rank == 2:
                note(comm, folder, None)
                os._exit(0)
            post(exchange, 20)
    except Exception as error:
        note(comm, folder, error)
    os._exit(0)  # MPI's end would wait for the dead


def leave_a_child(folder: Path) -> None:
    """A process such as a data loader's worker, which outlives its rank until the others have spoken."""
    if os.fork() == 0:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # which the launcher reads to their end
            os.dup2(nowhere, stream)
        until(
            lambda: (
                not any(json.loads((folder / f"{rank}.json").read_text())["kind"] == "NoneType" for rank in (0, 1, 3))
            ),
            20,
        )
        os._exit(0)


def fills(comm: Any, channel: str, folder: Path, how: str) -> None:
    """Rank 1 posts a block for which the shared memory has no room; then all want too large an exchange, and less."""
    try:
        with build(comm, channel, bound=1) as exchange:
            post(exchange, 5)
            post(exchange, 1, items=1 << 25 if comm.rank == 1 else 8)
            post(exchange, 5)
    except Exception as error:
        note(comm, folder, error)
    del exchange
    comm.Barrier()
    try:
        build(comm, channel, slot_bytes=1 << 24)
    except MemoryError as error:
        (folder / f"{comm.rank}.again").write_text(str(error))
    with build(comm, channel) as exchange:
        post(exchange, 5)
    (folder / f"{comm.rank}.worked").write_text("")


def run(
    scene: str, channel: str, folder: Path, how: str = "", options: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Play a scene; what was printed, and what each rank saw."""
    command = [*before, mpiexec(), *options, "-n", str(RANKS), sys.executable, "-m", "tests.test_faults", scene]
    done = run_guarded([*command, channel, str(folder), how], timeout_s=LIMIT_S, env=rank_environment(), cwd=ROOT)
    notes = [folder / f"{rank}.json" for rank in range(RANKS)]
    saw = [json.loads(path.read_text()) for path in notes if path.exists()]
    for one in saw:
        for name in one["files"]:
            Path(name).unlink(missing_ok=True)
    return done, saw


def left() -> set[str]:
    """Names of exchanges in shared memory that stay, as those which are being built do not."""
    found = set(Path(SHARED_DIR).glob("bls-*"))
    return set() if until(lambda: not any(path.exists() for path in found), 10) else {path.name for path in found}


mpich = pytest.mark.skipif(
    "HYDRA" not in subprocess.run([mpiexec(), "--version"], capture_output=True, text=True).stdout,
    reason="the launcher is not MPICH's hydra, whose way with a killed rank this is about",
)


@punctual
@mpich
@pytest.mark.parametrize("how", ["kill", "exit", "kill, its child lives"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_survivors_of_a_kill_speak_for_themselves(channel, how, tmp_path):
    if "child" in how and channel == "messages":
        pytest.skip("nobody looks whether ranks of other hosts live")
    for _ in range(ATTEMPTS):
        done, saw = run("killed", channel, tmp_path, how, options=("-disable-auto-cleanup",))
        assert len(saw) == RANKS, done.stdout
        print(json.dumps(saw))
        if how == "exit" or all(saw[rank]["kind"] != "NoneType" for rank in (0, 1, 3)):
            break
    else:
        pytest.skip(f"the launcher sent SIGKILL to the survivors as well, in {ATTEMPTS} attempts")
    assert not left()
    since_s = {rank: saw[rank]["at_s"] - saw[2]["at_s"] for rank in (0, 1, 3)}
    if channel == "messages":
        FAULTS["killed far away"].check(saw, {rank: seconds - DEADLINE_S for rank, seconds in since_s.items()})
    else:
        FAULTS["killed"].check(saw, since_s)


@punctual
@mpich
def test_a_kill_under_the_launcher_ends_all(tmp_path):
    done, saw = run("killed", "auto", tmp_path, "kill")
    ended_s = time.monotonic()
    assert done.returncode != 0
    assert "BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES" in done.stdout
    assert len(saw) == RANKS
    assert not left()
    within(KILL_LIMIT_S, ended_s - saw[2]["at_s"])


MOUNT = "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec"


def may_mount() -> bool:
    """Whether this user may give a process a /dev/shm of its own."""
    if not shutil.which("unshare"):
        return False
    trial = ["unshare", "--mount", "sh", "-c", f"{MOUNT} true"]
    return subprocess.run(trial, capture_output=True).returncode == 0


@punctual
@pytest.mark.skipif(not may_mount(), reason="not permitted to mount a /dev/shm of one's own")
@pytest.mark.parametrize("channel", ["auto", "mixed"])
def test_a_small_shared_memory(channel, tmp_path):
    done, saw = run("fills", channel, tmp_path, before=("unshare", "--mount", "sh", "-c", f'{MOUNT} "$@"', "sh"))
    assert len(saw) == RANKS, done.stdout
    print(json.dumps(saw))
    assert saw[1]["kind"] == "MemoryError"
    assert saw[1]["text"].startswith("no room in /dev/shm for a block of 134217728 bytes from rank 1 to rank ")
    too_large = (
        r"\d ranks on one host need \d+ bytes of shared memory, \d+ are free in /dev/shm: lower slot_bytes "
        r"\(16777216\) or bound \(1\), or give it more"
    )
    again = list(tmp_path.glob("*.again"))
    assert len(again) == RANKS
    for path in again:
        assert re.fullmatch(too_large, path.read_text())
    if channel == "auto":  # with messages, MPI may use the memory of a failed exchange until the process ends
        assert len(list(tmp_path.glob("*.worked"))) == RANKS, done.stdout
    FAULTS["no_room"].check(saw, {rank: saw[rank]["at_s"] - saw[1]["at_s"] for rank in (0, 2, 3)})


def test_the_table_of_faults_is_what_the_tests_check():
    text = (ROOT / "docs" / "promises.md").read_text()
    assert table() in text, f"put this into docs/promises.md:\n{table()}"


def test_the_tests_that_guard_promises_exist():
    text = (ROOT / "docs" / "promises.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 50
    missing = [
        (path, name)
        for path, name in named
        if not (ROOT / path).exists() or (name and f"def {name}(" not in (ROOT / path).read_text())
    ]
    assert not missing


if __name__ == "__main__":
    from mpi4py import MPI

    {"killed": killed, "fills": fills}[sys.argv[1]](MPI.COMM_WORLD, sys.argv[2], Path(sys.argv[3]), sys.argv[4])
