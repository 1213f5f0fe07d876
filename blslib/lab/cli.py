"""The command line: ``python -m blslib``."""

import argparse
import errno
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from blslib import __version__, files
from blslib.diagnosis.tracefile import TraceError
from blslib.lab import bench
from blslib.lab.experiments import SCENARIOS
from blslib.signals import answering
from blslib.theory.delays import LAWS


def _several(kind: Callable[[str], object], known: Collection[object] = ()) -> Callable[[str], tuple]:
    """A comma-separated list of values, each of a kind and, if given, one of those known."""

    def parse(text: str) -> tuple:
        try:
            values = tuple(kind(part) for part in text.split(",") if part)
        except ValueError:
            what = f"expected {kind.__name__}, several with commas between them"
            raise argparse.ArgumentTypeError(f"{text!r}: {what}") from None
        if not values or any(known and value not in known for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(map(str, known)) or 'whole numbers'}")
        return values

    return parse


def _at_least(least: int, unit: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value < 1 << 40 or value % unit:
            raise ValueError
        return value

    what = f"whole number >= {least}" + (f", a multiple of {unit}" if unit > 1 else "")
    parse.__name__ = f"{what}, and below 2**40"
    return parse


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


_minutes.__name__ = "number of minutes > 0"


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(
        prog="python -m blslib", description="Bounded-lag collectives for recommender inference."
    )
    top.add_argument("--version", action="version", version=f"blslib {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    special: dict[str, Any] = {
        "bytes": {"type": _several(_at_least(4, 4)), "metavar": "N,N,...", "help": "bytes per block, multiples of 4"},
        "laws": {"type": _several(str, LAWS), "metavar": "LAW,...", "help": f"of {', '.join(LAWS)}"},
        "minutes": {"type": _minutes, "metavar": "M", "help": "how long (1)"},
        "scenarios": {"type": _several(str, SCENARIOS), "metavar": "NAME,...", "help": f"of {', '.join(SCENARIOS)}"},
    }
    benches = commands.add_parser("bench", help="measure on MPI ranks of its own and print a table")
    names = benches.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, plan in bench.PLANS.items():
        one = names.add_parser(name, help=plan.about, description=f"Measure {plan.about}.")
        if plan.counts:
            several, usual = _several(_at_least(1)), ",".join(map(str, plan.counts))
            one.add_argument(
                "--ranks", type=several, default=plan.counts, dest="counts", metavar="P,P,...", help=f"ranks ({usual})"
            )
        else:
            one.add_argument("--ranks", type=_at_least(1), default=4, metavar="P", help="MPI processes to start (4)")
        one.add_argument("--bounds", type=_several(_at_least(0)), metavar="K,K,...", help="bounds to try")
        one.add_argument("--repeats", type=_at_least(1), metavar="N", help="runs of every contender, interleaved")
        one.add_argument("--quick", action="store_true", help="under a minute: fewer sizes, bounds and repeats")
        one.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
        for option in plan.options:
            one.add_argument(f"--{option}", **special[option])
    benches.set_defaults(run=_bench, extra="lab")
    one = commands.add_parser(
        "diagnose",
        help="what would help a recorded run: bounded lag, other placement, or overlap",
        description="Read a recorded run, take its time apart, and say which bound would win how much.",
        epilog="The form of a file is told by its content; it may be packed with gzip. docs/diagnose.md tells how to "
        "record a run.",
    )
    one.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="all files of one run: traces of torch.profiler, one per rank; or CSV with rank,iteration,compute_s and, "
        "if known, exchange_s; or what blslib.diagnosis.traces.save wrote",
    )
    one.add_argument("--sampled", action="store_true", help="some ranks or steps alone were recorded: renumber those")
    one.add_argument("--slot-bytes", type=_at_least(1), metavar="N", help="bytes of the largest block, to tell memory")
    one.add_argument("--json", metavar="FILE", help="write all numbers there as well; - prints them and nothing else")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a page with figures, which needs no network")
    one.set_defaults(run=_diagnose, extra="diagnose")
    return top


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _bench(given: dict[str, Any]) -> int:
    import mpi4py

    from blslib.lab.ranks.launch import mpiexec

    mpiexec()  # without it there is no need to begin
    mpi4py.rc.initialize = False  # this process is no rank
    name, file = given["name"], given["json"]
    options = bench.Options(**{each.name: given[each.name] for each in fields(bench.Options) if each.name in given})
    print(bench.heading(name, options), flush=True)
    try:
        with answering(_interrupt):  # from here on there is something to clear away
            rows = bench.bench(name, options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        if file is not None:
            files.write({file: json.dumps(rows, indent=1) + "\n"})
    finally:
        print(bench.table(name, rows))
    return 0


def _diagnose(given: dict[str, Any]) -> int:
    from blslib.diagnosis import diagnose, traces

    paths, out, page = given["files"], given["json"], given["html"]
    started_s = time.perf_counter()
    try:
        trace = traces.read(paths, sampled=given["sampled"])
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    read_s = time.perf_counter() - started_s
    found = diagnose.diagnose(trace, slot_bytes=given["slot_bytes"])
    text = json.dumps(found.as_row() | {"read_s": read_s}, indent=1) + "\n"
    try:
        written = {} if out in (None, "-") else {Path(out): text}
        if page is not None:
            written[page] = diagnose.html(found, ", ".join(path.name for path in paths[:4]))
        files.write(written)
    finally:
        if out == "-":
            print(text, end="")
        else:
            print(diagnose.text(found))
            print(f"read {sum(path.stat().st_size for path in paths) / 1e6:,.1f} MB in {read_s:.1f} s")
    return 0


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
        taken = [path.resolve() for path in given.get("files", ())]
        for file in (given["json"], given.get("html")):
            if file not in (None, "-"):
                files.check(Path(file))
                if Path(file).resolve() in taken and not files.is_device(Path(file)):
                    raise files.WriteError(f"cannot write {file}: the command line names it twice: name another file")
                taken.append(Path(file).resolve())
    except files.WriteError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return given["run"](given)
    except ModuleNotFoundError as error:
        cure = f"pip install 'blslib[{given['extra']}]'"
        print(f"{given['command']} needs {error.name}, which is not installed: {cure}", file=sys.stderr)
        return 1
