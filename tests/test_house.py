"""The house plan holds: who may import whom, what importing costs, how large a module may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "blslib"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Room by room: the other rooms, then the packages beyond the standard library, that it may import. "collective" is open
# to torch in its folder of that name alone, and to "dlrm" by the interface of an exchange alone.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "theory": (set(), {"numpy"}),
    "workloads": (set(), {"numpy", "pandas"}),
    "collective": (set(), {"numpy", "mpi4py"}),
    "charts": (set(), {"numpy", "pandas", "altair"}),
    "dlrm": ({"collective.exchange", "workloads"}, {"numpy", "torch"}),
    "diagnosis": ({"theory", "charts"}, {"numpy", "pandas", "tqdm", "ijson"}),
}
CELLAR = {"files", "signals"}
"""Modules of no room, with the standard library alone, for everybody."""


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the room they come from"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def breaches(path: Path, source: str) -> list[str]:
    """The imports of a module that its room does not allow."""
    room, *inner = path.relative_to(PACKAGE).with_suffix("").parts
    if room not in ROOMS and room not in CELLAR:
        return []
    rooms, packages = ROOMS.get(room, (set(), set()))
    if (room, inner[:1]) == ("collective", ["torch"]):
        packages = packages | {"torch"}
    allowed = {"blslib." + name for name in rooms | CELLAR | {room}}
    found = []
    for line, name in imports(ast.parse(source)):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top in packages:
            continue
        if top == "blslib" and any(name == prefix or name.startswith(prefix + ".") for prefix in allowed):
            continue
        found.append(f"{path.relative_to(ROOT)}:{line}: {room} may not import {name}")
    return found


def test_rooms_import_only_from_rooms_above() -> None:
    assert not [breach for path in MODULES for breach in breaches(path, path.read_text())]


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("theory", "from blslib.lab import rows"),
        ("workloads", "import torch"),
        ("collective", "from blslib.dlrm.model import Model"),
        ("dlrm", "from blslib.collective.alltoallv import BoundedLagAlltoallv"),
        ("dlrm", "def f():\n    from mpi4py import MPI"),
    ],
)
def test_a_breach_is_found(room: str, line: str) -> None:
    assert breaches(PACKAGE / room / "new.py", line)


def test_every_room_is_in_the_table() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {*ROOMS, "lab"}


def test_importing_the_package_is_cheap() -> None:
    heavy = ("mpi4py.MPI", "torch", "altair", "pandas", "ipyparallel")
    code = "import pkgutil, sys, blslib\n"
    code += "for room in pkgutil.iter_modules(blslib.__path__):\n    room.ispkg and __import__(f'blslib.{room.name}')\n"
    code += f"print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("room", ["theory", "workloads"])
def test_the_lower_rooms_start_no_mpi(room: str) -> None:
    names = [f"blslib.{room}.{path.stem}" for path in PACKAGE.joinpath(room).glob("[!_]*.py")]
    code = f"import importlib, sys\n[importlib.import_module(name) for name in {names!r}]\n"
    code += "print(*[name for name in ('mpi4py.MPI', 'torch', 'altair') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_no_module_keeps_a_rank_or_a_generator() -> None:
    """``comm`` is an argument: two communicators, or two seeds, must be possible side by side."""
    kept = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for name in ast.walk(node.value)
        if isinstance(name, ast.Attribute) and name.attr in {"COMM_WORLD", "default_rng", "Get_rank", "Get_size"}
    ]
    assert not kept


def test_no_paths_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    prefixes = [f"/{name}/" for name in ("work", "home", "root", "Users", "tmp")]
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".sh", ".md", ".toml", ".yml", ".ipynb", ".csv", ".json", ".cff", ".svg"}:
            for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
                found += [f"{name}:{number}: {prefix}" for prefix in prefixes if prefix in line]
    assert not found
