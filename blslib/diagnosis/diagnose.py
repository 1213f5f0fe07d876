"""Would bounded lag help this run, with which bound, or is the problem another one? ``python -m blslib diagnose``."""

from dataclasses import asdict, dataclass, replace
from html import escape
from math import ceil
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from blslib.diagnosis.traces import Trace
from blslib.theory.imbalance import BOUNDS, Recommendation, Split, recommend, split, windows

WINDOWS = 24
COLUMNS = 100
SHOWN = (0, 1, 2, 4, 8, 16, 32, 64)
"""Bounds that are printed and drawn."""
FEW = 50
"""Iterations below which a bootstrap means little."""

WORTH = 0.02
"""Share of the measured time below which a part is not worth anybody's while."""

PARTS = {"useful": "useful work", "static": "static imbalance", "dynamic": "dynamic imbalance",
         "exchange": "exposed exchange"}  # fmt: skip
_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Diagnosis:
    """A recorded run taken apart, and what a bound would make of it.

    Attributes:
        trace: what was read.
        parts: the four-way split of its time.
        advice: the bound to choose, what it wins and costs.
        width: iterations of a window.
        over_time: the split of each of up to 24 windows.
    """

    trace: Trace
    parts: Split
    advice: Recommendation
    width: int
    over_time: list[Split]

    def seconds(self, part: str) -> float:
        """Of the measured time, by a name of ``PARTS``."""
        return getattr(self.parts, f"{part}_s")

    def share(self, part: str) -> float:
        """Share of the measured time, by a name of ``PARTS``."""
        return self.seconds(part) / self.parts.total_s if self.parts.total_s else 0.0

    @property
    def curve_s(self) -> np.ndarray:
        """By bound from 0 to 64, predicted seconds of the run if each call takes its own time from its rank."""
        return self.advice.curve_s

    @property
    def travelling_s(self) -> np.ndarray:
        """The same if the blocks travel meanwhile. The truth lies between them."""
        return self.advice.travelling_s

    @property
    def verdict(self) -> str:
        """What to do, in a sentence."""
        useful, static, dynamic, exchange = (self.share(part) for part in PARTS)
        said = [self._had()] if self.trace.bound else []
        if dynamic >= WORTH and not said:
            said.append(f"{dynamic:z.0%} dynamic: {self._lag()}")
        if static >= WORTH:
            when = "first" if static > dynamic else "as well"
            said.append(f"{static:z.0%} static on rank {self.parts.busiest}: move tables {when}")
        if exchange >= WORTH:
            said.append(f"{exchange:z.0%} exchange: a quicker one or finer overlap{self._hidden()}")
        if not said:
            waiting = f", waiting in {self.trace.meeting} included" if self._meeting() else ""
            return f"nothing to win: {useful:z.0%} of the time is useful work{waiting}"
        if dynamic < WORTH and not self.trace.bound:
            said.append(f"bounded lag has nothing to win ({dynamic:z.1%} dynamic)")
        return "; ".join(said)

    def _lag(self) -> str:
        advice, meeting = self.advice, self._meeting()
        if meeting and advice.win < WORTH:
            win = f"{advice.win:z.1%}" if advice.win >= 5e-4 else "nothing"
            return f"a bound would win {win}, since all ranks {meeting} as well: let that lag too, or do without it"
        if not advice.bound or advice.win < WORTH:
            return f"too little for a bound to be worth it (it would win {advice.win:z.1%})"
        sure = f"{100 * advice.low:z.0f} to {advice.high:z.0%}"
        chance = "" if advice.low > 0 else ", which may be chance"
        more = "" if advice.enough else ", larger ones more"
        meeting = f", where all ranks {meeting}" if meeting else ""
        return f"a bound of {advice.bound} would win {advice.win:z.0%} ({sure}{chance}){more}{meeting}"

    def _meeting(self) -> str:
        """How often another collective makes all ranks wait for each other; "" if none does, or nobody knows."""
        if self.trace.meets is None or not (often := int(self.trace.meets.sum())):
            return ""
        of = len(self.trace.meets)
        return f"meet in {self.trace.meeting} in {'every iteration' if often == of else f'{often} of {of} iterations'}"

    def _had(self) -> str:
        """Of a run with a bound: what that has won, and whether another would be better."""
        had, advice = self.trace.bound, self.advice
        won = self.parts.won_s / (self.parts.total_s + self.parts.won_s)
        more = (float(self.curve_s[min(had, BOUNDS[-1])]) - advice.predicted_s) / self.parts.total_s
        other = f"one of {advice.bound} would win another {more:z.0%}" if more >= WORTH else "no other wins more"
        other = f"one of {advice.bound} would do as well" if advice.bound < had and more < WORTH else other
        return f"the bound of {had} that the run had has won {won:z.0%} on imbalance, {other}"

    def _hidden(self) -> str:
        most = self.advice.hideable_s / self.parts.total_s
        return f", of which the same bound hides up to {most:z.0%}" if self.advice.bound and most >= 0.005 else ""

    @property
    def notes(self) -> list[str]:
        """What to know besides."""
        notes = list(self.trace.notes)
        if self.trace.meets is None and self.advice.win >= WORTH:
            notes.append(
                "assumed that nothing else in the loop makes all ranks wait, such as a barrier or an allreduce: "
                "one in every iteration leaves a bound nothing to win"
            )
        if (iterations := self.trace.work_s.shape[1]) < FEW:
            notes.append(f"{iterations} iterations are few: record hundreds before you trust the numbers")
        return notes

    def rows_of_parts(self, case: str = "") -> list[dict[str, Any]]:
        """A row for each part: case, part, seconds, share."""
        return [
            {"case": case, "part": name, "seconds": self.seconds(part), "share": self.share(part)}
            for part, name in PARTS.items()
        ]

    def rows_of_bounds(self, case: str = "") -> list[dict[str, Any]]:
        """A row for each bound from 0 to 64: the predictions, the limit, whether it is the one to choose, and shown."""
        table = pd.DataFrame({"case": case, "bound": BOUNDS, "predicted_s": self.curve_s,
                              "travelling_s": self.travelling_s, "limit_s": self.advice.limit_s})  # fmt: skip
        chosen = table["bound"] == self.advice.bound
        return table.assign(chosen=chosen, shown=chosen | table["bound"].isin(SHOWN)).to_dict("records")

    def rows_of_load(self, case: str = "") -> list[dict[str, Any]]:
        """A row for each rank and window: mean work of an iteration, and over the mean of all ranks and iterations."""
        work_s = self.trace.work_s
        iterations, mean_s = work_s.shape[1], float(work_s.mean()) or 1.0
        rows = []
        for rank, mine_s in enumerate(work_s):
            for i in range(0, iterations, self.width):
                until = min(i + self.width, iterations)
                found_s = float(mine_s[i:until].mean())
                rows.append({"case": case, "rank": rank, "iteration": i, "until": until, "work_s": found_s,
                             "over_mean": found_s / mean_s})  # fmt: skip
        return rows

    def as_row(self) -> dict[str, Any]:
        """All of it, for JSON."""
        ranks, iterations = self.trace.work_s.shape
        about = {"form": self.trace.form, "ranks": ranks, "iterations": iterations, "recorded_bound": self.trace.bound}
        return {
            "verdict": self.verdict,
            **about,
            "met_iterations": None if self.trace.meets is None else int(self.trace.meets.sum()),
            "recorded_ranks": list(self.trace.recorded or range(ranks)),
            "notes": self.notes,
            "split": asdict(self.parts),
            "shares": {part: self.share(part) for part in PARTS},
            "recommendation": {k: v for k, v in asdict(self.advice).items() if not isinstance(v, np.ndarray)},
            "work_by_rank_s": self.trace.work_s.sum(axis=1).tolist(),
            "window_iterations": self.width,
            "windows": [asdict(each) for each in self.over_time],
            "bounds": [
                {name: row[name] for name in ("bound", "predicted_s", "travelling_s")} for row in self.rows_of_bounds()
            ],
        }


def diagnose(trace: Trace, *, slot_bytes: int | None = None) -> Diagnosis:
    """Take a recorded run apart and ask the model for a bound.

    Args:
        trace: of ``traces.read``.
        slot_bytes: the largest block, for the memory of a bound; by default what the trace says.
    """
    parts = split(trace.work_s, trace.total_s, bound=trace.bound)
    width = ceil(trace.work_s.shape[1] / WINDOWS)
    exchange_s, slot_bytes = max(parts.exchange_s, 0) / trace.work_s.shape[1], slot_bytes or trace.slot_bytes
    advice = recommend(trace.work_s, exchange_s=exchange_s, slot_bytes=slot_bytes, meets=trace.meets)
    if trace.world and advice.memory_bytes:  # each rank has slots for all of them, recorded or not
        advice = replace(advice, memory_bytes=advice.memory_bytes // len(trace.work_s) * trace.world)
    return Diagnosis(trace, parts, advice, width, windows(trace.work_s, width))


def text(found: Diagnosis) -> str:
    """The diagnosis as one screen of at most 100 columns, as far as the ranks' numbers allow."""
    parts, advice, (ranks, iterations) = found.parts, found.advice, found.trace.work_s.shape
    bound = f", recorded at bound {found.trace.bound}" if found.trace.bound else ""
    kind = "measured" if found.trace.total_s is not None else "work alone"
    lines = [f"{ranks} ranks, {iterations} iterations ({found.trace.form}{bound})", ""]
    size, unit = _unit(max(parts.total_s, found.curve_s[0]))
    remarks = {"static": _busiest(found), "dynamic": "waiting for whoever comes last"}
    for part, name in PARTS.items():
        seconds, share = found.seconds(part), found.share(part)
        bar = f"{_bar(share, 24):24} {remarks.get(part, '')}"
        lines.append(f"  {name:18}{seconds / size:z10.3f} {unit}{share:z7.1%}  {bar}".rstrip())
    lines.append(f"  {kind:18}{parts.total_s / size:10.3f} {unit}{1:7.1%}")
    if found.trace.bound:
        won = f"{parts.won_s / size:10.3f} {unit}"
        lines.append(f"  its bound has won {won} of dynamic imbalance already, which is not in this list")
    lines += ["", *wrap(_sentence(found.verdict), COLUMNS), "", f"  bound   {'time of this run, predicted':48}  less"]
    top = max(found.curve_s[0], 1e-300)
    enough = next(k for k in SHOWN if k >= advice.bound and found.curve_s[k] <= 1.001 * found.curve_s.min())
    for k in sorted({*(k for k in SHOWN if k <= enough), advice.bound}):
        less = f"{1 - found.curve_s[k] / top:z6.1%}" if k else ""
        near = "the limit" if advice.enough else "the best tried"
        mark = f"  <- within 2 % of {near}" if k == advice.bound and k else ""
        lines.append(
            f"  {k:5} {found.curve_s[k] / size:9.3f} {unit}  {_bar(found.curve_s[k] / top, 36):36} {less}{mark}"
        )
    limit = advice.limit_s / top
    lines.append(f"  limit {advice.limit_s / size:9.3f} {unit}  {_bar(limit, 36):36} {1 - limit:z6.1%}")
    lines += ["", *(line for cost in _costs(found) for line in wrap(cost, COLUMNS))]
    busiest = " ".join(str(each.busiest) for each in found.over_time)
    lines += wrap(f"busiest rank in each {found.width} iterations: {busiest}", COLUMNS)
    return "\n".join([*lines, *(line for note in found.notes for line in wrap(f"note: {note}", COLUMNS))])


def html(found: Diagnosis, title: str) -> str:
    """The diagnosis as one page with its figures, which needs no network."""
    from blslib.charts import diagnosis as charts

    chart = charts.page(found.rows_of_parts(title), found.rows_of_bounds(title), found.rows_of_load(title))
    page = chart.to_html(inline=True)
    words = f"<h1>{escape(_sentence(found.verdict))}</h1><pre>{escape(text(found))}</pre>"
    style = "<style>body{font-family:sans-serif;margin:2em;max-width:60em}h1{font-size:1.3em}</style>"
    page = page.replace("<head>", f"<head><title>diagnose {escape(title)}</title>{style}", 1)
    head, mark, rest = page.partition("\n<body>")  # the same word stands in the scripts before it
    return f"{head}{mark}{words}{rest}"


def _busiest(found: Diagnosis) -> str:
    times = found.parts.limit_s / found.parts.useful_s if found.parts.useful_s else 1.0
    return f"rank {found.parts.busiest} works {times:.2f} times the mean" if times >= 1.005 else ""


def _costs(found: Diagnosis) -> list[str]:
    advice, slots = found.advice, 2 * (found.advice.bound + 1)
    if not advice.bound:
        return []
    memory = " of the largest block" if advice.memory_bytes is None else f" = {_bytes(advice.memory_bytes)}"
    wait = f"a batch waits {_duration(advice.latency_s)} longer for its scores (mean)"
    ranks = f"at least {found.trace.world}" if found.trace.world else len(found.trace.work_s)
    lines = [f"a bound of {advice.bound} costs {ranks} x {slots} slots{memory} on each rank; {wait}"]
    if advice.hideable_s > 0:
        hidden = f"hides up to {_duration(advice.hideable_s)} of the exchange itself, if that needs no core"
        lines.append(f"besides, and not in the table, it {hidden}")
    return lines


def _sentence(verdict: str) -> str:
    return f"{verdict[0].upper()}{verdict[1:]}."


def _unit(seconds: float) -> tuple[float, str]:
    """The unit in which a person would say it, in seconds, and its name."""
    return next(((size, name) for size, name in ((1.0, "s"), (1e-3, "ms")) if seconds >= size), (1e-6, "us"))


def _duration(seconds: float) -> str:
    """Three digits, in a fitting unit."""
    size, unit = _unit(seconds * 1.0005)
    count = seconds / size
    return f"{count:z.{2 - min(len(f'{count:.0f}') - 1, 2)}f} {unit}"


def _bytes(count: int) -> str:
    powers = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    return next((f"{count / size:.1f} {name}" for size, name in powers if count >= size), f"{count} bytes")


def _bar(share: float, width: int) -> str:
    eighths = round(8 * width * min(max(share, 0), 1))
    return (eighths // 8 * "█" + _BLOCKS[eighths % 8]).rstrip()
