"""Rows: what every experiment returns, the one step that sums them up, and the one place that writes them.

An experiment is ``run(comm, config)``: a frozen dataclass in, a list of flat rows out, one for each contender, bound
and repeat. What stands left of the column ``repeat`` says what was run, what stands right of it was measured. Names
carry their units.
"""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from blslib import __version__, files
from blslib.collective.mpi import MPI
from blslib.lab.compare.intervals import interval
from blslib.lab.options import BY_GROUP, Row

Rows: TypeAlias = Sequence[Row] | pd.DataFrame

OUT_VARIABLE = "BLS_OUT"
"""Environment variable with the folder for ``data/`` and ``figures/``; empty for those of the repository."""


def over(rows: Rows, column: str, **other: Any) -> pd.Series:
    """A measured column, row by row, of another contender or bound in the same setting and repeat; NaN where none is.

    Args:
        rows: of an experiment.
        column: a measured one.
        other: what is different of the other, such as ``contender="mpi"`` or ``bound=0``.
    """
    table = pd.DataFrame(rows)
    keys = [name for name in settings_of(table) if name not in other] + ["repeat"]
    here = table[np.logical_and.reduce([table[name] == value for name, value in other.items()])]
    return table[keys].merge(here[[*keys, column]], "left", on=keys)[column].set_axis(table.index)


def derived(rows: Rows) -> pd.DataFrame:
    """Rows with what follows from them, paired within each repeat.

    ==================================  ===========================================================================
    speedup                             MPI_Alltoallv's time over this one's: exchange and lag together
    lag_effect                          time of the same contender at bound 0 over this one's, each over the work of
                                        its busiest rank: lag does not change what there is to do, noise does
    expected_low, expected_high         what the theory expects of lag_effect from the work of the run at bound 0: if
                                        the exchange stays as exposed as there, and if lag hides all of it
    ratio                               measured time over predicted time
    over_work                           measured time over the work of the busiest rank
    work_over_alone                     the work of the busiest rank over that of the same contender at bound 0
    over_groups                         time of the same contender at bound 0 with whole groups of tables over this
    load_balance, serialisation,        POP's efficiencies: the mean over the busiest rank's work, that over the time
    transfer                            with a free exchange, and that over the time measured
    share_of_raw, above_raw_us,         of ``time_us``: beside MPI_Alltoallv in a bare loop, and beside no exchange at
    above_floor_us                      all
    speedup_over_gloo, gain_over_gloo   gloo's ``time_us`` over this one's: of gloo with one request at a time, and of
                                        gloo with as many in flight as this one
    predicted_us, expected_gain         time_us by the max-plus law where ranks sleep ``slept_us`` in turn and a call
                                        costs what it does without (the longer of two ways through the run: from a
                                        rank that sleeps to the next one, or along one rank), and the gain that follows
    ==================================  ===========================================================================
    """
    table = pd.DataFrame(rows).copy()
    if "foreseen_s" in table:
        measured_s, predicted_s, limit_s = (table[name] for name in ("measured_s", "predicted_s", "limit_s"))
        alone_s = over(table, "measured_s", bound=0)
        masked_s = over(table, "predicted_s", bound=0) - table["foreseen_s"]
        table["speedup"] = over(table, "measured_s", contender="mpi", bound=0) / measured_s
        table["lag_effect"] = alone_s / over(table, "limit_s", bound=0) / (measured_s / limit_s)
        table["expected_low"] = alone_s / (alone_s - masked_s)
        table["expected_high"] = np.maximum(alone_s / table["foreseen_s"], table["expected_low"])
        table["ratio"] = measured_s / predicted_s
        table["over_work"] = measured_s / limit_s
        table["work_over_alone"] = limit_s / over(table, "limit_s", bound=0)
        table["load_balance"] = table["useful_s"] / limit_s
        table["serialisation"] = limit_s / predicted_s
        table["transfer"] = predicted_s / measured_s
        if "strategy" in table:
            table["over_groups"] = over(table, "measured_s", bound=0, strategy=BY_GROUP) / measured_s
    if "time_us" in table:
        table["share_of_raw"] = table["time_us"] / over(table, "time_us", contender="raw", bound=0)
        for name in ("raw", "floor"):
            table[f"above_{name}_us"] = table["time_us"] - over(table, "time_us", contender=name, bound=0)
        table["speedup_over_gloo"] = over(table, "time_us", contender="gloo", bound=0) / table["time_us"]
        table["gain_over_gloo"] = over(table, "time_us", contender="gloo") / table["time_us"]
    if "slept_us" in table:
        call_us, slept_us, apart = over(table, "time_us", delay_ms=0.0), table["slept_us"], table["bound"] + 1
        table["predicted_us"] = np.maximum((call_us + slept_us) / apart, call_us + slept_us / table["ranks"])
        table["expected_gain"] = over(table, "predicted_us", contender="gloo") / table["predicted_us"]
    return table


def summary(rows: Rows) -> pd.DataFrame:
    """One line for each setting, in their order: the medians of what was measured and of what is ``derived``.

    ``repeats`` counts them; of a number ``x`` there are the ends ``x_low`` and ``x_high`` of the 95 % interval of the
    median as well, of a truth whether it always held. What is no number, or is missing, is left out.
    """
    table = derived(rows)
    keys = settings_of(table)
    lines = []
    for setting, group in table.groupby(keys, sort=False, dropna=False):
        line: Row = dict(zip(keys, setting, strict=True)) | {"repeats": len(group)}
        for name in table.columns[len(keys) + 1 :]:
            if pd.api.types.is_bool_dtype(table[name]):
                line[name] = bool(group[name].all())
            elif pd.api.types.is_numeric_dtype(table[name]) and not (values := group[name].dropna()).empty:
                line |= interval(values).columns(name)
        lines.append(line)
    return pd.DataFrame(lines)


def settings_of(table: pd.DataFrame) -> list[str]:
    """The columns that say what was run."""
    return list(table.columns[: list(table.columns).index("repeat")])


def root() -> Path:
    """Where ``data/`` and ``figures/`` are written: ``BLS_OUT`` if set, else ``out/`` of the repository.

    The reference run lies in the repository itself; the driver alone names that place.
    """
    return Path(os.environ.get(OUT_VARIABLE) or Path(__file__).resolve().parents[2] / "out")


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


def write(stem: str, name: str, rows: Sequence[Row], configs: Sequence[Any]) -> Path:
    """Write rows to ``data/stem/name.csv``, and configurations and provenance to ``name.json`` beside it.

    Raises:
        ValueError: there are no rows, or they differ in their columns.
        WriteError: the files could not be written; those at hand are as they were.
    """
    if not rows:
        raise ValueError(f"nothing to write to {name}.csv: the experiment returned no rows")
    columns = list(rows[0])
    for row in rows:
        if list(row) != columns:
            raise ValueError(f"rows of {name}.csv differ in their columns: {columns} and {list(row)}")
    path = data_folder(stem) / f"{name}.csv"
    told = [{k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    table = pd.DataFrame(told, dtype=object).to_csv(index=False, lineterminator="\r\n")
    about = {"configurations": [asdict(config) for config in configs], "provenance": provenance()}
    files.write({path: table, path.with_suffix(".json"): json.dumps(about, indent=1) + "\n"})
    return path
