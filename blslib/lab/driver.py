"""Run the notebooks, in order, on one cluster, and end with the table of claims: ``python -m blslib.lab.driver``.

Called by ``reproduce.sh``. The driver owns the cluster and the folder of results; a notebook that stops half-way can
therefore leave no rank behind. A full run writes to ``data/`` and ``figures/``, a quick one to ``out/``; the executed
notebooks go to ``out/notebooks/`` in both cases. A notebook that is run by hand writes to ``out/``, too: what is
committed is the reference run, and nobody writes that but the driver.
"""

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil

from blslib import files
from blslib.lab.claims import Claim, headlines, markdown, table
from blslib.lab.ranks.launch import end_trees, rank_environment, survivors
from blslib.lab.ranks.progress import TERMINAL_VARIABLE
from blslib.lab.rows import OUT_VARIABLE, root

REPOSITORY = Path(__file__).resolve().parents[2]
RANKS = 4
CELL_TIMEOUT_S = 1800


class StopError(Exception):
    """A reason to stop that the user can act upon: printed without a traceback."""


def choose(folder: Path, stems: Sequence[str]) -> list[Path]:
    """The notebooks to run, in their order: those named, or all.

    Raises:
        StopError: a stem names none of them, or there are none.
    """
    known = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]-*.ipynb"))}
    if not known:
        raise StopError(f"no notebooks in {folder}")
    if unknown := [stem for stem in stems if stem not in known]:
        raise StopError(f"no notebook {', '.join(unknown)}: there are {', '.join(known)}")
    return [path for stem, path in known.items() if not stems or stem in stems]


def where_results_go() -> str:
    """A line for a notebook's reader."""
    return f"results go to {root()}" + ", the reference run is left as it is" * (root() != REPOSITORY)


def execute(notebook: Path, executed: Path, parameters: dict[str, Any]) -> None:
    """Run one notebook with the given parameters and keep the executed copy.

    Args:
        notebook: with a cell tagged ``parameters`` that knows each of them.
        executed: where the copy goes; written after every cell, so that it shows how far a failed run came.
        parameters: by name.

    Raises:
        StopError: a parameter is unknown to the notebook, a cell failed, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    try:
        known = papermill.inspect_notebook(str(notebook))
    except ValueError as error:  # it names no kernel, for one
        raise StopError(f"{notebook.name}: {error}") from None
    if unknown := set(parameters) - set(known):  # of one that nothing reads papermill only warns
        raise StopError(f"{notebook.name}: its cell tagged 'parameters' has no {', '.join(sorted(unknown))}")
    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters=parameters,
            kernel_name="python3",
            language="python",
            cwd=str(notebook.parent),
            progress_bar={"desc": notebook.stem, "unit": "cell"},
            extra_arguments=["--log-level=ERROR"],
            execution_timeout=CELL_TIMEOUT_S,
        )
    except papermill.PapermillExecutionError as error:
        reason = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        raise StopError(f"{notebook.name} stopped in {reason}\nthe executed notebook is {executed}") from None
    except (CellTimeoutError, DeadKernelError) as error:
        raise StopError(f"{notebook.name} stopped: {error}\nthe executed notebook is {executed}") from None


def run(notebooks: Sequence[Path], out: Path, quick: bool) -> dict[str, float]:
    """Run the notebooks on one cluster of our own; returns the minutes that each took, by its stem.

    Args:
        notebooks: in the order in which to run them.
        out: folder whose ``notebooks/`` takes the executed copies.
        quick: the parameter of that name.

    Raises:
        StopError: the cluster did not come up, or a notebook failed; those after it are not run.
    """
    from blslib.lab.ranks.cluster import CLUSTER_VARIABLE, Engines

    try:
        ranks = Engines(RANKS)
    except (RuntimeError, FileNotFoundError) as error:
        raise StopError(str(error)) from None
    minutes = {}
    with ranks:
        # A kernel called python3 in the user's home would run another Python than this one; hence JUPYTER_DATA_DIR.
        folders = {"IPYTHONDIR": ranks.folder, "JUPYTER_DATA_DIR": ranks.folder}
        os.environ |= {CLUSTER_VARIABLE: ranks.connection_file, **folders}
        for notebook in notebooks:
            started_s = time.monotonic()
            execute(notebook, out / "notebooks" / notebook.name, {"quick": quick})
            minutes[notebook.stem] = (time.monotonic() - started_s) / 60
            print(f"{notebook.stem}: done in {60 * minutes[notebook.stem]:.0f} s", flush=True)
    return minutes


def claims(root: Path, notebooks: Sequence[Path]) -> list[Claim]:
    """What the notebooks found, from the ``claims.json`` each may have written under ``root/data``."""
    files = [root / "data" / notebook.stem / "claims.json" for notebook in notebooks]
    return [claim for file in files if file.exists() for claim in json.loads(file.read_text())]


def highest_rates(path: Path) -> str:
    """The table of ``serving.highest_rates`` in Markdown, from its file: one line for each contender and bound."""
    lines = ["| | batches a second | predicted |", "|---|---|---|"]
    for row in pd.read_csv(path).itertuples():
        name = "`MPI_Alltoallv`" if row.contender == "mpi" else f"bounded lag, bound {row.bound}"
        measured = f"{row.rate_per_s:.0f} ({row.rate_per_s_low:.0f} to {row.rate_per_s_high:.0f})"
        lines.append(f"| {name} | {measured} | {row.predicted_per_s:.0f} |")
    return "\n".join(lines)


def fill(page: Path, mark: str, text: str) -> None:
    """Put a text between ``<!-- mark -->`` and ``<!-- /mark -->``, so that no number of a page is typed by hand.

    Raises:
        StopError: the page has no such place, or more than one.
    """
    between = rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)"
    filled, places = re.subn(between, lambda marks: f"{marks[1]}{text}{marks[2]}", page.read_text(), flags=re.DOTALL)
    if places != 1:
        raise StopError(f"{page} has {places} places for {mark}: it needs <!-- {mark} --> and <!-- /{mark} --> once")
    files.write({page: filled})


def gallery(notebooks: Sequence[Path]) -> str:
    """Every picture of a notebook's own in its text, with its words, in Markdown."""
    lines = []
    for notebook in notebooks:
        cells = nbformat.read(notebook, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        lines.append(f"\n## [{notebook.stem}](../notebooks/{notebook.name})\n")
        for words, name in re.findall(r"!\[([^]]+)\]\(\.\./figures/(\d[^)]+)\)", text):
            lines.append(f"![{words}]({name})\n\n{words}\n")
    return "\n".join(lines)


def fill_pages(repository: Path, minutes: dict[str, float]) -> None:
    """Write what the reference run found into README.md and REPRODUCING.md, and its pictures into figures/README.md.

    Args:
        repository: with the pages, and ``data/``.
        minutes: that each of the notebooks took that were run, by its stem.

    Raises:
        StopError: a page has no place for something.
    """
    readme, reproducing = repository / "README.md", repository / "REPRODUCING.md"
    notebooks = choose(repository / "notebooks", [])
    found = claims(repository, notebooks)
    fill(repository / "figures" / "README.md", "gallery", gallery(notebooks))
    fill(readme, "claims", f"\n{markdown(headlines(found), reasons=False)}\n")
    fill(reproducing, "claims", f"\n{markdown(found)}\n")
    if (rates := repository / "data" / "05-serving" / "highest-rates.csv").exists():
        fill(readme, "rates", f"\n{highest_rates(rates)}\n")
    for stem, spent in minutes.items():
        fill(reproducing, f"minutes {stem}", f"{spent:.1f}")


def left_behind(grace_s: float = 5.0) -> list[str]:
    """Command lines of our children that are still there after ``grace_s`` seconds; ends them."""
    left = survivors(psutil.Process().children(recursive=True), grace_s)
    names = [" ".join(child.cmdline()) for child in left]
    end_trees(left)
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, report; 0 when every notebook ran to its end."""
    parser = argparse.ArgumentParser(prog="reproduce.sh", description="Run the notebooks, print the table of claims.")
    parser.add_argument("stems", nargs="*", metavar="NN-name", help="notebooks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="small parameters, results in out/")
    parser.add_argument("--notebooks", type=Path, metavar="FOLDER", help="folder to take them from")
    options = parser.parse_args(arguments)
    chosen_out = os.environ.get(OUT_VARIABLE)
    out = Path(chosen_out).absolute() if chosen_out else REPOSITORY / "out"
    results = out if options.quick or chosen_out else REPOSITORY
    started_s = time.monotonic()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ |= rank_environment() | {
        OUT_VARIABLE: str(results),
        "IPP_NONINTERACTIVE": "1",  # no widgets and no bars inside the executed notebooks
    }
    if sys.stderr.isatty():
        os.environ[TERMINAL_VARIABLE] = os.ttyname(sys.stderr.fileno())
    try:
        notebooks = choose(options.notebooks or REPOSITORY / "notebooks", options.stems)
        print(f"running {len(notebooks)} notebook{'s' * (len(notebooks) > 1)}, results go to {results}", flush=True)
        minutes = run(notebooks, out, options.quick)
        if found := claims(results, notebooks):
            print(table(found))
            if options.quick:
                print("small parameters: this was a rehearsal, and decides nothing")
        if results == REPOSITORY:
            fill_pages(REPOSITORY, minutes)
        print(f"all done in {(time.monotonic() - started_s) / 60:.1f} minutes", flush=True)
        code = 0
    except StopError as stop:
        print(f"\n{stop}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    if left := left_behind():
        print("had to end what was left behind:", *left, sep="\n  ", file=sys.stderr)
        code = code or 1
    return code


if __name__ == "__main__":
    sys.exit(main())
