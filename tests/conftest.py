"""Options and helpers that every test may use."""

import contextlib
import os
from pathlib import Path

import psutil
import pytest

from blslib.lab.ranks.launch import is_alive

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long as well")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Tests of several ranks run under mpiexec alone; tests/test_mpi.py starts them."""
    return True if collection_path == ROOT / "tests" / "mpi" and "BLS_MPI_TESTS" not in os.environ else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
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


def alive(processes: list[psutil.Process]) -> list[str]:
    """Command lines of those that still run."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if is_alive(process):
                found.append(" ".join(process.cmdline()))
    return found
