"""How charts look: one theme, one meaning for every colour, and the parts that all charts are made of.

One theme; one colour, shape and dash per contender (Okabe-Ito, told apart without colour too); units on every axis;
ranks, cores and the source of the data in the caption; a text description for whoever cannot see the picture.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import altair as alt
import pandas as pd

Table: TypeAlias = "pd.DataFrame | Sequence[dict[str, Any]]"
WIDTH = 720
MPI, BLS, WINDOW = "MPI_Alltoallv", "bounded lag", "MPI_Ialltoallv window"
GLOO, TORCH = "torch.distributed: gloo", "torch.distributed: bls"
PREDICTED, LIMIT = "max-plus prediction", "limit: busiest rank's work"
LABELS = {"mpi": MPI, "bls": BLS, "window": WINDOW, "gloo": GLOO, "torch": TORCH}

LOOKS: dict[str, tuple[str, str, list[int]]] = {
    MPI: ("#000000", "square", [1, 0]),
    BLS: ("#0072B2", "circle", [1, 0]),
    WINDOW: ("#D55E00", "triangle-up", [5, 3]),
    GLOO: ("#CC79A7", "triangle-down", [2, 2]),
    TORCH: ("#009E73", "diamond", [8, 3]),
    PREDICTED: ("#56B4E9", "stroke", [1, 0]),
    LIMIT: ("#737373", "stroke", [2, 3]),
}
"""Colour, shape and dash of every series."""

BOUND_AXIS = alt.X("bound:O", title="bound k (iterations)", axis=alt.Axis(ticks=False))
"""Bounds double from 1 on and start at 0, which no logarithm shows: they stand side by side."""

BESIDE = alt.XOffset("series:N", sort=list(LOOKS), scale=alt.Scale(paddingOuter=0.6))
"""Contenders at the same bound stand a little beside each other, so that none hides another."""
TENS = [10.0**power for power in range(-2, 7)]
MILLISECONDS = [digit * ten for ten in TENS for digit in (1, 2, 5)]


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
        "legend": plain | legend | {"columnPadding": 18},
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


def log(values: Sequence[float] = MILLISECONDS) -> dict[str, Any]:
    """A logarithmic scale, and an axis with these values where they fall on it."""
    axis = alt.Axis(values=list(values), format=",~r", labelOverlap="greedy")
    return {"scale": alt.Scale(type="log", nice=False, padding=10), "axis": axis}


def medians(base: alt.Chart, column: str, y: alt.Y, **more: Any) -> list[alt.Chart]:
    """Layers for a measured column: its medians as points, with bars from the least to the greatest value."""
    bars = base.mark_rule().encode(y=f"{column}_min:Q", y2=f"{column}_max:Q")
    return [bars, base.mark_point().encode(y=y, **more)]


def setting(table: pd.DataFrame, cores: int) -> str:
    """For a caption: ranks, cores, sizes, repeats."""
    first = table.iloc[0]
    batches = "batch_size" in table
    size = f"batches of {first['batch_size']}" if batches else f"blocks of {first['bytes_per_block']:,} bytes"
    repeats = f"{first['repeats']} interleaved repeats of {first['iterations']} iterations"
    lent = "; a waiting rank lends its core to a working one" if batches and first["ranks"] > cores else ""
    return f"{first['ranks']} ranks on {cores} cores, {size}, {repeats}{lent}."


def _sources(table: pd.DataFrame, panel: str) -> list[str]:
    """Where the data are from, and who shares them."""
    lines = ["Delays are sleeps, the same for every contender."] if panel == "law" else []
    if "source" not in table:
        return lines
    sources = table.drop_duplicates(panel).groupby("source", sort=False)[panel].agg(", ".join)
    return lines + [f"{names}: {source}." for source, names in sources.items()]


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
) -> alt.FacetChart:
    """Layers over a table, a panel for each value of its column ``panel``."""
    names = list(table[panel].unique())
    columns = len(names) if len(names) < 4 else 2 if len(names) == 4 else 3
    return (
        alt.layer(*layers, data=table, width=(WIDTH - 30) // columns, height=height)
        .facet(alt.Facet(f"{panel}:N", sort=names), columns=columns, spacing=22)
        .resolve_axis(x="independent")  # or the place of a panel that is not there would show an axis
        .properties(
            title=heading(title, [*lines, *_sources(table, panel)]),
            description=f"A panel per {panel}: {description}.",
        )
    )
