"""Charts of a diagnosis: where the time went, what each bound would make of it, and which rank was busy when.

As in ``charts``: tidy rows in, an Altair chart out. The rows are those of ``diagnose.Diagnosis``, of one run or of
several, and a column ``case`` tells which.
"""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from blslib.charts.look import BLS, BOUND_AXIS, LIMIT, LOOKS, PREDICTED, WIDTH, Table, by, heading, medians, panels

COLORS = {
    "useful work": "#DBD6CA",
    "static imbalance": "#882255",
    "dynamic imbalance": "#E69F00",
    "exposed exchange": "#55636F",
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
    dark = alt.FieldOneOfPredicate("part", ["static imbalance", "exposed exchange"])
    ink = alt.when(dark).then(alt.value("white")).otherwise(alt.value("#222222"))
    words = base.mark_text(fontSize=11).encode(x="place:Q", text="label:N", color=ink)
    share = table.pivot(index="case", columns="part", values="share")[["static imbalance", "dynamic imbalance"]]
    told = "; ".join(
        f"{case} {share.loc[case].iloc[0]:z.0%} static, {share.loc[case].iloc[1]:z.0%} dynamic" for case in cases
    )
    remedies = "Static: place tables better. Dynamic: bounded lag. Exchange: overlap."
    return alt.layer(bars, words).properties(
        width=WIDTH - 60, height=max(60, 30 * len(cases)), title=heading("Where the time goes", [*lines, remedies]),
        description=f"Stacked bars of the four parts of each run: {told}.",
    )  # fmt: skip


def bounds(rows: Table, measured: Table = (), lines: tuple[str, ...] = ()) -> alt.FacetChart:
    """Time against the bound, over that at bound 0, a panel a case.

    Args:
        rows: ``rows_of_bounds``.
        measured: bounded lag's own runs: case, bound, over_synchronous (time over that of the same exchange at bound
            0), over_synchronous_low and over_synchronous_high.
        lines: of the caption.
    """
    table = pd.DataFrame(rows).query("shown").copy()
    start_s = table.groupby("case", sort=False)["predicted_s"].transform("first")
    for name in ("predicted", "travelling", "limit"):
        table[name] = table[f"{name}_s"] / start_s
    y = alt.Y("predicted:Q", title="time over that at bound 0", scale=alt.Scale(zero=False), axis=alt.Axis(format="%"))
    base = alt.Chart().encode(x=BOUND_AXIS)
    model, color = base.transform_filter("isValid(datum.predicted)"), LOOKS[PREDICTED][0]
    layers = [
        model.mark_area(color=color, opacity=0.25).encode(y=y, y2="travelling:Q"),
        model.mark_line(color=LOOKS[LIMIT][0], strokeDash=[2, 3]).encode(y="limit:Q"),
        model.mark_line(color=color).encode(y=y),
    ]
    chosen = model.transform_filter("datum.chosen").mark_point(
        shape="diamond", size=210, filled=False, strokeWidth=2.5, color=color
    )
    told = (
        "Line: predicted from the record, the exchange taking its ranks' own time; diamond: the recommended bound. "
        "Dotted: the busiest rank's work and that exchange, as low as the line can come. Shade: what a bound hides of "
        "the exchange besides, at most."
    )
    if len(measured):
        table = pd.concat([table, pd.DataFrame(measured)], ignore_index=True)
        dots = base.transform_filter("isValid(datum.over_synchronous)").encode(color=alt.value(LOOKS[BLS][0]))
        layers += medians(dots, "over_synchronous", alt.Y("over_synchronous:Q"))
        told += " Dots: bounded lag, measured, over its own time at bound 0, for the same work."
    layers.append(chosen.encode(y=y, tooltip=["bound", "predicted_s", "limit_s"]))
    take = table[table["chosen"].eq(True)].set_index("case")
    said = "; ".join(f"{case} bound {row['bound']} to {row['predicted']:.0%}" for case, row in take.iterrows())
    said = f"time over that at bound 0 against the bound; recommended: {said}"
    return panels(layers, table, "case", "What would a bound make of it?", [*lines, told], said, height=150)


def load(rows: Table, lines: tuple[str, ...] = ()) -> alt.FacetChart:
    """Which rank works how long in each iteration: a map of rank against iteration; takes ``rows_of_load``."""
    table = pd.DataFrame(rows)
    by_rank = table.groupby(["case", "rank"], sort=False)["over_mean"].mean()
    busy = by_rank.groupby("case", sort=False).agg(["idxmax", "max"])
    said = "; ".join(f"{case} rank {row['idxmax'][1]} at {row['max']:.2f}" for case, row in busy.iterrows())
    first = f"The first {table['iteration'].nunique()} iterations."
    told = [*lines, first, "A row that stays brown is static imbalance; brown that wanders between rows is dynamic."]
    if len(table) > MOST_ROWS:
        most = MOST_ROWS // (table["iteration"].nunique() * len(busy))
        drawn = by_rank[by_rank.groupby("case", sort=False).rank(ascending=False, method="first") <= most]
        table = table.set_index(["case", "rank"]).loc[drawn.index].reset_index()
        told.append(f"Drawn are the {most} busiest ranks.")
    scale = alt.Scale(scheme="brownbluegreen", reverse=True, domain=[0, 2], domainMid=1, clamp=True)
    legend = alt.Legend(
        title="work over the mean of all (2: or more)", gradientLength=220, titleLimit=300, format=".1f"
    )
    quiet: dict[str, Any] = {"domain": False, "ticks": False, "grid": False, "labelOverlap": True}
    layer = alt.Chart(mark="rect").encode(
        x=alt.X("iteration:O", axis=alt.Axis(**quiet)),
        y=alt.Y("rank:O", axis=alt.Axis(**quiet)),
        color=alt.Color("over_mean:Q", scale=scale, legend=legend),
        tooltip=["rank", "iteration", "work_s", "over_mean"],
    )
    height = int(np.clip(18 * table["rank"].nunique(), 60, 300))
    said = f"work of each rank in the first iterations; busiest: {said} times the mean"
    return panels([layer], table, "case", "Who is busy, and when?", told, said, height).resolve_scale(y="independent")


def page(parts_rows: Table, bounds_rows: Table, load_rows: Table) -> alt.VConcatChart:
    """The three charts of one run, one below the other."""
    charts: list[Any] = [parts(parts_rows), bounds(bounds_rows), load(load_rows)]
    return alt.vconcat(*charts, spacing=40).resolve_scale(color="independent")
