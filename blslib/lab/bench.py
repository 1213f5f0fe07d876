"""The benches behind ``python -m blslib bench NAME``: experiments on ranks of their own, and a table of their rows."""

import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

from blslib import files
from blslib.collective.mpi import MPI
from blslib.lab import experiments, found
from blslib.lab.options import Given, Row
from blslib.signals import undisturbed

TIMEOUT_S = 3600.0
TOGETHER_S = 5.0
"""Seconds in which all ranks meet that refuse for want of memory."""


def benches() -> dict[str, ModuleType]:
    """The experiments that are benches, by name."""
    modules = {}
    for name in found.names(experiments):
        try:
            modules[name] = found.load(experiments, name)
        except Exception as error:  # in a file of the user's, or none of the commands would work
            print(f"bench {name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
    return {name: module for name, module in modules.items() if hasattr(module, "plan")}


def about(module: ModuleType) -> str:
    """The first line of its docstring."""
    return (module.__doc__ or "no help").strip().splitlines()[0].rstrip(".")


def bench(name: str, given: Given) -> list[Row]:
    """Start ranks, run a bench on them, and return its rows.

    Raises:
        RuntimeError: there is no room for so many ranks, or they failed, and have told the terminal why, or there was
            nothing to measure.
        TimeoutError: they did not end within an hour.
    """
    # Here, since whoever asks for help needs none of it.
    from blslib.lab.ranks.launch import check_room, run_ranks

    module = found.load(experiments, name)
    check_room(given.ranks)
    with ExitStack() as stack:
        with undisturbed():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bls-"))
        plan, out = Path(folder, "plan"), Path(folder, "rows")
        files.write({plan: pickle.dumps((name, module.plan(given)))})
        command = ["-m", "blslib.lab.bench", str(plan), str(out)]
        done = run_ranks(given.ranks, command, timeout_s=TIMEOUT_S, capture=False)
        if done.returncode or not out.exists():
            raise RuntimeError(f"the ranks of bench {name} ended with code {done.returncode}, see above")
        rows: list[Row] = pickle.loads(out.read_bytes())
    if not rows:
        raise RuntimeError(f"bench {name} measured nothing: it takes none of what was named")
    return rows


def on_ranks(plan: str, out: str) -> None:
    """What each rank runs: every step of the plan; rank 0 writes the rows and shows the progress."""
    import tqdm

    comm = MPI.COMM_WORLD
    rows: list[Row] = []
    name, steps = pickle.loads(Path(plan).read_bytes())
    run = found.load(experiments, name).run
    for config in tqdm.tqdm(steps, disable=comm.rank > 0 or not sys.stderr.isatty(), unit="step", leave=False):
        rows += run(comm, config)
    if comm.rank == 0:
        files.write({Path(out): pickle.dumps(rows)})


def table(name: str, rows: Sequence[Row]) -> str:
    """The printed table: medians, each with its 95 % interval in brackets."""
    import pandas as pd

    from blslib.lab.rows import summary

    module = found.load(experiments, name)
    sums = getattr(module, "summarise", summary if "repeat" in rows[0] else pd.DataFrame)
    lines = sums(rows).astype(object).to_dict("records")
    shown = {column: [_cell(line, column) for line in lines] for column in module.COLUMNS.split()}
    return pd.DataFrame(shown).to_string(index=False)


def _cell(line: Row, column: str) -> str:
    value = line.get(column)
    if value is None or value != value:
        return ""
    if f"{column}_low" in line:
        low, high = line[f"{column}_low"], line[f"{column}_high"]
        if low < high:
            return f"{value:.4g} [{low:.4g} to {high:.4g}]"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def heading(name: str, given: Given) -> str:
    """What a reader of the table must know: what, where, with which settings."""
    from blslib.lab.rows import provenance

    machine = provenance()
    settings = " ".join(f"{key}={value}" for key, value in machine["mpi_settings"].items() if key.startswith("MPIR"))
    return (
        f"bench {name}: {about(found.load(experiments, name))}\n"
        f"{given.ranks} ranks on {machine['cores']} cores ({machine['processor']}), {machine['mpi']}, {settings}\n"
        "median [95 % interval] over the repeats, contenders interleaved in one run, in an order drawn for each repeat"
    )


def abort() -> None:
    """Say what went wrong, and end all ranks: others may be waiting for this one."""
    traceback.print_exc()
    sys.stderr.flush()
    time.sleep(0.5)  # or the launcher may be gone before it has passed that on
    MPI.COMM_WORLD.Abort(1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    apart = MPI.COMM_WORLD.Dup()  # no call of an experiment meets one here
    try:
        on_ranks(*sys.argv[1:])
    except files.WriteError as told:  # when all is done
        sys.exit(str(told))
    except MemoryError as told:
        # Exchanges refuse together, and one line tells it; of one rank's own shortage the others know nothing.
        together, deadline_s = apart.Ibarrier(), time.monotonic() + TOGETHER_S
        while not together.Test():
            time.sleep(0.01)
            if time.monotonic() > deadline_s:
                abort()
        sys.exit(1 if MPI.COMM_WORLD.rank else str(told))
    except Exception:
        abort()
