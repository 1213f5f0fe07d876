"""Failures on purpose: ranks of their own under a hard deadline, which must all learn of the failure, and then all end.

Run as a program, this file is the ranks: every scene builds an exchange, spoils it on some rank, and notes what each
rank saw and when. A scene ends with a barrier of all ranks, so a failure not cleaned up shows in the next scene.

What the ranks of a scene do comes in an order that no scheduler can change: they meet before the deadline that it is
about begins to count, and whoever is away stays away until the others have gone.
"""

import contextlib
import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from blslib.lab.ranks.launch import end_trees, mpiexec, rank_environment, run_ranks
from tests.conftest import LONG_S, ROOT, alive, punctual, until, within
from tests.faults import FAULTS

RANKS = 4
LIMIT_S = 2 * LONG_S
PATIENCE_S = 60.0
NEWS_S = 0.5
DEADLINE_S = 0.4
CHANNELS = ["auto", "messages", "mixed"]


def build(comm: Any, channel: str, bound: int = 1, **options: Any) -> Any:
    from blslib.collective import alltoallv

    if channel == "mixed":
        alltoallv.same_host = two_hosts
        channel = "auto"
    options = {"slot_bytes": 256, "timeout_s": PATIENCE_S, "channel": channel, **options}
    return alltoallv.BoundedLagAlltoallv(comm, bound=bound, **options)


def two_hosts(comm: Any, channel: str) -> list[int]:
    """In the place of ``same_host``: the first half of the ranks on one host, the others on another."""
    half = comm.size // 2
    return list(range(half) if comm.rank < half else range(half, comm.size))


def post(exchange: Any, times: int, items: int = 8) -> None:
    for _ in range(times):
        exchange.post([np.full(items, exchange.rank, np.float32)] * exchange.size)


# --- what the ranks do; each function is a scene ---------------------------------------------------------------------

AT_S: dict[str, float] = {}
"""When what happened on this rank in this scene."""

SIGNS: Path
"""The signs that ranks give each other: files, since a rank that is away takes no part in MPI."""


def give(sign: str, rank: int) -> None:
    (SIGNS / f"{sign}-{rank}").touch()


def stay_away(sign: str, *ranks: int) -> None:
    """Until these ranks have given a sign."""
    assert until(lambda: all((SIGNS / f"{sign}-{rank}").exists() for rank in ranks), PATIENCE_S)


def raises(comm: Any, channel: str) -> None:
    """Rank 2 raises when others wait for it, in its user's code."""
    with build(comm, channel) as exchange:
        post(exchange, 20)
        if comm.rank == 2:
            time.sleep(0.1)
            raise Marked(ValueError("boom"))
        post(exchange, 20)
        exchange.drain()


def raises_with_large_blocks_out(comm: Any, channel: str) -> None:
    """Rank 1 leaves while blocks that MPI moves by rendezvous, and files, are still on their way."""
    with build(comm, channel, bound=2) as exchange:
        post(exchange, 2, items=500_000)
        if comm.rank == 1:
            raise Marked(ValueError("boom"))
        post(exchange, 4, items=500_000)
        exchange.drain()


def is_late(comm: Any, channel: str) -> None:
    """Ranks 1 and 3 are away for longer than the others' patience."""
    with build(comm, channel, bound=2) as exchange:
        post(exchange, {1: 5, 3: 4}.get(comm.rank, 6))
        comm.Barrier()
        exchange.timeout_s = DEADLINE_S
        if comm.rank in (1, 3):
            stay_away("left is_late", 0, 2)
            post(exchange, 1)
        AT_S["waits"] = time.monotonic()
        exchange.drain()


def closes_early(comm: Any, channel: str) -> None:
    """Rank 0 posts three times, all others five times and more slowly: they hear of its end before they need it."""
    with build(comm, channel) as exchange:
        post(exchange, 3)
        if comm.rank == 0:
            give("closes", 0)
        else:
            stay_away("closes", 0)
            time.sleep(0.1)
            AT_S["asks"] = time.monotonic()
            post(exchange, 2)
            exchange.drain()


def is_interrupted(comm: Any, channel: str) -> None:
    """Ctrl-C on rank 1 while it waits for rank 0."""
    from blslib.collective.waiting import yield_then_sleep

    armed = False  # by the post that is to be interrupted

    def interrupt() -> None:
        AT_S["interrupted"] = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    def wait(attempt: int) -> None:
        nonlocal armed
        if armed:
            threading.Timer(0.1, interrupt).start()
            armed = False
        yield_then_sleep(attempt)

    with build(comm, channel, bound=0, waiting=wait) as exchange:
        post(exchange, 3)
        armed = comm.rank == 1
        if comm.rank == 0:
            stay_away("left is_interrupted", 1)
            AT_S["back"] = time.monotonic()
        post(exchange, 3)


def sends_another_size(comm: Any, channel: str) -> None:
    """Rank 3 sends rank 1 a block of 7 items where 8 were promised, in iteration 4."""
    with build(comm, channel, recv_counts=[8] * comm.size) as exchange:
        post(exchange, 4)
        exchange.post([np.zeros(7 if (comm.rank, to) == (3, 1) else 8, np.float32) for to in range(comm.size)])
        post(exchange, 4)
        exchange.drain()


def two_fail(comm: Any, channel: str) -> None:
    """Ranks 0 and 3 fail by themselves, at about the same time."""
    with build(comm, channel) as exchange:
        post(exchange, 4)
        if comm.rank in (0, 3):
            raise Marked(KeyError(f"of rank {comm.rank}"))
        post(exchange, 4)


def fails_in_close(comm: Any, channel: str) -> None:
    """Rank 1 fails when all others are closing already."""
    with build(comm, channel) as exchange:
        post(exchange, 4)
        exchange.drain()
        give("closes late", comm.rank)
        if comm.rank == 1:
            stay_away("closes late", 0, 2, 3)
            time.sleep(0.1)
            raise Marked(ValueError("at the end"))


def never_closes(comm: Any, channel: str) -> None:
    """Rank 2 does not come to close in time."""
    with build(comm, channel) as exchange:
        post(exchange, 4)
        exchange.drain()
        comm.Barrier()
        if comm.rank == 0:  # whose deadline passes first; the others hear of it
            exchange.timeout_s = DEADLINE_S
        if comm.rank == 2:
            stay_away("left never_closes", 0, 1, 3)
        AT_S["closes"] = time.monotonic()


def is_stopped(comm: Any, channel: str) -> None:
    """Rank 2 is stopped for longer than the others' patience."""
    pids = comm.allgather(os.getpid())
    try:
        with build(comm, channel, bound=2) as exchange:
            post(exchange, 4 if comm.rank == 2 else 6)
            comm.Barrier()
            exchange.timeout_s = DEADLINE_S
            AT_S["waits"] = time.monotonic()
            if comm.rank == 2:
                os.kill(os.getpid(), signal.SIGSTOP)
                post(exchange, 2)
            exchange.drain()
    finally:
        if comm.rank == 0:
            stay_away("left is_stopped", 1, 3)
            assert until(lambda: psutil.Process(pids[2]).status() == psutil.STATUS_STOPPED)
            os.kill(pids[2], signal.SIGCONT)


def posts_fewer(comm: Any, channel: str) -> None:
    """Rank 0 posts three times, all others four times; nobody waits for the fourth."""
    with build(comm, channel, bound=5) as exchange:
        post(exchange, 3 if comm.rank == 0 else 4)
        AT_S["closes"] = time.monotonic()


@contextlib.contextmanager
def little_memory(spare_bytes: int) -> Iterator[None]:
    """No more address space for this process than it has, and some to spare."""
    pages, before = int(Path("/proc/self/statm").read_text().split()[0]), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def runs_out_of_memory(comm: Any, channel: str) -> None:
    """Rank 1 cannot have what it asks for between two posts."""
    with build(comm, channel) as exchange:
        post(exchange, 5)
        if comm.rank == 1:
            with little_memory(1 << 24):
                try:
                    np.ones(1 << 28)
                except MemoryError as error:
                    raise Marked(error) from error
        post(exchange, 5)
        exchange.drain()


def cannot_map(comm: Any, channel: str) -> None:
    """Rank 1 has no memory for the rings."""
    AT_S["comes"] = time.monotonic()
    with little_memory(1 << 23) if comm.rank == 1 else contextlib.nullcontext():
        build(comm, channel, slot_bytes=1 << 20)


def works(comm: Any, channel: str) -> None:
    """After all that, an exchange on the same communicator still works."""
    with build(comm, channel, bound=2) as exchange:
        post(exchange, 20)
        exchange.drain()


SCENES: list[Callable[[Any, str], None]] = [
    raises,
    raises_with_large_blocks_out,
    is_late,
    closes_early,
    is_interrupted,
    sends_another_size,
    two_fail,
    fails_in_close,
    never_closes,
    is_stopped,
    posts_fewer,
    runs_out_of_memory,
    cannot_map,
    works,
]


class Marked(Exception):
    """The error a scene is about; carries the moment in which it happened."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.at_s = time.monotonic()


def play(channel: str, folder: Path) -> None:
    from mpi4py import MPI

    global SIGNS
    comm, SIGNS, seen = MPI.COMM_WORLD, folder, {}
    for scene in SCENES:
        AT_S.clear()
        started_s = time.monotonic()
        try:
            scene(comm, channel)
            error: BaseException | None = None
        except (Exception, KeyboardInterrupt) as caught:
            error = caught
        at_s = error.at_s if isinstance(error, Marked) else time.monotonic()
        give(f"left {scene.__name__}", comm.rank)
        seen[scene.__name__] = {
            "kind": type(error).__name__,
            "text": str(error),
            "at_s": at_s,
            "took_s": time.monotonic() - started_s,
            **AT_S,
        }
        comm.Barrier()
    (folder / f"{comm.rank}.json").write_text(json.dumps(seen))


def uncaught(channel: str, folder: Path) -> None:
    """No rank catches anything; the large blocks of the failing one are still on their way."""
    from mpi4py import MPI

    raises_with_large_blocks_out(MPI.COMM_WORLD, channel)


def stopped(channel: str, folder: Path) -> None:
    """Rank 0 stops rank 1 for a while, twice; nothing is lost."""
    from mpi4py import MPI

    comm, nap_s = MPI.COMM_WORLD, 0.3
    pids = comm.allgather(os.getpid())
    started_s, seen = time.monotonic(), 0
    with build(comm, channel, bound=2) as exchange:
        for i in range(300):
            time.sleep(0.001)
            if comm.rank == 0 and i in (50, 200):
                os.kill(pids[1], signal.SIGSTOP)
                threading.Timer(nap_s, os.kill, (pids[1], signal.SIGCONT)).start()
            blocks = [np.full(8, 1000 * i + 10 * comm.rank + to, np.float32) for to in range(comm.size)]
            for arrival in exchange.post(blocks) + (exchange.drain() if i == 299 and exchange.bound else []):
                assert arrival.iteration == seen
                for source, got in enumerate(arrival.blocks):
                    assert got.tolist() == [1000 * seen + 10 * source + comm.rank] * 8
                seen += 1
    assert seen == 300
    assert time.monotonic() - started_s >= 2 * nap_s
    (folder / f"{comm.rank}.json").write_text("{}")


def waits(channel: str, folder: Path) -> None:
    """Waits for a rank that sleeps, until somebody interrupts."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    with build(comm, channel, bound=0) as exchange:
        post(exchange, 1)
        (folder / f"{comm.rank}.ready").touch()
        if comm.rank == 0:
            time.sleep(2 * LONG_S)
        post(exchange, 1)


# --- what is expected of them ----------------------------------------------------------------------------------------


def start(name: str, channel: str, folder: Path, ranks: int = RANKS) -> subprocess.CompletedProcess[str]:
    return run_ranks(ranks, ["-m", "tests.test_failures", name, channel, str(folder)], timeout_s=LIMIT_S, cwd=ROOT)


@pytest.fixture(scope="module")
def performed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, list[dict[str, Any]]]]:
    """All scenes, once for each channel and try: by scene, what each rank saw."""

    @functools.cache
    def perform(channel: str, attempt: int) -> dict[str, list[dict[str, Any]]]:
        folder = tmp_path_factory.mktemp(f"{channel}-{attempt}-")
        done = start("play", channel, folder)
        assert done.returncode == 0, done.stdout
        by_rank = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
        return {scene.__name__: [rank[scene.__name__] for rank in by_rank] for scene in SCENES}

    return perform


@pytest.fixture(params=CHANNELS)
def seen(request: pytest.FixtureRequest, performed: Any) -> dict[str, list[dict[str, Any]]]:
    """What the tests share; one that is tried again sees all scenes anew."""
    return performed(request.param, getattr(request.node, "execution_count", 1))


def news(scene: str, ranks: list[dict[str, Any]], failing: int) -> None:
    """All but the failing rank raise what the table of faults says."""
    print(json.dumps(ranks))
    failed_s = ranks[failing]["at_s"]
    FAULTS[scene].check(ranks, {rank: saw["at_s"] - failed_s for rank, saw in enumerate(ranks) if rank != failing})


@punctual
def test_an_exception_reaches_all_others(seen):
    ranks = seen["raises"]
    assert ranks[2]["kind"] == "Marked"
    news("raises", ranks, 2)


@punctual
def test_an_exception_with_large_blocks_out(seen):
    ranks = seen["raises_with_large_blocks_out"]
    assert ranks[1]["kind"] == "Marked"
    others = [ranks[0], ranks[2], ranks[3]]
    for saw in others:
        assert (saw["kind"], saw["text"]) == ("PeerError", "rank 1 failed after posting 2 iterations: Marked: boom")
    within(NEWS_S, max(saw["at_s"] for saw in others) - ranks[1]["at_s"], ranks)


def missed(scene: str, ranks: list[dict[str, Any]], since: str, away: tuple[int, ...]) -> None:
    """All raise what the table says; those that were not away do it when their own deadline has passed."""
    waited_s = {rank: saw["at_s"] - saw[since] for rank, saw in enumerate(ranks) if rank not in away}
    assert all(saw["took_s"] >= DEADLINE_S for saw in ranks)
    FAULTS[scene].check(ranks, dict.fromkeys(away, 0.0) | {rank: s - DEADLINE_S for rank, s in waited_s.items()})


@punctual
def test_late_ranks_are_named_on_all(seen):
    missed("is_late", seen["is_late"], "waits", away=(1, 3))


@punctual
def test_a_rank_stopped_for_too_long(seen):
    missed("is_stopped", seen["is_stopped"], "waits", away=(2,))


@punctual
def test_unequal_numbers_of_posts_are_an_error(seen):
    ranks = seen["posts_fewer"]
    last_s = max(saw["closes"] for saw in ranks)
    FAULTS["posts_fewer"].check(ranks, {rank: saw["at_s"] - last_s for rank, saw in enumerate(ranks)})


@punctual
def test_out_of_memory(seen):
    ranks = seen["runs_out_of_memory"]
    assert ranks[1]["kind"] == "Marked"
    news("runs_out_of_memory", ranks, 1)


@punctual
def test_one_rank_cannot_build(seen):
    ranks = seen["cannot_map"]
    last_s = max(saw["comes"] for saw in ranks)
    FAULTS["cannot_map"].check(ranks, {rank: saw["at_s"] - last_s for rank, saw in enumerate(ranks)})


@punctual
def test_a_rank_that_posts_fewer_is_named_at_once(seen):
    ranks = seen["closes_early"]
    for saw in ranks:
        assert re.search("rank [123] waits for iteration [34]: every rank must post equally often$", saw["text"]), saw
    last_s = max(saw["asks"] for saw in ranks[1:])
    FAULTS["closes_early"].check(ranks, {rank: saw["at_s"] - last_s for rank, saw in enumerate(ranks)})


@punctual
def test_an_interrupt_ends_all(seen):
    ranks = seen["is_interrupted"]
    assert ranks[1]["kind"] == "KeyboardInterrupt"
    at_s = ranks[1]["interrupted"]
    FAULTS["is_interrupted"].check(
        ranks, {0: ranks[0]["at_s"] - ranks[0]["back"], 2: ranks[2]["at_s"] - at_s, 3: ranks[3]["at_s"] - at_s}
    )
    within(NEWS_S, ranks[1]["at_s"] - at_s, ranks)


@punctual
def test_another_size_than_promised(seen):
    ranks = seen["sends_another_size"]
    assert (ranks[1]["kind"], ranks[1]["text"]) == ("BlockError", FAULTS["sends_another_size"].words)
    news("sends_another_size", ranks, 1)


@punctual
def test_two_failures_at_once(seen):
    ranks = seen["two_fail"]
    texts = [f"rank {r} failed after posting {n} iterations: Marked: 'of rank {r}'" for r in (0, 3) for n in (4, 5)]
    for rank, saw in enumerate(ranks):  # one of the two may hear of the other before it comes to fail itself
        assert saw["kind"] == "PeerError" or (rank in (0, 3) and saw["kind"] == "Marked"), saw
        assert saw["kind"] == "Marked" or saw["text"] in texts, saw
    assert "Marked" in (ranks[0]["kind"], ranks[3]["kind"])
    within(NEWS_S, max(saw["at_s"] for saw in ranks) - min(ranks[0]["at_s"], ranks[3]["at_s"]), ranks)


@punctual
def test_a_failure_while_others_close(seen):
    ranks = seen["fails_in_close"]
    assert ranks[1]["kind"] == "Marked"
    news("fails_in_close", ranks, 1)


@punctual
def test_a_rank_that_does_not_close(seen):
    ranks = seen["never_closes"]
    passed_s = ranks[0]["closes"] + DEADLINE_S
    FAULTS["never_closes"].check(ranks, {rank: ranks[rank]["at_s"] - passed_s for rank in (0, 1, 3)} | {2: 0.0})
    assert all(saw["took_s"] >= DEADLINE_S for saw in ranks)


def test_the_communicator_is_as_good_as_new(seen):
    assert [saw["kind"] for saw in seen["works"]] == ["NoneType"] * RANKS


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_program_that_catches_nothing_ends(channel, tmp_path):
    started_s = time.monotonic()
    done = start("uncaught", channel, tmp_path)
    assert done.returncode != 0
    assert "Marked: boom" in done.stdout
    assert "rank 1 failed after posting 2 iterations: Marked: boom" in done.stdout
    assert "signal" not in done.stdout, done.stdout  # no crash
    assert time.monotonic() - started_s < PATIENCE_S, "some rank waited for its deadline"


@pytest.mark.parametrize("channel", ["auto", "messages"])
def test_a_stopped_rank_loses_nothing(channel, tmp_path):
    done = start("stopped", channel, tmp_path, ranks=3)
    assert done.returncode == 0, done.stdout
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize("channel", ["auto", "messages"])
def test_ctrl_c_ends_everything(channel, tmp_path):
    command = [mpiexec(), "-n", "3", sys.executable, "-m", "tests.test_failures", "waits", channel, str(tmp_path)]
    with subprocess.Popen(
        command, env=rank_environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        started = [psutil.Process(process.pid)]
        try:
            assert until(lambda: len(list(tmp_path.glob("*.ready"))) == 3)
            started += started[0].children(recursive=True)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=LONG_S) != 0
            assert until(lambda: not alive(started)), alive(started)
        finally:
            end_trees(started)


if __name__ == "__main__":
    {"play": play, "uncaught": uncaught, "stopped": stopped, "waits": waits}[sys.argv[1]](
        sys.argv[2], Path(sys.argv[3])
    )
