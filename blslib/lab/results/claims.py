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
from pathlib import Path
from typing import Any

import numpy as np

from blslib.lab.results.records import Row, data_folder

Claim = dict[str, Any]

BOUND = 4
NOTABLE, GAIN, MASKED = 1.10, 1.05, 1.05
REPRODUCED, NOT, OPEN = "reproduced", "not reproduced", "inconclusive"
HEADING = "The paper claims (direction only)"
COLUMNS = {"source": 30, "measured": 21, "verdict": 14, "reason": 47}


def interval(values: Sequence[float] | np.ndarray, resamples: int = 10_000) -> tuple[float, float, float]:
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
        effect, low, high = interval(_speedups(rows, by, name, BOUND))
        verdict = REPRODUCED if high <= NOTABLE else NOT if low > NOTABLE else OPEN
        reason = _of_which(rows, by, name)
        if verdict != REPRODUCED:
            reason += f"; {_headroom(rows, by, name)}"
            if _row(rows, by, name, BOUND)["ranks"] > cores:
                reason += "; ranks take turns on cores here, an imbalance of its own"
        elif high < 1 / NOTABLE:
            reason += "; it is notably slower"
        claim = "(a) balanced: no notable advantage"
        found.append(
            _claim(claim, _source(rows, by, name, cores), (effect, low, high), "× MPI_Alltoallv", verdict, reason)
        )
    return found


def better(rows: Sequence[Row], claim: str, *, cores: int, by: str = "scenario") -> list[Claim]:
    """Claims (b) and (c), the throughput is better: one for each value of ``by``; rows of ``recommend.run``."""
    found = []
    for name in _names(rows, by):
        over_mpi = interval(_speedups(rows, by, name, BOUND))
        verdict = _both(over_mpi, interval(_by_lag(rows, by, name)))
        reason = _of_which(rows, by, name)
        if verdict != REPRODUCED:
            reason += f"; {_headroom(rows, by, name)}"
        found.append(_claim(claim, _source(rows, by, name, cores), over_mpi, "× MPI_Alltoallv", verdict, reason))
    return found


def latency(rows: Sequence[Row], *, cores: int) -> list[Claim]:
    """Claim (f), latency is better, judged by its 99th percentile in open loop: one for each rate of arrivals.

    Args:
        rows: of ``serving.run``, of ranks that poll while idle.
        cores: of the machine that ran them.
    """
    found = []
    for rate in _names(rows, "rate_per_s"):
        ours, alone = (_row(rows, "rate_per_s", rate, bound) for bound in (BOUND, 0))
        gains, without_lag = _numbers(ours["gains_p99"]), _numbers(alone["gains_p99"])
        over_mpi, by_lag = interval(gains), interval(gains / without_lag)
        median = interval(_numbers(ours["gains_p50"]))[0]
        reason = (
            f"bound {BOUND}, {len(gains)} repeats; p50 {median:.2f} × shorter; of p99 our exchange without lag "
            f"{np.median(without_lag):.2f} ×, lag on top of it {by_lag[0]:.2f} × ({by_lag[1]:.2f} to {by_lag[2]:.2f})"
        )
        source = f"{ours['law']} delays, {rate:g} batches a second, {ours['ranks']} ranks on {cores} cores, open loop"
        verdict = _both(over_mpi, by_lag)
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
    effect, low, high = interval([row["measured_s"] / row["limit_s"] for row in wide])
    verdict = REPRODUCED if high <= MASKED else NOT if low > MASKED else OPEN
    bounds = ", ".join(str(row["bound"]) for row in wide)
    synchronous = [
        row["measured_s"] / row["limit_s"] for row in rows if row["contender"] == "mpi" and row["law"] == law
    ]
    reason = f"bounds {bounds}; no rank can be quicker than its own work and delays"
    if synchronous:
        reason += f"; MPI_Alltoallv takes {synchronous[0]:.2f} × that"
    source = f"{law}, {wide[0]['ranks']} ranks: delays by sleep around the bare exchange"
    return [
        _claim(
            "(d) best case: delays masked altogether", source, (effect, low, high), "× busiest rank", verdict, reason
        )
    ]


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
    heads = dict(zip(COLUMNS, ("source", "measured here", "verdict", "reason"), strict=True))
    blocks = [
        f"{HEADING}, and what was measured here",
        _wrapped(heads),
        _wrapped({k: "-" * n for k, n in COLUMNS.items()}),
    ]
    for text in sorted({claim["claim"] for claim in claims}):
        found = [claim for claim in claims if claim["claim"] == text]
        blocks += [text, *(_wrapped(claim | {"measured": _measured(claim)}) for claim in found)]
    return "\n".join(blocks)


def markdown(claims: Sequence[Claim], *, reasons: bool = True) -> str:
    """The claims as a table in Markdown, for notebooks and, without the reasons, for the README."""
    heads = [HEADING, "source", "measured here", "verdict", "reason"][: 5 if reasons else 4]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for claim in sorted(claims, key=lambda claim: claim["claim"]):
        cells = [claim["claim"], claim["source"], _measured(claim), f"**{claim['verdict']}**", claim["reason"]][
            : len(heads)
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def write(stem: str, claims: Sequence[Claim]) -> Path:
    """Write ``data/stem/claims.json``."""
    path = data_folder(stem) / "claims.json"
    path.write_text(json.dumps(list(claims), indent=1, ensure_ascii=False) + "\n")
    return path


def _claim(claim: str, source: str, found: tuple[float, ...], unit: str, verdict: str, reason: str) -> Claim:
    effect, low, high = found
    return {
        "claim": claim,
        "source": source,
        "effect": effect,
        "low": low,
        "high": high,
        "unit": unit,
        "verdict": verdict,
        "reason": reason,
    }


def _names(rows: Sequence[Row], by: str) -> list[str]:
    return list(dict.fromkeys(row[by] for row in rows))


def _row(rows: Sequence[Row], by: str, name: str, bound: int) -> Row:
    for row in rows:
        if (row["contender"], row[by], row["bound"]) == ("bls", name, bound):
            return row
    raise ValueError(f"no row of bounded lag at bound {bound} with {by} {name!r}: measure that bound too")


def _speedups(rows: Sequence[Row], by: str, name: str, bound: int) -> np.ndarray:
    return _numbers(_row(rows, by, name, bound)["speedups"])


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.float64)


def _by_lag(rows: Sequence[Row], by: str, name: str) -> np.ndarray:
    """Throughput at ``BOUND`` over that of the same exchange at bound 0, repeat by repeat."""
    return _speedups(rows, by, name, BOUND) / _speedups(rows, by, name, 0)


def _gains(found: tuple[float, float, float]) -> str:
    effect, low, high = found
    return REPRODUCED if low > 1 and effect >= GAIN else NOT if high < GAIN else OPEN


def _both(over_mpi: tuple[float, float, float], by_lag: tuple[float, float, float]) -> str:
    """A gain over MPI_Alltoallv that lag itself makes."""
    verdicts = {_gains(over_mpi), _gains(by_lag)}
    return NOT if NOT in verdicts else OPEN if OPEN in verdicts else REPRODUCED


def _source(rows: Sequence[Row], by: str, name: str, cores: int) -> str:
    row = _row(rows, by, name, BOUND)
    return f"{name}, {row['ranks']} ranks on {cores} cores: {row['source']}"


def _of_which(rows: Sequence[Row], by: str, name: str) -> str:
    """How much of the effect is there without any lag, and how much the lag adds."""
    alone, repeats = _row(rows, by, name, 0)["speedup_over_mpi"], len(_by_lag(rows, by, name))
    effect, low, high = interval(_by_lag(rows, by, name))
    split = f"our exchange without lag {alone:.2f} ×, lag on top of it {effect:.2f} × ({low:.2f} to {high:.2f})"
    return f"bound {BOUND}, {repeats} repeats; {split}"


def _headroom(rows: Sequence[Row], by: str, name: str) -> str:
    """How much of the synchronous run any bound could win back, by the max-plus recurrence (exchange 0)."""
    row = _row(rows, by, name, 0)
    share = 1 - row["limit_s"] / row["predicted_s"]
    return f"imbalance that changes is {share:.0%} of the synchronous run's work, the model lets lag win back no more"


def _measured(claim: Claim) -> str:
    if claim["low"] == claim["high"]:
        return f"{claim['effect']:.2f} {claim['unit']}"
    return f"{claim['effect']:.2f} ({claim['low']:.2f} to {claim['high']:.2f}) {claim['unit']}"


def _wrapped(cells: dict[str, Any]) -> str:
    columns = [textwrap.wrap(str(cells[name]), width) for name, width in COLUMNS.items()]
    height, widths = max(map(len, columns)), COLUMNS.values()
    padded = [lines + [""] * (height - len(lines)) for lines in columns]
    return "\n".join("  ".join(["", *map(str.ljust, line, widths)]).rstrip() for line in zip(*padded, strict=True))
