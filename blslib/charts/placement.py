"""Charts of placements: a table in, an Altair chart out. Strategies have colours and shapes of their own."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from blslib.charts import look
from blslib.charts.look import LOOKS, LOOSE, Looks, Table

STRATEGIES: Looks = {
    "by-group": ("#7A5C3E", "circle"),
    "capacity-balanced": ("#332288", "triangle-up"),
    "load-balanced": ("#44AA99", "triangle-down"),
    "net-specific": ("#6E2C6E", "diamond"),
    "correlated": ("#B8860B", "square"),
    "searched": ("#AA4499", "triangle-right"),
}
"""Those that are drawn as series, with colour and shape."""


def dots(rows: Table, title: str, lines: Sequence[str], *, what: str) -> Any:
    """A point for each strategy, a panel for each measure, each with an axis of its own.

    Args:
        rows: ``strategy``, ``panel`` and ``value``.
        title, lines: of the chart.
        what: the values, in words.
    """
    table = pd.DataFrame(rows).rename(columns={"panel": "measure"})
    names = list(table["strategy"].unique())
    axis = alt.Axis(domain=False, ticks=False, grid=True, gridColor="#eeeeee", labelLimit=220)
    x, y = alt.X("value:Q", title=None), alt.Y("strategy:N", sort=names, title=None, axis=axis)
    least = table.loc[table.groupby("measure", sort=False)["value"].idxmin()]
    said = "; ".join(f"{row.measure}: least {row.value:,.3g} by {row.strategy}" for row in least.itertuples())
    layer = alt.Chart().mark_point(color="#444444").encode(x=x, y=y)
    said = f"{what}, a row per strategy; {said}"
    return look.panels([layer], table, "measure", title, list(lines), said, alt.Step(17)).resolve_scale(x="independent")


def lag_and_placement(rows: Table, *, cores: int, bound: int) -> Any:
    """What placements win over whole groups of tables, at bound 0 and with lag; ``over_groups`` of ``placed.run``."""
    table = look.told(rows, cores)
    table = table[(table["contender"] == "bls") & table["bound"].isin((0, bound))]
    looks = {"placement alone: bound 0": (look.BLUES[0], "diamond")}
    looks[f"placement and lag: bound {bound}"] = LOOKS[look.BLS]
    table["series"] = table["bound"].map(dict(zip((0, bound), looks, strict=True)))
    color, shape = look.apart(looks, looks)
    y = alt.Y("strategy:N", sort=list(table["strategy"].unique()), title=None, axis=alt.Axis(labelLimit=200))
    base = alt.Chart().encode(y=y, color=color)
    x = alt.X("over_groups:Q", title="throughput over groups (×)", scale=LOOSE)
    layers = [
        alt.Chart().mark_rule(color="#888888", strokeWidth=1).encode(x=alt.datum(1.0)),
        base.mark_rule().encode(x="over_groups_low:Q", x2="over_groups_high:Q"),
        base.mark_point().encode(x=x, shape=shape),
    ]
    lines = [look.setting(table), f"Over whole groups of tables at bound 0. {look.INTERVALS}"]
    ranges = look.ranges(table, "scenario", "over_groups")
    said = f"throughput over groups at bound 0, by strategy; bounded lag: {ranges}"
    title = "What placement wins, and what is left for lag"
    return look.panels(layers, table, "scenario", title, lines, said, alt.Step(24))


def curves(rows: Table, x: str, y: str, title: str, lines: Sequence[str], *, shared: bool = True) -> Any:
    """A line for each strategy, a panel for each measure, two beside each other.

    Args:
        rows: ``strategy``, ``panel``, the column ``x``, and ``value``.
        x: along, and so called on its axis.
        y: title of the values.
        title, lines: of the chart.
        shared: whether all panels have one axis of values.
    """
    table = pd.DataFrame(rows).rename(columns={"strategy": "series", "panel": "measure"})
    color, shape = look.apart(table["series"], STRATEGIES)
    base = alt.Chart().encode(x=alt.X(f"{x}:O", title=x), y=alt.Y("value:Q", title=y, scale=LOOSE), color=color)
    layers = [base.mark_line(), base.mark_point().encode(shape=shape)]
    ends = table.groupby(["measure", "series"], sort=False)["value"].agg(["min", "max"])
    said = "; ".join(f"{panel}, {name}: {low:.2f} to {high:.2f}" for (panel, name), low, high in ends.itertuples())
    drawn = look.panels(layers, table, "measure", title, list(lines), f"a line per strategy; {said}", 170)
    return drawn.resolve_scale(y="shared" if shared else "independent")
