"""The command line: ``python -m blslib``."""

import argparse
import errno
import json
import math
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blslib import __version__, files
from blslib.diagnosis.tracefile import TraceError
from blslib.lab import bench, found, place, tables
from blslib.lab.compare import contenders
from blslib.lab.options import RANKS, at_least, names, several, size
from blslib.placement import plan
from blslib.placement.loads import LookupCost
from blslib.placement.strategies import Options
from blslib.signals import answering
from blslib.theory.imbalance import split

_PLAIN = argparse.RawDescriptionHelpFormatter


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(
        prog="python -m blslib", description="Bounded-lag collectives for recommender inference."
    )
    top.add_argument("--version", action="version", version=f"blslib {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    benches = commands.add_parser("bench", help="measure on MPI ranks of its own and print a table")
    chosen = benches.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in bench.benches().items():
        one = chosen.add_parser(name, help=bench.about(module), description=module.__doc__, formatter_class=_PLAIN)
        one.add_argument("--bounds", type=several(at_least(0)), metavar="K,K,...", help="bounds to try")
        one.add_argument("--repeats", type=at_least(1), metavar="N", help="exactly so many, not until it is known")
        one.add_argument("--quick", action="store_true", help="under a minute: fewer sizes, bounds and repeats")
        one.add_argument("--json", metavar="FILE", help="write the rows there as well; - prints them alone")
        if hasattr(getattr(module, "Config", None), "names"):
            loops = set(contenders.BARE) - set(module.Config.names)
            known = [each for each in found.names(contenders) if each not in loops]
            one.add_argument("--contenders", **names(known, "NAME"))
        for option, how in ({"ranks": RANKS} | getattr(module, "OPTIONS", {})).items():
            try:
                one.add_argument(f"--{option}", **how)
            except argparse.ArgumentError as error:  # of the user's: it is there already
                print(f"bench {name}: {error}", file=sys.stderr)
    benches.set_defaults(run=_bench, extra="lab")
    one = commands.add_parser(
        "diagnose",
        help="what would help a recorded run: bounded lag, other placement, or overlap",
        description="Read a recorded run, take its time apart, and say which bound would win how much.",
        epilog="The form of a file is told by its content, what has none of these is left out of a folder, and gzip "
        "is unpacked. docs/diagnose.md tells how to record a run.",
    )
    one.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="all files of one run, or their folder: traces of torch.profiler, one per rank; or CSV with "
        "rank,iteration,compute_s and, if known, exchange_s (or _ms, _us); or what blslib.diagnosis.traces.save wrote",
    )
    one.add_argument("--sampled", action="store_true", help="some ranks or steps alone were recorded: renumber those")
    one.add_argument(
        "--calls-per-batch", type=at_least(1), metavar="N", help="all-to-alls of a batch, if not found out"
    )
    one.add_argument("--slot-bytes", type=at_least(1), metavar="N", help="bytes of the largest block, to tell memory")
    one.add_argument("--json", metavar="FILE", help="write all numbers there as well; - prints them and nothing else")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a page with figures, which needs no network")
    one.set_defaults(run=_diagnose, extra="diagnose")
    one = commands.add_parser(
        "place",
        help="which shards of which tables on which ranks",
        description="Place embedding tables by every strategy, and say how even each is, and how far from the optimum.",
        epilog="docs/placement.md tells what the columns of TABLES and of the output mean, and what a plan is.",
    )
    one.add_argument("tables", metavar="TABLES", help="CSV, JSON or YAML with rows,dim and more, or a model's name")
    one.add_argument("--shards", type=at_least(1), metavar="P", help="ranks to place them on (8, or those of --plan)")
    one.add_argument("--cap", type=size, default=math.inf, metavar="SIZE", help="most bytes on a rank, such as 64GiB")
    one.add_argument(
        "--spare", type=size, default=2**28, metavar="SIZE", help="of a rank, for small tables (256MiB; 1B: none)"
    )
    one.add_argument("--batch", type=at_least(1), default=512, metavar="B", help="samples of a batch (512)")
    one.add_argument("--plan", type=Path, metavar="FILE", help="audit this plan beside the strategies")
    one.add_argument("--save", metavar="FILE", help="write the best placement there as a plan; - prints it alone")
    one.add_argument("--trace", type=Path, nargs="+", default=[], metavar="FILE", help="of a run: what it would save")
    one.add_argument("--json", metavar="FILE", help="write the rows there as well; - prints them alone")
    one.set_defaults(run=_place, extra="diagnose")
    return top


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _bench(given: dict[str, Any]) -> int:
    import mpi4py

    from blslib.lab.ranks.launch import mpiexec

    mpiexec()  # without it there is no need to begin
    mpi4py.rc.initialize = False  # this process is no rank
    name, out, options = given["name"], given["json"], Namespace(**given)
    print(bench.heading(name, options), flush=True, file=sys.stderr if out == "-" else None)
    try:
        with answering(_interrupt):  # from here on there is something to clear away
            rows = bench.bench(name, options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    _deliver(out, rows, lambda: bench.table(name, rows), {})
    return 0


def _deliver(out: str | None, content: Any, shown: Callable[[], str], others: dict[Path, str]) -> list[Path]:
    """Write what was found as JSON, and other files with it; then print it for people, also where that failed.

    Args:
        out: where the JSON goes, if anywhere; ``-`` prints it and nothing else.
        content: what was found.
        shown: the same for people.
        others: more files, by path.

    Returns:
        The files of which people are to be told.
    """
    alone, text = out == "-", json.dumps(content, indent=1, default=lambda scalar: scalar.item()) + "\n"
    wanted = others if alone or out is None else {**others, Path(out): text}
    try:
        files.write(wanted)
    finally:
        print(text if alone else shown() + "\n", end="")
    return [] if alone else list(wanted)


def _diagnose(given: dict[str, Any]) -> int:
    from blslib.diagnosis import diagnose, traces

    page = given["html"]
    started_s = time.perf_counter()
    try:
        trace = traces.read(given["files"], sampled=given["sampled"])
        trace = replace(trace, calls_per_batch=given["calls_per_batch"] or trace.calls_per_batch)
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    read_s = time.perf_counter() - started_s
    found = diagnose.diagnose(trace, slot_bytes=given["slot_bytes"])
    told = f"read {sum(path.stat().st_size for path in trace.paths) / 1e6:,.1f} MB in {read_s:.1f} s"
    pages = {} if page is None else {page: diagnose.html(found, ", ".join(path.name for path in trace.paths[:4]))}
    row = found.as_row() | {"read_s": read_s}
    for path in _deliver(given["json"], row, lambda: f"{diagnose.text(found)}\n{told}", pages):
        print(f"wrote {path}")
    return 0


def _place(given: dict[str, Any]) -> int:
    from blslib.diagnosis import traces

    try:
        listed, source = tables.named(given["tables"])
        recorded = traces.read(given["trace"]) if given["trace"] else None
        audited = given["plan"] and plan.from_json(given["plan"].read_text(encoding="utf-8-sig"), listed)
        options = Options(given["cap"], LookupCost(given["batch"]), spare_bytes=given["spare"])
        ranks = given["shards"] or (audited.ranks if audited else 8)
        if audited and audited.ranks != ranks:
            raise ValueError(f"{given['plan']} is for {audited.ranks} ranks: leave --shards {ranks} out")
        found, failed = place.placed(listed, ranks, options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name, told in failed.items():
        print(f"{name}: {told}", file=sys.stderr)
    best = place.chosen(found)
    if audited:
        found.append(place.audited(audited, listed, options, str(given["plan"])))
    if not found:
        return 1
    saved = plan.to_json(best.placement, listed) if best else ""
    shown = f"{len(listed)} tables of {source}\n\n{place.text(found, best, listed, options)}"
    if recorded and best:
        less = place.bought(best, split(recorded.work_s, recorded.total_s, bound=recorded.bound))
        shown += f"\nin the recorded run this would save {less:.1%} of the time, if lookups are all of the ranks' work"
    alone = best is not None and given["save"] == "-"
    plans = {Path(given["save"]): saved} if best and given["save"] and not alone else {}
    for path in _deliver(given["json"], place.rows(found, listed), lambda: saved.strip() if alone else shown, plans):
        print(f"wrote {path}", file=sys.stderr if alone else None)
    if given["save"] and not best:
        print("no placement was found that could be saved", file=sys.stderr)
    return int(bool(given["save"]) and not best)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it did what it says."""
    try:
        try:
            return _command(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt as signalled:
        print("interrupted", file=sys.stderr)
        return 128 + (signalled.args[0] if signalled.args else signal.SIGINT)
    except OSError as error:
        sys.stdout = None  # what it still holds is not tried again at the end
        if isinstance(error, BrokenPipeError):  # whoever read has seen enough
            return 128 + signal.SIGPIPE
        told = f"cannot go on: {error}" if error.errno else str(error)
        if error.errno == errno.ENOSPC and error.filename is None:
            told = f"cannot print: {error.strerror}: send the output elsewhere"
        print(told, file=sys.stderr)
        return 1
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1


def _command(arguments: Sequence[str] | None) -> int:
    given = vars(parser().parse_args(arguments))
    try:
        read = [*given.get("files", ()), *given.get("trace", ()), given.get("tables"), given.get("plan")]
        taken = [Path(path).resolve() for path in read if path]
        for file in (given["json"], given.get("html"), given.get("save")):
            if file not in (None, "-"):
                files.check(Path(file))
                target = Path(file).resolve()
                if {target, target.parent} & {*taken} and not files.is_device(Path(file)):
                    raise files.WriteError(f"cannot write {file}: it or its folder is named already: name another file")
                taken.append(target)
    except files.WriteError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return given["run"](given)
    except ModuleNotFoundError as error:
        cure = f"pip install '.[{given['extra']}]' in a checkout; after ./reproduce.sh setup, source .venv/bin/activate"
        print(f"{given['command']} needs {error.name}, which is not installed: {cure}", file=sys.stderr)
        return 1
