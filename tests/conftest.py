"""Options and helpers that every test may use.

A test must hold on a machine that is busy with other things. So it waits for an event, not for a time, and what limits
that wait is long, as it decides nothing but how long a test takes to fail. Where a time is itself the promise, it
counts from the event on, and the test says ``@punctual``.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from blslib.lab.ranks.launch import is_alive

ROOT = Path(__file__).resolve().parents[1]

LONG_S = 120.0
"""Patience with what no test is about, such as the start of a process."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long as well")


def pytest_configure() -> None:
    """Hypothesis judges examples by what they show, not by how long they take on this machine."""
    from hypothesis import HealthCheck, settings  # here, since ranks of the tests import this module without need of it

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests want to be read in every run, whichever process they ran in."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("xfailed"):
        for name, said in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{name}: {said}")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Tests of several ranks run under mpiexec alone; tests/test_mpi.py starts them."""
    return True if collection_path == ROOT / "tests" / "mpi" and "BLS_MPI_TESTS" not in os.environ else None


SLOWEST = ("test_notebooks.py", "test_mpi.py", "test_cluster.py", "test_faults.py", "test_torch_suite.py")
"""Files that take longest, which begin first: those of a whole run are shared out among three processes."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: gzip writes the time into them, and all workers must find the same names."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: run with --long"))


def _sample(variable: str, name: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT.parent / "shared" / "data" / name)
    if not path.exists():
        pytest.skip(f"no file {path}: set {variable} to a copy of {name}")
    return path


@pytest.fixture(scope="session")
def criteo_sample() -> Path:
    """A headed CSV sample of Criteo Kaggle, or whatever BLS_CRITEO names."""
    return _sample("BLS_CRITEO", "criteo_kaggle_tiny.csv")


@pytest.fixture(scope="session")
def aliccp_sample() -> Path:
    """A sample of Ali-CCP, one line per impression, or whatever BLS_ALICCP names."""
    return _sample("BLS_ALICCP", "aliccp_multihot_small.txt")


@pytest.fixture(scope="module", autouse=True)
def no_memory_of_killed_jobs() -> Iterator[None]:
    """A killed job of MPICH leaves a megabyte of shared memory per rank: take away what nobody uses any more."""
    before = set(Path("/dev/shm").glob("mpich_shm_*"))
    yield
    if left := set(Path("/dev/shm").glob("mpich_shm_*")) - before:
        used = ""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                # Descriptors first: a job that begins in this moment closes a file only when it has mapped it.
                used += " ".join(os.readlink(each) for each in (process / "fd").iterdir())
                used += (process / "maps").read_text()
        for path in left:
            if str(path) not in used:
                with contextlib.suppress(OSError):
                    path.unlink()


class TooSlow(AssertionError):
    """A promise of time was not kept; all else that the test looks at was right."""


# Another program may take the machine away for half a second, and no test can tell that from a slowness of ours but by
# looking again. So a promise of time, and nothing else, has two more tries: a disturbance passes, a fault does not.
punctual = pytest.mark.flaky(reruns=2, reruns_delay=2, only_rerun=[TooSlow])


def within(limit_s: float, took_s: float, *about: object) -> None:
    """Hold a promise of time; for tests that are ``punctual``."""
    if not took_s < limit_s:
        raise TooSlow(f"took {took_s:.3f} s, promised {limit_s:g} s", *about)


def until(true: Callable[[], Any], patience_s: float = LONG_S) -> bool:
    """Wait for an event; whether it came."""
    deadline_s = time.monotonic() + patience_s
    while not (came := bool(true())) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return came


def alive(processes: list[psutil.Process]) -> list[str]:
    """Command lines of those that still run."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if is_alive(process):
                found.append(" ".join(process.cmdline()))
    return found
