"""Charts in which the model speaks beside or beyond the measurement: serving under load, many ranks, memory.

As in ``runs``: a table in, an Altair chart out.
"""

from typing import Any

import altair as alt
import pandas as pd

from blslib.charts.look import (
    BLS,
    BOUND_AXIS,
    INTERVALS,
    LIMIT,
    LOOKS,
    PREDICTED,
    TENS,
    WIDTH,
    Table,
    apart,
    bound_look,
    by,
    by_bound,
    heading,
    log,
    medians,
    panels,
    span,
    told,
)

MEASURED, MODEL = "measured", "max-plus model"
BLUE, LIGHT = LOOKS[BLS][0], LOOKS[PREDICTED][0]


def latency_by_rate(rows: Table, *, cores: int, limit_s: float) -> Any:
    """Percentiles of latency against the rate of arrivals, with the model's; takes ``serving.pooled``."""
    table, looks = by_bound(told(rows, cores))
    long = _percentiles(table, {50: "half of the batches wait less (p50)", 99: "one batch of 100 waits longer (p99)"})
    both = long.assign(source_of=MEASURED), long.assign(source_of=MODEL, latency_ms=long["predicted_ms"])
    color, shape, _ = apart(long["series"], looks)
    x = alt.X("rate_per_s:Q", title="batches that arrive per second", scale=alt.Scale(nice=False, padding=12))
    y = alt.Y("latency_ms:Q", title="latency (ms, logarithmic)", **log())
    base = alt.Chart().encode(x=x, color=color)
    limit = alt.Chart().encode(y=alt.datum(1000 * limit_s))
    dash = by(alt.StrokeDash, "source_of", (MEASURED, MODEL), ([1, 0], [3, 3]))
    points = base.transform_filter(alt.datum.source_of == MEASURED)
    layers = [
        limit.mark_rule(color=LOOKS[LIMIT][0], strokeWidth=2),
        limit.mark_text(align="left", baseline="bottom", dx=4, x=0, text=f"limit {1000 * limit_s:g} ms"),
        base.mark_line(strokeWidth=1.3).encode(y=y, strokeDash=dash),
        *medians(points, "latency_ms", y, shape=shape, tooltip=["series", "rate_per_s", "latency_ms"]),
    ]
    most = table["rate_per_s"].max()
    worst = table[table["rate_per_s"] == most]
    each = "; ".join(f"{row.series} {1000 * row.latency_p99_s:.0f} ms" for row in worst.itertuples())
    said = f"latency against the rate of arrivals; 99th percentile at {most:g} batches a second: {each}"
    title = "What users wait, at which rate"
    return panels(layers, pd.concat(both), "percentile", title, _conditions(table), said, height=280)


def lone_batches(rows: Table, *, cores: int) -> Any:
    """What a bound costs a batch that has the system to itself, with and without polling; takes ``serving.pooled``."""
    table, looks = by_bound(told(rows, cores))
    long = _percentiles(table, {50: "p50", 95: "p95"})
    color, _, _ = apart(long["series"], looks)
    long["idle"] = long["idle"].map({"polls": "an idle rank polls", "sleeps": "an idle rank sleeps"})
    kinds = long["idle"].unique()
    axis = alt.Axis(ticks=False, labelExpr="split(datum.label, ', ')")
    base = alt.Chart().encode(
        x=alt.X("series:N", sort=list(looks), title=None, axis=axis),
        xOffset=alt.XOffset("idle:N", scale=alt.Scale(paddingOuter=0.6)),
    )
    y = alt.Y("latency_ms:Q", title="latency (ms, logarithmic)", **log())
    measured = base.encode(color=color.legend(None))
    layers = [
        base.mark_tick(width=26, thickness=2, opacity=1, color=LIGHT).encode(y="predicted_ms:Q"),
        *medians(measured, "latency_ms", y, shape=by(alt.Shape, "idle", kinds, ("circle", "triangle-up"))),
    ]
    every = f"A batch arrives every {1000 / table['rate_per_s'].iloc[0]:g} ms in the mean."
    each = "; ".join(f"{row.series}, {row.idle} {1000 * row.latency_p50_s:.1f} ms" for row in table.itertuples())
    said = f"latency of batches that hardly ever meet another; medians: {each}"
    lines = [*_conditions(table), every]
    return panels(layers, long, "percentile", "What a bound costs a lone batch", lines, said)


def gain_by_ranks(model: Table, live: Table, *, cores: int) -> Any:
    """Speed-up over bound 0 against the number of ranks, bound by bound and law by law.

    Args:
        model: drawn as lines, its ``predicted_s``: rows of ``limits.run``, or ``live`` itself.
        live: of ``delayed.run`` at several numbers of ranks, bounded lag alone; ``lag_effect``, drawn as points.
        cores: of the machine that ran them.
    """
    measured, lines = pd.DataFrame(live), pd.DataFrame(model)
    same = "lag_effect" in lines
    alone_s = lines[lines["bound"] == 0].set_index(["law", "ranks"])["predicted_s"]
    lines["gain"] = lines.set_index(["law", "ranks"]).index.map(alone_s) / lines["predicted_s"]
    lines = lines[lines["bound"].isin(measured["bound"])].drop(columns="lag_effect", errors="ignore")
    gains = measured.rename(columns=lambda name: name.replace("lag_effect", "gain"))
    shown = pd.concat([lines.assign(kind=MODEL), gains.assign(kind=MEASURED)]).query("bound > 0")
    shown, looks = by_bound(shown.assign(contender="bls", delay=shown["law"]))
    far = int(lines["ranks"].max())
    beyond = far > measured["ranks"].max()
    color, shape, _ = apart(looks, looks)
    ticks = TENS if beyond else sorted(measured["ranks"].unique())
    x = alt.X("ranks:Q", title="ranks P (logarithmic)", **log(ticks))
    y = alt.Y("gain:Q", title="speed-up over bound 0 (×)", scale=alt.Scale(zero=False, padding=8))
    base = alt.Chart().encode(x=x, color=color)
    drawn = base.transform_filter(alt.datum.kind == MEASURED)
    layers = [
        base.transform_filter(alt.datum.kind == MODEL).mark_line().encode(y=y),
        *medians(drawn, "gain", y, shape=shape, tooltip=["series", "ranks", "gain"]),
    ]
    top = shown[(shown["kind"] == MODEL) & (shown["ranks"] == far)].groupby("delay", sort=False)["gain"].max()
    ran = f"{span(measured['repeats'])} repeats of {span(measured['iterations'])} iterations"
    text = [
        f"Points: live runs at {_listed(measured['ranks'])} ranks on {cores} cores, medians of {ran} with 95 % "
        "intervals; work and delays are sleeps.",
        "Lines: the max-plus model on the realised work of the same runs."
        if same
        else f"Lines: the max-plus model on draws of its own, {span(lines['iterations'])} iterations, "
        + (f"up to {far:,} ranks, which nobody ran." if beyond else f"up to {far:,} ranks."),
    ]
    each = "; ".join(f"{law} {gain:.2f}" for law, gain in top.items())
    title = "What lag would win with many ranks" if beyond else "What lag wins, measured and predicted"
    said = f"speed-up against ranks; greatest at {far:,} ranks: {each}"
    return panels(layers, shown, "delay", title, text, said, height=140 if beyond else 190)


def saved_time(rows: Table) -> Any:
    """How much earlier than without lag each iteration is complete; takes rows of ``limits.saved``."""
    table = pd.DataFrame(rows)
    table, looks = by_bound(table.assign(contender="bls", delay=table["law"], saved_ms=1000 * table["saved_s"]))
    color, _, dash = apart(looks, looks)
    layer = alt.Chart().mark_line(strokeWidth=2).encode(
        x=alt.X("iteration:Q", title="iteration", axis=alt.Axis(tickCount=5)),
        y=alt.Y("saved_ms:Q", title="time saved so far (ms)"),
        color=color,
        strokeDash=dash,
    )  # fmt: skip
    last = table[table["iteration"] == table["iteration"].max()].groupby("delay", sort=False)["saved_ms"].max()
    lines = [
        f"{table['ranks'].iloc[0]} ranks, max-plus model, the same mean delay under every law.",
        "Saved is when an iteration is complete at bound 0 less when it is at bound k.",
    ]
    each = "; ".join(f"{law} {ms:.0f} ms" for law, ms in last.items())
    said = f"saved time; at the end: {each}"
    return panels([layer], table, "delay", "Lag pays again and again, or never", lines, said)


def needed_bounds(rows: Table, *, most: int) -> alt.LayerChart:
    """The bound that comes close to the limit, and its memory: a map of law against ranks.

    Args:
        rows: of ``limits.needed``.
        most: the largest bound that was tried.
    """
    table = pd.DataFrame(rows).astype({"bound": float, "memory_bytes": float})
    none = table["bound"].isna()
    table["needed"] = table["bound"].map("{:.0f}".format).mask(none, f"> {most}")
    table["memory"] = table["memory_bytes"].map(_amount).mask(none, "")
    table["color"] = table["bound"].fillna(0).map(lambda bound: bound_look(int(bound))[0]).mask(none, "#F2F2F2")
    table["ink"] = (table["bound"] >= 2).map({True: "white", False: "black"})
    axis = alt.Axis(domain=False, ticks=False, grid=False, format=",d")
    y = alt.Y("law:N", sort=list(table["law"].unique()), title=None, axis=axis)
    base = alt.Chart(table, width=WIDTH - 60, height=36 * table["law"].nunique())
    base = base.encode(x=alt.X("ranks:O", title="ranks P", axis=axis), y=y)
    words = base.mark_text(fontSize=13, fontWeight="bold", dy=-6).encode(text="needed:N")
    memory = base.mark_text(fontSize=10, dy=9).encode(text="memory:N")
    cells = base.mark_rect(stroke="white").encode(color=alt.Color("color:N", scale=None))
    ink = alt.Color("ink:N", scale=None)
    lines = [
        f"The smallest bound tried that is within {table['within'].iloc[0]:.0%} of the busiest rank's own time, and the "
        "memory of a rank's slots for blocks of 16 KiB; max-plus model.",
        f"Bound 0: there is nothing to win. > {most}: no bound tried comes so close.",
    ]
    last = table.loc[table.groupby("law", sort=False)["ranks"].idxmax()]
    said = "; ".join(f"{each.law} {each.needed} at {each.ranks:,} ranks" for each in last.itertuples())
    return alt.layer(cells, words.encode(color=ink), memory.encode(color=ink)).properties(
        title=heading("Which bound is needed", lines), description=f"Needed bound and memory by law and ranks: {said}."
    )


def balance(rows: Table, *, cores: int) -> alt.HConcatChart:
    """What a call costs as slots outgrow the caches, and which bound is best then; rows of ``limits.balance``."""
    table = pd.DataFrame(rows)
    table["mb"] = table["memory_bytes"] / 1e6
    size = {"width": (WIDTH - 60) // 2, "height": 240}
    calls = alt.Chart(table).encode(x=alt.X("mb:Q", title="memory of a rank's slots (MB)", **log(TENS)))
    blue = calls.encode(color=alt.value(BLUE))
    y = alt.Y("call_us:Q", title="time of a call (µs)", scale=alt.Scale(zero=False))
    numbers = calls.mark_text(dx=10, dy=-9, fontSize=11).encode(y=y, text="bound:N")
    costs = alt.layer(blue.mark_line().encode(y=y), *medians(blue, "call_us", y), numbers).properties(**size)
    names = {"iteration_us": "exchange as measured", "free_us": "exchange free (model alone)"}
    long = table.melt("bound", list(names), "kind", "us").replace({"kind": names})
    sums = alt.Chart(long).mark_line(point=True).properties(**size)
    sums = sums.encode(
        x=BOUND_AXIS,
        y=alt.Y("us:Q", title="time of an iteration (µs)", scale=alt.Scale(zero=False)),
        color=by(alt.Color, "kind", names.values(), (BLUE, LIGHT)),
    )
    first, best = table.iloc[0], table.loc[table["iteration_us"].idxmin()]
    lines = [
        f"Left: the bare exchange live, {first['ranks']} ranks on {cores} cores; the numbers are bounds.",
        f"Blocks of {first['bytes_per_block']:,} bytes, medians of {span(table['repeats'])} repeats with 95 % intervals.",
        f"Right: the max-plus model with delays ({first['law']}), alone and with the cost of a call from the left.",
    ]
    costly = "; ".join(f"bound {each.bound} {each.call_us:.0f} µs" for each in table.itertuples())
    return alt.hconcat(costs, sums, spacing=40).properties(
        title=heading("The balance: a larger bound hides more, and costs memory and cache", lines),
        description=f"Time of a call by bound: {costly}. Time of an iteration is least at bound {best['bound']}.",
    )


def _conditions(table: pd.DataFrame) -> list[str]:
    delays = "Delays are sleeps"
    if "law" in table:
        delays += f" ({table['law'].iloc[0]}) of {1000 * table['mean_delay_s'].iloc[0]:g} ms in the mean"
    return [
        f"{table['where'].iloc[0]}. Open loop: arrivals by a Poisson clock. {delays}.",
        f"Percentiles of {span(table['batches'])} batches from {span(table['draws'])} draws of arrivals and delays, with "
        "95 % intervals by draw. Model: the max-plus law on the work of the same runs.",
    ]


def _percentiles(table: pd.DataFrame, percents: dict[int, str]) -> pd.DataFrame:
    """A row for each of these percentiles, which have names, in milliseconds."""
    return pd.concat(
        table[["series", "idle", "rate_per_s"]].assign(
            percentile=name,
            predicted_ms=1000 * table[f"predicted_p{n}_s"],
            **{f"latency_ms{end}": 1000 * table[f"latency_p{n}_s{end}"] for end in ("", "_low", "_high")},
        )
        for n, name in percents.items()
    )


def _amount(count: float) -> str:
    """Bytes in words: 34 MB."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            break
    return f"{count:.2g} {unit}" if count < 10 else f"{count:.0f} {unit}"


def _listed(values: "pd.Series") -> str:
    *some, last = (str(value) for value in sorted(values.unique()))
    return f"{', '.join(some)} and {last}" if some else last
