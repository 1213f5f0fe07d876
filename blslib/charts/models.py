"""Charts in which the model speaks beside or beyond the measurement: serving under load, many ranks, memory.

As in ``charts``: a tidy table in, an Altair chart out, one panel for each value of a column.
"""

import altair as alt
import pandas as pd

from blslib.charts.look import BOUND_AXIS, MPI, TENS, WIDTH, Table, by, heading, log, medians, panels, setting

SERVERS = ("#000000", "#D55E00", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#737373")
SHAPES = ("square", "diamond", "triangle-up", "circle", "triangle-down", "cross", "triangle-right", "stroke")
MEASURED, MODEL = "measured", "max-plus model"


def latency_by_rate(rows: Table, *, cores: int, limit_s: float) -> alt.FacetChart:
    """Percentiles of latency against the throughput reached, with the model's; takes rows of ``serving.run``."""
    table = _servers(rows)
    long, servers = _percentiles(table, 50, 95, 99), table["server"].unique()
    x = alt.X("batches_per_s:Q", title="throughput (batches per second)", scale=alt.Scale(nice=False, padding=8))
    y = alt.Y("latency_ms:Q", title="latency (ms, logarithmic)", **log())
    base = alt.Chart().encode(x=x, color=by(alt.Color, "server", servers, SERVERS))
    layers = [
        alt.Chart().mark_rule(strokeDash=[2, 3], color="#737373").encode(y=alt.datum(1000 * limit_s)),
        base.mark_line().encode(y="predicted_ms:Q", order="rate_per_s:Q"),
        *medians(base, "latency_ms", y, shape=by(alt.Shape, "server", servers, SHAPES)),
    ]
    worst = table[table["rate_per_s"] == table["rate_per_s"].max()]
    told = "; ".join(f"{each.server} {1000 * each.latency_p99_s:.0f} ms" for each in worst.itertuples())
    lines = [*_conditions(table, cores, "Lines"), f"Dotted: a limit of {1000 * limit_s:g} ms."]
    highest = worst["rate_per_s"].iloc[0]
    said = f"latency against throughput; 99th percentile at {highest:g} arrivals a second: {told}"
    return panels(layers, long, "percentile", "What users wait, at which throughput", lines, said, height=260)


def lone_batches(rows: Table, *, cores: int) -> alt.FacetChart:
    """What a bound costs a batch that has the system to itself, with and without polling; rows of ``serving.run``."""
    table = _servers(rows).replace({"idle": {"polls": "an idle rank polls", "sleeps": "an idle rank sleeps"}})
    long, kinds = _percentiles(table, 50, 95), table["idle"].unique()
    base = alt.Chart().encode(
        x=alt.X("server:N", sort=list(table["server"].unique()), title=None, axis=alt.Axis(ticks=False)),
        xOffset=alt.XOffset("idle:N", scale=alt.Scale(paddingOuter=0.6)),
        color=by(alt.Color, "idle", kinds, (SERVERS[4], SERVERS[1])),
    )
    y = alt.Y("latency_ms:Q", title="latency (ms, logarithmic)", **log())
    layers = [
        base.mark_tick(width=26, thickness=1.5, opacity=1).encode(y="predicted_ms:Q"),
        *medians(base, "latency_ms", y, shape=by(alt.Shape, "idle", kinds, ("circle", "triangle-up"))),
    ]
    every = f"A batch arrives every {1000 / table['rate_per_s'].iloc[0]:g} ms in the mean."
    lines = [*_conditions(table, cores, "Ticks"), every]
    told = "; ".join(f"{each.server}, {each.idle} {1000 * each.latency_p50_s:.1f} ms" for each in table.itertuples())
    said = f"latency of batches that hardly ever meet another; medians: {told}"
    return panels(layers, long, "percentile", "What a bound costs a lone batch", lines, said)


def gain_by_ranks(rows: Table, live: Table, *, cores: int) -> alt.FacetChart:
    """Speed-up over bound 0 against the number of ranks, bound by bound and law by law.

    Args:
        rows: drawn as lines: the predictions of ``limits.run``, or of the live runs themselves.
        live: of ``delayed.run`` at several numbers of ranks, bounded lag alone; drawn as points.
        cores: of the machine that ran them.
    """
    model, measured = _gains(rows, "predicted_s"), _gains(live, "measured_s")
    model = model[model["bound"].isin(measured["bound"])]
    shown = pd.concat([model.assign(series=MODEL), measured.assign(series=MEASURED)], ignore_index=True)
    far = int(shown["ranks"].max())
    beyond = far > 8  # further than anybody ran
    ticks = TENS if beyond else sorted(measured["ranks"].unique())
    base = alt.Chart().encode(
        x=alt.X("ranks:Q", title="ranks P (logarithmic)", **log(ticks)),
        y=alt.Y("gain:Q", title="speed-up over bound 0 (×)", scale=alt.Scale(zero=False, padding=8)),
        color=by(alt.Color, "label", shown.sort_values("bound")["label"].unique(), SERVERS[2:]),
    )
    layers = [
        base.transform_filter(alt.datum.series == MODEL).mark_line(),
        base.transform_filter(alt.datum.series == MEASURED).mark_point(),
    ]
    top = shown[(shown["series"] == MODEL) & (shown["ranks"] == far)].groupby("delay", sort=False)["gain"].max()
    first = pd.DataFrame(live).iloc[0]
    lines = [
        f"Points: live runs at {_listed(measured['ranks'])} ranks on {cores} cores; work and delays are sleeps.",
        f"{first['iterations']} iterations, medians of {first['repeats']} repeats.",
        "Lines: the max-plus model"
        + (f", up to {far:,} ranks, which nobody ran." if beyond else " on the realised work of the same runs."),
    ]
    told = "; ".join(f"{law} {gain:.2f}" for law, gain in top.items())
    title = "What lag would win with many ranks" if beyond else "What lag wins, measured and predicted"
    said = f"speed-up against ranks; greatest at {far:,} ranks: {told}"
    return panels(layers, shown, "delay", title, lines, said, height=140 if beyond else 190)


def saved_time(rows: Table) -> alt.FacetChart:
    """How much earlier than without lag each iteration is complete; takes rows of ``limits.saved``."""
    table = pd.DataFrame(rows).rename(columns={"law": "delay"})
    table = table.assign(saved_ms=1000 * table["saved_s"], label="bound " + table["bound"].astype(str))
    names = table["label"].unique()
    line = alt.Chart().mark_line(strokeWidth=2)
    layer = line.encode(
        x=alt.X("iteration:Q", title="iteration", axis=alt.Axis(tickCount=5)),
        y=alt.Y("saved_ms:Q", title="time saved so far (ms)"),
        color=by(alt.Color, "label", names, SERVERS[2:]),
        strokeDash=by(alt.StrokeDash, "label", names, ([1, 0], [6, 4], [2, 3], [8, 2, 2, 2])),
    )
    last = table[table["iteration"] == table["iteration"].max()].groupby("delay", sort=False)["saved_ms"].max()
    lines = [
        f"{table['ranks'].iloc[0]} ranks, max-plus model, the same mean delay under every law.",
        "Saved is when an iteration is complete at bound 0 less when it is at bound k.",
    ]
    told = "; ".join(f"{law} {ms:.0f} ms" for law, ms in last.items())
    said = f"saved time; at the end: {told}"
    return panels([layer], table, "delay", "Lag pays again and again, or never", lines, said)


def needed_bounds(rows: Table) -> alt.HConcatChart:
    """The bound that comes close to the limit, and its memory, against ranks; takes rows of ``limits.needed``."""
    table = pd.DataFrame(rows).dropna(subset="bound").astype({"bound": float, "memory_bytes": float})
    table = table.assign(shown=table["bound"].clip(lower=0.7), mb=table["memory_bytes"] / 1e6)
    laws = table["law"].unique()
    base = alt.Chart(table, width=(WIDTH - 60) // 2, height=260).mark_line(point=True)
    base = base.encode(
        x=alt.X("ranks:Q", title="ranks P (logarithmic)", **log(TENS)),
        color=by(alt.Color, "law", laws, SERVERS),
        shape=by(alt.Shape, "law", laws, SHAPES),
    )
    left = alt.Y("shown:Q", title="bound k needed (iterations)", **log([2**n for n in range(9)]))
    right = alt.Y("mb:Q", title="memory of a rank's slots (MB)", **log(TENS))
    told = table.loc[table.groupby("law", sort=False)["ranks"].idxmax()]
    said = "; ".join(f"{each.law} {each.bound:.0f} at {each.ranks:,} ranks" for each in told.itertuples())
    lines = [
        f"The smallest bound tried that is within {table['within'].iloc[0]:.0%} of the busiest rank's own time; model.",
        "Bound 0 stands below 1. A line ends where no bound tried comes so close. Memory for blocks of 16 KiB.",
    ]
    return alt.hconcat(base.encode(y=left), base.encode(y=right), spacing=40).properties(
        title=heading("Which bound is needed", lines), description=f"Needed bound and memory against ranks: {said}."
    )


def balance(rows: Table, *, cores: int) -> alt.HConcatChart:
    """What a call costs as slots outgrow the caches, and which bound is best then; rows of ``limits.balance``."""
    table = pd.DataFrame(rows)
    table["mb"] = table["memory_bytes"] / 1e6
    size = {"width": (WIDTH - 60) // 2, "height": 240}
    calls = alt.Chart(table).encode(x=alt.X("mb:Q", title="memory of a rank's slots (MB)", **log(TENS)))
    blue = calls.encode(color=alt.value(SERVERS[4]))
    y = alt.Y("call_us:Q", title="time of a call (µs)", scale=alt.Scale(zero=False))
    numbers = calls.mark_text(dy=-12, fontSize=11).encode(y=y, text="bound:N")
    costs = alt.layer(blue.mark_line().encode(y=y), *medians(blue, "call_us", y), numbers).properties(**size)
    names = {"iteration_us": "exchange as measured", "free_us": "exchange free"}
    long = table.melt("bound", list(names), "kind", "us").replace({"kind": names})
    sums = alt.Chart(long).mark_line(point=True).properties(**size)
    sums = sums.encode(
        x=BOUND_AXIS,
        y=alt.Y("us:Q", title="time of an iteration (µs)", scale=alt.Scale(zero=False)),
        color=by(alt.Color, "kind", names.values(), (SERVERS[4], SERVERS[7])),
    )
    first, best = table.iloc[0], table.loc[table["iteration_us"].idxmin()]
    lines = [
        f"Left: the bare exchange live, {first['ranks']} ranks on {cores} cores; the numbers are bounds.",
        f"Blocks of {first['bytes_per_block']:,} bytes, medians of {first['repeats']} repeats with least and greatest.",
        f"Right: the max-plus model with delays ({first['law']}), alone and with the cost of a call from the left.",
    ]
    costly = "; ".join(f"bound {each.bound} {each.call_us:.0f} µs" for each in table.itertuples())
    return alt.hconcat(costs, sums, spacing=40).properties(
        title=heading("The balance: a larger bound hides more, and costs memory and cache", lines),
        description=f"Time of a call by bound: {costly}. Time of an iteration is least at bound {best['bound']}.",
    )


def _servers(rows: Table) -> pd.DataFrame:
    table = pd.DataFrame(rows).sort_values(["contender", "bound"], key=lambda c: c.replace({"mpi": "", "bls": "~"}))
    names = "bound " + table["bound"].astype(str)
    return table.assign(server=names.where(table["contender"] == "bls", MPI))


def _conditions(table: pd.DataFrame, cores: int, drawn: str) -> list[str]:
    law, mean_ms = table["law"].iloc[0], 1000 * table["mean_delay_s"].iloc[0]
    return [
        setting(table, cores),
        f"Open loop: arrivals by a Poisson clock. Delays are sleeps ({law}) of {mean_ms:g} ms in the mean.",
        f"Points: medians with least and greatest. {drawn}: the max-plus model on the work of the same runs.",
    ]


def _percentiles(table: pd.DataFrame, *percents: int) -> pd.DataFrame:
    """A row for each percentile, in milliseconds."""
    keys = table[["server", "idle", "batches_per_s", "rate_per_s", "repeats"]]
    return pd.concat(
        keys.assign(
            percentile=f"p{n}",
            predicted_ms=1000 * table[f"predicted_p{n}_s"],
            **{f"latency_ms{end}": 1000 * table[f"latency_p{n}_s{end}"] for end in ("", "_min", "_max")},
        )
        for n in percents
    )


def _gains(rows: Table, column: str) -> pd.DataFrame:
    """Rows of bound above 0 with their speed-up over the bound 0 of the same law and ranks."""
    table = pd.DataFrame(rows)
    slow = table[table["bound"] == 0].set_index(["law", "ranks"])[column]
    table["gain"] = slow.loc[list(zip(table["law"], table["ranks"], strict=True))].to_numpy() / table[column]
    return table[table["bound"] > 0].assign(label=lambda rows: "bound " + rows["bound"].astype(str), delay=table["law"])


def _listed(values: "pd.Series") -> str:
    *some, last = (str(value) for value in sorted(values.unique()))
    return f"{', '.join(some)} and {last}" if some else last
