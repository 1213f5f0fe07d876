"""Readers of recorded runs: from files in three forms to the seconds that each rank worked in each iteration.

The form is told by a file's content, never by its name, and a file may be packed with gzip:

- *records* of this package's own exchange, CSV as ``save`` writes it: when each call was entered and returned;
- *CSV* with ``rank,iteration,compute_s`` and, if known, ``exchange_s``;
- *traces* of ``torch.profiler`` (Chrome's JSON), one per rank: work is what lies between two all-to-all calls.

Only durations are compared between ranks, so clocks need not agree. What comes before the first call of a record or
trace is not counted, since nothing says when it began. ``docs/diagnose.md`` explains the choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from blslib.lab.diagnosis.chrome import RankTrace, rank_trace
from blslib.lab.diagnosis.tracefile import Json, Text, TraceError, opened
from blslib.lab.results import files

if TYPE_CHECKING:  # a diagnosis needs no MPI
    from mpi4py import MPI

    from blslib.collective.alltoallv import BoundedLagAlltoallv

RECORD_COLUMNS = ("rank", "iteration", "bound", "slot_bytes", "entered_s", "returned_s")
CSV_COLUMNS = ("rank", "iteration", "compute_s")


@dataclass(frozen=True)
class Trace:
    """A recorded run.

    Attributes:
        work_s: (P, N) float64 seconds of rank r's own work before its call i.
        total_s: measured seconds of these N iterations on the slowest rank; None where only work is known.
        bound: of the exchange that was recorded; 0 is synchronous.
        slot_bytes: room for one block, where it is known.
        form: what the files are.
        notes: what a reader of the diagnosis should know.
    """

    work_s: np.ndarray
    total_s: float | None
    bound: int = 0
    slot_bytes: int | None = None
    form: str = "CSV"
    notes: tuple[str, ...] = ()


def save(path: str | Path, comm: "MPI.Intracomm", exchange: "BoundedLagAlltoallv") -> None:
    """Write the calls of an exchange built with ``record=True``, those of all ranks, as CSV on rank 0. Collective.

    Args:
        path: of the file; ``read`` reads it.
        comm: the communicator that the exchange was built on.
        exchange: may be closed already.

    Raises:
        ValueError: on every rank, if one of them has recorded nothing.
        WriteError: on every rank, if the file cannot be written.
    """
    mine = [(c.iteration, exchange.bound, exchange.slot_bytes, c.entered_s, c.returned_s) for c in exchange.calls]
    everybody = comm.allgather(mine)
    if not all(everybody):
        raise ValueError(f"rank {everybody.index([])} recorded no calls: build the exchange with record=True")
    failure = None
    if comm.rank == 0:
        rows = [(rank, *call) for rank, calls in enumerate(everybody) for call in calls]
        try:
            files.write({Path(path): pd.DataFrame(rows, columns=list(RECORD_COLUMNS)).to_csv(index=False)})
        except Exception as error:
            failure = str(error)
    if failure := comm.bcast(failure):
        raise files.WriteError(failure)


def read(paths: Sequence[str | Path]) -> Trace:
    """Read one recorded run; a progress bar appears on a terminal.

    Args:
        paths: all files of the run, in any order: CSV in one or several, traces one per rank.

    Raises:
        TraceError: a file is missing, empty, cut off or of no known form, ranks or iterations are missing or there
            twice, a number is none, or there is no all-to-all.

    Cost: one pass; memory for the work, and 16 bytes for each operator in a trace.
    """
    tables: list[tuple[Path, pd.DataFrame]] = []
    traces: list[RankTrace] = []
    for path in map(Path, paths):
        with opened(path) as text:
            head = text.peek()
            if head[:1] in ("{", "["):
                traces.append(rank_trace(path, Json(path, text)))
            else:
                tables.append((path, _table(path, head, text)))
    if tables and traces:
        raise TraceError(f"{tables[0][0]} is CSV and {traces[0].path} is JSON: give the files of one run in one form")
    if traces:
        return _from_traces(traces)
    if not tables:
        raise TraceError("no files given: name the CSV of a run, or the traces of all its ranks")
    return _from_tables(tables)


# --- CSV -------------------------------------------------------------------------------------------------------------


def _table(path: Path, head: str, text: Text) -> pd.DataFrame:
    if not head:
        raise TraceError(f"{path} is empty: record the run again")
    columns = [name.strip() for name in head.splitlines()[0].split(",")]
    wanted = RECORD_COLUMNS if "entered_s" in columns else CSV_COLUMNS
    if len(columns) < 2:
        raise TraceError(
            f"{path} is neither CSV nor a trace, it begins with {columns[0][:40]!r}: "
            f"give a CSV with {','.join(CSV_COLUMNS)} or the traces of torch.profiler"
        )
    if missing := [name for name in wanted if name not in columns]:
        raise TraceError(f"{path} has the columns {', '.join(columns)} and lacks {', '.join(missing)}: add them")
    numbers = [name for name in (*wanted, "exchange_s") if name in columns]
    try:
        table = pd.read_csv(text, names=columns, header=0, usecols=numbers, skipinitialspace=True, dtype="float64")
    except (ValueError, pd.errors.ParserError) as error:
        raise TraceError(
            f"{path} has something other than numbers in {', '.join(numbers)} ({error}): mend it"
        ) from None
    for name in numbers:
        values = table[name]
        rules = {"a number >= 0": np.isfinite(values) & (values >= 0)}
        if name in ("rank", "iteration"):
            rules["a whole number"] = values % 1 == 0
        for rule, kept in rules.items():
            if not kept.all():
                row = int(kept.idxmin())
                raise TraceError(f"{path}, line {row + 2}: {name} is {values[row]:g}, must be {rule}")
    if table.empty:
        raise TraceError(f"{path} has no lines below its header: record the run again")
    return table.astype({"rank": int, "iteration": int})


def _from_tables(tables: list[tuple[Path, pd.DataFrame]]) -> Trace:
    forms = {tuple(table.columns): path for path, table in tables}
    if len(forms) > 1:
        (first, a), (second, b) = list(forms.items())[:2]
        raise TraceError(f"{a} has the columns {', '.join(first)}, {b} has {', '.join(second)}: give them the same")
    table = pd.concat([each for _, each in tables], ignore_index=True)
    where = ", ".join(str(path) for path, _ in tables)
    counts = table["rank"].value_counts().sort_index()
    _check_ranks(counts.index.tolist(), None, where)
    if (again := table[table.duplicated(["rank", "iteration"])]).size:
        rank, i = again[["rank", "iteration"]].iloc[0]
        raise TraceError(f"{where}: rank {rank} has iteration {i} twice: give every call one line, once")
    _check_counts({int(rank): (int(count), where) for rank, count in counts.items()}, "iterations")
    here = table["iteration"].value_counts().sort_index()
    if (here < len(counts)).any():
        i = here.index[here < len(counts)][0]
        rank = min(set(counts.index) - set(table["rank"][table["iteration"] == i]))
        raise TraceError(f"{where}: rank {rank} lacks iteration {i}: record the same iterations on every rank")
    if (gap := np.diff(here.index) > 1).any():
        raise TraceError(f"{where}: no rank has iteration {here.index[gap.argmax()] + 1}: record every call")
    table = table.sort_values(["rank", "iteration"])
    by_rank = {name: table[name].to_numpy().reshape(len(counts), -1) for name in table if name.endswith("_s")}
    if "compute_s" in by_rank:
        work_s = by_rank["compute_s"]
        if "exchange_s" not in by_rank:
            return Trace(work_s, None, notes=("no exchange_s in the file: the exchange counts as nothing",))
        return Trace(work_s, float((work_s + by_rank["exchange_s"]).sum(axis=1).max()))
    entered_s, returned_s = by_rank["entered_s"], by_rank["returned_s"]
    if entered_s.shape[1] < 2:
        raise TraceError(f"one call a rank in {where}: work is what lies between two, record more of them")
    work_s = entered_s[:, 1:] - returned_s[:, :-1]
    if (backwards := np.argwhere(np.minimum(work_s, (returned_s - entered_s)[:, 1:]) < 0)).size:
        rank, i = backwards[0]
        raise TraceError(f"{where}: the clock of rank {rank} goes back before or in call {i + 1}: record the run again")
    settings = table[["bound", "slot_bytes"]].drop_duplicates()
    if len(settings) > 1:
        raise TraceError(f"{where}: {len(settings)} different bounds or slots: give the records of one run at a time")
    bound, slot_bytes = (int(value) for value in settings.iloc[0])
    total_s = float((returned_s[:, -1] - returned_s[:, 0]).max())
    return Trace(work_s, total_s, bound, slot_bytes, "records of the exchange")


def _check_ranks(found: list[int], world: int | None, where: str) -> None:
    size = world or max(found) + 1
    if missing := size - sum(rank < size for rank in found):
        first = islice((rank for rank in range(size) if rank not in found), 8)  # a damaged file may name rank 10^12
        listed = ", ".join(map(str, first)) + (" ..." if missing > 8 else "")
        raise TraceError(f"{missing} of {size} ranks missing ({listed}) in {where}: give the files of all ranks")
    if size < 2:
        raise TraceError(f"only one rank in {where}: imbalance is between ranks, give the files of all of them")
    if beyond := [rank for rank in found if rank >= size]:
        raise TraceError(f"rank {beyond[0]} of a run with {size} ranks in {where}: give the files of one run at a time")


def _check_counts(counts: dict[int, tuple[int, str]], what: str) -> None:
    """Every rank has as many iterations as the others; by rank, the number and the file."""
    few, many = (pick(counts, key=lambda rank: counts[rank][0]) for pick in (min, max))
    if counts[few][0] < counts[many][0]:
        raise TraceError(
            f"rank {few} has {counts[few][0]} {what} in {counts[few][1]}, rank {many} has {counts[many][0]} in "
            f"{counts[many][1]}: record the same iterations on every rank, from one barrier to another"
        )


# --- traces of torch.profiler ----------------------------------------------------------------------------------------


def _from_traces(traces: list[RankTrace]) -> Trace:
    notes: tuple[str, ...] = ()
    ranks = [each.rank for each in traces if each.rank is not None]
    if ranks and len(ranks) < len(traces):
        unnamed = next(each.path for each in traces if each.rank is None)
        raise TraceError(f"{unnamed} does not say its rank, others do: record it again after init_process_group")
    if not ranks:
        notes = ("no trace says its rank: numbered in the order given",)
        ranks = list(range(len(traces)))
    by_rank: dict[int, RankTrace] = {}
    for rank, each in zip(ranks, traces, strict=True):
        if rank in by_rank:
            raise TraceError(f"rank {rank} is in {by_rank[rank].path} and in {each.path}: give each rank once")
        by_rank[rank] = each
    worlds = {each.world: each.path for each in traces}
    if len(worlds) > 1:
        told = " and ".join(f"{world} in {path}" for world, path in worlds.items())
        raise TraceError(f"different numbers of ranks, {told}: give the traces of one run at a time")
    _check_ranks(sorted(ranks), traces[0].world, ", ".join(str(each.path) for each in traces))
    if others := sum(each.others for each in traces):
        notes += (f"{others} other collectives lie between the calls: what they waited for counts as work",)
    counts = {rank: (len(each.work_s) + 1, str(each.path)) for rank, each in by_rank.items()}
    _check_counts(counts, "all-to-all calls")
    work_s = np.array([by_rank[rank].work_s for rank in sorted(by_rank)])
    return Trace(work_s, max(each.total_s for each in traces), form="torch traces", notes=notes)
