"""What ``pip install`` brings: the wheel is whole, and each extra does what it promises in an empty environment."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from tests.conftest import LONG_S, ROOT
from tests.test_readme import block
from tests.test_setup import RUN_CSV

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "blslib", source / "blslib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(built)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, timeout=LONG_S)
    (found,) = built.glob("blslib-*.whl")
    return found


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "blslib").rglob("*.py")}
    expected |= {"blslib/py.typed", "blslib/placement/models.csv"}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Callable[..., Run]:
    """Make an empty environment with the wheel and an extra, in the versions that are tested."""
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    programs = tmp_path / "venv" / "bin"
    # Where nothing else is on the path: no launcher of another MPI.
    environment = bare | {"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"}

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(programs / program), *arguments]
        options = {"cwd": tmp_path, "env": environment, "timeout": 10 * LONG_S, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, capture_output=True, text=True, **options)

    def make(extra: str, *others: str) -> Run:
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, env=bare)
        index = ["--extra-index-url", os.environ["BLS_TORCH_INDEX"]] if os.environ.get("BLS_TORCH_INDEX") else []
        options = ["--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "requirements.txt"), *index]
        done = run("python", "-m", "pip", "install", *options, f"blslib{extra} @ {wheel.as_uri()}", *others)
        assert done.returncode == 0, done.stderr
        (tmp_path / "run.csv").write_text(RUN_CSV)
        return run

    return make


def modules(run: Run, *names: str) -> set[str]:
    """Those of the modules that can be found."""
    code = f"import importlib.util\nprint(*[name for name in {names} if importlib.util.find_spec(name)])"
    return set(run("python", "-c", code).stdout.split())


@pytest.mark.long
def test_the_core(install: Callable[..., Run], tmp_path: Path) -> None:
    run = install("")
    assert modules(run, "numpy", "mpi4py", "pandas", "torch", "psutil", "altair", "tqdm") == {"numpy", "mpi4py"}
    assert run("python", "-m", "blslib", "--help").returncode == 0
    for command, extra in (("bench", "lab"), ("diagnose", "diagnose")):
        done = run("python", "-m", "blslib", command, {"bench": "alltoallv", "diagnose": "run.csv"}[command])
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert f"which is not installed: pip install '.[{extra}]' in a checkout; after" in done.stderr
    done = run("python", "-c", "from blslib.collective.alltoallv import BoundedLagAlltoallv")
    assert "install one, and only one" in done.stderr.splitlines()[-1]
    assert run("python", "-m", "pip", "install", "-q", "-c", str(ROOT / "requirements.txt"), "mpich").returncode == 0
    (tmp_path / "example.py").write_text(block("example: example.py", "python"))
    done = run("mpiexec", "-n", "3", str(tmp_path / "venv" / "bin" / "python"), "example.py")
    assert (done.returncode, done.stdout) == (0, block("output: example.py", "text")), done.stderr


@pytest.mark.long
def test_diagnose(install: Callable[..., Run], tmp_path: Path) -> None:
    run = install("[diagnose]")
    assert modules(run, "torch", "psutil", "IPython") == set()
    assert "cannot load MPI library" in run("python", "-c", "from mpi4py import MPI").stderr
    done = run("python", "-m", "blslib", "diagnose", "run.csv", "--html", "page.html", "--json", "out.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dynamic imbalance" in done.stdout
    assert "vegaEmbed" in (tmp_path / "page.html").read_text() and (tmp_path / "out.json").exists()


@pytest.mark.long
def test_torch(install: Callable[..., Run], tmp_path: Path) -> None:
    run = install("[torch]", "mpich")
    assert modules(run, "pandas", "psutil", "altair", "IPython") == set()
    program = [str(tmp_path / "venv" / "bin" / "python"), str(ROOT / "examples" / "dlrm_torch.py")]
    done = run("mpiexec", "-n", "2", *program, "--batches", "8", "--batch-size", "32", "--rows", "50", "--bound", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.long
def test_lab(install: Callable[..., Run], tmp_path: Path) -> None:
    run = install("[lab]", "mpich")
    bench = ("bench", "dlrm", "--ranks", "2", "--quick", "--repeats", "1", "--bounds", "0,1", "--scenarios", "balanced")
    done = run("python", "-m", "blslib", *bench, "--json", "rows.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rows.json").exists()
    code = (
        "quick = False",
        "from blslib.lab.ranks.cluster import engines\nranks = engines(2)",
        "def rank():\n    from mpi4py import MPI\n    return MPI.COMM_WORLD.rank",
        "assert ranks.run(rank) == [0, 1]",
    )
    cells = [nbformat.v4.new_code_cell(source) for source in code]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "01-live.ipynb")
    driver = (
        "import os, runpy\nos.environ['BLS_OUT'] = 'out'\nrunpy.run_module('blslib.lab.driver', run_name='__main__')"
    )
    done = run("python", "-c", driver, "--quick", "--notebooks", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "notebooks" / "01-live.ipynb").exists()
    code = "from blslib.charts import runs\nfrom blslib.lab.experiments import timeline"  # what notebooks draw with
    assert run("python", "-c", code).returncode == 0
