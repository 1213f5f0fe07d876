"""Charts of placements: a table in, an Altair chart out.

Strategies are told apart by their names beside their points, and not by colours: there are too many of them.
"""

from collections.abc import Sequence

import altair as alt
import pandas as pd

from blslib.charts.look import WIDTH, Table, by, heading, log

INK = "#444444"
KINDS = {"float32": ("#332288", "circle"), "int8": ("#999933", "triangle-up"), "int4": ("#AA4466", "square")}
"""Of values in a table, with colour and shape."""


def dots(rows: Table, title: str, lines: Sequence[str], *, what: str, even: float | None = None) -> alt.FacetChart:
    """A point for each strategy, a panel for each measure, each with an axis of its own.

    Args:
        rows: ``strategy``, ``panel``, ``value``, and, if it was measured, ``value_low`` and ``value_high``.
        title, lines: of the chart.
        what: the values, in words.
        even: a value that is marked by a line in all panels: nothing better can be had.
    """
    table = pd.DataFrame(rows)
    names, parts = list(table["strategy"].unique()), list(table["panel"].unique())
    axis = alt.Axis(domain=False, ticks=False, grid=True, gridColor="#eeeeee", labelLimit=220)
    base = alt.Chart().encode(y=alt.Y("strategy:N", sort=names, title=None, axis=axis))
    scale = alt.Scale(zero=even is None, nice=True, padding=8)
    layers = [base.mark_point(color=INK).encode(x=alt.X("value:Q", title=None, scale=scale), tooltip=list(table))]
    if "value_low" in table:
        layers.insert(0, base.mark_rule(color=INK).encode(x="value_low:Q", x2="value_high:Q"))
    if even is not None:
        layers.insert(0, alt.Chart().mark_rule(color="#999999").encode(x=alt.datum(even)))
    least = table.loc[table.groupby("panel", sort=False)["value"].idxmin()]
    said = "; ".join(f"{row.panel}: least {row.value:,.3g} by {row.strategy}" for row in least.itertuples())
    size = {"width": (WIDTH - 170) // len(parts) - 20, "height": 19 * len(names)}
    chart = alt.layer(*layers, data=table, **size).facet(
        column=alt.Column("panel:N", sort=parts, title=None), spacing=20
    )
    return chart.resolve_scale(x="independent").properties(
        title=heading(title, lines), description=f"{what}, a row per strategy, a panel per measure. {said}."
    )


def lookups(rows: Table, lines: Sequence[str]) -> alt.FacetChart:
    """Time of a lookup by size of table and kind of values, a panel for each width of row; of ``lookup.run``."""
    table = pd.DataFrame(rows)
    table["panel"] = table["dim"].astype(str) + " values a row"
    looks = {kind: look for kind, look in KINDS.items() if kind in set(table["kind"])}
    color = by(alt.Color, "kind", looks, [color for color, _ in looks.values()])
    shape = by(alt.Shape, "kind", looks, [shape for _, shape in looks.values()])
    table["mb"] = table["rows"] * table["dim"] * 4e-6
    sizes = [10.0**power for power in range(-4, 4)]
    x = alt.X("mb:Q", title="size of the table in float32 (MB)", **log(sizes))
    base = alt.Chart().encode(x=x, color=color)
    y = alt.Y("ns_each:Q", title="time of a lookup (ns)")
    layers = [
        base.mark_line().encode(y=y),
        base.mark_rule().encode(y="ns_each_low:Q", y2="ns_each_high:Q"),
        base.mark_point().encode(y=y, shape=shape),
    ]
    last = table.groupby(["panel", "kind"], sort=False)["ns_each"].agg(["first", "last"])
    said = "; ".join(f"{panel}, {kind}: {low:.1f} to {high:.1f}" for (panel, kind), low, high in last.itertuples())
    chart = alt.layer(*layers, data=table, width=WIDTH // 2 - 50, height=200)
    return chart.facet(
        column=alt.Column("panel:N", sort=list(table["panel"].unique()), title=None), spacing=30
    ).properties(
        title=heading("What a lookup costs, and what packed rows change", lines),
        description=f"Nanoseconds of a lookup by size of table: {said}.",
    )
