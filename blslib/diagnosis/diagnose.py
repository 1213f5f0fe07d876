"""Would bounded lag help this run, with which bound, or is the problem another one? ``python -m blslib diagnose``."""

from dataclasses import asdict, dataclass, replace
from html import escape
from math import ceil
from textwrap import wrap
from typing import Any

import numpy as np

from blslib.diagnosis.traces import Trace
from blslib.theory.imbalance import BOUNDS, Recommendation, Split, recommend, split
from blslib.theory.maxplus import Cost

COLUMNS = 100
DRAWN = 40
"""Iterations of the map of load: as many as can be told apart."""
SHOWN = (0, 1, 2, 4, 8, 16, 32, 64)
"""Bounds that are printed and drawn."""
FEW = 50
"""Iterations below which a bootstrap means little."""

HEADER_BYTES = 64
"""Of a slot, before its block; as in ``collective.layout``, which needs an MPI to be told of."""
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
        memory_bytes: of the slots of that bound on each rank; None if the size of a slot is not known.
    """

    trace: Trace
    parts: Split
    advice: Recommendation
    memory_bytes: int | None

    def share(self, part: str) -> float:
        """Share of the measured time, by a name of ``PARTS``."""
        return getattr(self.parts, f"{part}_s") / self.parts.total_s if self.parts.total_s else 0.0

    def at(self, bound: int) -> Split:
        """What the split would be at a bound from 0 to 64, the exchange taking its ranks' own time."""
        total_s, ideal_s = float(self.advice.curve_s[bound]), float(self.advice.ideal_s[bound])
        dynamic_s = max(0.0, ideal_s - self.parts.limit_s)
        return replace(self.parts, dynamic_s=dynamic_s, exchange_s=total_s - ideal_s, total_s=total_s)

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
            why = f", since all ranks {self._meeting()} as well" if self._meeting() else ""
            said.append(f"bounded lag has nothing to win ({dynamic:z.1%} dynamic){why}")
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
        return f"a bound of {self._bound()} would win {advice.win:z.0%} ({sure}{chance}){more}{meeting}"

    def _bound(self) -> str:
        """The bound to choose, and where a batch has several calls, how many batches that are."""
        calls = self.trace.calls_per_batch
        batches = ceil(self.advice.bound / calls)
        told = f" calls (of which a batch has {calls}: lag {batches} batch{'es' * (batches > 1)})" if calls > 1 else ""
        return f"{self.advice.bound}{told}"

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
        more = float(advice.curve_s[min(had, BOUNDS[-1])] - advice.curve_s[advice.bound]) / self.parts.total_s
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

    def rows_of_parts(self) -> list[dict[str, Any]]:
        """A row for each part: its name, seconds, and share."""
        seconds = {part: getattr(self.parts, f"{part}_s") for part in PARTS}
        return [{"part": PARTS[part], "seconds": time_s, "share": self.share(part)} for part, time_s in seconds.items()]

    def rows_of_bounds(self) -> list[dict[str, Any]]:
        """A row for each bound from 0 to 64: the predictions, the limit, whether it is the one to choose, and shown,
        and POP's efficiencies."""
        advice = self.advice
        return [
            {"bound": k, "predicted_s": float(advice.curve_s[k]),
             "travelling_s": float(advice.travelling_s[k]), "limit_s": advice.limit_s, "chosen": k == advice.bound,
             "shown": k in (*SHOWN, advice.bound), **self.at(k).efficiencies}
            for k in BOUNDS
        ]  # fmt: skip

    def rows_of_load(self) -> list[dict[str, Any]]:
        """A row for each rank and each of the first 40 iterations: work, and that over the mean of the whole run."""
        work_s = self.trace.work_s
        mean_s = float(work_s.mean()) or 1.0
        return [
            {"rank": rank, "iteration": i, "work_s": float(mine_s), "over_mean": float(mine_s) / mean_s}
            for (rank, i), mine_s in np.ndenumerate(work_s[:, :DRAWN])
        ]

    def as_row(self) -> dict[str, Any]:
        """All of it, for JSON."""
        trace, advice = self.trace, {k: v for k, v in asdict(self.advice).items() if not isinstance(v, np.ndarray)}
        ranks, iterations = trace.work_s.shape
        return {
            "verdict": self.verdict,
            "form": trace.form,
            "ranks": ranks,
            "iterations": iterations,
            "calls_per_batch": trace.calls_per_batch,
            "recorded_bound": trace.bound,
            "met_iterations": None if trace.meets is None else int(trace.meets.sum()),
            "recorded_ranks": list(trace.recorded or range(ranks)),
            "notes": self.notes,
            "split": asdict(self.parts),
            "shares": {part: self.share(part) for part in PARTS},
            "efficiencies": self.parts.efficiencies,
            "recommendation": advice | {"memory_bytes": self.memory_bytes},
            "work_by_rank_s": trace.work_s.sum(axis=1).tolist(),
            "bounds": self.rows_of_bounds(),
        }


def diagnose(trace: Trace, *, slot_bytes: int | None = None) -> Diagnosis:
    """Take a recorded run apart and ask the model for a bound.

    Args:
        trace: of ``traces.read``.
        slot_bytes: the largest block, for the memory of a bound; by default what the trace says.
    """
    parts = split(trace.work_s, trace.total_s, bound=trace.bound)
    ranks, iterations = trace.work_s.shape
    advice = recommend(trace.work_s, cost=Cost(max(parts.exchange_s, 0) / iterations), meets=trace.meets)
    slot_bytes = slot_bytes or trace.slot_bytes  # each rank has slots for all of them, recorded or not
    slots = (trace.world or ranks) * 2 * (advice.bound + 1)
    memory_bytes = slots * (HEADER_BYTES + slot_bytes) if slot_bytes else None
    return Diagnosis(trace, parts, advice, memory_bytes)


def text(found: Diagnosis) -> str:
    """The diagnosis as one screen of at most 100 columns, as far as the ranks' numbers allow."""
    parts, advice, (ranks, iterations) = found.parts, found.advice, found.trace.work_s.shape
    bound = f", recorded at bound {found.trace.bound}" if found.trace.bound else ""
    kind = "measured" if found.trace.total_s is not None else "work alone"
    calls = f", {found.trace.calls_per_batch} of them a batch" if found.trace.calls_per_batch > 1 else ""
    lines = [f"{ranks} ranks, {iterations} iterations{calls} ({found.trace.form}{bound})", ""]
    size, unit = _unit(max(parts.total_s, advice.curve_s[0]))
    times = parts.limit_s / parts.useful_s if parts.useful_s else 1.0
    busiest = f"rank {parts.busiest} works {times:.2f} times the mean" if times >= 1.005 else ""
    remarks = {PARTS["static"]: busiest, PARTS["dynamic"]: "waiting for whoever comes last"}
    for row in found.rows_of_parts():
        bar = f"{_bar(row['share'], 24):24} {remarks.get(row['part'], '')}"
        lines.append(f"  {row['part']:18}{row['seconds'] / size:z10.3f} {unit}{row['share']:z7.1%}  {bar}".rstrip())
    lines.append(f"  {kind:18}{parts.total_s / size:10.3f} {unit}{1:7.1%}")
    if found.trace.bound:
        won = f"{parts.won_s / size:10.3f} {unit}"
        lines.append(f"  its bound has won {won} of dynamic imbalance already, which is not in this list")
    pop = (f"{name.removesuffix('_efficiency').replace('_', ' ')} {e:.1%}" for name, e in parts.efficiencies.items())
    lines += [f"  POP: {', '.join(pop)}", "", *wrap(_sentence(found.verdict), COLUMNS), ""]
    lines.append(f"  bound   time of this run, predicted{'less':>7}{'serial.':>9}{'transfer':>9}{'parallel':>9}")
    top = max(advice.curve_s[0], 1e-300)
    enough = next(k for k in SHOWN if k >= advice.bound and advice.curve_s[k] <= 1.001 * advice.curve_s.min())
    mark = f"  <- within 2 % of the {'limit' if advice.enough else 'best'}"
    for row in found.rows_of_bounds():
        k, seconds = row["bound"], row["predicted_s"]
        if row["chosen"] or (row["shown"] and k <= enough):
            less = f"{1 - seconds / top:z6.1%}" if k else ""
            shares = f"{row['serialisation']:9.1%}{row['transfer']:9.1%}{row['parallel_efficiency']:9.1%}"
            told = f"{_bar(seconds / top, 16):16} {less:6}{shares}{mark if row['chosen'] and k else ''}"
            lines.append(f"  {k:5} {seconds / size:9.3f} {unit}  {told}")
    limit = advice.limit_s / top
    lines.append(f"  limit {advice.limit_s / size:9.3f} {unit}  {_bar(limit, 16):16} {1 - limit:z6.1%}")
    lines += ["", *(line for cost in _costs(found) for line in wrap(cost, COLUMNS))]
    return "\n".join([*lines, *(line for note in found.notes for line in wrap(f"note: {note}", COLUMNS))])


def html(found: Diagnosis, title: str) -> str:
    """The diagnosis as one page with its figures, which needs no network."""
    from blslib.charts import diagnosis as charts

    tables = (found.rows_of_parts(), found.rows_of_bounds(), found.rows_of_load())
    page = charts.page(*([{"case": title, **row} for row in rows] for rows in tables)).to_html(inline=True)
    words = f"<h1>{escape(_sentence(found.verdict))}</h1><pre>{escape(text(found))}</pre>"
    style = "<style>body{font-family:sans-serif;margin:2em;max-width:60em}h1{font-size:1.3em}</style>"
    page = page.replace("<head>", f"<head><title>diagnose {escape(title)}</title>{style}", 1)
    return page.replace("\n<body>", f"\n<body>{words}", 1)  # without the line's end the word stands in scripts before


def _costs(found: Diagnosis) -> list[str]:
    advice, slots = found.advice, 2 * (found.advice.bound + 1)
    if not advice.bound:
        return []
    memory = f" = {_bytes(found.memory_bytes)}" if found.memory_bytes else " of the largest block"
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
