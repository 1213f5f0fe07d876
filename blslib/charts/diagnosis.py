"""Charts of a diagnosis: where the time went, what each bound would make of it, and which rank was busy when.

As in ``charts``: tidy rows in, an Altair chart out. The rows are those of ``diagnose.Diagnosis``, of one run or of
several that their column ``case`` tells apart.
"""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from blslib.charts.look import BLS, BOUND_AXIS, LIMIT, LOOKS, WIDTH, Table, by, heading, medians, panels

COLORS = {
    "useful work": "#0072B2",
    "static imbalance": "#D55E00",
    "dynamic imbalance": "#F0C04C",
    "exposed exchange": "#BBBBBB",
}

MOST_ROWS = 5000
"""As many as Altair draws."""


def parts(rows: Table, lines: tuple[str, ...] = ()) -> alt.TopLevelMixin:
    """One bar a case, its four parts adding up to the measured time; takes ``rows_of_parts``."""
    table = pd.DataFrame(rows)
    table["label"] = (100 * table["share"]).map("{:.0f} %".format).where(table["share"] >= 0.05, "")
    table["place"] = table.groupby("case", sort=False)["share"].cumsum() - table["share"] / 2
    cases = list(table["case"].unique())
    y = alt.Y("case:N", sort=cases, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=260))
    axis = alt.Axis(format="%", grid=True, gridColor="#dddddd")
    table["rank"] = table["part"].map(list(COLORS).index)
    base = alt.Chart(table).encode(y=y)
    bars = base.mark_bar(stroke="white").encode(
        x=alt.X("share:Q", title="share of the measured time", axis=axis, scale=alt.Scale(nice=False)),
        color=by(alt.Color, "part", COLORS, COLORS.values()),
        order="rank:Q",
        tooltip=["case", "part", "seconds", "share"],
    )
    ink = alt.when(alt.FieldOneOfPredicate("part", list(COLORS)[:2])).then(alt.value("white"))
    words = base.mark_text(fontSize=11).encode(x="place:Q", text="label:N", color=ink.otherwise(alt.value("#222222")))
    static, dynamic = (
        table[table["part"] == f"{part} imbalance"].set_index("case")["share"] for part in ("static", "dynamic")
    )
    told = "; ".join(f"{case} {static[case]:z.0%} static, {dynamic[case]:z.0%} dynamic" for case in cases)
    remedies = "Static: place tables better. Dynamic: bounded lag. Exchange: overlap."
    return alt.layer(bars, words).properties(
        width=WIDTH - 60, height=max(60, 30 * len(cases)), title=heading("Where the time goes", [*lines, remedies]),
        description=f"Stacked bars of the four parts of each run: {told}.",
    )  # fmt: skip


def bounds(rows: Table, measured: Table = (), lines: tuple[str, ...] = ()) -> alt.FacetChart:
    """Time against the bound, over that at bound 0, a panel a case.

    Args:
        rows: ``rows_of_bounds``.
        measured: of ``recommend.run`` with a column ``case`` added: bounded lag's own points, paired by repeat.
        lines: of the caption.
    """
    table = pd.DataFrame(rows)
    table = table[table["shown"]].copy()
    start_s = table.groupby("case", sort=False)["predicted_s"].transform("first")
    for name in ("predicted", "travelling", "limit"):
        table[name] = table[f"{name}_s"] / start_s
    points = _over_synchronous(measured, set(table["case"])) if len(measured) else []
    shown = pd.concat([table, pd.DataFrame(points)], ignore_index=True)
    title = "time over that at bound 0"
    y = alt.Y("predicted:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format="%"))
    base = alt.Chart().encode(x=BOUND_AXIS)
    model = base.transform_filter("isValid(datum.predicted)")
    layers = [
        model.mark_area(color=LOOKS[BLS][0], opacity=0.15).encode(y=y, y2="travelling:Q"),
        model.mark_line(color=LOOKS[LIMIT][0], strokeDash=[2, 3]).encode(y="limit:Q"),
        model.mark_line(color=LOOKS[BLS][0]).encode(y=y),
        model.transform_filter("datum.chosen")
        .mark_point(shape="diamond", size=110, color=LOOKS[BLS][0])
        .encode(y=y, tooltip=["bound", "predicted_s", "limit_s"]),
    ]
    if points:
        dots = base.transform_filter("isValid(datum.measured)").encode(color=alt.value("#D55E00"))
        layers += medians(dots, "measured", alt.Y("measured:Q"))
    told = (
        "Line: predicted from the record. Shade: what a bound hides of the exchange itself, at most. Diamond: the "
        "recommended bound. Dots: the limit that no bound can beat." + (" Orange: measured." if points else "")
    )
    chosen = table[table["chosen"]].set_index("case")
    said = "; ".join(f"{case} bound {row['bound']} to {row['predicted']:.0%}" for case, row in chosen.iterrows())
    said = f"time over that at bound 0 against the bound; recommended: {said}"
    return panels(layers, shown, "case", "What would a bound make of it?", [*lines, told], said, height=150)


def load(rows: Table, lines: tuple[str, ...] = ()) -> alt.FacetChart:
    """Which rank works how long, over the run: a map of rank against iteration; takes ``rows_of_load``."""
    table = pd.DataFrame(rows)
    most = max(float(table["over_mean"].quantile(0.99)), 1.1)  # a single stall must not take all colour from the rest
    scale = alt.Scale(scheme="blueorange", domain=[0, most], domainMid=1, clamp=True)
    legend = alt.Legend(title="work over the mean of all", gradientLength=220, titleLimit=300, format=".1f")
    quiet: dict[str, Any] = {"domain": False, "ticks": False, "grid": False}
    layer = alt.Chart(mark="rect").encode(
        x=alt.X("iteration:Q", title="iteration", axis=alt.Axis(**quiet), scale=alt.Scale(nice=False)),
        x2="until:Q",
        y=alt.Y("rank:O", title="rank", axis=alt.Axis(labelOverlap=True, **quiet)),
        color=alt.Color("over_mean:Q", scale=scale, legend=legend),
        tooltip=["rank", "iteration", "until", "work_s", "over_mean"],
    )
    by_rank = table.groupby(["case", "rank"], sort=False)["over_mean"].mean()
    busy = by_rank.groupby("case", sort=False).agg(["idxmax", "max"])
    said = "; ".join(f"{case} rank {row['idxmax'][1]} at {row['max']:.2f}" for case, row in busy.iterrows())
    told = "A row that stays orange is static imbalance; orange that wanders between rows is dynamic."
    said = f"work of each rank over the run; busiest: {said} times the mean"
    if len(table) > MOST_ROWS:
        most = MOST_ROWS * len(by_rank) // len(table) // len(busy)
        drawn = by_rank.groupby("case", sort=False).rank(ascending=False, method="first") <= most
        table = table[drawn.loc[pd.MultiIndex.from_frame(table[["case", "rank"]])].to_numpy()]
        told = f"{told} Drawn are the {most} busiest ranks."
    height = int(np.clip(18 * table["rank"].nunique(), 60, 300))
    chart = panels([layer], table, "case", "Who is busy, and when?", [*lines, told], said, height)
    return chart.resolve_scale(y="independent")


def page(parts_rows: Table, bounds_rows: Table, load_rows: Table) -> alt.VConcatChart:
    """The three charts of one run, one below the other."""
    charts: list[Any] = [parts(parts_rows), bounds(bounds_rows), load(load_rows)]
    return alt.vconcat(*charts, spacing=40).resolve_scale(color="independent")


def _over_synchronous(measured: Table, cases: set[str]) -> list[dict[str, Any]]:
    """Time at each bound over that of the same exchange at bound 0: median, least and greatest of the repeats."""
    table = pd.DataFrame(measured)
    ours = table[(table["contender"] == "bls") & table["case"].isin(cases)].set_index("bound")
    ours["speedups"] = [np.array(text.split(), np.float64) for text in ours["speedups"]]
    return [
        {
            "case": case,
            "bound": bound,
            "measured": float(np.median(over)),
            "measured_min": over.min(),
            "measured_max": over.max(),
        }
        for case, speedups in ours.groupby("case", sort=False)["speedups"]
        for bound, found in speedups.items()
        for over in [speedups[0] / found]
    ]
