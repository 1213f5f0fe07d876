"""The tests of ``tests/mpi`` on one to four ranks, each run with a deadline; a failing rank cannot hang a run."""

import shutil
import time
from pathlib import Path

import pytest

from blslib.lab.ranks.launch import run_ranks
from tests.conftest import LONG_S, ROOT

TIMEOUT_S = 6 * LONG_S
# Before the deadline of the run every rank tells where it is.
ARGUMENTS = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={TIMEOUT_S - 60}"]
HERE = {"BLS_MPI_TESTS": "1"}


@pytest.mark.skipif(not list((ROOT / "tests" / "mpi").glob("test_*.py")), reason="no tests in tests/mpi")
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks(ranks: int, request: pytest.FixtureRequest) -> None:
    long = ["--long"] if request.config.getoption("--long") else []
    done = run_ranks(ranks, [*ARGUMENTS, *long, "tests/mpi"], timeout_s=TIMEOUT_S, env=HERE, cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, f"{ranks} ranks: mpiexec ended with {done.returncode}\n{done.stdout[-8000:]}"
    assert f"{ranks} ranks, one verdict" in done.stdout, "mpiexec and mpi4py belong to different MPIs"


def _suite(folder: Path, body: str) -> Path:
    """A small suite under the conftest of tests/mpi."""
    shutil.copy(ROOT / "tests" / "mpi" / "conftest.py", folder)
    (folder / "test_small.py").write_text(body)
    return folder


def test_a_failing_rank_ends_the_run(tmp_path: Path) -> None:
    body = "def test(comm):\n    if comm.rank == 1:\n        raise ValueError('only here')\n    comm.Barrier()\n"
    started_s = time.monotonic()
    folder = _suite(tmp_path, body)
    done = run_ranks(3, [*ARGUMENTS, str(folder), "-c", str(ROOT / "pyproject.toml")], timeout_s=LONG_S, cwd=ROOT)
    assert done.returncode != 0
    assert "ValueError: only here" in done.stdout
    assert "rank 1 of 3" in done.stdout
    assert time.monotonic() - started_s < LONG_S, "they waited for the deadline"


def test_a_rank_that_cannot_collect_ends_the_run(tmp_path: Path) -> None:
    body = "from mpi4py import MPI\nassert MPI.COMM_WORLD.rank != 1, 'no import'\ndef test(comm):\n    comm.Barrier()\n"
    folder = _suite(tmp_path, body)
    done = run_ranks(3, [*ARGUMENTS, str(folder), "-c", str(ROOT / "pyproject.toml")], timeout_s=LONG_S, cwd=ROOT)
    assert done.returncode != 0
    assert "rank 1 of 3" in done.stdout
    assert "no import" in done.stdout


def test_ranks_that_disagree_fail(tmp_path: Path) -> None:
    body = "from mpi4py import MPI\n\ndef test():\n    pass\n\nif MPI.COMM_WORLD.rank:\n    test_here = test\n"
    folder = _suite(tmp_path, body)
    done = run_ranks(2, [*ARGUMENTS, str(folder), "-c", str(ROOT / "pyproject.toml")], timeout_s=LONG_S, cwd=ROOT)
    assert done.returncode != 0
    assert "ranks disagree" in done.stdout
