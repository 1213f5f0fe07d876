"""Charts of live runs: a table in, an Altair chart out.

Every chart takes ``lab.rows.summary`` of an experiment's rows, and ``cores`` of the machine that ran it. Most draw one
panel for each value of the column named ``panel``, "scenario" or "law"; runs on different numbers of ranks, one table
below the other, stand below each other, those with a core for every rank first.
"""

from typing import Any

import altair as alt
import pandas as pd

from blslib.charts import look
from blslib.charts.look import BOUND_AXIS, INTERVALS, LOOKS, LOOSE, QUIET, Table, apart, by, medians, panels, setting

PHASES = {"work": "#B8C9D9", "delay": "#F0E442", "waiting": "#EDEDED"}
EXCHANGE, LAG, EXPECTED = "exchange: bound 0 over MPI", "lag: bound k over bound 0", "lag as theory expects it"
PALE = "#BBE1F6"
"""The model's blue, for areas."""
MPI_LINE = alt.Chart().mark_rule(color=LOOKS[look.MPI][0]).encode(y=alt.datum(1.0))


def timeline(rows: Table, *, cores: int) -> alt.FacetChart:
    """What every rank does when, one panel per bound on a common time axis; takes the rows of ``timeline.run``."""
    table = pd.DataFrame(rows)
    table = table.assign(start_ms=1000 * table["start_s"], end_ms=1000 * table["end_s"])
    table["middle_ms"] = (table["start_ms"] + table["end_ms"]) / 2
    done = table.groupby("bound")["end_ms"].transform("max").map(": done after {:,.0f} ms".format)
    table["panel"], ranks = "bound " + table["bound"].astype(str) + done, table["rank"].nunique()
    axis = alt.Axis(labelExpr="'rank ' + datum.label", titlePadding=8, **QUIET)
    base = alt.Chart().encode(y=alt.Y("rank:O", title=None, axis=axis, scale=alt.Scale(paddingInner=0.18)))
    x = alt.X("start_ms:Q", title="time since the start (ms)", scale=alt.Scale(nice=False))
    color = by(alt.Color, "phase", PHASES, PHASES.values())
    bars = base.mark_bar(stroke="white", strokeWidth=0.7).encode(x=x, x2="end_ms:Q", color=color)
    numbers = base.mark_text(fontSize=10).encode(x="middle_ms:Q", text="iteration:N")
    lines = [
        f"{ranks} ranks on {cores} cores, from a real run. The numbers are iterations; work and delay are sleeps.",
        "At bound 0, synchronous, all wait for every delay at once; with lag only those whom it has put too far ahead.",
    ]
    panel_names = list(table["panel"].unique())
    row = alt.Row("panel:N", sort=panel_names, header=alt.Header(orient="top", labelAnchor="start"))
    chart = alt.layer(
        bars, numbers.transform_filter(alt.datum.phase == "work"), data=table, width=look.WIDTH, height=34 * ranks
    )
    said = f"Own work, delay and waiting as bars, a row per rank, one panel below the other: {'; '.join(panel_names)}."
    return chart.facet(row=row, title=look.heading(f"What {ranks} ranks do when", lines), description=said)


def waits(rows: Table, *, cores: int) -> Any:
    """Who waits for whom, a map of rank against rank for each law and bound; takes the rows of ``timeline.run``."""
    table = pd.DataFrame(rows)
    every = alt.Scale(domain=sorted(table["rank"].unique().tolist()))
    table = table.query("phase == 'waiting' and waits_for >= 0 and waits_for != rank")
    table = table.assign(ms=1000 * table["waits_s"], run=table["law"] + ", bound " + table["bound"].astype(str))
    table = table.groupby(["run", "rank", "waits_for"], sort=False, as_index=False)["ms"].sum()
    x, y = (alt.X("waits_for:O", title="for this rank"), alt.Y("rank:O", title="this rank waits (ms)"))
    base = alt.Chart().encode(x=x.scale(every).axis(**QUIET), y=y.scale(every).axis(**QUIET))
    color = alt.Color("ms:Q", scale=alt.Scale(range=["white", "#999999"], domainMin=0), legend=None)
    layers = [base.mark_rect(stroke="white").encode(color), base.mark_text().encode(alt.Text("ms:Q", format=".0f"))]
    lines = [
        f"{len(every.domain)} ranks on {cores} cores, from real runs; milliseconds of a whole run.",
        "A call at bound k waits for the rank that is last to enter its call k iterations before.",
    ]
    together = table.groupby("run", sort=False)["ms"].sum().round().to_dict()
    said = f"milliseconds that each rank waits for each; together {together}"
    return panels(layers, table, "run", "Who waits for whom?", lines, said, alt.Step(26))


def lag(rows: Table, *, cores: int) -> Any:
    """How far each rank is ahead of the slowest, over the time of a run; takes rows of ``timeline.run``."""
    table = pd.DataFrame(rows)
    table, ranks = table[table["phase"] == "waiting"], table["rank"].nunique()
    table = table.assign(end_ms=1000 * table["end_s"])
    color = alt.Color("rank:O", title="rank", scale=alt.Scale(scheme="browns"))  # blues are bounds
    x = alt.X("end_ms:Q", title="time since the start (ms)", scale=alt.Scale(nice=False))
    base = alt.Chart().encode(x=x, y=alt.Y("ahead:Q", title="lag (iterations)"), color=color)
    lines = [f"{ranks} ranks on {cores} cores, bound {look.span(table['bound'])}, from real runs; work is a sleep."]
    most = table.groupby("law", sort=False)["ahead"].max()
    said = f"iterations that each rank is ahead of the slowest; at most: {most.to_dict()}"
    layers = [base.mark_line(interpolate="step-after"), base.mark_point(size=25)]
    return panels(layers, table, "law", "How far is each rank ahead of the slowest?", lines, said)


def speedup_by_bound(rows: Table, *, cores: int, panel: str = "scenario") -> Any:
    """Throughput over that of MPI_Alltoallv against the bound; takes ``speedup`` of ``dlrm.run``."""
    table = look.told(rows, cores)
    shown = table[table["contender"] != "mpi"]
    y = alt.Y("speedup:Q", title="throughput over MPI_Alltoallv (×)", scale=LOOSE)
    layers = [MPI_LINE, *look.curves(shown["series"], BOUND_AXIS, y, xOffset=look.BESIDE)]
    lines = [setting(table), f"Black line: MPI_Alltoallv. {INTERVALS}"]
    lines += ["gloo keeps k requests in flight."] * ("gloo" in set(shown["contender"]))
    said = f"throughput over MPI_Alltoallv against the bound; bounded lag: {look.ranges(table, panel, 'speedup')}"
    return panels(layers, shown, panel, "Does bounded lag raise the throughput?", lines, said)


def exchange_and_lag(rows: Table, *, cores: int, panel: str = "scenario") -> Any:
    """The two factors of bounded lag's speed-up against the bound, and what theory expects of the second.

    Takes ``speedup``, ``lag_effect``, ``expected_low`` and ``expected_high`` of ``dlrm.run`` or ``delayed.run``.
    """
    table = look.told(rows, cores)
    table = table[table["contender"] == "bls"]
    blue, light = LOOKS[look.BLS][0], LOOKS[look.PREDICTED][0]
    fill = by(alt.Fill, "series", (EXCHANGE, LAG, EXPECTED), ("white", blue, PALE))
    fill.legend = alt.Legend(symbolStrokeColor=blue)
    shape = by(alt.Shape, "series", (EXCHANGE, LAG, EXPECTED), ("diamond", "circle", "square"))
    base = alt.Chart().encode(x=BOUND_AXIS, color=alt.value(blue))
    kinds = ((EXCHANGE, alt.datum.bound == 0), (LAG, alt.datum.bound > 0), (EXPECTED, alt.datum.bound > 0))
    exchange, lag, expected = (base.transform_filter(at).transform_calculate(series=f"'{name}'") for name, at in kinds)
    band = expected.mark_bar(stroke=light)
    y = alt.Y("expected_low:Q", title="factor of the speed-up (×)", scale=LOOSE)
    looks = {"fill": fill, "shape": shape, "stroke": alt.value(blue)}
    layers = [
        alt.Chart().mark_rule(color="#888888", strokeWidth=1).encode(y=alt.datum(1.0)),
        band.encode(y=y, y2="expected_high:Q", fill=fill, color=alt.value(light)),
        *medians(lag, "lag_effect", alt.Y("lag_effect:Q"), **looks),
        *medians(exchange, "speedup", alt.Y("speedup:Q"), **looks),
    ]
    lines = [
        setting(table),
        "Speed-up over MPI_Alltoallv = exchange × lag × noise in the work. Lag: for the same work. 1 is no gain.",
        INTERVALS,
        "Theory, from the work at bound 0: lower end if lag hides imbalance alone, upper end if the exchange too.",
    ]
    ranges = look.ranges(table[table["bound"] > 0], panel, "lag_effect")
    said = f"exchange and lag as factors of the speed-up against the bound; lag: {ranges}"
    return panels(layers, table, panel, "Which part of the gain is lag?", lines, said)


def measured_and_predicted(rows: Table, *, cores: int, panel: str = "law") -> Any:
    """Time of an iteration against the bound, over columns of what the max-plus law makes of the runs' own work.

    Takes ``measured_s``, ``predicted_s``, ``limit_s`` and ``ratio`` of ``delayed.run`` or ``dlrm.run``.
    """
    table = look.told(rows, cores)
    for name in ("measured_s", "measured_s_low", "measured_s_high", "predicted_s", "limit_s"):
        table[name.replace("_s", "_ms", 1)] = 1000 * table[name] / table["iterations"]
    color, shape = apart([*table["series"], look.PREDICTED, look.LIMIT])
    ours = alt.Chart().transform_filter(alt.datum.contender == "bls").mark_bar().encode(x=BOUND_AXIS)
    points = alt.Chart().encode(x=BOUND_AXIS, xOffset=look.BESIDE, color=color)
    y = alt.Y("measured_ms:Q", title="time of an iteration (ms)")
    layers = [
        ours.encode(y=alt.Y("predicted_ms:Q"), color=alt.datum(look.PREDICTED)),
        ours.encode(y=alt.Y("limit_ms:Q"), color=alt.datum(look.LIMIT)),
        *medians(points, "measured_ms", y, shape=shape),
    ]
    lines = [
        setting(table),
        f"{INTERVALS} Columns are of bounded lag's own runs at that bound.",
        "Grey: the work of the busiest rank, which no lag shortens. Light blue: waits for others, by the max-plus law.",
        "From there to the point: the exchange.",
        *["Where grey changes with the bound, the work does: ranks share caches, and the machine with others."]
        * ("batch_size" in table),
    ]
    said = f"time of an iteration against the bound; measured over predicted: {look.ranges(table, panel, 'ratio')}"
    return panels(layers, table, panel, "Time of an iteration, measured and predicted", lines, said)


def alltoallv_by_size(rows: Table, *, cores: int) -> Any:
    """Time of a call over a bare loop of MPI against the size of blocks; ``share_of_raw`` of ``alltoallv.run``."""
    table = look.told(rows, cores)
    looks, shown = look.by_bound(table), table[table["contender"] != "raw"]
    words = "datum.value < 1024 ? datum.value + ' B' : format(datum.value / 1024, ',') + ' KiB'"
    axis = alt.Axis(values=sorted(table["bytes_per_block"].unique().tolist()), labelExpr=words)
    x = alt.X("bytes_per_block:Q", title="size of a block (logarithmic)", scale=look.log()["scale"], axis=axis)
    y = alt.Y("share_of_raw:Q", title="time of a call over bare MPI_Alltoallv (×)")
    layers = [MPI_LINE, *look.curves(shown["series"], x, y, looks)]
    lines = [
        f"{look.span(table['repeats'])} interleaved repeats. {INTERVALS}",
        "Every contender fills every block and reads what arrives. Line at 1: MPI_Alltoallv in a bare mpi4py loop.",
        "Black squares: the same behind our interface. Grey: no exchange at all.",
    ]
    said = f"time of a call over bare MPI_Alltoallv against the size: {look.ranges(shown, 'series', 'share_of_raw')}"
    return panels(layers, shown.rename(columns={"where": "on"}), "on", "What a call costs", lines, said, 280)


def gain_over_gloo(rows: Table, *, cores: int) -> Any:
    """What torch's backend gains over gloo with as many requests in flight, against the sleep in each iteration.

    Takes ``gain_over_gloo`` and ``expected_gain`` of ``torch.run``, and of gloo ``speedup_over_gloo``: what a program
    gains that keeps requests in flight.
    """
    table = look.told(rows, cores).query("contender in ('gloo', 'torch') and bound > 0").copy()
    looks = look.by_bound(table) | {look.PREDICTED: LOOKS[look.PREDICTED]}
    table["size"] = table["bytes_per_block"].map("blocks of {:,} bytes".format)
    for end in ("", "_low", "_high"):
        whole, ours = (table[f"{name}_over_gloo{end}"] for name in ("speedup", "gain"))
        table[f"gain{end}"] = ours.where(table["contender"] == "torch", whole)
    axis = alt.Axis(title="sleep per iteration (ms, square root)", values=sorted({*table["delay_ms"]}), format="~r")
    x = alt.X("delay_ms:Q", scale=alt.Scale(type="sqrt"), axis=axis)
    y = alt.Y("gain:Q", title="gain (×, logarithmic)", **look.log())
    foreseen = alt.Chart().transform_filter(alt.datum.contender == "torch").mark_line(strokeDash=[5, 3])
    layers = [
        alt.Chart().mark_rule(color="#888888", strokeWidth=1).encode(y=alt.datum(1.0)),
        foreseen.encode(x=x, y="expected_gain:Q", color=alt.datum(look.PREDICTED), detail="series:N"),
        *look.curves(looks, x, y, looks),
    ]
    lines = [
        f"{setting(table.assign(iterations=table['calls']))} {INTERVALS}",
        "Ranks sleep in turn, and then need no core; awake they share those at hand. Grey line: no gain.",
        "gloo: with k requests in flight over one at a time, what changing the program gains.",
        "bls: over gloo with as many in flight, what the backend adds. Dashed: the same by theory.",
    ]
    said = f"gain of bls over gloo with as many requests in flight: {look.ranges(table, 'size', 'gain', 'torch')}"
    return panels(layers, table, "size", "When does torch's backend pay?", lines, said)
