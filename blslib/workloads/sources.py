"""Batches of the named data sets: from the file that the environment names, else generated in its likeness."""

import os
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from blslib.workloads.aliccp import DENSE_FIELDS, AliCcp
from blslib.workloads.batch import Batch
from blslib.workloads.criteo import Criteo
from blslib.workloads.files import Loader
from blslib.workloads.published import ALICCP_POOLING, ALICCP_ROWS, CRITEO_ROWS, capped
from blslib.workloads.skew import Zipf
from blslib.workloads.synthetic import Synthetic

STAND_IN_SKEW = Zipf(1.1)
"""No exponent is known for either data set. This one sends 86 % of the lookups to 1 % of ten million rows; arXiv
2202.12429 reports more than 92 % for about 1 %."""


class Source(NamedTuple):
    """Batches at hand, and where they are from.

    Attributes:
        batches: all of one size.
        label: for captions: the file, or what was generated; also whether a file was too short and was repeated.
        rows: T row counts that the ids fit.
    """

    batches: list[Batch]
    label: str
    rows: tuple[int, ...]


def _of_file(loader: Loader, what: str, rows: tuple[int, ...], tables: Collection[int] | None) -> Source:
    batches = [batch if tables is None else batch.only(tables) for batch in loader]
    label = f"{what}, file {loader.path.name}"
    if loader.passes > 1:
        label += f" ({loader.file_samples:,} samples, repeated)"
    if loader.skipped:
        label += f", rows left out: {loader.skipped.total():,}"
    return Source(batches, label, rows)


def _cap(max_rows: int | None) -> str:
    return "" if max_rows is None else f" up to {max_rows:,} rows"


def criteo_batches(
    batch_size: int, count: int, *, max_rows: int | None = None, seed: int = 0, tables: Collection[int] | None = None
) -> Source:
    """Batches of Criteo Kaggle: of the file named by ``BLS_CRITEO``, else U(0, 1) and Zipf on its cardinalities.

    Args:
        batch_size: B.
        count: batches; a file with fewer samples is gone through again.
        max_rows: cap on the rows of a table.
        seed: of generated data.
        tables: fill only these, for a rank that holds no others; None fills all.

    Raises:
        FileNotFoundError: the file named is not there.
        DataError: it is faulty.
    """
    rows = capped(CRITEO_ROWS, max_rows)
    if path := os.environ.get("BLS_CRITEO"):
        loader = Criteo(path, batch_size, rows=rows, samples=count * batch_size)
        return _of_file(loader, "Criteo Kaggle", rows, tables)
    made = Synthetic(rows, batch_size, skew=STAND_IN_SKEW, seed=seed, iterations=count, tables=tables)
    return Source([*made], f"generated: Criteo cardinalities{_cap(max_rows)}, {made.law}", rows)


def aliccp_batches(
    batch_size: int,
    count: int,
    *,
    multi_hot: bool = True,
    max_rows: int | None = None,
    seed: int = 0,
    tables: Collection[int] | None = None,
) -> Source:
    """Batches of Ali-CCP: of the file named by ``BLS_ALICCP``, else Zipf on its vocabularies and mean list lengths.

    Of generated lists the length varies by one at most; real ones vary much more from user to user, but their sum over
    a batch does not.

    Args:
        batch_size, count, max_rows, seed, tables: as of :func:`criteo_batches`.
        multi_hot: False keeps one id at most per field.

    Raises:
        FileNotFoundError: the file named, or its common features, is not there.
        DataError: it is faulty.
    """
    rows, form = capped(ALICCP_ROWS, max_rows), "multi-hot" if multi_hot else "one id per field"
    if path := os.environ.get("BLS_ALICCP"):
        loader = AliCcp(path, batch_size, multi_hot=multi_hot, rows=rows, samples=count * batch_size)
        return _of_file(loader, f"Ali-CCP, {form}", rows, tables)
    made = Synthetic(
        rows,
        batch_size,
        pooling=np.minimum(ALICCP_POOLING, np.inf if multi_hot else 1),
        skew=STAND_IN_SKEW,
        dense_features=len(DENSE_FIELDS),
        seed=seed,
        iterations=count,
        tables=tables,
    )
    label = f"generated: Ali-CCP vocabularies{_cap(max_rows)} and mean lengths, {form}, {made.law}"
    return Source([*made], label, rows)
