"""The notebooks as people use them: in JupyterLab, which ./reproduce.sh opens, in a browser.

Needs Chromium and playwright, which no environment of ours brings; CONTRIBUTING.md says how to get them. What is looked
at is the page; where a cell is out of sight, JupyterLab's own model of it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from blslib.lab.ranks.launch import end_trees
from tests.conftest import LONG_S, ROOT, alive, punctual, until, within
from tests.test_cluster import MOMENTS, traces_of
from tests.test_notebooks import copy_of_project, each_notebook, environment_by_hand, load, notebook
from tests.test_site import built  # noqa: F401  a fixture

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: see CONTRIBUTING.md")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium: see CONTRIBUTING.md")

TOKEN = "of-a-test"
QUICK_S = 3 * LONG_S
"""For a whole notebook with small parameters, on a busy machine."""
QUIET = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"

NOTEBOOK = "const panel = jupyterapp.shell.currentWidget, kernel = panel?.sessionContext?.session?.kernel;"
CELLS = NOTEBOOK + "const cells = [...panel.content.model.cells].filter(cell => cell.type == 'code');"
READY = f"() => {{ {NOTEBOOK} return kernel?.status == 'idle' && panel.content.model?.cells.length > 0 }}"
DONE = f"() => {{ {CELLS} return cells.every(cell => cell.executionCount && cell.executionState == 'idle') }}"
OUTPUTS = f"() => {{ {CELLS} return cells.map(cell => cell.outputs.toJSON()) }}"
EXECUTE = f"async code => {{ {NOTEBOOK} return (await kernel.requestExecute({{code}}).done).content.status }}"


@dataclass(frozen=True)
class Lab:
    """A server, and the project that it serves."""

    url: str
    root: Path
    process: psutil.Process

    def kernels(self) -> list[psutil.Process]:
        return [each for each in self.process.children() if "ipykernel_launcher" in " ".join(alive([each]))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """``./reproduce.sh lab``, by whoever runs the tests, root or not, in an environment that is set up already."""
    root = copy_of_project(tmp_path_factory.mktemp("lab"))
    shutil.copytree(ROOT / "notebooks", root / "notebooks", dirs_exist_ok=True)
    for folder in ("data", "figures", "tests"):  # with the tests lies the explorer of 10
        shutil.copytree(ROOT / folder, root / folder, dirs_exist_ok=True)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    stamp = subprocess.run("cat requirements.txt pyproject.toml | cksum", shell=True, cwd=root, capture_output=True)
    (root / ".venv" / ".bls-setup").write_text(f"{root} {stamp.stdout.decode()}")
    options = ["--no-browser", "--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={TOKEN}"]
    options += ["--LabApp.expose_app_in_browser=True"]
    environment = environment_by_hand(root) | {"HOME": str(root / "home")}
    with (root / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [str(root / "reproduce.sh"), "lab", *options],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    process, started = psutil.Process(server.pid), []
    try:
        assert until(lambda: process.net_connections() or server.poll() is not None)
        assert server.poll() is None, (root / "lab.log").read_text()
        url = f"http://127.0.0.1:{process.net_connections()[0].laddr.port}"
        assert until(lambda: _answers(f"{url}/api?token={TOKEN}"))
        yield Lab(url, root, process)
        started = process.children(recursive=True)
        server.terminate()
        server.wait(LONG_S)
        assert until(lambda: not alive(started)), alive(started)
    finally:
        end_trees([process, *started])
        server.wait(LONG_S)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(url, timeout=5).read())
    return False


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", *(f"--{option}" for option in QUIET.split())]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(1000 * LONG_S)
        yield page
        browser.close()


@pytest.fixture
def opened(lab: Lab, page: Any) -> Iterator[Callable[[str], psutil.Process]]:
    """Opens a notebook and returns its kernel, which must leave nothing at its end."""
    kernels: list[psutil.Process] = []

    def open_notebook(stem: str) -> psutil.Process:
        page.goto(f"{lab.url}/lab/tree/notebooks/{stem}.ipynb?token={TOKEN}&reset")
        page.wait_for_function(f"() => window.jupyterapp && ({READY})()")
        kernels.extend(lab.kernels())
        assert len(kernels) == 1
        return kernels[0]

    yield open_notebook
    started = [each for kernel in lab.kernels() for each in kernel.children(recursive=True)]
    page.evaluate("() => jupyterapp.serviceManager.sessions.shutdownAll()")
    assert until(lambda: not (lab.kernels() or alive(started))), alive(started)


def choose(page: Any, menu: str, entry: str) -> None:
    """As with a mouse."""
    page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
    page.locator(".lm-Menu-itemLabel", has_text=entry).first.click()


def clear(page: Any) -> None:
    """All outputs, so that what is found is new."""
    page.evaluate(f"() => {{ {CELLS} cells.forEach(cell => cell.clearExecution()) }}")


def errors(page: Any) -> list[str]:
    found = [output for outputs in page.evaluate(OUTPUTS) for output in outputs if output["output_type"] == "error"]
    return [f"{each['ename']}: {each['evalue']}" for each in found]


def said(page: Any, cell: int) -> str:
    return "".join("".join(output.get("text", "")) for output in page.evaluate(OUTPUTS)[cell])


def move(page: Any, slider: int, key: str = "ArrowRight") -> Any:
    """Move a slider of the control by one step; what then stands in the place of the picture."""
    below = page.locator(".widget-interact .widget-output")
    before = below.inner_html()
    page.locator(".noUi-handle").nth(slider).press(key)
    assert until(lambda: page.wait_for_timeout(50) or below.inner_html() not in ("", before))
    return below


def fingerprints(root: Path) -> dict[Path, str]:
    files = [path for folder in ("data", "figures") for path in (root / folder).rglob("*") if path.is_file()]
    return {path: hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def test_ranks_stay_and_the_reference_run_too(lab: Lab, page: Any, opened: Callable[[str], psutil.Process]) -> None:
    """After *Run All* and *Restart and Run All*, twice in a row; the notebook ends with nothing that is waited for."""
    reference = fingerprints(lab.root)
    kernel = opened("01-bounded-lag")
    for turn in range(4):
        before = kernel.children(recursive=True)
        clear(page)
        if restarted := turn % 2 == 1:
            choose(page, "Kernel", "Restart Kernel and Run All Cells")
            page.locator(".jp-Dialog .jp-mod-accept").click()
        else:
            choose(page, "Run", "Run All Cells")
        page.wait_for_function(DONE)
        kernel = lab.kernels()[0]
        assert errors(page) == []
        assert ("starting 4 MPI ranks" in said(page, 2)) == (restarted or turn == 0), "else those at hand will do"
        assert f"results go to {lab.root / 'out'}, the reference run is left as it is" in said(page, 2)
        below = move(page, slider=turn % 2)
        assert until(lambda: page.wait_for_timeout(50) or below.locator("img").count() == 2)  # noqa: B023
        assert "Traceback" not in below.inner_text()
        assert not restarted or not alive(before)
    label = page.get_by_text("one delay (ms)", exact=True)
    assert label.evaluate("label => label.scrollWidth <= label.clientWidth"), "it cannot be read to its end"
    assert fingerprints(lab.root) == reference
    assert (lab.root / "out" / "data" / "01-bounded-lag" / "timeline.csv").exists()
    assert (lab.root / "out" / "figures" / "01-bounded-lag.png").exists()


START = "from blslib.lab.ranks.cluster import engines\nranks = engines(4)"

CONTROL = """
from blslib.charts import runs
from blslib.lab import controls, figures
from blslib.lab.experiments import timeline
from blslib.lab.ranks.cluster import experiment

def again(bound):
    rows = experiment(ranks, timeline.run, timeline.Config(tuple(sorted({0, bound}))))
    figures.show(runs.timeline(rows, cores=2))

controls.panel(again, bound=controls.slider("bound", 2, 0, 8))
"""


def test_ranks_that_died_and_a_kernel_that_dies(lab: Lab, page: Any, opened: Callable[[str], psutil.Process]) -> None:
    """The slider says that they were lost, starts new ones and draws; the kernel takes these along, even by SIGKILL."""
    notebook(lab.root / "notebooks", "51-control", START, CONTROL)
    kernel = opened("51-control")
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(DONE)
    page.locator(".widget-interact img").wait_for()
    first = kernel.children(recursive=True)
    for each in first:
        with contextlib.suppress(psutil.NoSuchProcess):  # the launcher was quicker
            if "ipyparallel.engine" in " ".join(each.cmdline()):
                each.kill()
    below = move(page, 0)
    below.locator("img").wait_for()
    assert below.inner_text().strip() == "the cluster lost ranks 0, 1, 2, 3: starting 4 MPI ranks"
    assert not alive(first[1:])
    second = kernel.children(recursive=True)
    assert sum("ipyparallel.engine --mpi" in command for command in alive(second)) >= 4
    kernel.kill()
    assert until(lambda: not alive(second)), alive(second)
    assert until(lab.kernels)  # Jupyter starts another


@punctual
def test_an_interrupt_while_ranks_start(lab: Lab, page: Any, opened: Callable[[str], psutil.Process]) -> None:
    """By the menu, at three moments; what comes after it is done within 3 s, and then the ranks come up."""
    notebook(lab.root / "notebooks", "52-start", START)
    kernel = opened("52-start")
    took_s = []
    for trace, count in MOMENTS:
        choose(page, "Run", "Run All Cells")
        assert until(lambda: sum(trace in line for line in traces_of(kernel)) >= count)  # noqa: B023
        started = kernel.children(recursive=True)
        pressed_s = time.monotonic()
        choose(page, "Kernel", "Interrupt Kernel")
        assert page.evaluate(EXECUTE, "1 + 1") in ("ok", "aborted")
        took_s.append(time.monotonic() - pressed_s)
        assert errors(page) == ["KeyboardInterrupt: "]
        assert not alive([*started, *kernel.children(recursive=True)])
        clear(page)
    assert page.evaluate(EXECUTE, START) == "ok"
    within(3, max(took_s))


BARS = """
from blslib.lab.experiments.delayed import Config, run
from blslib.lab.ranks.cluster import engines, experiment

ranks = engines(2)
for law, names in (("rotating", ("bls",)), ("exponential", ("mpi", "bls"))):
    experiment(ranks, run, Config(law, bounds=(0,), names=names, iterations=100, base_s=0.03, repeats=1))
"""


def test_bars_end_full_and_named(lab: Lab, page: Any, opened: Callable[[str], psutil.Process]) -> None:
    notebook(lab.root / "notebooks", "53-bars", BARS)
    opened("53-bars")
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(DONE)
    bars = page.locator(".jp-OutputArea-output .widget-hbox")
    assert until(lambda: page.wait_for_timeout(50) or bars.count() == 2)
    texts = [bars.nth(i).inner_text().replace("\u2007", " ").split("[")[0].split() for i in range(2)]
    assert [" ".join(text) for text in texts] == [
        "delayed rotating on 2 ranks: 100% 1/1",
        "delayed exponential on 2 ranks: 100% 2/2",
    ]
    assert page.locator(".progress-bar-success").count() == 2
    assert page.locator(".progress-bar-danger").count() == 0


def test_the_lab_runs_as_root_too(lab: Lab) -> None:
    """The other tests would not have come so far; here, that root is warned."""
    warned = "running as root is not recommended" in (lab.root / "lab.log").read_text()
    assert warned == (os.geteuid() == 0)


SHOWN = {"05-serving": "table", "07-placement": "table", "09-diagnose": "pre", "10-build-it": "pre"}
"""What a panel draws, where that is no picture."""
SEEN = "shown => shown.src || shown.innerText"


@each_notebook
def test_run_all_and_its_own_panel(lab: Lab, page: Any, opened: Callable[[str], psutil.Process], path: Path) -> None:
    """*Run All* with small parameters; then its first slider is moved, and something else shows."""
    source = load(path)
    [parameters] = [cell for cell in source["cells"] if cell["metadata"].get("tags") == ["parameters"]]
    assert parameters["source"] == ["quick = False"]
    parameters["source"] = ["quick = True"]
    (lab.root / "notebooks" / f"54-{path.stem}.ipynb").write_text(json.dumps(source))
    opened(f"54-{path.stem}")
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(DONE, timeout=1000 * QUICK_S)
    assert errors(page) == []
    assert "Traceback" not in json.dumps(page.evaluate(OUTPUTS))
    drawn = page.locator(f".widget-interact .widget-output {SHOWN.get(path.stem, 'img')}").first
    drawn.wait_for()
    before = drawn.evaluate(SEEN)
    below = move(page, 0)
    assert until(lambda: page.wait_for_timeout(50) or (drawn.count() and drawn.evaluate(SEEN) != before))
    assert "Traceback" not in below.inner_text()


@pytest.fixture
def playground(request: pytest.FixtureRequest) -> str:
    """Where it lies on this disk."""
    return (request.getfixturevalue("built") / "playground.html").as_uri()


def test_the_playground_opens_from_disk(page: Any, playground: str) -> None:
    """Every control redraws it; nothing is asked of a network."""
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(playground)
    chart = page.locator(".vega-embed canvas, .vega-embed svg").first
    chart.wait_for()
    seen = [chart.screenshot()]

    def redrawn() -> None:
        assert until(lambda: page.wait_for_timeout(50) or chart.screenshot() != seen[-1])
        seen.append(chart.screenshot())

    for name, value in (("left law", "exponential"), ("right law", "bernoulli")):
        page.locator(".vega-bind", has_text=name).locator("select").select_option(value)
        redrawn()
    for name, value in (("one delay (ms)", "160"), ("bound", "1")):
        page.locator(".vega-bind", has_text=name).locator("input").fill(value)
        redrawn()
    page.locator(".vega-bind", has_text="ranks").locator("input").nth(2).check()
    redrawn()
    assert said == [] and [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_playground_in_a_narrow_window(page: Any, playground: str) -> None:
    """All controls are in sight, and the charts as large as ever: their far edge is there when one scrolls."""
    page.set_viewport_size({"width": 400, "height": 700})
    page.goto(playground)
    chart = page.locator(".vega-embed canvas, .vega-embed svg").first
    chart.wait_for()
    assert chart.bounding_box()["width"] > 700
    controls = page.locator(".vega-bind input, .vega-bind select").all()
    assert len(controls) == 2 + 2 + 3
    for box in (control.bounding_box() for control in controls):
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400 and box["y"] + box["height"] <= 700
    page.locator("#vis").evaluate(
        "vis => { vis.scrollLeft = vis.scrollWidth; scrollTo(0, document.body.scrollHeight) }"
    )
    box = chart.bounding_box()
    assert box["x"] + box["width"] <= 401 and box["y"] + box["height"] <= 701
