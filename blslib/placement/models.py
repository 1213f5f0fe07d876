"""Models that others have described, as tables to place: from ``models.csv``, where each line names its source.

A line is a group of ``tables`` tables. A cell has one value for all of them, or one for each, with spaces between.
Whoever knows better numbers puts them there, and nothing else has to change: give ``rows`` and ``pooling`` where they
are known, split a line where tables differ.

What nobody has published is filled in, and ``source`` says so. All of that is our definition, no result of anybody:

- Sizes. Without ``rows`` there are ``total_bytes``, and ``largest_bytes`` with a ``law``, or neither of these: all are
  equal then. Sizes are the quantiles of the law at (i + 1/2) / n, its scale and spread chosen so that largest and total
  are met: exactly, as far as rows are whole. Nothing is drawn.
- Order. The tables of such a line come in an order drawn from the seed: sorted ones would be hard on a strategy that
  goes by number, for no reason but ours.
- Nets. Tables fall to the names in ``net`` in turn.
- Pooling. Where it is empty it is drawn from the seed, table by table: lognormal, independent of the sizes.
"""

import csv
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from blslib.placement.tables import Table, TableError, made

FILE = Path(__file__).with_name("models.csv")

POOLING, SIGMA = 10.0, 1.0
"""Median of the ids per sample and table where they are not known, and the spread of their logarithm: chosen by us."""

LAWS = {"equal": lambda share: 0.0, "lognormal": NormalDist().inv_cdf, "pareto": lambda share: -math.log1p(-share)}
"""Of the logarithm of a table's size: its quantile, up to shift and scale."""

_LINES = list(csv.DictReader(FILE.read_text(encoding="utf-8-sig").splitlines(), restval=""))

NAMES = tuple(dict.fromkeys(line["model"] for line in _LINES))
"""Of the models."""


def tables(name: str, seed: int = 0) -> tuple[Table, ...]:
    """The tables of a model, called by their numbers from 0.

    Args:
        name: one of ``NAMES``.
        seed: of what has to be drawn: order and pooling, nothing that the file knows.

    Raises:
        TableError: no such model, or a line of it is faulty.
    """
    rng, entries = np.random.default_rng(seed), list[dict]()
    for line in _lines(name):
        try:
            count = int(line["tables"])
            cells = {"pooling": rng.lognormal(math.log(POOLING), SIGMA, count).tolist()}
            cells |= {c: line[c].split() for c in ("net", "rows", "dim", "item_bytes", "pooling") if line[c]}
            if wrong := [c for c, values in cells.items() if c != "net" and len(values) not in (1, count)]:
                raise ValueError(f"{wrong[0]} has {len(cells[wrong[0]])} values: give 1, or {count} for as many tables")
            if not line["rows"]:
                cells["rows"] = rng.permutation(_rows(line, count)).astype(int).tolist()
        except ValueError as error:
            raise TableError(f"{FILE.name}, model {name}: {error}") from None
        entries += [{c: values[i % len(values)] for c, values in cells.items()} for i in range(count)]
    return made(entries, f"{FILE.name}, model {name}")


def source(name: str) -> str:
    """A caption: where the numbers of a model are from, and which of them are assumed, chosen or drawn.

    Raises:
        TableError: no such model.
    """
    lines = _lines(name)
    said = [line["source"] for line in lines]
    said += [f"sizes by a {line['law']} law through total and largest: our definition" for line in lines if line["law"]]
    drawn = f"pooling drawn, lognormal with median {POOLING:g} and sigma {SIGMA:g}: our definition"
    said += [drawn for line in lines if not line["pooling"]]
    return f"{name}: {'; '.join(dict.fromkeys(said))}"


def _lines(name: str) -> list[dict[str, str]]:
    if name not in NAMES:
        raise TableError(f"no model {name!r}: choose from {', '.join(NAMES)}")
    return [line for line in _LINES if line["model"] == name]


def _rows(line: dict[str, str], count: int) -> np.ndarray:
    """(n,) float, whole: rows of n tables of which only the sum of bytes and the largest are known; largest first."""
    if (law := line["law"] or "equal") not in LAWS:
        raise ValueError(f"law is one of {', '.join(LAWS)}, got {law}")
    total, row_bytes = float(line["total_bytes"]), float(line["dim"]) * float(line["item_bytes"])
    largest, spread = float(line["largest_bytes"] or total / count), 0.0
    places = np.array([LAWS[law]((i + 0.5) / count) for i in reversed(range(count))])
    behind = places - places[0]
    for step in 1e3 / 2.0 ** np.arange(64):  # as much spread as leaves the tables too large still, bit by bit
        spread += step * ((largest * np.exp((spread + step) * behind)).sum() > total)
    sizes = largest * np.exp(spread * behind)
    if not math.isclose(sizes.sum(), total, rel_tol=1e-6):
        raise ValueError(f"{count} tables, the largest of {largest:g} bytes, cannot have {total:g} bytes by law {law}")
    # Whole rows of the running sum, not of each table, so that what is rounded off does not add up.
    return np.maximum(1, np.diff(np.rint(np.cumsum(sizes) / row_bytes), prepend=0))
