"""The scenarios: which tables there are, what is looked up in them, and which are hot when.

===================  ===============================================================================================
balanced             equal tables, pooling factor 10 everywhere
rotating             the same, but in iteration i the tables of group i mod G pool 50 ids instead of 10
wandering            the same, with the hot group drawn at random
static               the same, with the last group always hot: nothing that a bound could help
unequal-tables       equal pooling, but twice as many tables in the last group as in the first: unequal messages too
batch-loads          equal tables, and in each batch all of them pool a number of ids that is drawn: 10 in the mean
group-loads          the same, drawn for each group of tables: what is hot together, and no rank's doing
table-loads          the same, drawn for each table
criteo               Criteo Kaggle, one id per table
aliccp-onehot        Ali-CCP, at most one id per field
aliccp-multihot      Ali-CCP, whole lists: 4 of 23 tables take 97 % of the lookups
===================  ===============================================================================================

A scenario is fixed before anybody places a table: where its tables lie changes who has to do the work, never the work.
What slows ranks down, whatever they hold, is noise, and no part of it: see the delay laws.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from blslib.workloads.aliccp import DENSE_FIELDS, AliCcp
from blslib.workloads.batch import Batch
from blslib.workloads.criteo import Criteo
from blslib.workloads.files import Loader
from blslib.workloads.published import ALICCP_POOLING, ALICCP_ROWS, CRITEO_DENSE, CRITEO_ROWS, capped
from blslib.workloads.skew import LENGTHS, Zipf
from blslib.workloads.synthetic import Synthetic

LIGHT, HEAVY = 10, 50
TABLES_PER_GROUP, ROWS = 8, 200_000
SPREAD = 0.8
"""Of the logarithm of loads that are drawn (lognormal): one in a hundred batches asks for five times the mean."""
POOL = 16
"""Different batches of a data set at most; a longer run takes them in turn."""

STAND_IN_SKEW = Zipf(1.1)
"""No exponent is known for either data set. This one sends 86 % of the lookups to 1 % of ten million rows; arXiv
2202.12429 reports more than 92 % for about 1 %."""


class _DataSet(NamedTuple):
    """What is read from the file that a variable of the environment names, else made in its likeness."""

    title: str
    variable: str
    reader: Callable[..., Loader]
    rows: tuple[int, ...]
    pooling: ArrayLike
    dense_features: int


_LISTS = _DataSet("Ali-CCP, multi-hot", "BLS_ALICCP", AliCcp, ALICCP_ROWS, ALICCP_POOLING, len(DENSE_FIELDS))
_DATA_SETS = {
    "criteo": _DataSet("Criteo Kaggle", "BLS_CRITEO", Criteo, CRITEO_ROWS, 1, CRITEO_DENSE),
    "aliccp-onehot": _LISTS._replace(
        title="Ali-CCP, one id per field",
        reader=partial(AliCcp, multi_hot=False),
        pooling=np.minimum(ALICCP_POOLING, 1),
    ),
    "aliccp-multihot": _LISTS,
}

_DRAWN = ("batch-loads", "group-loads", "table-loads")
SCENARIOS = ("balanced", "rotating", "wandering", "static", "unequal-tables", *_DRAWN, *_DATA_SETS)

Source = Synthetic | tuple[Batch, ...]
"""Batches to be made, or at hand."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What is looked up in each iteration, whoever holds the tables.

    Attributes:
        rows: T row counts.
        groups: (T,) the group of each table, ascending from 0: tables of a group are hot together. In a data set every
            table is a group of its own.
        order: (N,) which of the J different batches each iteration takes.
        source: the J batches.
        label: for captions: the file, or what was generated; also whether a file was too short and was repeated.
    """

    rows: tuple[int, ...]
    groups: np.ndarray
    order: np.ndarray
    source: Source
    label: str

    def pool(self, parts: Mapping[int, range] | None = None) -> list[Batch]:
        """The J batches, as :meth:`Batch.only` leaves them for a rank that needs those rows alone; None for all."""
        return [batch if parts is None else batch.only(parts, self.rows) for batch in self.source]


def workload(
    name: str, groups: int, *, iterations: int, batch_size: int, max_rows: int | None = None, seed: int = 0
) -> Workload:
    """A scenario by its name.

    Criteo and Ali-CCP are read from the files that ``BLS_CRITEO`` and ``BLS_ALICCP`` name. Where a variable is unset,
    Zipf on the published cardinalities stands in, for Ali-CCP with the published mean list lengths. Of generated lists
    the length varies by one at most; real ones vary much more from user to user, but their sum over a batch does not.

    Args:
        name: one of ``SCENARIOS``.
        groups: G, of eight tables each; a data set has groups of its own.
        iterations: N.
        batch_size: B.
        max_rows: cap on the rows of a table.
        seed: of made batches, and of their order.

    Raises:
        ValueError: there is no such scenario.
        FileNotFoundError: the file named, or its common features, is not there.
        DataError: it is faulty.
    """
    if name not in SCENARIOS:
        raise ValueError(f"no scenario {name!r}: choose from {', '.join(SCENARIOS)}")
    if name not in _DATA_SETS:
        return _made(name, groups, iterations, batch_size, max_rows, seed)
    data, count = _DATA_SETS[name], min(iterations, POOL)
    rows = capped(data.rows, max_rows)
    if path := os.environ.get(data.variable):
        loader = data.reader(Path(path), batch_size, rows=rows, samples=count * batch_size)
        source: Source = tuple(loader)
        label = f"{data.title}, file {loader.path.name}"
        if loader.passes > 1:
            label += f" ({loader.file_samples:,} samples, repeated)"
        if loader.skipped:
            label += f", rows left out: {loader.skipped.total():,}"
    else:
        source = Synthetic(rows, batch_size, data.pooling, STAND_IN_SKEW, data.dense_features, seed, count)
        cap = "" if max_rows is None else f", up to {max_rows:,} rows a table"
        label = f"generated: likeness of {data.title}{cap}, {STAND_IN_SKEW}"
    return Workload(rows, np.arange(len(rows)), np.arange(iterations) % count, source, label)


def _made(name: str, groups: int, iterations: int, batch_size: int, max_rows: int | None, seed: int) -> Workload:
    sizes = np.full(groups, TABLES_PER_GROUP)
    if name == "unequal-tables":
        sizes = np.linspace(TABLES_PER_GROUP * 2 / 3, TABLES_PER_GROUP * 4 / 3, groups).round().astype(int)
    group = np.repeat(np.arange(groups), sizes)
    # Two rounds of batches: in batch j the tables of group j mod G are hot.
    batches, uneven = 2 * groups, name in ("rotating", "wandering", "static")
    load = np.where(uneven & (group == np.arange(batches)[:, None] % groups), HEAVY, LIGHT)
    if name in _DRAWN:
        batches, units = POOL, (np.zeros_like(group), group, np.arange(len(group)))[_DRAWN.index(name)]
        drawn = np.random.default_rng((seed, LENGTHS)).lognormal(sigma=SPREAD, size=(batches, units.max() + 1))
        load = LIGHT * (drawn / drawn.mean())[:, units]
    order = np.arange(iterations) % batches
    if name == "wandering":
        order = np.random.default_rng(seed).integers(0, batches, iterations)
    elif name == "static":
        order = np.full(iterations, groups - 1) + groups * (np.arange(iterations) % 2)
    source = Synthetic(
        capped((ROWS,) * len(group), max_rows),
        batch_size,
        pooling=load.__getitem__,
        seed=seed,
        iterations=batches,
    )
    label = f"generated: uniform ids, {LIGHT} ids a bag" + (f", {HEAVY} in the hot tables" if uneven else "")
    label += " in the mean" if name in _DRAWN else ""
    return Workload(tuple(source.rows), group, order, source, label)
