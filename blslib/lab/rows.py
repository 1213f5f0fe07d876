"""Rows: what every experiment returns, and the one place that writes them.

An experiment is ``run(comm, config)``: a frozen dataclass in, a list of flat rows out. A row keeps what was measured
beside what it was measured with; a measured column ``x`` is a median and has ``x_min`` and ``x_max`` beside it. Names
carry their units.
"""

import csv
import io
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from blslib import __version__, files

Row = dict[str, Any]

OUT_VARIABLE = "BLS_OUT"
"""Environment variable with the folder for ``data/`` and ``figures/``; empty for those of the repository."""


def spread(name: str, values: Iterable[float]) -> Row:
    """Median, least and greatest of one column over the repeats."""
    found = np.asarray(list(values), dtype=np.float64)
    return {name: float(np.median(found)), f"{name}_min": float(found.min()), f"{name}_max": float(found.max())}


def root() -> Path:
    """Where ``data/`` and ``figures/`` are written: ``BLS_OUT`` if set, else ``out/`` of the repository.

    The reference run lies in the repository itself; the driver alone names that place.
    """
    return Path(os.environ.get(OUT_VARIABLE) or Path(__file__).resolve().parents[3] / "out")


def data_folder(stem: str) -> Path:
    """``data/NN-name``, made if it is missing."""
    folder = root() / "data" / stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def processor() -> str:
    """The processor's name as the system gives it."""
    names = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:(.*)", names.read_text()) if names.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def provenance() -> Row:
    """What a number depends on besides its configuration: machine, versions, MPI settings."""
    from blslib.collective.mpi import MPI
    from blslib.lab.ranks.launch import mpi_environment

    packages = ("numpy", "torch", "mpi4py", "ipyparallel", "pandas", "altair")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "blslib": __version__,
        "mpi": MPI.Get_library_version().split("\n")[0].replace("\t", " ").rstrip("\x00").strip(),
        **{package: version(package) for package in packages},
        "mpi_settings": mpi_environment(),
    }


def columns_of(path: Path) -> list[str]:
    """The columns of a CSV file; none if it is empty.

    Raises:
        ValueError: it is no CSV file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(iter(partial(file.readline, 1 << 16), "")), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file ({error}): move it away") from error


def write(stem: str, name: str, rows: Sequence[Row], configs: Sequence[Any]) -> Path:
    """Write rows to ``data/stem/name.csv``, and configurations and provenance to ``name.json`` beside it.

    Raises:
        ValueError: there are no rows, they differ in their columns, or the file at hand has others or is no CSV.
        WriteError: the files could not be written; those at hand are as they were.
    """
    if not rows:
        raise ValueError(f"nothing to write to {name}.csv: the experiment returned no rows")
    columns = list(rows[0])
    for row in rows:
        if list(row) != columns:
            raise ValueError(f"rows of {name}.csv differ in their columns: {columns} and {list(row)}")
    path = data_folder(stem) / f"{name}.csv"
    if path.exists():
        found = columns_of(path) or columns
        if found != columns:
            raise ValueError(
                f"{path} has columns {found}, the new rows have {columns}: remove the file if this is meant"
            )
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    about = {"configurations": [asdict(config) for config in configs], "provenance": provenance()}
    files.write({path: table.getvalue(), path.with_suffix(".json"): json.dumps(about, indent=1) + "\n"})
    return path
