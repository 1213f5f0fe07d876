"""Charts of live runs: a tidy table in, an Altair chart out.

No file is read here, and no number is computed beyond what is drawn.

Every chart takes the rows of an experiment and ``cores``, of the machine that ran it. Most draw one panel for each
value of the column named ``panel``, "scenario" or "law".
"""

from typing import Any

import altair as alt
import pandas as pd

from blslib.charts.look import (
    BESIDE,
    BLS,
    BOUND_AXIS,
    LABELS,
    LIMIT,
    LOOKS,
    MPI,
    PREDICTED,
    WIDTH,
    WINDOW,
    Table,
    by,
    heading,
    log,
    medians,
    panels,
    setting,
)

PHASES = {"work": "#0072B2", "delay": "#E69F00", "waiting": "#E4E4E4"}


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
    numbers = base.mark_text(color="white", fontSize=10).encode(x="middle_ms:Q", text="iteration:N")
    once = (alt.datum.rank == 0) & (alt.datum.iteration == 0) & own
    end = alt.Chart().transform_filter(once).encode(x="done_ms:Q")
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


def speedup_by_bound(rows: Table, *, cores: int, panel: str = "scenario") -> alt.FacetChart:
    """Throughput over that of MPI_Alltoallv against the bound, paired by repeat; takes rows of ``recommend.run``."""
    table = _labelled(rows)
    shown = table[table["series"] != MPI]
    base = alt.Chart().encode(x=BOUND_AXIS, xOffset=BESIDE, color=_series(shown))
    y = alt.Y("speedup_over_mpi:Q", title="throughput over MPI_Alltoallv (×)", scale=alt.Scale(zero=False))
    tooltip = ["series", "bound", "speedup_over_mpi", "batches_per_s"]
    layers = [
        alt.Chart().mark_rule(color=LOOKS[MPI][0]).encode(y=alt.datum(1.0)),
        base.mark_line().encode(y=y, strokeDash=_series(shown, alt.StrokeDash)),
        *medians(base, "speedup_over_mpi", y, shape=_series(shown, alt.Shape), tooltip=tooltip),
    ]
    title = "Does bounded lag raise the throughput?"
    lines = [setting(table, cores), "Black line: MPI_Alltoallv. Points are medians, bars least and greatest."]
    ranges = _ranges(table, panel, "speedup_over_mpi")
    said = f"throughput over MPI_Alltoallv against the bound; bounded lag: {ranges}"
    return panels(layers, shown, panel, title, lines, said)


def measured_and_predicted(rows: Table, *, cores: int, panel: str = "law") -> alt.FacetChart:
    """Time of a run against the bound, the max-plus prediction and the limit that no bound can beat.

    Takes the rows of ``delayed.run`` or ``recommend.run``.
    """
    table = _labelled(rows)
    ours = table[table["series"] == BLS][[panel, "bound", "predicted_s", "limit_s"]]
    drawn = ours.rename(columns={"predicted_s": PREDICTED, "limit_s": LIMIT})
    drawn = drawn.melt([panel, "bound"], [PREDICTED, LIMIT], "series", "measured_s")
    shown = pd.concat([table, drawn], ignore_index=True)
    base = alt.Chart().encode(x=BOUND_AXIS, color=_series(shown))
    y = alt.Y("measured_s:Q", title="time of the run (s)")
    theory = alt.FieldOneOfPredicate(field="series", oneOf=[PREDICTED, LIMIT])
    points = base.encode(xOffset=BESIDE).transform_filter(~theory)
    layers = [
        base.transform_filter(theory).mark_line(strokeWidth=2).encode(y=y, strokeDash=_series(shown, alt.StrokeDash)),
        *medians(points, "measured_s", y, shape=_series(shown, alt.Shape)),
    ]
    title = "Time of a run, measured and predicted"
    told = "Points are medians, bars least and greatest."
    told += " The prediction takes the realised work of bounded lag's own runs."
    ranges = _ranges(table, panel, "ratio")
    said = f"time of a run against the bound; bounded lag over its prediction: {ranges}"
    return panels(layers, shown, panel, title, [setting(table, cores), told], said)


def response_times(rows: Table, *, cores: int, panel: str = "scenario") -> alt.FacetChart:
    """Percentiles of the batches' response times against the bound, closed loop; takes rows of ``recommend.run``."""
    table = _labelled(rows)
    names = {"response_p50_s": "p50", "response_p95_s": "p95", "response_p99_s": "p99"}
    keys = [panel, "bound", "series", "source"]
    long = table.rename(columns=names).melt(keys, list(names.values()), "percentile", "response_s").dropna()
    long["response_ms"] = 1000 * long["response_s"].astype(float)
    base = alt.Chart().encode(x=BOUND_AXIS, xOffset=BESIDE, color=_series(long))
    y = alt.Y("response_ms:Q", title="response time (ms, logarithmic)", **log())
    shape = by(alt.Shape, "percentile", long["percentile"].unique(), ("circle", "triangle-up", "diamond"))
    layers = [base.mark_line().encode(y=y, detail="bound:O"), base.mark_point(size=42).encode(y=y, shape=shape)]
    title = "From a batch's lookup to its scores"
    closed = "Closed loop: a batch starts when the loop gets to it, so this is no latency of a service under load."
    ranges = _ranges(table, panel, "response_p50_s", ".3f")
    said = f"response times against the bound; median with bounded lag in seconds: {ranges}"
    return panels(layers, long, panel, title, [setting(table, cores), closed], said)


def waiting(rows: Table, *, cores: int, panel: str = "scenario") -> alt.FacetChart:
    """Seconds that each rank waits, a map of rank against bound with MPI_Alltoallv first; rows of ``recommend.run``."""
    table = _labelled(rows)
    kept = table[table["series"] != WINDOW].reset_index(drop=True)
    kept["column"] = kept["bound"].astype(str).where(kept["series"] == BLS, "MPI")
    kept["waited_s"] = kept["waiting_by_rank_s"].str.split()
    long = kept[[panel, "column", "waited_s", "source"]].explode("waited_s").astype({"waited_s": float})
    long["rank"] = long.groupby(level=0).cumcount()
    order = ["MPI", *(str(bound) for bound in sorted(kept["bound"].unique()))]
    axis = alt.Axis(domain=False, ticks=False, grid=False)
    x = alt.X("column:O", sort=order, title="bound k (iterations)", axis=axis)
    base = alt.Chart().encode(x=x, y=alt.Y("rank:O", title="rank", axis=axis))
    scale = alt.Scale(scheme="cividis", reverse=True, domainMin=0)
    legend = alt.Legend(title="waiting in the exchange (s)", gradientLength=220, titleLimit=300)
    ink = alt.when(alt.datum.waited_s > 0.5 * long["waited_s"].max()).then(alt.value("white"))
    text = alt.Text("waited_s:Q", format=".2f")
    layers = [
        base.mark_rect(stroke="white").encode(color=alt.Color("waited_s:Q", scale=scale, legend=legend)),
        base.mark_text(fontSize=10).encode(text=text, color=ink.otherwise(alt.value("black"))),
    ]
    title = "Who waits, and for how long?"
    lines = [setting(table, cores), "Seconds of a run inside the exchange, its transfers included; medians."]
    ranges = _ranges(table, panel, "waiting_s")
    said = f"seconds of waiting by rank and bound; mean of the ranks with bounded lag: {ranges}"
    return panels(layers, long, panel, title, lines, said, height=110)


def _labelled(rows: Table) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    table["series"] = table["contender"].map(LABELS)
    return table.dropna(subset="series")


def _series(table: pd.DataFrame, channel: Any = alt.Color) -> Any:
    """Colour, shape or dash by series, with one legend for all three."""
    found, place = set(table["series"]), (alt.Color, alt.Shape, alt.StrokeDash).index(channel)
    shown = {name: looks[place] for name, looks in LOOKS.items() if name in found}
    return by(channel, "series", shown, shown.values())


def _ranges(table: pd.DataFrame, panel: str, column: str, form: str = ".2f") -> str:
    """In words, from which to which value a column goes over the bounds of bounded lag, panel by panel."""
    found = table[table["series"] == BLS].groupby(panel, sort=False)[column].agg(["min", "max"])
    return "; ".join(f"{name} {low:{form}} to {high:{form}}" for name, low, high in found.itertuples())
