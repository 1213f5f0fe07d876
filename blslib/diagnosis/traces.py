"""Readers of recorded runs: from files in three forms to the seconds that each rank worked in each iteration.

The form is told by a file's content, never by its name, and a file may be packed with gzip:

- *records* of this package's own exchange, CSV as ``save`` writes it: when each call was entered and returned;
- *CSV* with ``rank,iteration,compute_s`` and, if known, ``exchange_s``, other separators and units of time included;
- *traces* of ``torch.profiler`` (Chrome's JSON), one per rank: work is what lies between two all-to-all calls.

Only durations are compared between ranks, so clocks need not agree. What comes before the first call of a record or
trace is not counted, since nothing says when it began. ``docs/diagnose.md`` explains the choices.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from blslib import files
from blslib.diagnosis.chrome import RankTrace, rank_trace
from blslib.diagnosis.tracefile import LATEST_S, OtherFile, TraceError, listed, opened

RECORD_COLUMNS = ("rank", "iteration", "bound", "slot_bytes", "entered_s", "returned_s")
CSV_COLUMNS = ("rank", "iteration", "compute_s")
UNITS = {"ns": (1e-9, "nanoseconds"), "us": (1e-6, "microseconds"), "ms": (1e-3, "milliseconds"), "s": (1.0, "seconds")}
"""What a column of times is in, by the end of its name; where it is there in several, the last one is taken."""
LONG_S = 60.0
"""A median of work from which on its unit is doubted: an iteration of a recommender takes milliseconds, rarely seconds,
and those of large language models that others published (``data/09-diagnose/stragglers``) take up to 20."""

_TIMES = ("compute", "exchange", "entered", "returned")
_SEPARATORS = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'", None: "white space"}
_ALSO_CALLED = {
    "rank": ("worker", "process", "proc", "pid", "node", "device", "gpu", "host"),
    "iteration": ("iter", "step", "batch", "index", "call"),
    "compute_s": ("work", "busy", "time", "duration", "elapsed", "seconds", "forward"),
    "exchange_s": ("comm", "communication", "alltoall", "a2a", "wait"),
    "entered_s": ("enter", "begin", "start"),
    "returned_s": ("return", "end", "stop"),
}


@dataclass(frozen=True)
class Trace:
    """A recorded run.

    Attributes:
        work_s: (P, N) float64 seconds of rank r's own work before its call i.
        total_s: measured seconds of these N iterations on the slowest rank; None where only work is known.
        bound: of the exchange that was recorded; 0 is synchronous.
        slot_bytes: room for one block, where it is known.
        form: what the files are.
        meets: (N,) bool, in which iterations all ranks wait for each other in something else; None: not known.
        meeting: its name.
        recorded: of ranks (sampled), the numbers of those in ``work_s``; empty: all of them, from 0.
        world: ranks of the run, at least; 0: those in ``work_s``.
        notes: what a reader of the diagnosis should know.
        calls_per_batch: iterations that make a batch: a program may exchange several times for one.
        paths: of the files that it was read from.
    """

    work_s: np.ndarray
    total_s: float | None
    bound: int = 0
    slot_bytes: int | None = None
    form: str = "CSV"
    meets: np.ndarray | None = None
    meeting: str = ""
    recorded: tuple[int, ...] = ()
    world: int = 0
    notes: tuple[str, ...] = ()
    calls_per_batch: int = 1
    paths: tuple[Path, ...] = ()


def save(path: str | Path, comm: Any, clock: Any) -> None:
    """Write the posts that a ``Clock`` has noted, those of all ranks, as CSV on rank 0. Collective.

    Args:
        path: of the file; ``read`` reads it.
        comm: the communicator that the exchange was built on.
        clock: ``blslib.collective.clock.Clock`` around that exchange, which may be closed already.

    Raises:
        ValueError: on every rank, if one of them has noted no post.
        WriteError: on every rank, if the file cannot be written.
    """
    posts = [call for call in clock.calls if call.kind == "post"]
    mine = [  # of slots a baseline has none
        (each.iteration, clock.bound, getattr(clock.exchange, "slot_bytes", 0), each.entered_s, each.returned_s)
        for each in posts
    ]
    everybody = comm.allgather(mine)
    if not all(everybody):
        raise ValueError(f"rank {everybody.index([])} noted no post: give the clock through which it posts")
    failure = None
    if comm.rank == 0:
        rows = [(rank, *call) for rank, calls in enumerate(everybody) for call in calls]
        try:
            files.write({Path(path): pd.DataFrame(rows, columns=list(RECORD_COLUMNS)).to_csv(index=False)})
        except Exception as error:
            failure = str(error)
    if failure := comm.bcast(failure):
        raise files.WriteError(failure)


def read(paths: Sequence[str | Path], *, sampled: bool = False) -> Trace:
    """Read one recorded run; a progress bar appears on a terminal.

    Args:
        paths: all files of the run, in any order: CSV in one or several, traces one per rank; or folders of them, in
            which files of other forms are left out, and said so in the notes.
        sampled: some ranks or iterations were not recorded: number those that were from 0 on, and say so in the notes.

    Raises:
        TraceError: a file is missing, empty, cut off or, unless a folder has it, of no known form, a folder holds
            nothing else, ranks or iterations are missing or there twice, a number is none, or there is no all-to-all.

    Cost: one pass; memory for the work, and 16 bytes for each operator in a trace.
    """
    tables: list[tuple[Path, pd.DataFrame]] = []
    traces: list[RankTrace] = []
    left: list[str] = []
    try:
        for path, named in listed(paths):
            try:
                with opened(path) as (head, text):
                    if head[:1] in ("{", "["):
                        traces.append(rank_trace(path, text, "item" if head[0] == "[" else "traceEvents.item"))
                    else:
                        tables.append((path, _table(path, head, text)))
            except OtherFile as error:
                if named:
                    raise
                left.append(str(error).encode(errors="backslashreplace").decode())  # names need not be UTF-8
    except OSError as error:
        raise TraceError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    if tables and traces:
        raise TraceError(f"{tables[0][0]} is CSV and {traces[0].path} is JSON: give the files of one run in one form")
    if not (tables or traces):
        cure = _first(left, len(left), "; ") or "name the CSV of a run, or the traces of all its ranks, or their folder"
        raise TraceError(f"no recorded run in {', '.join(map(str, paths)) or 'no files'}: {cure}")
    read = _from_traces(traces, sampled) if traces else _from_tables(tables, sampled)
    causes = _first((each.rpartition(": ")[0] for each in left), len(left), "; ")
    notes = (*read.notes, f"{len(left)} left out: {causes}") if left else read.notes
    return replace(read, notes=notes, paths=tuple(each[0] for each in traces or tables))


# --- CSV -------------------------------------------------------------------------------------------------------------


def _table(path: Path, head: str, text: TextIO) -> pd.DataFrame:
    if not head:
        raise TraceError(f"{path} is empty: record the run again")
    if "\0" in head[:1000]:
        raise OtherFile(f"{path} is no text in UTF-8: save it as that, or unpack it")
    known = {*CSV_COLUMNS, *RECORD_COLUMNS}
    by_mark = {mark: [name.strip(' \t"') for name in head.splitlines()[0].split(mark)] for mark in _SEPARATORS}
    # Known names decide, so that what commas separate is never read otherwise: csv.Sniffer goes by how often each
    # character comes, and pandas asks it only where it takes its slow parser.
    mark = max(by_mark, key=lambda mark: (len(known & {*by_mark[mark]}), bool(mark) and len(by_mark[mark]) > 1))
    columns = by_mark[mark]
    called = {f"{stem}_s": f"{stem}_{unit}" for stem in _TIMES for unit in UNITS if f"{stem}_{unit}" in columns}
    renamed = {name: new for new, name in called.items()}  # what has no name gets its number, since all must differ
    columns = [renamed.get(name, name or str(i)) for i, name in enumerate(columns)]
    wanted = RECORD_COLUMNS if "entered_s" in columns else CSV_COLUMNS
    if len(columns) < 2:
        cure = f"give a CSV with {','.join(CSV_COLUMNS)} or the traces of torch.profiler"
        raise OtherFile(f"{path} is neither CSV nor a trace, it begins with {columns[0][:40]!r}: {cure}")
    if missing := [name for name in wanted if name not in columns]:
        told = ", ".join(columns[:12]) + (" ..." if len(columns) > 12 else "")
        cures = [_meant(columns, name) or f"add {name}" for name in missing]
        raise OtherFile(f"{path} has the columns {told} and lacks {', '.join(missing)}: {', '.join(cures)}")
    if again := {name for name in wanted if columns.count(name) > 1}:
        raise TraceError(f"{path} has the column {min(again)} {columns.count(min(again))} times: leave one")
    second = head.splitlines()[1:2]  # whose fields pandas would cut off, such as those of 0,10 for 0.10, or an index
    fields = next(csv.reader(second, delimiter=mark), []) if mark else " ".join(second).split()
    if any(fields[len(columns) :]):
        raise TraceError(f"{path}, line 2: more fields than the header has: name all, write decimals with a point")
    comma = mark in (";", "\t") and re.search(rf'(?i)[\n{mark}]"?\d+,\d+(e[-+]?\d+)?"?\s*([\n{mark}]|$)', head)
    numbers = [name for name in (*wanted, "exchange_s") if name in columns]
    try:
        about = {"names": columns, "header": 0, "index_col": False, "sep": mark or r"\s+"}
        table = pd.read_csv(text, **about, decimal="," if comma else ".", skipinitialspace=True, low_memory=False)
        table = table[numbers]  # all are read, or pandas would not miss one that a later line has too many
    except (ValueError, pd.errors.ParserError) as error:
        if "on source failed" in str(error):  # all that pandas leaves of a Ctrl-C that met it in a read
            raise KeyboardInterrupt from None
        raise TraceError(f"{path} is no CSV of {len(columns)} columns ({str(error).strip()}): mend it") from None
    if table.empty:
        raise TraceError(f"{path} has no lines below its header: record the run again")
    for name in numbers:
        told, here = table[name], called.get(name, name)
        values = pd.to_numeric(told, errors="coerce").astype("float64")
        if pd.api.types.is_bool_dtype(told):
            values[:] = np.nan
        if name in called:
            size_s, unit = UNITS[here.rpartition("_")[2]]
            values *= size_s
            rule, kept = f"a number of {unit} from 0 to {LATEST_S / size_s:g}", values.between(0, LATEST_S)
        else:
            rule, kept = "a whole number from 0 to 2^53", values.between(0, 2**53) & (values % 1 == 0)
        if not kept.all():
            row = int(kept.idxmin())
            shown = ascii(str(told[row])[:40]).strip("'")
            raise TraceError(f"{path}, line {row + 2}: {here} is {shown}, must be {rule}")
        table[name] = values if name in called else values.astype("int64")
    notes = [f"separated by {_SEPARATORS[mark]}{', decimals with a comma' if comma else ''}"] if mark != "," else []
    notes += [f"{name} converted to seconds" for name in called.values() if not name.endswith("_s")]
    table.attrs |= {"hint": _meant(columns, "exchange_s"), "notes": notes, "work": called.get("compute_s")}
    return table


def _meant(columns: Sequence[str], wanted: str) -> str:
    """Which of these columns is likely to be the one wanted, as advice; "" if none is."""
    stem = wanted.removesuffix("_s")
    names = (wanted, stem, *_ALSO_CALLED.get(wanted, ()))
    for name in columns[:100]:
        *words, last = parts = re.findall("[a-z0-9]+", name.casefold()) or [""]
        if name not in (*CSV_COLUMNS, *RECORD_COLUMNS, "exchange_s") and any(
            get_close_matches(word, names, 1, 0.85) for word in (name.casefold(), "".join(parts), *parts)
        ):
            return f"rename {name} to {f'{stem}_{last}' if stem in _TIMES and words and last in UNITS else wanted}"
    return ""


def _from_tables(tables: list[tuple[Path, pd.DataFrame]], sampled: bool) -> Trace:
    forms = {tuple(table.columns): path for path, table in tables}
    if len(forms) > 1:
        (first, a), (second, b) = list(forms.items())[:2]
        raise TraceError(f"{a} has the columns {', '.join(first)}, {b} has {', '.join(second)}: give them the same")
    where = _first((path for path, _ in tables), len(tables))
    by_rank, some = _complete(pd.concat([each for _, each in tables], ignore_index=True), where, None, sampled)
    if "entered_s" in by_rank:
        entered_s, returned_s = by_rank["entered_s"], by_rank["returned_s"]
        by_rank |= {"compute_s": entered_s[:, 1:] - returned_s[:, :-1], "exchange_s": (returned_s - entered_s)[:, 1:]}
        if not by_rank["compute_s"].size:
            raise TraceError(f"one call a rank in {where}: work is what lies between two, record more of them")
        if (backwards := np.argwhere(np.minimum(by_rank["compute_s"], by_rank["exchange_s"]) < 0)).size:
            rank, i = backwards[0]
            fault = f"the clock of rank {rank} goes back before or in call {i + 1}"
            raise TraceError(f"{where}: {fault}: record the run again")
        for name in ("bound", "slot_bytes"):
            if len(values := np.unique(by_rank[name])) > 1:
                raise TraceError(f"{where}: {len(values)} values of {name}: give the records of one run at a time")
            some[name] = int(values[0])
        some["slot_bytes"] = some["slot_bytes"] or None
        some["form"] = "records of the exchange"
    work_s, total_s = by_rank["compute_s"], None
    if "exchange_s" in by_rank:
        total_s = float((work_s + by_rank["exchange_s"]).sum(axis=1).max())
    else:
        hint = f" ({tables[0][1].attrs['hint']}?)" if tables[0][1].attrs["hint"] else ""
        some["notes"] += (f"no exchange_s in the file{hint}: the exchange counts as nothing",)
    some["notes"] += tuple(dict.fromkeys(note for _, table in tables for note in table.attrs["notes"]))
    if (median_s := float(np.median(work_s))) >= LONG_S and (column := tables[0][1].attrs["work"]):
        told = f"{column} has a median of {median_s:,.0f} seconds an iteration: if these are milliseconds, rename the "
        some["notes"] += (f"{told}column compute_ms, and if they are microseconds, compute_us",)
    return Trace(work_s, total_s, **some)


def _complete(
    table: pd.DataFrame, where: str, world: int | None, sampled: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(P, N) matrices of the columns, once every rank is known to have every iteration, and what a ``Trace`` has to say
    of its ranks and iterations: that they are all, or which."""
    table = table.sort_values(["rank", "iteration"])
    if (again := table[table.duplicated(["rank", "iteration"])]).size:
        rank, i = again[["rank", "iteration"]].iloc[0]
        raise TraceError(f"{where}: rank {rank} has iteration {i} twice: give every call of every rank once")
    counts, here = table["rank"].value_counts(sort=False), np.unique(table["iteration"])
    found = counts.index.tolist()
    size = world or found[-1] + 1
    missing = size - sum(rank < size for rank in found)
    some: dict[str, Any] = {"notes": ()}
    if missing and not sampled:
        listed = _first((rank for rank in range(size) if rank not in counts), missing)
        raise TraceError(
            f"{missing} of {size} ranks missing ({listed}) in {where}: give the files of all ranks, or say --sampled"
        )
    if found[-1] >= size:
        raise TraceError(f"rank {found[-1]} of a run with {size} ranks in {where}: give the files of one run at a time")
    if len(found) < 2:
        raise TraceError(f"only one rank in {where}: imbalance is between ranks, give the files of all of them")
    if counts[few := counts.idxmin()] < len(here):
        i = np.setdiff1d(here, table["iteration"][table["rank"] == few])[0]
        raise TraceError(
            f"{where}: rank {few} lacks iteration {i}: record the same ones on every rank, from one barrier to another"
        )
    if missing:
        told = (
            f"{len(found)} of {'' if world else 'at least '}{size} ranks were recorded: {_first(found, len(found))} "
            f"count as 0 to {len(found) - 1}. Split and advice are of these alone: a slower one may be among the "
            "others, and waiting for it shows as exchange here"
        )
        some = {"recorded": tuple(found), "world": size, "notes": (told,)}
    if (gap := np.diff(here) > 1).any():
        if not sampled or "entered_s" in table:
            cure = "work lies between two in a row" if "entered_s" in table else "or say --sampled"
            raise TraceError(f"{where}: no rank has iteration {here[gap.argmax()] + 1}: record every call, {cure}")
        told = (
            f"{len(here)} of the iterations {here[0]} to {here[-1]} were recorded, and count as 0 to {len(here) - 1}: "
            "work that stays large for several in a row looks shorter than it is, and may need a larger bound"
        )
        some["notes"] += (told,)
    return {name: table[name].to_numpy().reshape(len(found), -1) for name in table}, some


def _first(those: Iterable[object], count: int, between: str = ", ") -> str:
    """Up to eight of so many, as words: a damaged file may name rank 10^12."""
    return between.join(map(str, islice(those, 8))) + (" ..." if count > 8 else "")


# --- traces of torch.profiler ----------------------------------------------------------------------------------------


def _from_traces(traces: list[RankTrace], sampled: bool) -> Trace:
    notes: tuple[str, ...] = ()
    if all(each.rank is None for each in traces):
        notes = ("no trace says its rank: numbered in the order given, in a folder by name, 2 before 10",)
        traces = [each._replace(rank=rank) for rank, each in enumerate(traces)]
    if unnamed := [each.path for each in traces if each.rank is None]:
        raise TraceError(f"{unnamed[0]} does not say its rank, others do: record it again after init_process_group")
    worlds = {each.world: each.path for each in traces}
    if len(worlds) > 1:
        told = " and ".join(f"{world} in {path}" for world, path in worlds.items())
        raise TraceError(f"different numbers of ranks, {told}: give the traces of one run at a time")
    columns = ({"rank": each.rank, "iteration": range(len(each.work_s)), "compute_s": each.work_s} for each in traces)
    where = _first((each.path for each in traces), len(traces))
    by_rank, some = _complete(pd.concat(map(pd.DataFrame, columns)), where, traces[0].world, sampled)
    if others := sum(each.others for each in traces):
        notes += (f"{others} other collectives lie between the calls: what they waited for counts as work",)
    meets = np.logical_and.reduce([each.meets for each in traces])
    some["calls_per_batch"] = max(each.calls_per_batch for each in traces)
    some |= {"notes": some["notes"] + notes, "meets": meets, "meeting": traces[0].meeting if meets.any() else ""}
    return Trace(by_rank["compute_s"], max(each.total_s for each in traces), form="torch traces", **some)
