"""What tests on several ranks need: a communicator each, one verdict, and no rank that waits for a failed one."""

import gc
import os
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from mpi4py import MPI

WORLD = MPI.COMM_WORLD


def pytest_report_header() -> str:
    name, version = MPI.get_vendor()
    return f"MPI: {name} {'.'.join(map(str, version))}, rank {WORLD.rank} of {WORLD.size}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needed = item.get_closest_marker("ranks")
        if needed and WORLD.size < needed.args[0]:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed.args[0]} ranks, there are {WORLD.size}"))


def pytest_collection_finish() -> None:
    """Leave out of every collection of garbage to come what the imports have made: torch's objects take a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def comm() -> Iterator[MPI.Intracomm]:
    """A communicator of all ranks for this test alone, so that a stray message cannot reach the next test."""
    duplicate = WORLD.Dup()
    yield duplicate
    duplicate.Free()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in this thread alone, as ranks do."""
    import torch  # here, since most of these tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def end_all(why: str) -> None:
    """Say why, in one piece, and end all ranks once the launcher has had time to pass it on: it drops what is late."""
    os.write(1, f"\nrank {WORLD.rank} of {WORLD.size}: {why}\n".encode())
    time.sleep(2)
    WORLD.Abort(1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """End all ranks when a test fails on one: the others may be waiting for it inside MPI and would not hear of it."""
    report = yield
    if report.failed and WORLD.size > 1:
        trace = "" if call.excinfo is None else "".join(traceback.format_exception(call.excinfo.value))
        end_all(f"{item.nodeid} failed during {report.when}\n{trace}")
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that cannot be imported on one rank ends all of them, too."""
    if report.failed and WORLD.size > 1:
        end_all(f"{report.nodeid} cannot be collected\n{report.longreprtext}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Agree on one verdict: all ranks ran as many tests with the same result. Rank 0 says so."""
    verdicts = WORLD.allgather((session.testscollected, int(exitstatus)))
    if len(set(verdicts)) > 1:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if WORLD.rank == 0:
        agreed = "one verdict" if len(set(verdicts)) == 1 else "ranks disagree"
        line = f"{WORLD.size} ranks, {agreed}: (tests collected, exit status) {sorted(set(verdicts))}"
        os.write(1, f"\n{line}\n".encode())  # in one piece, so that no other rank's words come in between
