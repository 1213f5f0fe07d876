"""An exchange that cannot be built: every step fails once, on one rank, and nobody waits too long or keeps anything.

Run as a program, this file is the ranks.
"""

import contextlib
import fcntl
import gc
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blslib.collective.segments import SHARED_DIR
from blslib.lab.ranks.launch import mpiexec, rank_environment, run_guarded, run_ranks
from tests import test_failures
from tests.conftest import ROOT, punctual, until, within
from tests.test_failures import CHANNELS, DEADLINE_S, LIMIT_S, NEWS_S, build, give, post, stay_away
from tests.test_faults import ATTEMPTS, mpich

RANKS = 3
STEPS = {"auto": 10, "messages": 9, "mixed": 9}  # what test_failures puts in the place of ``same_host`` asks nobody
"""How often the ranks meet in building, the making of the communicator included."""


def at_step(number: int, last: int, act: Callable[[], None]) -> Any:
    """A class in the place of ``Building`` that does something before a step, or, if there are no more, at the end."""
    from blslib.collective.building import Building

    class Spoilt(Building):
        taken = 0

        def start(self) -> None:
            self._step()
            super().start()

        def gather(self, word: Any) -> list[Any]:
            self._step()
            words = super().gather(word)
            if self.taken == last:
                self._step()
            return words

        def _step(self) -> None:
            if self.taken == number:
                act()
            self.taken += 1

    return Spoilt


def held() -> dict[str, Any]:
    """What this process has open and mapped."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return {"files": len(os.listdir("/proc/self/fd")), "maps": len(re.findall(r"/bls-\w+-\d", maps))}


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


def spoil(comm: Any, channel: str, folder: Path, how: str) -> None:
    """Rank 1 is interrupted, or stays away, at every step in turn."""
    from blslib.collective import building
    from blslib.collective.building import Building

    test_failures.SIGNS, seen = folder, []
    with build(comm, channel) as exchange:  # what MPI opens at the first time stays open
        post(exchange, 3)
    before = held()
    for step in range(STEPS[channel] + 1):
        left = f"left {step}"
        happened_s = [0.0]

        def act(left: str = left, happened_s: list[float] = happened_s) -> None:
            happened_s[0] = time.monotonic()
            if how == "interrupt":
                interrupt()
            stay_away(left, 0, 2)

        if comm.rank == 1:
            building.Building = at_step(step, STEPS[channel], act)
        comm.Barrier()
        started_s = time.monotonic()
        error: BaseException | None = None
        try:
            exchange = build(comm, channel, timeout_s=DEADLINE_S if how == "stay away" else 60.0)
            try:
                post(exchange, 3)
            finally:
                exchange.__exit__(*sys.exc_info())
        except (Exception, KeyboardInterrupt) as caught:
            error = caught
        saw = {"kind": type(error).__name__, "text": str(error), "at_s": time.monotonic(), "started_s": started_s}
        give(left, comm.rank)
        building.Building = Building
        exchange = None
        comm.Barrier()
        # Its traceback is alive still, as in a notebook: that must keep nothing.
        seen.append(saw | {"happened_s": comm.bcast(happened_s[0], 1), "held": held(), "step": step})
        with build(comm, channel) as exchange:  # late as it was, nobody is out of step
            post(exchange, 3)
        del exchange
    for _ in range(20):  # whoever builds frees what was abandoned, as soon as all have heard of it
        build(comm, channel).close()
    (folder / f"{comm.rank}.json").write_text(json.dumps([before, seen, len(Building._abandoned)]))


def die(comm: Any, channel: str, folder: Path, how: str) -> None:
    """Rank 1 is killed at a step; the others note what they see."""
    from blslib.collective import building

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def act() -> None:
        (folder / "died").write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)

    if comm.rank == 1:
        building.Building = at_step(int(how), STEPS[channel], act)
    comm.Barrier()
    try:
        build(comm, channel, timeout_s=DEADLINE_S)
    except Exception as error:
        saw = {"kind": type(error).__name__, "text": str(error), "at_s": time.monotonic()}
        part = folder / f"{comm.rank}.part"
        part.write_text(json.dumps(saw))
        part.rename(folder / f"{comm.rank}.json")
    until((folder / f"{2 - comm.rank}.json").exists, 10)
    os._exit(0)


def is_free(file: Any) -> bool:
    """Whether the rank that made a file has ended."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return time.time() - os.fstat(file.fileno()).st_mtime > 1
    return False


def play(scene: str, channel: str, folder: Path, how: str) -> list[Any]:
    done = run_ranks(
        RANKS, ["-m", "tests.test_building", scene, channel, str(folder), how], timeout_s=LIMIT_S, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def whole(by_rank: list[Any], channel: str) -> None:
    """Every step was taken, nothing is left of any."""
    for before, seen, _ in by_rank:
        assert [saw["step"] for saw in seen] == list(range(STEPS[channel] + 1))
        for saw in seen:
            assert saw["held"] == before, saw
    # Only where one rank had built the exchange when another gave up, nobody can tell when to free the communicator.
    assert all(abandoned <= 1 for _, _, abandoned in by_rank), by_rank


@punctual
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_rank_interrupted_while_it_builds_is_heard_by_all(channel, tmp_path):
    by_rank = play("spoil", channel, tmp_path, "interrupt")
    whole(by_rank, channel)
    for rank, (_, seen, _) in enumerate(by_rank):
        for saw in seen:
            assert saw["kind"] == ("KeyboardInterrupt" if rank == 1 else "PeerError"), saw
            done = "while building the exchange" if saw["step"] < STEPS[channel] else "after posting 0 iterations"
            assert rank == 1 or saw["text"] == f"rank 1 failed {done}: KeyboardInterrupt: ", saw
    for _, seen, _ in by_rank:
        for saw in seen:
            within(NEWS_S, saw["at_s"] - saw["happened_s"], saw)


@punctual
@pytest.mark.parametrize("channel", ["auto", "mixed"])
def test_a_rank_late_at_any_step_of_building_is_named(channel, tmp_path):
    by_rank = play("spoil", channel, tmp_path, "stay away")
    whole(by_rank, channel)
    for rank, (_, seen, _) in enumerate(by_rank):
        for saw in seen[: STEPS[channel]]:
            assert saw["kind"] == "LateError", saw
            # By the communicator alone nobody knows who is missing; and who comes when all have gone waits for them.
            who = "rank 1" if saw["step"] else "(a rank|rank 0|rank 2|rank 0, rank 2)"
            # When rank 1 is late for the last step, it finds the others' last words, and has built the exchange.
            heard = r"rank [02] failed after posting 0 iterations: " if rank == 1 and saw["step"] else ""
            text = f"building the exchange timed out after {DEADLINE_S:g} s: {who} did not take part"
            assert re.fullmatch(f"({heard})?{text}", saw["text"]), saw
    for rank in (0, 2):
        for saw in by_rank[rank][1][: STEPS[channel]]:
            within(NEWS_S, saw["at_s"] - saw["started_s"] - DEADLINE_S, saw)


@punctual
@mpich
@pytest.mark.parametrize("step", [0, 4, 7, 9])
def test_a_rank_killed_while_it_builds_holds_nobody_up(step, tmp_path):
    before = set(Path(SHARED_DIR).glob("bls-*"))
    command = [mpiexec(), "-disable-auto-cleanup", "-n", str(RANKS), sys.executable, "-m", "tests.test_building", "die"]
    notes = [tmp_path / f"{rank}.json" for rank in (0, 2)]
    for _ in range(ATTEMPTS):
        done = run_guarded(
            [*command, "auto", str(tmp_path), str(step)], timeout_s=LIMIT_S, env=rank_environment(), cwd=ROOT
        )
        for path in set(Path(SHARED_DIR).glob("bls-*")) - before:  # who is killed while it has a name may leave that
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if not until(lambda file=file: is_free(file), 2):
                    continue  # of another job
                assert path.stat().st_size == 0, "memory that nobody frees"
                path.unlink()
        if all(note.exists() for note in notes):
            break
    else:
        pytest.skip(f"the launcher sent SIGKILL to the survivors as well, in {ATTEMPTS} attempts: {done.stdout}")
    for note in notes:
        saw = json.loads(note.read_text())
        assert saw["kind"] == "LateError", saw
        assert saw["text"].startswith(f"building the exchange timed out after {DEADLINE_S:g} s: ")
    for note in notes:
        saw = json.loads(note.read_text())
        within(NEWS_S, saw["at_s"] - float((tmp_path / "died").read_text()) - DEADLINE_S, saw)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_NOFILE"), reason="no limit of open files")
def test_too_few_open_files_are_called_that(tmp_path):
    program = r"""if True:
        import os, resource
        from mpi4py import MPI
        from blslib.collective.alltoallv import BoundedLagAlltoallv
        BoundedLagAlltoallv(MPI.COMM_WORLD, bound=0, slot_bytes=64).close()
        if MPI.COMM_WORLD.rank == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, 4096))
        try:
            BoundedLagAlltoallv(MPI.COMM_WORLD, bound=0, slot_bytes=64)
        except OSError as error:
            os.write(1, f"{type(error).__name__}: {error}\n".encode())
        if MPI.COMM_WORLD.rank == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
        BoundedLagAlltoallv(MPI.COMM_WORLD, bound=0, slot_bytes=64).close()
        """
    done = run_ranks(2, ["-c", program], timeout_s=LIMIT_S, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    text = r"OSError: rank 1 cannot map \d+ bytes of rank \d in \S+: Too many open files; let it open more files"
    assert len(re.findall(text, done.stdout)) == 2, done.stdout


if __name__ == "__main__":
    from mpi4py import MPI

    {"spoil": spoil, "die": die}[sys.argv[1]](MPI.COMM_WORLD, sys.argv[2], Path(sys.argv[3]), sys.argv[4])
