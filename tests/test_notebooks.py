"""The notebooks as they are committed, what a quick run of all of them leaves, and that the driver stops cleanly."""

import ast
import csv
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

import nbformat
import papermill
import psutil
import pytest

from blslib.lab import driver
from blslib.lab.claims import CONTRADICTS, FAILS, GAIN, HOLDS, NO_GAIN, OPEN
from blslib.lab.ranks import cluster
from blslib.lab.ranks.launch import end_trees, run_guarded
from tests.conftest import LONG_S, ROOT, alive, until
from tests.test_site import missing

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
QUICK_TIMEOUT_S = 15 * LONG_S

IMPORTS = (ast.Import, ast.ImportFrom)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@each_notebook
def test_source(path: Path) -> None:
    """Valid, with the parameter, without outputs, and with a link to the figure of the reference run.

    What is run by hand stays by hand: results go elsewhere before there are any, and the ranks are not taken away from
    who still plays with them. *Run All* shows the end of a notebook, which is no cell that nobody needs to see.
    """
    nbformat.validate(nbformat.read(path, as_version=4))
    assert "quick" in papermill.inspect_notebook(str(path))
    cells = load(path)["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert not {"papermill", "execution"} & set(cell["metadata"])
    code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "driver.where_results_go()" in code.split("write(")[0]
    assert ".close()" not in code
    assert cells[-1]["cell_type"] == "markdown"
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert f"../figures/{path.stem}" in text, "no link to the reference figure"
    linked = [part.split(")")[0] for part in text.split("](")[1:] if part.startswith("../")]
    assert not [link for link in linked if not (path.parent / link.split("#")[0]).exists()]


@each_notebook
def test_it_begins_with_a_few_imports(path: Path) -> None:
    """Four lines at most, in its first cell of code; one cell of 10 alone needs more, which lies with the tests."""
    code = ["".join(cell["source"]) for cell in load(path)["cells"] if cell["cell_type"] == "code"]
    lines = [sum(n.end_lineno - n.lineno + 1 for n in ast.parse(cell).body if type(n) in IMPORTS) for cell in code]
    assert 0 < lines[0] <= 4 and lines[0] == len([line for line in code[0].splitlines() if line])
    later = [cell for cell, count in zip(code[1:], lines[1:], strict=True) if count]
    assert ["from tests.explore" in cell for cell in later] == [True] * (path.stem == "10-build-it")


def test_every_chart_is_seen_by_a_reader() -> None:
    """A picture of the reference run for each chart that a notebook draws, with words, in its text; none besides."""
    drawn, shown = set(), {}
    for path in NOTEBOOKS:
        cells = load(path)["cells"]
        code, text = ("".join("".join(c["source"]) for c in cells if c["cell_type"] == k) for k in ("code", "markdown"))
        drawn |= {"".join(names) for names in re.findall(r'figures\.save\(\w+, "([\w-]+)"(?:, "([\w-]+)")?\)', code)}
        shown |= {name: words for words, name in re.findall(r"!\[(.*?)\]\(\.\./figures/([\w-]+)\.png\)", text)}
        assert "controls.panel(" in code and "## Your turn" in text
        assert "](../figures/colours.png)" in "".join(cells[-1]["source"])
    assert drawn == set(shown) == {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert all(len(words) > 60 for words in shown.values())
    page = (ROOT / "figures" / "README.md").read_text()
    assert all(f"![{words}]({name}.png)" in page for name, words in shown.items())
    assert all(path.name in (ROOT / "notebooks" / "README.md").read_text() for path in NOTEBOOKS)


def test_the_site_is_whole(quick_run: Path) -> None:
    """Made of a quick run within a minute; whatever its pages link to or show is there, and pictures have words."""
    environment = {**os.environ, driver.OUT_VARIABLE: str(quick_run)}
    started_s = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "blslib.lab.site"], env=environment, cwd=ROOT, capture_output=True)
    took_s = time.monotonic() - started_s
    assert done.returncode == 0, done.stderr
    site = quick_run / "site"
    assert f"open {site / 'index.html'}" in done.stdout.decode()
    pages = sorted(site.rglob("*.html"))
    assert {page.stem for page in pages} >= {"playground", "index", *(path.stem for path in NOTEBOOKS)}
    assert missing(site) == []
    assert took_s < 60  # a tenth of which it takes when nothing else runs


def test_a_broken_run_costs_no_site(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01-bounded-lag.ipynb").write_text('{"cells": [')
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("of a better day")
    environment = {**os.environ, driver.OUT_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-m", "blslib.lab.site"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "01-bounded-lag.ipynb cannot be read, run it again" in done.stderr
    assert (tmp_path / "site" / "index.html").read_text() == "of a better day"


def test_a_site_without_a_run_says_what_makes_one(tmp_path: Path) -> None:
    environment = {**os.environ, driver.OUT_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-m", "blslib.lab.site"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"no executed notebooks in {tmp_path / 'notebooks'}: ./reproduce.sh --quick makes them\n"


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
    assert not [output for output in outputs if output.get("name") == "stderr" and "Warning" in "".join(output["text"])]
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
            assert set(claim) >= {"claim", "source", "quantity", "repeats", "verdict", "reason", "headline"}
            assert claim["verdict"] in {GAIN, NO_GAIN, CONTRADICTS, OPEN, HOLDS, FAILS}
            assert claim["claim"][:3] in (quick_run / "printed.txt").read_text()
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
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
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


def copy_of_project(folder: Path) -> Path:
    """All that notebooks need, where they may overwrite what they like; its notebooks' folder is empty."""
    shutil.copytree(ROOT / "blslib", folder / "blslib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "REPRODUCING.md", "reproduce.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "notebooks").mkdir()
    (folder / "figures").mkdir()
    shutil.copy(ROOT / "figures" / "README.md", folder / "figures")
    return folder


def environment_by_hand(folder: Path) -> dict[str, str]:
    """That of somebody who opens the notebooks of a copy."""
    ours = {driver.OUT_VARIABLE, cluster.CLUSTER_VARIABLE, "IPP_NONINTERACTIVE"}
    return {name: value for name, value in os.environ.items() if name not in ours} | {"PYTHONPATH": str(folder)}


WRITE = """
from blslib.lab import driver
print(driver.where_results_go())
from blslib.lab.rows import write
write("01-bounded-lag", "rows", [{"quick": quick}], [])
"""


def test_the_driver_alone_writes_the_reference_run(tmp_path: Path) -> None:
    root = copy_of_project(tmp_path)
    path = notebook(root / "notebooks", "01-bounded-lag", WRITE, tagged="quick = False")
    environment = environment_by_hand(root)
    by_hand = [sys.executable, "-m", "jupyter", "execute", "--output=done.ipynb", str(path)]
    done = run_guarded(by_hand, timeout_s=LONG_S, env=environment, cwd=root)
    assert done.returncode == 0, done.stdout
    reference, other = (folder / "data" / path.stem / "rows.csv" for folder in (root, root / "out"))
    assert other.exists() and not reference.exists()
    said = load(path.with_name("done.ipynb"))["cells"][1]["outputs"][0]["text"]
    assert "".join(said) == f"results go to {root / 'out'}, the reference run is left as it is\n"
    path.with_name("done.ipynb").unlink()
    other.unlink()
    done = run_guarded([sys.executable, "-m", "blslib.lab.driver"], timeout_s=LONG_S, env=environment, cwd=root)
    assert done.returncode == 0, done.stdout
    assert f"results go to {root}\n" in done.stdout
    assert reference.exists() and not other.exists()


BARS = """
from blslib.lab.experiments.delayed import Config, run
from blslib.lab.ranks import progress
from blslib.lab.ranks.cluster import engines, experiment

progress.SHOW_AFTER_S = 0.0
once = {"bounds": (0,), "names": ("bls",), "iterations": 25, "base_s": 0.02, "repeats": 1}
ranks = engines(2)
experiment(ranks, run, Config("rotating", **once))
"""

FAIL = """
def fail():
    import time

    from blslib.lab.ranks.progress import report

    report(1, 4)
    time.sleep(0.5)
    raise ValueError

try:
    ranks.run(fail)
except RuntimeError:
    pass
"""


def test_bars_in_a_notebook_end_full_unless_the_run_failed(tmp_path: Path) -> None:
    """By the state of their widgets, which an executed notebook keeps."""
    root = copy_of_project(tmp_path)
    path = notebook(root / "notebooks", "01-bars", BARS, FAIL)
    command = [sys.executable, "-m", "jupyter", "execute", "--inplace", str(path)]
    done = run_guarded(command, timeout_s=LONG_S, env=environment_by_hand(root), cwd=root)
    assert done.returncode == 0, done.stdout
    kept = load(path)["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    bars = [each["state"] for each in kept if each["model_name"] == "FloatProgressModel"]
    names = [each["state"]["value"] for each in kept if each["model_name"] == "HTMLModel"]
    failed, good = sorted(
        bars, key=lambda bar: bar["bar_style"] == "success"
    )  # they are kept in the order of their ids
    assert (good["bar_style"], good["value"], good["max"]) == ("success", 1, 1)
    assert failed["bar_style"] != "success"
    assert any("delayed rotating on 2 ranks: 100%" in name.replace("\u2007", " ") for name in names), names


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
