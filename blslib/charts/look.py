"""How charts look: one theme, one meaning for every colour, and the parts that all charts are made of.

One theme; one colour, shape and dash per contender (Okabe-Ito, told apart without colour too); units on every axis;
ranks, cores and the source of the data in the caption; a text description for whoever cannot see the picture.

Tables are those of ``lab.rows.summary``: of what was measured the median ``x``, and the ends ``x_low`` and ``x_high``
of its 95 % interval. Nothing is computed here but what is drawn: shares, sums, units.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import altair as alt
import pandas as pd

Table: TypeAlias = "pd.DataFrame | Sequence[dict[str, Any]]"
Look: TypeAlias = tuple[str, str, list[int]]
WIDTH = 720
MPI, BLS, WINDOW = "MPI_Alltoallv", "bounded lag", "MPI_Ialltoallv window"
GLOO, TORCH = "torch.distributed: gloo", "torch.distributed: bls"
PREDICTED, LIMIT, FLOOR = "max-plus prediction", "limit: busiest rank's work", "filling and reading alone"
LABELS = {
    "mpi": MPI,
    "raw": "MPI_Alltoallv, bare loop",
    "mpi-barrier": "MPI_Alltoallv after a barrier",
    "bls": BLS,
    "window": WINDOW,
    "gloo": GLOO,
    "torch": TORCH,
    "floor": FLOOR,
}
"""What the contenders of ``lab.compare`` are called in charts; those that are not named here are not drawn."""

LOOKS: dict[str, Look] = {
    MPI: ("#000000", "square", [1, 0]),
    LABELS["raw"]: ("#000000", "cross", [2, 2]),
    LABELS["mpi-barrier"]: ("#000000", "triangle-left", [6, 2]),
    BLS: ("#0072B2", "circle", [1, 0]),
    WINDOW: ("#D55E00", "triangle-up", [5, 3]),
    GLOO: ("#CC79A7", "triangle-down", [2, 2]),
    TORCH: ("#009E73", "diamond", [8, 3]),
    PREDICTED: ("#56B4E9", "square", [1, 0]),
    LIMIT: ("#999999", "square", [2, 3]),
    FLOOR: ("#999999", "stroke", [2, 3]),
}
"""Colour, shape and dash of every series. Whatever calls MPI_Alltoallv is black, and grey is what nobody can beat."""

BOUND_LOOKS: list[Look] = [
    ("#93C4E4", "circle", [1, 0]),
    ("#6FAEDA", "triangle-up", [6, 3]),
    ("#4C98CD", "square", [2, 2]),
    ("#2582BF", "diamond", [8, 2, 2, 2]),
    ("#006BA6", "triangle-down", [1, 0]),
    ("#00588A", "cross", [6, 3]),
    ("#00456D", "triangle-right", [2, 2]),
    ("#003250", "triangle-left", [8, 2, 2, 2]),
    ("#001F33", "wedge", [1, 0]),
]
"""Of bounded lag where bounds are series: its blue, the darker the larger the bound; for 0, 1, 2, 4, 8 and so on."""

BOUND_AXIS = alt.X("bound:O", title="bound k (iterations)", axis=alt.Axis(ticks=False))
"""Bounds double from 1 on and start at 0, which no logarithm shows: they stand side by side."""

BESIDE = alt.XOffset("series:N", sort=list(LOOKS), scale=alt.Scale(paddingOuter=0.6))
"""Contenders at the same bound stand a little beside each other, so that none hides another."""
TENS = [10.0**power for power in range(-2, 7)]
MILLISECONDS = [digit * ten for ten in TENS for digit in (1, 2, 5)]
INTERVALS = "Points are medians, bars their 95 % intervals."


@alt.theme.register("bls", enable=True)
def theme() -> alt.theme.ThemeConfig:
    """Quiet axes, text dark enough to read, and room around the caption."""
    ink, grey = "#222222", "#888888"
    plain = {"labelColor": ink, "titleColor": ink, "titleFontWeight": "normal"}
    title = {"anchor": "start", "fontSize": 15, "color": ink, "offset": 14}
    caption = {"subtitleFontSize": 11, "subtitleColor": "#444444", "subtitlePadding": 5, "subtitleLineHeight": 15}
    legend = {"orient": "bottom", "title": None, "labelFontSize": 12, "symbolSize": 90, "labelLimit": 260}
    config: Any = {
        "font": "sans-serif",
        "background": "white",
        "padding": 10,
        "view": {"stroke": None},
        "axis": plain | {"labelFontSize": 11, "titleFontSize": 12, "tickColor": grey, "domainColor": grey},
        "axisX": {"labelAngle": 0, "grid": False},
        "axisY": {"grid": True, "gridColor": "#dddddd"},
        "title": title | caption,
        "legend": plain | legend | {"columnPadding": 18, "columns": 4},
        "line": {"strokeWidth": 1.5},
        "rule": {"strokeWidth": 1.5},
        "point": {"filled": True, "size": 55, "opacity": 1},
        "header": {"title": None, "labelFontSize": 13, "labelFontWeight": "bold", "labelColor": ink},
    }
    return {"config": config}


def by(channel: Any, field: str, names: Iterable[str], looks: Iterable[Any]) -> Any:
    """A channel such as ``alt.Color`` that tells the values of a field apart; its legend has them in this order."""
    names = list(names)
    return channel(f"{field}:N", scale=alt.Scale(domain=names, range=list(looks)), sort=names)


def apart(names: Iterable[str], looks: dict[str, Look] = LOOKS) -> tuple[Any, Any, Any]:
    """Colour, shape and dash that tell these series apart, with one legend for all three."""
    found = set(names)
    shown = {name: look for name, look in looks.items() if name in found}
    colors, shapes, dashes = zip(*shown.values(), strict=True)
    return (
        by(alt.Color, "series", shown, colors),
        by(alt.Shape, "series", shown, shapes),
        by(alt.StrokeDash, "series", shown, dashes),
    )


def bound_look(bound: int) -> Look:
    """Of bounded lag at this bound, where bounds are series."""
    return BOUND_LOOKS[min(bound.bit_length(), len(BOUND_LOOKS) - 1)]


def by_bound(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Look]]:
    """The table with a series for each contender and bound, and the looks of these in order."""
    order = table["contender"].map(list(LABELS).index)
    table = table.assign(order=order).sort_values(["order", "bound"], kind="stable")
    bounded = table["contender"].isin(table.loc[table["bound"] > 0, "contender"])
    table["series"] = table["contender"].map(LABELS)
    table["series"] = table["series"].where(~bounded, table["series"] + ", bound " + table["bound"].astype(str))
    looks = {}
    for each in table.assign(bounded=bounded).drop_duplicates("series").itertuples():
        color, *_ = look = LOOKS[LABELS[each.contender]]
        _, *lines = with_bound = bound_look(each.bound)
        looks[each.series] = look if not each.bounded else with_bound if each.contender == "bls" else (color, *lines)
    return table, looks


def log(values: Sequence[float] = MILLISECONDS) -> dict[str, Any]:
    """A logarithmic scale, and an axis with these values where they fall on it."""
    axis = alt.Axis(values=list(values), format=",~r", labelOverlap="greedy")
    return {"scale": alt.Scale(type="log", nice=False, padding=10), "axis": axis}


def medians(base: alt.Chart, column: str, y: alt.Y, **more: Any) -> list[alt.Chart]:
    """Layers for a measured column: its medians as points, with bars for their intervals."""
    bars = base.mark_rule().encode(y=f"{column}_low:Q", y2=f"{column}_high:Q")
    return [bars, base.mark_point().encode(y=y, **more)]


def told(rows: Table, cores: int) -> pd.DataFrame:
    """A copy with the columns ``series``, and ``where``: on how many cores; ranks with a core each come first."""
    table = pd.DataFrame(rows).sort_values("ranks", kind="stable")
    table["series"] = table["contender"].map(LABELS)
    where = table["ranks"].astype(str) + f" ranks on {cores} cores"
    if "batch_size" in table:
        shared = table["ranks"] > cores
        where += shared.map({True: ": a waiting rank lends its core to a working one", False: ": each has its own"})
    return table.assign(where=where).dropna(subset="series")


def setting(table: pd.DataFrame) -> str:
    """For a caption: ranks and cores unless that is told row by row, sizes, repeats."""
    size = "batches of {}" if "batch_size" in table else "blocks of {} bytes"
    size = size.format(span(table["batch_size" if "batch_size" in table else "bytes_per_block"]))
    where = "; ".join(table["where"].unique()) + "; " if table["where"].nunique() == 1 else ""
    text = f"{where}{size}, {span(table['repeats'])} interleaved repeats of {span(table['iterations'])} iterations."
    return text[0].upper() + text[1:]


def span(values: pd.Series) -> str:
    """From the least to the greatest, or the one that there is."""
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def heading(text: str, lines: Sequence[str]) -> alt.Title:
    """A title with a caption, whose lines are wrapped."""
    return alt.Title(text, subtitle=[part for line in lines for part in textwrap.wrap(line, WIDTH * 9 // 50)])


def panels(
    layers: Sequence[alt.Chart],
    table: pd.DataFrame,
    panel: str,
    title: str,
    lines: Sequence[str],
    description: str,
    height: int = 190,
) -> Any:
    """Layers over a table, a panel for each value of its column ``panel``.

    Where its column ``where`` has several values, each has panels of its own, the first the largest.
    """
    lines = [*lines, "Delays are sleeps, the same for every contender."] if panel == "law" else list(lines)
    if "source" in table:
        sources = table.drop_duplicates(panel).groupby("source", sort=False)[panel].agg(", ".join)
        lines += [f"{names}: {source}." for source, names in sources.items()]
    rows: list[Any] = []
    for _, part in table.groupby("where", sort=False) if "where" in table else [("", table)]:
        names = list(part[panel].unique())
        columns = len(names) if len(names) < 4 or rows else 2 if len(names) == 4 else 3
        drawn = alt.layer(*layers, data=part, width=(WIDTH - 30) // columns, height=height * (2 if rows else 3) // 3)
        chart = drawn.facet(alt.Facet(f"{panel}:N", sort=names), columns=columns, spacing=22)
        rows.append(chart.resolve_axis(x="independent"))  # or the place of a panel that is not there would show an axis
    if len(rows) > 1:
        for row, where in zip(rows, table["where"].unique(), strict=True):
            row.title = alt.Title(where, fontSize=13, offset=8)
    return (rows[0] if len(rows) == 1 else alt.vconcat(*rows, spacing=34)).properties(
        title=heading(title, lines), description=f"A panel per {panel}: {description}."
    )
