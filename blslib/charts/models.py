"""Charts in which the model speaks beside or beyond the measurement: serving under load, many ranks, memory.

As in ``runs``: a table in, an Altair chart out.
"""

from typing import Any

import altair as alt
import pandas as pd

from blslib.charts import look
from blslib.charts.look import LOOKS, TENS, Table, apart, by, log, medians, panels, span


def latency_by_rate(rows: Table, *, cores: int, limit_s: float) -> Any:
    """Percentiles of latency against the rate of arrivals, with the model's; takes ``serving.pooled``."""
    table = look.told(rows, cores)
    looks = look.by_bound(table)
    long = _percentiles(table, {50: "half of the batches wait less (p50)", 99: "one batch of 100 waits longer (p99)"})
    color, _ = apart(long["series"], looks)
    # Side by side, as their bars would hide each other.
    rates, step = sorted(long["rate_per_s"].unique()), 0.008 * long["rate_per_s"].max()
    long["place"] = long["rate_per_s"] + step * (long["series"].map(list(looks).index) - (len(looks) - 1) / 2)
    axis = alt.Axis(values=rates, format="~f")
    x = alt.X("place:Q", title="batches that arrive per second", scale=alt.Scale(nice=False, padding=12), axis=axis)
    y = alt.Y("latency_ms:Q", title="latency (ms, logarithmic)", **log())
    model = alt.Chart().encode(x=x, y="predicted_ms:Q", color=color)
    limit = alt.Chart().transform_aggregate(once="count()").encode(y=alt.datum(1000 * limit_s))
    layers = [
        limit.mark_rule(color=LOOKS[look.LIMIT][0], strokeWidth=2),
        limit.mark_text(align="left", baseline="bottom", dx=26, x=0, text=f"limit {1000 * limit_s:g} ms"),
        model.mark_line(strokeDash=[3, 3], strokeWidth=1.2),
        *look.curves(long["series"], x, y, looks),
    ]
    worst = table[table["rate_per_s"] == table["rate_per_s"].max()]
    each = "; ".join(f"{row.series} {1000 * row.latency_p99_s:.0f} ms" for row in worst.itertuples())
    said = f"latency against the rate of arrivals; 99th percentile at {span(worst['rate_per_s'])} a second: {each}"
    lines = _conditions(table, "Dashed lines")
    return panels(layers, long, "percentile", "What users wait, at which rate", lines, said, 280)


def gain_by_ranks(model: Table, live: Table, *, cores: int) -> Any:
    """Speed-up over bound 0 against the number of ranks, bound by bound and law by law.

    Args:
        model: drawn as lines, its ``predicted_s``: rows of ``limits.run``, or ``live`` itself.
        live: of ``delayed.run`` at several numbers of ranks, bounded lag alone; ``lag_effect``, drawn as points.
        cores: of the machine that ran them.
    """
    points, lines = pd.DataFrame(live), pd.DataFrame(model).sort_values("bound", kind="stable")
    over_work = lines["predicted_s"] / lines["limit_s"]
    lines["predicted"] = over_work.groupby([lines["law"], lines["ranks"]]).transform("first") / over_work
    shown = lines[lines["bound"].isin(points["bound"])].drop(columns="lag_effect", errors="ignore")
    shown = pd.concat([shown, points], ignore_index=True).query("bound > 0").assign(contender="bls", series="")
    shown["delay"], looks = shown["law"], look.by_bound(shown)
    color, shape = apart(looks, looks)
    far, ran = lines["ranks"].max(), points["ranks"].max()
    ticks = TENS if far > ran else sorted(points["ranks"].unique().tolist())
    x = alt.X("ranks:Q", title="ranks P (logarithmic)", **log(ticks))
    y = alt.Y("predicted:Q", title="lag's speed-up (×, log.)", **log((1, 1.5, 2, 3, 5, 10)))
    base = alt.Chart().encode(x=x, color=color)
    line = base.transform_filter("isValid(datum.predicted)").mark_line().encode(y=y)
    dots = base.transform_filter("isValid(datum.lag_effect)")
    layers = [line, *medians(dots, "lag_effect", alt.Y("lag_effect:Q"), shape=shape)]
    own = f"draws of its own, {span(lines['iterations'])} iterations"
    draws = "the realised work of the same runs" if "lag_effect" in lines else own
    text = [
        f"Points: live runs at {span(points['ranks'])} ranks on {cores} cores; work and delays are sleeps.",
        f"{span(points['repeats'])} repeats of {span(points['iterations'])} iterations, over bound 0 for equal work.",
        look.INTERVALS,
        f"Lines: the max-plus model on {draws}{f', up to {far:,} ranks, which nobody ran' if far > ran else ''}.",
    ]
    top = shown[shown["ranks"] == far].groupby("delay", sort=False)["predicted"].max()
    said = "; ".join(f"{law} {gain:.2f}" for law, gain in top.items())
    said = f"speed-up against ranks; predicted at {far:,} ranks: {said}"
    title = "What lag would win with many ranks" if far > ran else "What lag wins, measured and predicted"
    return panels(layers, shown, "delay", title, text, said, 140 if far > ran else 190)


def saved_time(rows: Table) -> Any:
    """How much earlier than without lag each iteration is complete; takes rows of ``limits.saved``."""
    table = pd.DataFrame(rows).assign(contender="bls", series="")
    table["delay"], table["saved_ms"], looks = table["law"], 1000 * table["saved_s"], look.by_bound(table)
    color, _ = apart(looks, looks)
    x = alt.X("iteration:Q", title="iteration", axis=alt.Axis(tickCount=5))
    y = alt.Y("saved_ms:Q", title="time saved so far (ms)")
    dash = by(alt.StrokeDash, "series", looks, ([1, 0], [6, 4], [2, 3], [8, 2, 2, 2]))
    layer = alt.Chart().mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=dash)
    last = table[table["iteration"] == table["iteration"].max()].groupby("delay", sort=False)["saved_ms"].max()
    lines = [
        f"{span(table['ranks'])} ranks, max-plus model, the same mean delay under every law.",
        "Saved is when an iteration is complete at bound 0 less when it is at bound k.",
    ]
    said = f"saved time; at the end: {'; '.join(f'{law} {ms:.0f} ms' for law, ms in last.items())}"
    return panels([layer], table, "delay", "Lag pays again and again, or never", lines, said)


def _conditions(table: pd.DataFrame, model: str) -> list[str]:
    law, mean_ms = table["law"].iloc[0], 1000 * table["mean_delay_s"].iloc[0]
    pooled = f"Percentiles of {span(table['batches'])} batches from {span(table['draws'])} draws of arrivals and delays"
    return [
        f"{table['where'].iloc[0]}. Batches of {span(table['batch_size'])}.",
        f"Open loop: arrivals by a Poisson clock. Delays are sleeps ({law}) of {mean_ms:g} ms in the mean.",
        f"{pooled}, with 95 % intervals by draw.",
        f"{model}: the max-plus model on the work of the same runs.",
    ]


def _percentiles(table: pd.DataFrame, percents: dict[int, str]) -> pd.DataFrame:
    """A row for each of these percentiles, which have names, in milliseconds."""
    keys = table[["series", "idle", "rate_per_s"]]
    names = {"latency_ms": "latency_p{}_s", "predicted_ms": "predicted_p{}_s"}
    names |= {f"latency_ms_{end}": f"latency_p{{}}_s_{end}" for end in ("low", "high")}
    columns = {n: {ms: 1000 * table[name.format(n)] for ms, name in names.items()} for n in percents}
    return pd.concat(keys.assign(percentile=name, **columns[n]) for n, name in percents.items())
