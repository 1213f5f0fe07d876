"""What the paper claims, judged by what was measured here: an effect, an interval, a verdict, and the reason in words.

The paper (arXiv 2512.19342) is taken at its directions, never at a number. The thresholds are ours, fixed in advance:

- The interval is a bootstrap over the repeats: 95 % of the medians of resampled repeats, seeded. Speed-ups are paired,
  both runs of a pair being of the same repeat. They are judged at one bound, ``BOUND``, and not at the best of those
  measured, which would mistake luck for gain. It is the number of ranks in the notebooks: time for a delay to go round.
- *No notable advantage*: reproduced if the interval stays at or below 1.10, not if it lies wholly above.
- *Better*: a gain of less than 5 % is none. Reproduced if the interval lies above 1 and the median is at least 1.05;
  not reproduced if the interval stays below 1.05. This must hold against ``MPI_Alltoallv``, and also against our own
  exchange at bound 0, since what that one gains comes of a quicker exchange and not of lag.
- *Latency*: judged as *better* is, by the 99th percentile from arrival to scores under arrivals that do not wait.
- *Masked altogether*: the time of a run over that of the busiest rank's own work, at every bound from the number of
  ranks on: reproduced if the interval over these bounds stays at or below 1.05, not if it lies wholly above.
- *Accuracy preserved*: reproduced if every score of every run is bit-identical.

What is neither is inconclusive.
"""

import json
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from blslib import files
from blslib.lab.rows import Row, data_folder

Claim = dict[str, Any]
Interval = tuple[float, float, float]

BOUND = 4
NOTABLE, GAIN, MASKED = 1.10, 1.05, 1.05
REPRODUCED, NOT, OPEN = "reproduced", "not reproduced", "inconclusive"
HEADS = {"claim": "The paper claims (direction only)", "source": "source", "measured": "measured here",
         "verdict": "verdict", "reason": "reason"}  # fmt: skip
WIDTHS = {"source": 30, "measured": 21, "verdict": 14, "reason": 47}


def interval(values: Sequence[float] | np.ndarray, resamples: int = 10_000) -> Interval:
    """Median, and the ends of the 95 % bootstrap interval of the median.

    Raises:
        ValueError: there are no values.
    """
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        raise ValueError("an interval needs at least one value, got none")
    drawn = np.random.default_rng(1).choice(found, (resamples, found.size))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(found)), float(low), float(high)


def no_advantage(rows: Sequence[Row], *, cores: int, by: str = "scenario") -> list[Claim]:
    """Claim (a), balanced runs gain nothing notable: one for each value of ``by``; rows of ``recommend.run``."""
    found = []
    for name in _names(rows, by):
        ours, alone = _pair(rows, by, name)
        over_mpi = interval(_numbers(ours["speedups"]))
        verdict, reason = _at_most(NOTABLE, over_mpi), _of_which(ours, alone)
        if verdict != REPRODUCED:
            reason += _headroom(alone)
            if ours["ranks"] > cores:
                reason += "; ranks take turns on cores here, an imbalance of its own"
        elif over_mpi[2] < 1 / NOTABLE:
            reason += "; it is notably slower"
        claim = "(a) balanced: no notable advantage"
        found.append(_claim(claim, _source(ours, name, cores), over_mpi, "× MPI_Alltoallv", verdict, reason))
    return found


def better(rows: Sequence[Row], claim: str, *, cores: int, by: str = "scenario") -> list[Claim]:
    """Claims (b) and (c), the throughput is better: one for each value of ``by``; rows of ``recommend.run``."""
    found = []
    for name in _names(rows, by):
        ours, alone = _pair(rows, by, name)
        over_mpi = interval(_numbers(ours["speedups"]))
        verdict, reason = _gain(over_mpi, _by_lag(ours, alone)), _of_which(ours, alone)
        if verdict != REPRODUCED:
            reason += _headroom(alone)
        found.append(_claim(claim, _source(ours, name, cores), over_mpi, "× MPI_Alltoallv", verdict, reason))
    return found


def latency(rows: Sequence[Row], *, cores: int) -> list[Claim]:
    """Claim (f), latency is better, judged by its 99th percentile in open loop: one for each rate of arrivals.

    Args:
        rows: of ``serving.run``, of ranks that poll while idle.
        cores: of the machine that ran them.
    """
    found = []
    for rate in _names(rows, "rate_per_s"):
        ours, alone = _pair(rows, "rate_per_s", rate)
        gains, without_lag = _numbers(ours["gains_p99"]), _numbers(alone["gains_p99"])
        over_mpi, by_lag = interval(gains), _by_lag(ours, alone, "gains_p99")
        reason = (
            f"bound {BOUND}, {len(gains)} repeats; p50 {np.median(_numbers(ours['gains_p50'])):.2f} × shorter; of p99 "
            + _split(np.median(without_lag), by_lag)
        )
        source = f"{ours['law']} delays, {rate:g} batches a second, {ours['ranks']} ranks on {cores} cores, open loop"
        verdict = _gain(over_mpi, by_lag)
        found.append(_claim("(f) delays: latency better", source, over_mpi, "× shorter p99", verdict, reason))
    return found


def masked(rows: Sequence[Row], law: str = "rotating") -> list[Claim]:
    """Claim (d), in the best case the delays are masked altogether: from rows of ``delayed.run``.

    Raises:
        ValueError: no row of bounded lag has this law and a bound of at least the number of ranks.
    """
    wide = [row for row in rows if row["contender"] == "bls" and row["law"] == law and row["bound"] >= row["ranks"]]
    if not wide:
        raise ValueError(f"no row of bounded lag with law {law!r} and a bound of at least the number of ranks")
    over_limit = interval([row["measured_s"] / row["limit_s"] for row in wide])
    reason = (
        f"bounds {', '.join(str(row['bound']) for row in wide)}; no rank can be quicker than its own work and delays"
    )
    if mpi := [row for row in rows if row["contender"] == "mpi" and row["law"] == law]:
        reason += f"; MPI_Alltoallv takes {mpi[0]['measured_s'] / mpi[0]['limit_s']:.2f} × that"
    source = f"{law}, {wide[0]['ranks']} ranks: delays by sleep around the bare exchange"
    claim = "(d) best case: delays masked altogether"
    return [_claim(claim, source, over_limit, "× busiest rank", _at_most(MASKED, over_limit), reason)]


def accuracy(rows: Sequence[Row], source: str) -> list[Claim]:
    """Claim (e), accuracy is fully preserved: from all rows of ``recommend.run`` at hand."""
    same = [bool(row["identical_scores"]) for row in rows]
    share = sum(same) / len(same)
    verdict = REPRODUCED if all(same) else NOT
    runs = sum(int(row["repeats"]) for row in rows)
    reason = f"scores compared bit for bit in {runs:,} runs, {same.count(False)} of {len(same)} settings differ"
    return [_claim("(e) accuracy fully preserved", source, (share,) * 3, "of settings", verdict, reason)]


def table(claims: Sequence[Claim]) -> str:
    """The claims as text of at most 120 columns, for a terminal: what is claimed, below it what was found where."""
    rules = {name: "-" * width for name, width in WIDTHS.items()}
    blocks = [f"{HEADS['claim']}, and what was measured here", _wrapped(HEADS), _wrapped(rules)]
    for text in sorted({claim["claim"] for claim in claims}):
        found = [claim for claim in claims if claim["claim"] == text]
        blocks += [text, *(_wrapped(claim | {"measured": _measured(claim)}) for claim in found)]
    return "\n".join(blocks)


def markdown(claims: Sequence[Claim], *, reasons: bool = True) -> str:
    """The claims as a table in Markdown, for notebooks and, without the reasons, for the README."""
    names = [name for name in HEADS if reasons or name != "reason"]
    lines = [f"| {' | '.join(HEADS[name] for name in names)} |", "|---" * len(names) + "|"]
    for claim in sorted(claims, key=lambda claim: claim["claim"]):
        cells = claim | {"measured": _measured(claim), "verdict": f"**{claim['verdict']}**"}
        lines.append("| " + " | ".join(cells[name].replace("|", "\\|") for name in names) + " |")
    return "\n".join(lines)


def write(stem: str, claims: Sequence[Claim]) -> Path:
    """Write ``data/stem/claims.json``."""
    path = data_folder(stem) / "claims.json"
    files.write({path: json.dumps(list(claims), indent=1, ensure_ascii=False) + "\n"})
    return path


def _claim(claim: str, source: str, found: Interval, unit: str, verdict: str, reason: str) -> Claim:
    names = ("claim", "source", "effect", "low", "high", "unit", "verdict", "reason")
    return dict(zip(names, (claim, source, *found, unit, verdict, reason), strict=True))


def _names(rows: Sequence[Row], by: str) -> list[str]:
    return list(dict.fromkeys(row[by] for row in rows))


def _pair(rows: Sequence[Row], by: str, name: str) -> tuple[Row, Row]:
    """Bounded lag's rows at the bound that is judged, and at bound 0."""
    ours = {row["bound"]: row for row in rows if row["contender"] == "bls" and row[by] == name}
    for bound in (BOUND, 0):
        if bound not in ours:
            raise ValueError(f"no row of bounded lag at bound {bound} with {by} {name!r}: measure that bound too")
    return ours[BOUND], ours[0]


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.float64)


def _by_lag(ours: Row, alone: Row, column: str = "speedups") -> Interval:
    """What lag makes of it: over the same exchange at bound 0, repeat by repeat."""
    return interval(_numbers(ours[column]) / _numbers(alone[column]))


def _at_most(most: float, found: Interval) -> str:
    _, low, high = found
    return REPRODUCED if high <= most else NOT if low > most else OPEN


def _gain(*found: Interval) -> str:
    """Better by each of these: over MPI_Alltoallv, and by lag itself."""
    if any(high < GAIN for _, _, high in found):
        return NOT
    return REPRODUCED if all(low > 1 and effect >= GAIN for effect, low, _ in found) else OPEN


def _source(ours: Row, name: str, cores: int) -> str:
    return f"{name}, {ours['ranks']} ranks on {cores} cores: {ours['source']}"


def _of_which(ours: Row, alone: Row) -> str:
    """How much of the effect is there without any lag, and how much the lag adds."""
    split = _split(alone["speedup_over_mpi"], _by_lag(ours, alone))
    return f"bound {BOUND}, {len(ours['speedups'].split())} repeats; {split}"


def _split(without_lag: float, by_lag: Interval) -> str:
    effect, low, high = by_lag
    return f"our exchange without lag {without_lag:.2f} ×, lag on top of it {effect:.2f} × ({low:.2f} to {high:.2f})"


def _headroom(alone: Row) -> str:
    """How much of the synchronous run any bound could win back, by the max-plus recurrence (exchange 0)."""
    share = 1 - alone["limit_s"] / alone["predicted_s"]
    return f"; imbalance that changes is {share:.0%} of the synchronous run's work, the model lets lag win back no more"


def _measured(claim: Claim) -> str:
    effect, low, high, unit = (claim[name] for name in ("effect", "low", "high", "unit"))
    return f"{effect:.2f} {unit}" if low == high else f"{effect:.2f} ({low:.2f} to {high:.2f}) {unit}"


def _wrapped(cells: dict[str, Any]) -> str:
    columns = [textwrap.wrap(cells[name], width) for name, width in WIDTHS.items()]
    lines = zip_longest(*columns, fillvalue="")
    return "\n".join("  ".join(["", *map(str.ljust, line, WIDTHS.values())]).rstrip() for line in lines)
