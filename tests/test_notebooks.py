"""The notebooks as they are committed, what a quick run of all of them leaves, and that the driver stops cleanly."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from blslib.lab import driver
from blslib.lab.ranks.launch import end_trees, run_guarded
from tests.conftest import LONG_S, ROOT, alive, until

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
QUICK_TIMEOUT_S = 15 * LONG_S

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@each_notebook
def test_source(path: Path) -> None:
    """Valid, with the parameter, without outputs, and with a link to the figure of the reference run."""
    nbformat.validate(nbformat.read(path, as_version=4))
    assert "quick" in driver.parameters_of(path)
    cells = load(path)["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert not {"papermill", "execution"} & set(cell["metadata"])
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert f"../figures/{path.stem}" in text, "no link to the reference figure"
    linked = [part.split(")")[0] for part in text.split("](")[1:] if part.startswith("../")]
    assert not [link for link in linked if not (path.parent / link.split("#")[0]).exists()]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a quick run of all notebooks wrote."""
    out = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "blslib.lab.driver", "--quick"]
    environment = {**os.environ, driver.OUT_VARIABLE: str(out)}
    done = run_guarded(command, timeout_s=QUICK_TIMEOUT_S, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "left behind" not in done.stdout
    (out / "printed.txt").write_text(done.stdout)
    return out


@each_notebook
def test_quick_run(path: Path, quick_run: Path) -> None:
    """The executed copy is whole, the tables have rows, the claims are claims, the figures are pictures."""
    executed = load(quick_run / "notebooks" / path.name)
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    data = quick_run / "data" / path.stem
    tables = sorted(data.glob("*.csv"))
    assert tables
    for table in tables:
        with table.open(newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) > 1, f"{table.name} has no rows"
        assert {len(row) for row in rows} == {len(rows[0])}, f"{table.name} is ragged"
        assert all(name.strip() for name in rows[0])
    if (data / "claims.json").exists():
        claims = load(data / "claims.json")
        assert claims
        for claim in claims:
            assert set(claim) >= {"claim", "source", "effect", "low", "high", "unit", "verdict", "reason"}
            assert claim["verdict"] in {"reproduced", "not reproduced", "inconclusive"}
            assert claim["claim"] in (quick_run / "printed.txt").read_text()
    pictures = sorted((quick_run / "figures").glob(f"{path.stem}*"))
    assert {".svg", ".png"} <= {picture.suffix for picture in pictures}
    for picture in pictures:
        head = picture.read_bytes()
        assert len(head) > 2000
        assert b"<svg" in head if picture.suffix == ".svg" else head.startswith(b"\x89PNG")


def notebook(folder: Path, stem: str, *code: str, tagged: str = "quick = True") -> Path:
    """A small notebook, with its cell of parameters first."""
    cells = [nbformat.v4.new_code_cell(source) for source in (tagged, *code)]
    cells[0].metadata["tags"] = ["parameters"]
    path = folder / f"{stem}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


BORROW = "from blslib.lab.ranks.cluster import engines\nranks = engines(4)\nassert not ranks.owned"

REPORT = "from blslib.lab.ranks.progress import report\nreport(1, 2)"


def run_driver(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blslib.lab.driver", "--notebooks", str(folder), *arguments]
    environment = {**os.environ, driver.OUT_VARIABLE: str(folder / "out")}
    return run_guarded(command, timeout_s=4 * LONG_S, env=environment, cwd=ROOT)


def test_a_failure_stops_the_run_and_says_where(tmp_path: Path) -> None:
    check = f"import os, sys\nassert sys.executable == {sys.executable!r}\nassert os.environ['BLS_OUT'].endswith('out')"
    notebook(tmp_path, "01-fine", BORROW, check, "assert quick is True\nranks.close()", REPORT)
    notebook(tmp_path, "02-broken", "1 / 0")
    notebook(tmp_path, "03-never", "raise SystemError")
    done = run_driver(tmp_path, "--quick")
    assert done.returncode == 1
    assert "01-fine: done" in done.stdout
    assert "02-broken.ipynb stopped in cell" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    executed = tmp_path / "out" / "notebooks"
    assert f"the executed notebook is {executed / '02-broken.ipynb'}" in done.stdout
    assert (executed / "02-broken.ipynb").exists()
    assert not (executed / "03-never.ipynb").exists()


def test_unknown_parameters_and_stems_are_failures(tmp_path: Path) -> None:
    path = notebook(tmp_path, "01-fine", "pass", tagged="fast = True")
    with pytest.raises(driver.StopError, match=r"01-fine\.ipynb: its cell tagged 'parameters' has no quick"):
        driver.execute(path, tmp_path / "out.ipynb", {"quick": True})
    with pytest.raises(driver.StopError, match="no notebook 02-none: there are 01-fine"):
        driver.choose(tmp_path, ["02-none"])
    with pytest.raises(driver.StopError, match="no notebooks in"):
        driver.choose(tmp_path / "out", [])
    assert driver.choose(tmp_path, ["01-fine"]) == driver.choose(tmp_path, []) == [path]


BUSY = """
def busy(folder):
    import pathlib
    import time

    from mpi4py import MPI

    pathlib.Path(folder, f"{MPI.COMM_WORLD.rank}.busy").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
def test_nothing_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Interrupted in the middle of a cell that keeps all ranks busy, the driver takes everything with it."""
    notebook(tmp_path, "01-slow", BORROW, BUSY, f"ranks.run(busy, {str(tmp_path)!r})")
    command = [sys.executable, "-m", "blslib.lab.driver", "--quick", "--notebooks", str(tmp_path)]
    environment = {**os.environ, driver.OUT_VARIABLE: str(tmp_path / "out")}
    with (tmp_path / "printed.txt").open("w") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=printed, stderr=printed, start_new_session=True
        )
    started = [psutil.Process(process.pid)]
    try:
        assert until(lambda: len(list(tmp_path.glob("*.busy"))) == 4 or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "printed.txt").read_text()
        started += started[0].children(recursive=True)
        assert len(alive(started)) > 6  # the driver, the controller, mpiexec, four engines at least
        process.send_signal(number)
        code = process.wait(LONG_S)
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        assert until(lambda: not alive(started)), alive(started)
    finally:
        end_trees(started)
        process.wait(LONG_S)
    if number == signal.SIGINT:
        assert "interrupted" in (tmp_path / "printed.txt").read_text()
