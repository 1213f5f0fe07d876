"""Traces of ``torch.profiler`` (Chrome's JSON): the work that lies between two all-to-all calls."""

import re
import reprlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import ijson
import numpy as np

from blslib.diagnosis.tracefile import LATEST_S, OtherFile, TraceError, half_written

CHUNK = 1 << 13
"""Characters that are parsed at a time."""
LARGEST_VALUE = 1 << 26
"""Characters without an event; what goes on for longer is taken for damaged, so that no file is read into memory."""
DEEPEST = 1000
"""Brackets that are open at the end of a chunk."""
_LATEST_US = 1e6 * LATEST_S

_MEETING, _ALL_TO_ALL = "meeting", "all-to-all"
"""Collectives from which nobody returns before everybody has come, and those that this is about."""
_NAMES = {
    _ALL_TO_ALL: re.compile(r"all_?to_?all|SendRecv", re.IGNORECASE),
    _MEETING: re.compile(r"all_?reduce|all_?gather|reduce_?scatter|barrier", re.IGNORECASE),
}


class RankTrace(NamedTuple):
    """One rank's trace.

    Attributes:
        path: of the file.
        rank, world: this rank and their number, where the trace says so.
        others: collectives between the calls that are no all-to-all.
        meeting: the one of them that all ranks wait for each other in, if there is one.
        meets: (N,) bool, whether it, or one like it, lies in that iteration's work.
        calls_per_batch: all-to-all calls of one of the profiler's steps; 1 where the program told it of none.
        work_s: (N,) float64 seconds of work before each of its N + 1 all-to-all calls but the first.
        total_s: from the end of the first call to that of the last.
    """

    path: Path
    rank: int | None
    world: int | None
    others: int
    meeting: str
    meets: np.ndarray
    calls_per_batch: int
    work_s: np.ndarray
    total_s: float


@dataclass
class _Timeline:
    """What one trace holds of the calls and of the work around them; times in microseconds of its own clock."""

    calls: dict[str, list[tuple[float, float, Any]]] = field(default_factory=lambda: defaultdict(list))
    """By level: start, end, thread."""
    operators: dict[Any, array] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    """By thread, or by device for its kernels: start, end, start, end, ..."""
    others: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    """Collectives that are no all-to-all, by level: start and name."""

    steps: list[tuple[float, float]] = field(default_factory=list)
    """Of the profiler, which a program tells of each batch: start, end."""


@lru_cache(10_000)
def _collective(name: str) -> str:
    """Which kind of collective it is by its name; "" for what is none."""
    return next((what for what, names in _NAMES.items() if names.search(name)), "")


def _level(event: dict[str, Any], name: str, kind: str) -> tuple[str, str]:
    """Which kind of collective an event is, and where it stands from the caller to the wire; "" if it is none."""
    said = (event.get("args") or {}).get("Collective name")
    if name == "record_param_comms":
        return _collective(said or ""), "parameters"
    if kind == "kernel":
        return _collective(said or name), "kernel"
    no_call = kind == "python_function" or kind.startswith("gpu_") or "wait" in name  # TorchRec tells of its waits
    return "" if no_call else _collective(name), "dispatch" if "::" in name else "transport"


def rank_trace(path: Path, text: TextIO, key: str) -> RankTrace:
    """Read one trace to its end.

    Args:
        path: of the file.
        text: its content, from the beginning.
        key: where the events stand, as ``ijson`` says it: ``"item"`` in a bare array.

    Raises:
        TraceError: the file is damaged, ends too early, or holds fewer than two all-to-all calls.
    """
    found, events = _Timeline(), False
    for event in _values(path, text, key):
        events = True
        try:
            if isinstance(event, dict) and event.get("ph") == "X":
                _take(found, event)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):  # not what the profiler writes
            raise TraceError(f"{path}: damaged event {reprlib.repr(event)}: record the run again") from None
    if not events:
        raise OtherFile(f"{path} is JSON without traceEvents: give what torch.profiler's export_chrome_trace writes")
    begin_us, work_s, total_s = _work(path, found)
    text.seek(0)  # what stands beside the events may come before or after them
    about = next(_values(path, text, "distributedInfo", endless=True), None)
    rank, world = (_whole(path, about, name) for name in ("rank", "world_size"))
    with_calls = np.count_nonzero([np.diff(np.searchsorted(begin_us, step)) for step in found.steps])
    per_batch = round(len(begin_us) / with_calls) if with_calls else 1
    return RankTrace(path, rank, world, *_others(found, begin_us), per_batch, work_s, total_s)


def _whole(path: Path, about: Any, name: str) -> int | None:
    value: Any = about.get(name) if isinstance(about, dict) else None
    if type(value) in (int, Decimal) and 0 <= value < 2**53 and not value % 1:
        return int(value)
    if value is not None:
        told = value if isinstance(value, Decimal) else reprlib.repr(value)
        raise TraceError(f"{path}: {name} is {told}, must be a whole number >= 0: record the run again")
    return None


class _Source:
    """The bytes that ``ijson`` reads. Between two values it takes come no more than a trace may have there, so that
    what never ends, or goes down without end, is not read into memory: that of ``ijson`` grows by the depth squared."""

    def __init__(self, text: TextIO, endless: bool) -> None:
        self._text, self._endless = text, endless
        self.characters = self.held = self.depth = 0
        self.ended = False

    def read(self, size: int) -> bytes:
        text = self._text.read(size)
        self.ended = size > 0 and not text  # for nothing it asks as well
        self.characters += len(text)
        self.held += len(text)
        self.depth += text.count("[") + text.count("{") - text.count("]") - text.count("}")
        if not self._endless and (self.held > LARGEST_VALUE or self.depth > DEEPEST):
            raise ValueError
        return text.encode()


def _values(path: Path, text: TextIO, key: str, *, endless: bool = False) -> Iterator[Any]:
    """The values at a key of a JSON document; with ``endless`` of one that has been read to its end before.

    Raises:
        TraceError: it is damaged, or ends too early.
    """
    source = _Source(text, endless)
    try:
        for value in ijson.items(source, key, buf_size=CHUNK):
            source.held = source.depth = 0
            yield value
    except (ijson.JSONError, ValueError, ArithmeticError):  # the last two of numbers with thousands of digits
        if source.ended:
            raise half_written(path, f"{source.characters:,} characters and no end") from None
        kind = OtherFile if source.held == source.characters else TraceError  # without one value it may be anything
        raise kind(f"{path} is no JSON near character {source.characters:,}: record the run again") from None


def _take(found: _Timeline, event: dict[str, Any]) -> None:
    name, kind = event.get("name", ""), event.get("cat", "")
    start, duration = float(event["ts"]), float(event.get("dur", 0))
    if not (abs(start) < _LATEST_US and 0 <= duration < _LATEST_US):
        raise ValueError
    if kind == "user_annotation" and name.startswith("ProfilerStep#"):
        found.steps.append((start, start + duration))
    what, level = _level(event, name, kind)
    thread = event.get("pid") if kind == "kernel" else (event.get("pid"), event.get("tid"))
    if what == _ALL_TO_ALL:
        hash(thread)  # or it is damaged
        found.calls[level].append((start, start + duration, thread))
        return
    if what == _MEETING:
        found.others[level].append((start, event["args"]["Collective name"] if level == "parameters" else name))
    if kind == "kernel" or (kind == "cpu_op" and "wait" not in name):
        if not what and name.startswith("c10d::"):
            found.others["dispatch"].append((start, name))
        found.operators[thread].extend((start, start + duration))


def _outermost(calls: list[tuple[float, float, Any]]) -> list[tuple[float, float, Any]]:
    """In the order of their starts, without those inside another of the same thread: one call shows up once."""
    ends: dict[Any, float] = {}
    kept = []
    for start, end, thread in sorted(calls, key=lambda call: (call[0], -call[1])):
        if end > ends.get(thread, -np.inf):
            kept.append((start, end, thread))
            ends[thread] = end
    return kept


def _others(found: _Timeline, begin_us: np.ndarray) -> tuple[int, str, np.ndarray]:
    """Other collectives that begin between the first call and the last: how many, and where all ranks meet in one."""
    levels = ("kernel", "dispatch", "parameters", "transport")["kernel" not in found.calls :]
    events = next((found.others[level] for level in levels if level in found.others), [])
    iterations = np.searchsorted(begin_us, [start for start, _ in events], "right") - 1
    between = [(i, name) for i, (_, name) in zip(iterations, events, strict=True) if 0 <= i < len(begin_us) - 1]
    meetings = [(i, name) for i, name in between if _collective(name) == _MEETING]
    meets = np.isin(np.arange(len(begin_us) - 1), [i for i, _ in meetings])
    [(meeting, _)] = Counter(name for _, name in meetings).most_common(1) or [("", 0)]
    return len(between), meeting, meets


def _work(path: Path, found: _Timeline) -> tuple[np.ndarray, np.ndarray, float]:
    """When each call began, microseconds; the seconds of work before each but the first; and from end to end."""
    levels = {name: _outermost(calls) for name, calls in found.calls.items()}
    if not levels:
        raise TraceError(
            f"no all-to-all in {path}: profile the loop that calls it, with ProfilerActivity.CPU at least, "
            "after init_process_group"
        )
    inner = levels.get("kernel") or levels.get("transport") or levels.get("dispatch") or levels["parameters"]
    outer = inner if "kernel" in levels else levels.get("dispatch") or levels.get("parameters") or inner
    # The caller hands the exchange to another thread, so the two events of a call need not overlap: they go by order.
    if len(outer) != len(inner) or any(a[0] > b[1] for a, b in zip(outer, inner, strict=True)):
        outer = inner
    if len(inner) < 2:
        raise TraceError(f"one all-to-all call in {path}: work is what lies between two, record more of them")
    begin, left = np.array([call[0] for call in outer]), np.array([call[1] for call in outer])
    if "kernel" in levels:
        left = begin
    end = np.maximum([call[1] for call in inner], left)
    # An asynchronous call: what its thread (or device) does before the exchange has ended is work, not waiting.
    until = np.maximum(np.minimum(end[:-1], begin[1:]), left[:-1])
    operators = np.asarray(found.operators[outer[0][2]]).reshape(-1, 2)
    left_before = np.searchsorted(left[:-1], operators[:, 1])
    beneath_one = left_before > np.searchsorted(until, operators[:, 0], "right")
    if "kernel" not in levels:  # an operator in which a call is made waits as well
        beneath_one &= left_before <= np.searchsorted(begin, operators[:, 0], "right")
    operators = operators[beneath_one]
    beneath = _busy(operators, until) - _busy(operators, left[:-1])
    return begin, 1e-6 * (np.maximum(begin[1:] - end[:-1], 0) + beneath), 1e-6 * float(end[-1] - end[0])


def _busy(operators: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How long at least one operator had run by then: those that began are counted to their ends, less what follows."""
    start, end = operators[operators[:, 0].argsort()].T
    reach = np.maximum.accumulate(np.r_[-np.inf, end])
    counted = np.cumsum(np.r_[0, np.maximum(end - np.maximum(start, reach[:-1]), 0)])
    began = np.searchsorted(start, at)
    return counted[began] - np.maximum(reach[began] - at, 0)
