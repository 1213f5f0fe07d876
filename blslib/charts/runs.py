"""Charts of live runs: a table in, an Altair chart out.

Every chart takes ``lab.rows.summary`` of an experiment's rows, and ``cores`` of the machine that ran it. Most draw one
panel for each value of the column named ``panel``, "scenario" or "law"; runs on different numbers of ranks, one table
below the other, stand below each other, those with a core for every rank first.
"""

from typing import Any

import altair as alt
import pandas as pd

from blslib.charts.look import (
    BESIDE,
    BLS,
    BOUND_AXIS,
    FLOOR,
    GLOO,
    INTERVALS,
    LABELS,
    LIMIT,
    LOOKS,
    MPI,
    PREDICTED,
    WIDTH,
    WINDOW,
    Table,
    apart,
    by,
    by_bound,
    heading,
    log,
    medians,
    panels,
    setting,
    span,
    told,
)

PHASES = {"work": "#B8C9D9", "delay": "#E69F00", "waiting": "#EDEDED"}
EXCHANGE, LAG, EXPECTED = "exchange: bound 0 over MPI_Alltoallv", "lag: bound k over bound 0", "lag as theory expects it"


def timeline(rows: Table, *, cores: int) -> alt.FacetChart:
    """What every rank does when, one panel per bound on a common time axis; takes the rows of ``timeline.run``."""
    table = pd.DataFrame(rows)
    table = table.assign(start_ms=1000 * table["start_s"], end_ms=1000 * table["end_s"])
    table["middle_ms"] = (table["start_ms"] + table["end_ms"]) / 2
    names = {k: f"bounded lag, bound {k}" if k else "synchronous, bound 0" for k in sorted(table["bound"].unique())}
    table["panel"] = table["bound"].map(names)
    table["done_ms"] = table.groupby("bound")["end_ms"].transform("max")
    table["done"] = table["done_ms"].map("done: {:,.0f} ms".format)
    done = table.groupby("panel")["done"].first()
    ranks, own = table["rank"].nunique(), alt.datum.phase == "work"
    axis = alt.Axis(grid=False, ticks=False, domain=False, labelExpr="'rank ' + datum.label", titlePadding=8)
    base = alt.Chart().encode(y=alt.Y("rank:O", title=None, axis=axis, scale=alt.Scale(paddingInner=0.18)))
    width = alt.Scale(domain=[0, 1.12 * table["end_ms"].max()], nice=False)  # leaves room for the label at the end
    bars = base.mark_bar(stroke="white", strokeWidth=0.7).encode(
        x=alt.X("start_ms:Q", title="time since the start (ms)", scale=width),
        x2="end_ms:Q",
        color=by(alt.Color, "phase", PHASES, PHASES.values()),
        tooltip=["rank", "iteration", "phase", "start_ms", "end_ms"],
    )
    numbers = base.mark_text(fontSize=10).encode(x="middle_ms:Q", text="iteration:N")
    end = alt.Chart().transform_filter((alt.datum.rank == 0) & (alt.datum.iteration == 0) & own).encode(x="done_ms:Q")
    ends = end.mark_rule(strokeDash=[4, 3]) + end.mark_text(align="left", dx=5, fontSize=12, y=-7).encode(text="done:N")
    lines = [
        f"{ranks} ranks on {cores} cores, from a real run. The numbers are iterations; work and delay are sleeps.",
        "Synchronous ranks wait for every delay at once; with bounded lag only those whom it has put too far ahead.",
    ]
    row = alt.Row("panel:N", sort=list(names.values()), header=alt.Header(orient="top", labelAnchor="start"))
    said = "Timeline with own work, delay and waiting as bars, a row per rank, one panel above the other: "
    said += "; ".join(f"{name}, {done[name]}" for name in names.values())
    chart = alt.layer(bars, numbers.transform_filter(own), ends, data=table, width=WIDTH, height=34 * ranks)
    return chart.facet(row=row, title=heading(f"What {ranks} ranks do when", lines), description=said)


def speedup_by_bound(rows: Table, *, cores: int, panel: str = "scenario") -> Any:
    """Throughput over that of MPI_Alltoallv against the bound; takes ``speedup`` of ``dlrm.run``."""
    table = told(rows, cores)
    shown = table[table["series"] != MPI]
    color, shape, dash = apart(shown["series"])
    base = alt.Chart().encode(x=BOUND_AXIS, xOffset=BESIDE, color=color)
    y = alt.Y("speedup:Q", title="throughput over MPI_Alltoallv (×)", scale=alt.Scale(zero=False))
    layers = [
        alt.Chart().mark_rule(color=LOOKS[MPI][0]).encode(y=alt.datum(1.0)),
        base.mark_line().encode(y=y, strokeDash=dash),
        *medians(base, "speedup", y, shape=shape, tooltip=["series", "bound", "speedup"]),
    ]
    lines = [setting(table), f"Black line: MPI_Alltoallv. {INTERVALS}"]
    lines += ["gloo keeps k requests in flight."] if GLOO in set(shown["series"]) else []
    said = f"throughput over MPI_Alltoallv against the bound; bounded lag: {_ranges(table, panel, 'speedup')}"
    return panels(layers, shown, panel, "Does bounded lag raise the throughput?", lines, said)


def exchange_and_lag(rows: Table, *, cores: int, panel: str = "scenario") -> Any:
    """The two factors of bounded lag's speed-up, and what theory expects of the second.

    Takes ``speedup``, ``lag_effect``, ``expected_low`` and ``expected_high`` of ``dlrm.run`` or ``delayed.run``.
    """
    table = told(rows, cores)
    table = table[table["series"] == BLS].copy()
    lag = table["bound"] > 0
    table["series"], table["place"] = lag.map({True: LAG, False: EXCHANGE}), table["bound"].astype(str)
    table["place"] = table["place"].where(lag, "exchange")
    for end in ("", "_low", "_high"):
        table[f"factor{end}"] = table[f"lag_effect{end}"].where(lag, table[f"speedup{end}"])
    names, blue = (EXCHANGE, LAG, EXPECTED), LOOKS[BLS][0]
    fill = by(alt.Fill, "series", names, ("white", blue, LOOKS[PREDICTED][0]))
    shape = by(alt.Shape, "series", names, ("diamond", "circle", "square"))
    places = ["exchange", *(str(k) for k in sorted(table["bound"].unique()) if k)]
    x = alt.X("place:O", sort=places, title="lag of bound k (iterations)", axis=alt.Axis(ticks=False))
    base = alt.Chart().encode(x=x)
    y = alt.Y("factor:Q", title="factor of the speed-up (×)", scale=alt.Scale(zero=False))
    expected = base.transform_filter(alt.datum.bound > 0).transform_calculate(series=f"'{EXPECTED}'")
    bars, points = medians(base, "factor", y, shape=shape, fill=fill, tooltip=["series", "bound", "factor"])
    layers = [
        alt.Chart().mark_rule(color="#888888", strokeWidth=1).encode(y=alt.datum(1.0)),
        expected.mark_bar(width=alt.RelativeBandSize(0.7), stroke=LOOKS[PREDICTED][0]).encode(
            y="expected_low:Q", y2="expected_high:Q", fill=fill
        ),
        bars.mark_rule(color=blue),
        points.mark_point(stroke=blue, strokeWidth=1.5, size=60),
    ]
    lines = [
        setting(table),
        f"Speed-up over MPI_Alltoallv = exchange × lag; 1 is no gain. {INTERVALS}",
        "Theory expects of lag what each run's own work allows: the lower end if lag hides imbalance alone, "
        "the upper end if it hides all of the exchange as well.",
    ]
    said = f"exchange and lag as factors of the speed-up; lag: {_ranges(table[lag], panel, 'lag_effect', series=LAG)}"
    return panels(layers, table, panel, "Which part of the gain is lag?", lines, said)


def measured_and_predicted(rows: Table, *, cores: int, panel: str = "law") -> Any:
    """Time of an iteration against the bound, over bars of what the max-plus law makes of the runs' own work.

    Takes ``measured_s``, ``predicted_s``, ``limit_s`` and ``ratio`` of ``delayed.run`` or ``dlrm.run``.
    """
    table = told(rows, cores)
    for name in ("measured_s", "measured_s_low", "measured_s_high", "predicted_s", "limit_s"):
        table[name.replace("_s", "_ms", 1)] = 1000 * table[name] / table["iterations"]
    color, shape, _ = apart([*table["series"], PREDICTED, LIMIT])
    base = alt.Chart().encode(x=BOUND_AXIS)
    y = alt.Y("measured_ms:Q", title="time of an iteration (ms)")
    ours = base.transform_filter(alt.datum.series == BLS)
    bars = [
        ours.transform_calculate(series=f'"{name}"').mark_bar().encode(y=low, y2=high, color=color)
        for name, low, high in ((LIMIT, alt.Y("zero:Q"), "limit_ms:Q"), (PREDICTED, alt.Y("limit_ms:Q"), "predicted_ms:Q"))
    ]
    points = base.encode(xOffset=BESIDE, color=color)
    lines = [
        f"{setting(table)} {INTERVALS}",
        "Bars are made of the work of bounded lag's own runs at that bound: grey what the busiest rank works, which no "
        "lag shortens, light blue what ranks wait for each other by the max-plus law. From there to the point is the "
        "exchange.",
    ]
    if "batch_size" in table:
        lines.append("Grey changes with the bound where ranks share cores and caches: the work itself takes longer.")
    said = f"time of an iteration against the bound; bounded lag over its prediction: {_ranges(table, panel, 'ratio')}"
    layers = [*bars, *medians(points, "measured_ms", y, shape=shape)]
    return panels(layers, table.assign(zero=0), panel, "Time of an iteration, measured and predicted", lines, said)


def response_times(rows: Table, *, cores: int, panel: str = "scenario") -> Any:
    """Response times of batches against the bound, closed loop; ``response_p50_s``, ``response_p95_s`` of ``dlrm.run``."""
    table = told(rows, cores)
    table = table.assign(p50_ms=1000 * table["response_p50_s"], p95_ms=1000 * table["response_p95_s"])
    color, shape, _ = apart(table["series"])
    base = alt.Chart().encode(x=BOUND_AXIS, xOffset=BESIDE, color=color)
    y, p95 = alt.Y("p50_ms:Q", title="response time (ms, logarithmic)", **log()), alt.Y("p95_ms:Q")
    layers = [
        base.mark_rule(strokeWidth=1).encode(y=y, y2="p95_ms:Q"),
        base.mark_point().encode(y=y, shape=shape),
        base.mark_point(fill="white", strokeWidth=1.5).encode(y=p95, shape=shape),
    ]
    lines = [
        f"{setting(table)} Filled: p50, the median of the batches; open: p95. Both are medians of the repeats.",
        "Closed loop: a batch starts when the loop gets to it, so this is no latency of a service under load.",
    ]
    ranges = _ranges(table, panel, "p50_ms", ".1f")
    said = f"response times against the bound; p50 with bounded lag in milliseconds: {ranges}"
    return panels(layers, table, panel, "From a batch's lookup to its scores", lines, said)


def waiting(rows: Table, *, cores: int, panel: str = "scenario") -> Any:
    """How long each rank waits in an iteration, a map of rank against bound with MPI_Alltoallv first.

    Takes ``waiting_rank0_s`` and so on, and ``waiting_s``, of ``dlrm.run``.
    """
    table = told(rows, cores)
    table = table[table["series"].isin([MPI, BLS])]
    ranks = {f"waiting_rank{rank}_s": rank for rank in range(table["ranks"].max())}
    table = table.assign(column=table["bound"].astype(str).where(table["series"] == BLS, "MPI"))
    long = table.melt([n for n in table if n not in ranks], list(ranks), "rank", "waited_ms").dropna(subset="waited_ms")
    long["rank"], long["waited_ms"] = long["rank"].map(ranks), 1000 * long["waited_ms"] / long["iterations"]
    long["mean_ms"] = 1000 * long["waiting_s"] / long["iterations"]
    axis = alt.Axis(domain=False, ticks=False, grid=False)
    order = ["MPI", *(str(bound) for bound in sorted(table["bound"].unique()))]
    x = alt.X("column:O", sort=order, title="bound k (iterations)", axis=axis)
    base = alt.Chart().encode(x=x, y=alt.Y("rank:O", title="rank", axis=axis))
    scale = alt.Scale(scheme="greys", domainMin=0)
    legend = alt.Legend(title="waiting in an iteration (ms)", gradientLength=220, titleLimit=300)
    ink = alt.when(alt.datum.waited_ms > 0.5 * long["waited_ms"].max()).then(alt.value("white"))
    layers = [
        base.mark_rect(stroke="white").encode(color=alt.Color("waited_ms:Q", scale=scale, legend=legend)),
        base.mark_text(fontSize=10).encode(
            text=alt.Text("waited_ms:Q", format=".2~r"), color=ink.otherwise(alt.value("black"))
        ),
    ]
    lines = [setting(table), "Milliseconds of an iteration inside the exchange, transfers included; medians."]
    ranges = _ranges(long, panel, "mean_ms")
    said = f"milliseconds of waiting by rank and bound; mean of the ranks with bounded lag: {ranges}"
    return panels(layers, long, panel, "Who waits, and for how long?", lines, said, height=110)


def alltoallv_by_size(rows: Table, *, cores: int) -> alt.LayerChart:
    """Time of a call over that of MPI_Alltoallv against the size of blocks; takes ``share_of_mpi`` of ``alltoallv.run``."""
    table, looks = by_bound(told(rows, cores))
    shown = table[table["contender"] != "mpi"]
    color, shape, dash = apart(shown["series"], looks)
    sizes = sorted(table["bytes_per_block"].unique())
    scale = log([float(size) for size in sizes])
    scale["axis"].labelExpr = "datum.value < 1024 ? datum.value + ' B' : format(datum.value / 1024, ',') + ' KiB'"
    x = alt.X("bytes_per_block:Q", title="bytes of a block (logarithmic)", **scale)
    y = alt.Y("share_of_mpi:Q", title="time of a call over MPI_Alltoallv (×)")
    base = alt.Chart().encode(x=x, color=color)
    layers = [
        alt.Chart().mark_rule(color=LOOKS[MPI][0]).encode(y=alt.datum(1.0)),
        base.mark_line().encode(y=y, strokeDash=dash),
        *medians(base, "share_of_mpi", y, shape=shape, tooltip=["series", "bytes_per_block", "share_of_mpi"]),
    ]
    lines = [
        f"{table['where'].iloc[0]}, {span(table['repeats'])} interleaved repeats. Black line: MPI_Alltoallv. {INTERVALS}",
        "Every contender fills every block and reads what arrives; grey is what that takes with no exchange at all.",
    ]
    ours = shown[shown["contender"] == "bls"].groupby("series", sort=False)["share_of_mpi"].agg(["min", "max"])
    said = "; ".join(f"{name} {low:.2f} to {high:.2f}" for name, low, high in ours.itertuples())
    return alt.layer(*layers, data=shown, width=WIDTH, height=280).properties(
        title=heading("What a call costs", lines),
        description=f"Time of a call over MPI_Alltoallv against the size of blocks: {said}.",
    )


def arrivals(rows: Table, *, cores: int) -> Any:
    """Time over that of the max-plus law, pattern by pattern of arrival; takes ``ratio`` of ``arrivals.run``."""
    table, looks = by_bound(told(rows, cores))
    color, shape, _ = apart(table["series"], looks)
    y = alt.Y("series:N", sort=list(looks), title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=230))
    base = alt.Chart().encode(y=y, color=color.legend(None))
    x = alt.X("ratio:Q", title="time over the max-plus law (×)", scale=alt.Scale(zero=False))
    layers = [
        alt.Chart().mark_rule(color=LOOKS[PREDICTED][0]).encode(x=alt.datum(1.0)),
        base.mark_rule().encode(x="ratio_low:Q", x2="ratio_high:Q"),
        base.mark_point().encode(x=x, shape=shape.legend(None), tooltip=["series", "ratio"]),
    ]
    lines = [f"{setting(table)} {INTERVALS}", "Light blue line: the law itself, an exchange that costs nothing."]
    worst = table.loc[table.groupby("pattern", sort=False)["ratio"].idxmax()]
    said = "; ".join(f"{each.pattern} {each.series} {each.ratio:.2f}" for each in worst.itertuples())
    said = f"time over the max-plus law by contender; greatest: {said}"
    return panels(layers, table, "pattern", "Who bears ranks that arrive one by one?", lines, said, height=150)


def _ranges(table: pd.DataFrame, panel: str, column: str, form: str = ".2f", series: str = BLS) -> str:
    """In words, from which to which value a column goes over the bounds of bounded lag, panel by panel."""
    found = table[table["series"] == series].groupby(["where", panel], sort=False)[column].agg(["min", "max"])
    several = table["where"].nunique() > 1
    return "; ".join(
        f"{f'{where}, ' if several else ''}{name} {row['min']:{form}} to {row['max']:{form}}"
        for (where, name), row in found.iterrows()
    )
