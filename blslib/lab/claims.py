"""What the paper claims, judged by what was measured here: three effects, what theory expects, a verdict, its reason.

The paper (arXiv 2512.19342) is taken at its directions, never at a number. Its claims are about lag, and the speed-up
over ``MPI_Alltoallv`` (*whole*) is a product: *exchange*, our bound 0 over MPI, times *lag*, bound k over bound 0,
times noise in the work itself. The times of lag are taken over the busiest rank's work, so that this last factor, which
the reason tells, cancels there. Lag is judged, and the other two stand beside it. k is ``JUDGED``, fixed in advance:
the best of several bounds would mistake luck for gain.

*Expected* is what follows from the work of the run at bound 0 (``rows.derived``): from ``expected_low``, if the
exchange stays as exposed as there, to ``expected_high``, if lag hides all of it. The verdict is that of the first rule
that applies, whatever the claim hopes for:

1. There are fewer than ``LEAST`` repeats: *inconclusive*.
2. The interval of lag's effect misses what is expected by more than 5 %: *contradicts the prediction*.
3. The interval lies within 0.95 to 1.05 (or begins lower, where a loss is expected, but at most 5 % below that): *no
   gain, as predicted* if ``expected_low`` is below 1.05, else *contradicts the prediction*.
4. The interval lies above 1, and ``expected_high`` is at least 1.05: *gain as predicted*.
5. The rest is *inconclusive*. An interval at most 0.05 wide gets here only if it holds the edge of *no gain* (0.95, or
   less where a loss is expected), or reaches above 1.05 although less is expected.

Judged are runs in which every rank has a core, and the bare exchange under sleeps, which needs none. Where computing
ranks take turns on cores, their work changes with the bound, of which the theory knows nothing: that is refused.
"""

import json
import math
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from blslib import files
from blslib.lab.compare.intervals import JUDGED, LEAST, Interval
from blslib.lab.options import Row
from blslib.lab.rows import Rows, data_folder, derived, summary

Claim = dict[str, Any]

LESS, MORE = 0.95, 1.05
"""An effect between them is none, and what is so far from the expected is as expected."""

GAIN, NO_GAIN = "gain as predicted", "no gain, as predicted"
CONTRADICTS, OPEN = "contradicts the prediction", "inconclusive"
HOLDS, FAILS = "holds", "fails"
EFFECTS = {"whole": "whole", "exchange": "of which exchange", "lag": "of which lag"}
ENDS = ("", "_low", "_high")
HEADS = {"claim": "claim", **EFFECTS, "expected": "theory expects", "verdict": "verdict", "reason": "reason"}
WIDTHS = {"claim": 24, "whole": 19, "exchange": 19, "lag": 19, "expected": 12, "verdict": 17}


def verdict(lag: Interval, expected_low: float, expected_high: float, repeats: int) -> tuple[str, str]:
    """The verdict on an effect of lag, by the rules above, and its reason."""
    if repeats < LEAST:
        return OPEN, f"fewer than {LEAST} repeats"
    if not np.isfinite([*lag, expected_low, expected_high]).all():
        return OPEN, "there is no number to judge"
    if lag.high < LESS * expected_low or lag.low > MORE * expected_high:
        return CONTRADICTS, "the interval misses what is expected by more than 5 %"
    if lag.low >= LESS * min(1, expected_low) and lag.high <= MORE:
        if expected_low < MORE:
            return NO_GAIN, "any gain is below 5 %"
        return CONTRADICTS, "any gain is below 5 %, and at least that was expected"
    if lag.low > 1 and expected_high >= MORE:
        return GAIN, "the interval lies above 1 and does not miss what is expected"
    if lag.low > MORE:
        return OPEN, "more than 5 % was gained, and less was expected, but not by 5 %"
    return OPEN, f"the interval, {lag.low:.3f} to {lag.high:.3f}, is too wide to tell an effect of 5 % from none"


def judge(
    rows: Rows, claim: str, *, cores: int, by: str = "scenario", headlines: Sequence[Any] = (), bound: int = JUDGED
) -> list[Claim]:
    """One claim for each value of ``by``.

    Args:
        rows: raw, one per repeat, of ``dlrm.run`` or ``delayed.run``: MPI, and bounded lag at bound 0
            and at ``bound``.
        claim: its words.
        cores: of the machine that ran them.
        by: the column that tells the settings apart.
        headlines: the values of ``by`` whose claims the README shows.
        bound: at which lag is judged.

    Raises:
        ValueError: computing ranks shared cores, MPI was not measured, or not exactly one setting is there to judge.
    """
    table, paired, found = summary(rows), derived(rows).dropna(subset="lag_effect"), []
    for name in dict.fromkeys(table[by]):
        here, needed = table[table[by] == name], (("mpi", 0), ("bls", 0), ("bls", bound))
        lines = [here[(here["contender"] == who) & (here["bound"] == k)] for who, k in needed]
        if any(len(line) != 1 for line in lines):
            cure = f"measure mpi, and bls at bounds 0 and {bound}, and judge one setting at a time"
            raise ValueError(f"of {by} {name!r} there is not one run each to judge: {cure}")
        mpi, alone, ours = (line.iloc[0] for line in lines)
        pairs = paired[(paired[by] == name) & (paired["contender"] == "bls") & (paired["bound"] == bound)]
        ours["repeats"] = len(pairs)
        parts = {"whole": (ours, "speedup"), "exchange": (alone, "speedup"), "lag": (ours, "lag_effect")}
        effects = {part: Interval(*(line[of + end] for end in ENDS)) for part, (line, of) in parts.items()}
        about = f"bound {bound}, {ours['repeats']} repeats; {ours['over_work']:.2f} × the busiest rank's work"
        about += f" (mpi {mpi['over_work']:.2f} ×), which was {ours['work_over_alone']:.2f} × that at bound 0"
        about += f"; {ours['source']}" if "source" in ours else ""
        judged = _judged(name, ours, cores, effects, (ours["expected_low"], ours["expected_high"]), about)
        found.append({"claim": claim, **judged, "headline": name in headlines})
    return found


def masked(rows: Rows, *, cores: int, law: str = "rotating", headlines: Sequence[int] = ()) -> list[Claim]:
    """Claim (d), in the best case the delays are masked altogether: one for each number of ranks.

    Args:
        rows: raw, of ``delayed.run``. Lag is judged at the least bound measured that is neither below ``JUDGED`` nor
            below the number of ranks, the iterations in which a delay goes round.
        cores: of the machine that ran them.
        law: the delays that go round.
        headlines: the numbers of ranks whose claims the README shows.

    Raises:
        ValueError: there is no such bound, or what ``judge`` refuses.
    """
    table, found = pd.DataFrame(rows), []
    for ranks, here in table[table["law"] == law].groupby("ranks", sort=False):
        bounds = here.loc[(here["contender"] == "bls") & (here["bound"] >= max(ranks, JUDGED)), "bound"]
        if bounds.empty:
            raise ValueError(f"no run of bounded lag on {ranks} ranks at a bound of that or more: measure one")
        shown, text = [law] * (ranks in headlines), "(d) best case: delays masked altogether"
        found += judge(here, text, cores=cores, by="law", headlines=shown, bound=int(bounds.min()))
    return found


def latency(rows: Rows, *, cores: int, headlines: Sequence[float] = ()) -> list[Claim]:
    """Claim (f), latency is better, judged by its 99th percentile in open loop: one for each rate of arrivals.

    Effects are ratios of percentiles, and so is what theory expects: the predicted percentile at bound 0 over that at
    ``JUDGED``, with as much on top of both as was measured at ``JUDGED``; or what was measured at bound 0 over the
    predicted one at ``JUDGED``.

    Args:
        rows: raw, of ``serving.run``, of ranks that poll while idle.
        cores: of the machine that ran them.
        headlines: the rates whose claims the README shows.

    Raises:
        ValueError: ranks shared cores.
    """
    from blslib.lab.experiments import serving

    found = []
    for rate, here in pd.DataFrame(rows).groupby("rate_per_s", sort=False):
        pooled = serving.pooled(here).set_index(["contender", "bound"])
        ours, alone = pooled.loc[("bls", JUDGED)], pooled.loc[("bls", 0)]
        pairs = {"whole": (JUDGED, "mpi"), "exchange": (0, "mpi"), "lag": (JUDGED, "bls")}
        effects = {part: serving.gains(here, 99, ("bls", k), (other, 0)) for part, (k, other) in pairs.items()}
        ours_s, free_s = ours["latency_p99_s"], ours["predicted_p99_s"]
        low = (alone["predicted_p99_s"] + ours_s - free_s) / ours_s
        expected = low, max(low, alone["latency_p99_s"] / free_s)
        about = f"bound {JUDGED}, {int(ours['batches']):,} batches of {int(ours['draws'])} draws"
        judged = _judged(f"{rate:g} batches a second", ours, cores, effects, expected, about)
        found.append({"claim": "(f) delays: latency better, at p99", **judged, "headline": rate in headlines})
    return found


def accuracy(rows: Sequence[Row], source: str) -> list[Claim]:
    """Claim (e), accuracy is fully preserved: from all raw rows with ``identical`` at hand."""
    same: dict[tuple[Any, ...], bool] = {}
    for row in rows:
        run = tuple(row.values())[: list(row).index("repeat") + 1]  # the batches of serving share one
        same[run] = same.get(run, True) and row["identical"] in (True, 1)
    if not same:
        raise ValueError("no runs to judge: give the rows of at least one")
    return [_scores(source, len(same), list(same.values()).count(False))]


def stated(claim: str, source: str, value: Interval, least: float, most: float, repeats: int) -> Claim:
    """A claim about one number: it holds if all of its interval lies within ``least`` to ``most``, fails if none does.

    Args:
        claim, source: in words, and where the number is from.
        value: the number with its interval.
        least, most: of what the claim allows.
        repeats: behind the interval.
    """
    verdict = HOLDS if least <= value.low and value.high <= most else OPEN
    verdict = FAILS if value.high < least or value.low > most else verdict
    ends = [f"at least {least:.2f}"] * (least > 0) + [f"at most {most:.2f}"] * (most < math.inf)
    reason = "{:.2f} ({:.2f} to {:.2f})".format(*value) + f"; {' and '.join(ends)} was meant"
    about = {"claim": claim, "source": source, "quantity": "statement", "repeats": repeats}
    return {**about, "verdict": verdict, "reason": reason, "headline": False}


def headlines(claims: Sequence[Claim]) -> list[Claim]:
    """The claims that the README shows; those about scores as one."""
    scores = [claim for claim in claims if claim["quantity"] == "scores"]
    runs, differ = (sum(claim[name] for claim in scores) for name in ("repeats", "differ"))
    return [claim for claim in claims if claim["headline"]] + [_scores("every run", runs, differ)] * bool(scores)


def table(claims: Sequence[Claim]) -> str:
    """The claims as text of at most 120 columns, for a terminal; with its reason what was not to be expected."""
    rows = _rows(claims, {name: "-" * width for name, width in WIDTHS.items()}, aside=True)
    wrapped = [[textwrap.wrap(row[name], width) for name, width in WIDTHS.items()] for row in rows]
    lines = [line for row in wrapped for line in zip_longest(*row, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, line, WIDTHS.values())).rstrip() for line in lines)


def markdown(claims: Sequence[Claim], *, reasons: bool = True) -> str:
    """The claims as a table in Markdown, with a column of reasons, or with those alone that ``table`` has."""
    rows = _rows(claims, dict.fromkeys(HEADS, "---"), aside=not reasons)
    names = [name for name in HEADS if reasons or name != "reason"]
    return "\n".join(f"| {' | '.join(row[name].replace('|', '&#124;') for name in names)} |" for row in rows)


def write(stem: str, claims: Sequence[Claim]) -> Path:
    """Write ``data/stem/claims.json``."""
    path = data_folder(stem) / "claims.json"
    files.write({path: json.dumps(list(claims), indent=1, ensure_ascii=False) + "\n"})
    return path


def _judged(
    name: str, ours: Any, cores: int, effects: dict[str, Interval], expected: tuple[float, float], about: str
) -> Claim:
    """What is said of a setting; ``ours`` is bounded lag's line of ``rows.summary`` or of ``serving.pooled``."""
    ranks, latency = int(ours["ranks"]), "draws" in ours
    repeats, where = int(ours["draws" if latency else "repeats"]), f"{ranks} ranks on {cores} cores"
    if "bytes_per_block" in ours:
        where = f"{ranks} ranks, sleeps around the bare exchange"
    elif ranks > cores:
        raise ValueError(f"{ranks} computing ranks took turns on {cores} cores: judge a run on at most {cores} ranks")
    decided, why = verdict(effects["lag"], *expected, repeats)
    return {
        **{"source": f"{name}, {where}", "quantity": "latency" if latency else "throughput"},
        **{"ranks": ranks, "cores": cores, "own_cores": ranks <= cores, "repeats": repeats},
        **{part + end: float(x) for part, of in effects.items() for end, x in zip(ENDS, of, strict=True)},
        **{"expected_low": float(expected[0]), "expected_high": float(expected[1])},
        **{"verdict": decided, "reason": f"{why}; {about}"},
    }


def _scores(source: str, runs: int, differ: int) -> Claim:
    reason = f"{differ:,} of {runs:,} runs differ" if differ else f"bit-identical in {runs:,} runs"
    about = {"claim": "(e) accuracy fully preserved", "source": source, "quantity": "scores", "repeats": runs}
    return {**about, "differ": differ, "verdict": FAILS if differ else HOLDS, "reason": reason, "headline": False}


def _rows(claims: Sequence[Claim], rule: dict[str, str], aside: bool) -> list[dict[str, str]]:
    """Of a table: its head, a rule below it, and the claims in order."""
    return [HEADS, rule, *(_cells(claim, aside) for claim in sorted(claims, key=itemgetter("claim")))]


def _cells(claim: Claim, aside: bool) -> dict[str, str]:
    """A claim as text, by the names of ``HEADS``; its reason stands ``aside`` an unexpected verdict."""
    cells = dict.fromkeys(HEADS, "") | {name: claim[name] for name in ("verdict", "reason")}
    cells["claim"] = f"{claim['claim']} ({claim['source']})"
    if aside and claim["verdict"] in {OPEN, CONTRADICTS}:
        cells["verdict"] += f": {claim['reason'].split('; ')[0]}"
    if "whole" not in claim:
        return cells | {"whole": claim["reason"]}
    say = _shorter if claim["quantity"] == "latency" else "{:.2f}".format
    for part in EFFECTS:
        cells[part] = "{} ({} to {})".format(*(say(claim[part + end]) for end in ENDS))
    return cells | {"expected": " to ".join(dict.fromkeys(say(claim["expected" + end]) for end in ENDS[1:]))}


def _shorter(gain: float) -> str:
    """A ratio of latencies, the other's over ours, in words."""
    percent = round(100 * (1 / gain - 1))
    return f"{abs(percent)} % {'longer' if percent > 0 else 'shorter'}" if percent else "as long"
