"""How charts look: one theme, one meaning for every colour, and the parts that all charts are made of.

One theme; one colour and shape per contender (Okabe-Ito, told apart without colour too); units on every axis; ranks,
cores and the source of the data in the caption; a text description for whoever cannot see the picture.

Tables are those of ``lab.rows.summary``: of what was measured the median ``x``, and the ends ``x_low`` and ``x_high``
of its 95 % interval. Nothing is computed here but units, and shares of what stands in one table.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import altair as alt
import pandas as pd

Table: TypeAlias = "pd.DataFrame | Sequence[dict[str, Any]]"
Looks: TypeAlias = dict[str, tuple[str, str]]
WIDTH = 720
MPI, BLS, WINDOW = "MPI_Alltoallv", "bounded lag", "MPI_Ialltoallv window"
PREDICTED, LIMIT = "max-plus prediction", "limit: busiest rank's work"
_PENTAGON = "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z"  # Vega has no name for one
# What the contenders of ``lab.compare`` are called in charts, and what else is drawn, with colour and shape. Whatever
# calls MPI_Alltoallv is black, and grey is what nobody can beat. Contenders missing here are not drawn.
SERIES = {
    "mpi": (MPI, "#000000", "square"),
    "raw": ("MPI_Alltoallv, bare loop", "#000000", "cross"),
    "mpi-equal": ("MPI_Alltoall (equal counts)", "#000000", "triangle-right"),
    "bls": (BLS, "#0072B2", "circle"),
    "bls-in-place": ("bounded lag, composed in place", "#00B4D8", "wedge"),
    "bls-sleeps": ("bounded lag, sleeping while it waits", "#004D79", _PENTAGON),
    "window": (WINDOW, "#D55E00", "triangle-up"),
    "gloo": ("torch.distributed: gloo", "#CC79A7", "triangle-down"),
    "torch": ("torch.distributed: bls", "#009E73", "diamond"),
    "floor": ("filling and reading alone", "#999999", "stroke"),
    "predicted": (PREDICTED, "#56B4E9", "square"),
    "limit": (LIMIT, "#999999", "square"),
}
LABELS = {key: name for key, (name, _, _) in SERIES.items()}
LOOKS: Looks = {name: (color, shape) for name, color, shape in SERIES.values()}

# Of bounded lag where bounds are series: the darker the larger the bound, for 0, 1, 2, 4, 8 and so on; and nearer to
# violet than the model's light blue, or the first ones could be taken for it.
BLUES = ("#AAB8DC", "#8199CE", "#5B7CBF", "#3A63AF", "#204F9C", "#113F85", "#0A316A", "#06244F", "#031733")
SHAPES = ("circle", "triangle-up", "square", "diamond", "triangle-down", "cross", "triangle-right", "wedge", "arrow")

# Bounds double from 1 on and start at 0, which no logarithm shows: they stand side by side. Contenders at the same
# bound stand a little beside each other, so that none hides another.
BOUND_AXIS = alt.X("bound:O", title="bound k (iterations)", axis=alt.Axis(ticks=False))
BESIDE = alt.XOffset("series:N", sort=list(LOOKS), scale=alt.Scale(paddingOuter=0.6))

QUIET: dict[str, Any] = {"domain": False, "ticks": False, "grid": False}
LOOSE = alt.Scale(zero=False, padding=8)
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
    marks = {"line": {"strokeWidth": 1.5}, "rule": {"strokeWidth": 1.5}, "mark": {"tooltip": {"content": "encoding"}}}
    paper: Any = {"font": "sans-serif", "background": "white", "padding": 10, "view": {"stroke": None}}
    parts = {
        "axis": plain | {"labelFontSize": 11, "titleFontSize": 12, "tickColor": grey, "domainColor": grey},
        "axisX": {"labelAngle": 0, "grid": False},
        "axisY": {"grid": True, "gridColor": "#dddddd"},
        "title": title | caption,
        "legend": plain | legend | {"columnPadding": 18, "columns": 3},
        "point": {"filled": True, "size": 55, "opacity": 1},
        "header": {"title": None, "labelFontSize": 13, "labelFontWeight": "bold", "labelColor": ink},
    }
    return {"config": paper | marks | parts}


def by(channel: Any, field: str, names: Iterable[str], looks: Iterable[Any]) -> Any:
    """A channel such as ``alt.Color`` that tells the values of a field apart; its legend has them in this order."""
    names = list(names)
    return channel(f"{field}:N", scale=alt.Scale(domain=names, range=list(looks)), sort=names)


def apart(names: Iterable[str], looks: Looks = LOOKS) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape that tell these series apart, with one legend for both."""
    found = set(names)
    shown = {name: look for name, look in looks.items() if name in found}
    colors, shapes = zip(*shown.values(), strict=True)
    return by(alt.Color, "series", shown, colors), by(alt.Shape, "series", shown, shapes)


def bound_look(bound: int) -> tuple[str, str]:
    """Colour and shape of bounded lag at this bound, where bounds are series."""
    nth = min(bound.bit_length(), len(BLUES) - 1)
    return BLUES[nth], SHAPES[nth]


def by_bound(table: pd.DataFrame) -> Looks:
    """Make a series of each contender and bound in this table; returns how they look, in order."""
    looks = {}
    groups = table.groupby(["contender", "bound"]).groups
    for contender, bound in sorted(groups, key=lambda group: (list(LABELS).index(group[0]), group[1])):
        name, (color, shape) = LABELS[contender], LOOKS[LABELS[contender]]
        if any(other == contender and k for other, k in groups):
            name, (blue, shape) = f"{name}, bound {bound}", bound_look(bound)
            color = blue if contender == "bls" else color
        looks[name] = color, shape
        table.loc[groups[contender, bound], "series"] = name
    return looks


def log(values: Sequence[float] = MILLISECONDS) -> dict[str, Any]:
    """A logarithmic scale, and an axis with these values where they fall on it."""
    axis = alt.Axis(values=list(values), format=",~r", labelOverlap="greedy")
    return {"scale": alt.Scale(type="log", nice=False, padding=10), "axis": axis}


def medians(base: alt.Chart, column: str, y: alt.Y, **more: Any) -> list[alt.Chart]:
    """Layers for a measured column: its medians as points, with bars for their intervals."""
    bars = base.mark_rule().encode(y=f"{column}_low:Q", y2=f"{column}_high:Q")
    return [bars, base.mark_point().encode(y=y, **more)]


def curves(names: Iterable[str], x: alt.X, y: alt.Y, looks: Looks = LOOKS, **more: Any) -> list[alt.Chart]:
    """Layers for a measured column of these series: lines through medians, with bars for their intervals."""
    color, shape = apart(names, looks)
    base = alt.Chart().encode(x=x, color=color, **more)
    return [base.mark_line().encode(y=y), *medians(base, str(y["shorthand"]).removesuffix(":Q"), y, shape=shape)]


def told(rows: Table, cores: int) -> pd.DataFrame:
    """A copy with the columns ``series``, and ``where``: on how many cores; ranks with a core each come first."""
    table = pd.DataFrame(rows).sort_values("ranks", kind="stable", ignore_index=True)
    where = table["ranks"].astype(str) + f" ranks on {cores} cores"
    if "bytes_per_block" not in table:  # else the exchange is bare: ranks sleep, and need no cores
        owned = {True: ": each has its own", False: ": a waiting rank lends its core to a working one"}
        where += (table["ranks"] <= cores).map(owned)
    return table.assign(series=table["contender"].map(LABELS), where=where).dropna(subset="series")


def setting(table: pd.DataFrame) -> str:
    """For a caption: ranks and cores unless each row of panels says that, sizes, repeats."""
    sizes = {"batch_size": "Batches of {}", "bytes_per_block": "Blocks of {} bytes"}
    said = [form.format(span(table[column])) for column, form in sizes.items() if column in table]
    said += [f"{span(table['repeats'])} interleaved repeats of {span(table['iterations'])} iterations"]
    where = f"{table['where'].iloc[0]}. " if table["where"].nunique() == 1 else ""
    return f"{where}{', '.join(said)}."


def span(values: pd.Series) -> str:
    """From the least to the greatest, or the one that there is."""
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def ranges(table: pd.DataFrame, panel: str, column: str, contender: str = "bls") -> str:
    """In words, from which to which value a column goes over all lines of a contender, panel by panel."""
    ours, several = table[table["contender"] == contender], table["where"].nunique() > 1
    found = ours.groupby(["where", panel], sort=False)[column].agg(["min", "max"])
    rows = ((f"{where}, {name}" if several else name, *ends) for (where, name), *ends in found.itertuples())
    return "; ".join(f"{name} {low:.2f} to {high:.2f}" for name, low, high in rows)


def heading(text: str, lines: Sequence[str]) -> alt.Title:
    """A title with a caption, whose lines are wrapped."""
    return alt.Title(text, subtitle=[part for line in lines for part in textwrap.wrap(line, WIDTH * 9 // 50)])


def panels(
    layers: list[Any], table: pd.DataFrame, panel: str, title: str, lines: list[str], said: str, height: Any = 190
) -> Any:
    """Layers over a table, a panel for each value of its column ``panel``, described in the words ``said``.

    Where its column ``where`` has several values, each has panels of its own, those of the first the largest.
    """
    lines = [*lines, *["Delays are sleeps, the same for every contender."] * (panel == "law")]
    if "source" in table:
        sources = table.drop_duplicates(panel).groupby("source", sort=False)[panel].agg(", ".join)
        lines += [f"{names}: {source}." for source, names in sources.items()]
    rows: list[Any] = []
    parts = list(table.groupby("where", sort=False)) if "where" in table else [("", table)]
    for where, part in parts:
        names, small = list(part[panel].unique()), bool(rows) and isinstance(height, int)
        columns = len(names) if len(names) < 4 or small else {4: 2, 5: 3, 6: 3}.get(len(names), 4)
        size = {"width": (WIDTH + 22) // columns - 22, "height": height * 2 // 3 if small else height}
        drawn, facet = alt.layer(*layers, data=part, **size), alt.Facet(f"{panel}:N", sort=names)
        row = drawn.facet(facet, columns=columns, spacing=22)
        row = row.resolve_axis(x="independent")  # or the place of a panel that is not there would show an axis
        rows.append(row.properties(title=alt.Title(where, fontSize=13, offset=8)) if len(parts) > 1 else row)
    whole = rows[0] if len(rows) == 1 else alt.vconcat(*rows, spacing=34).resolve_scale(xOffset="independent")
    return whole.properties(title=heading(title, lines), description=f"A panel per {panel}: {said}.")
