"""The scenarios: which model, which batches, and where the imbalance is.

===================  ===============================================================================================
balanced             equal tables, pooling factor 10 everywhere
rotating             the same, but in iteration i the tables of rank i mod P pool 50 ids instead of 10
wandering            the same, with the heavy rank drawn at random
static               the same, with the last rank always heavy: nothing that a bound could help
unequal-tables       equal pooling, but twice as many tables on the last rank as on the first: unequal messages too
criteo               Criteo Kaggle, one id per table
aliccp-onehot        Ali-CCP, at most one id per field
aliccp-multihot      Ali-CCP, whole lists: 4 of 23 tables take 97 % of the lookups
===================  ===============================================================================================

The models of the first five are small but for their tables, so that lookups take most of the time, as they do at scale.
"""

from dataclasses import dataclass, replace

import numpy as np

from blslib.dlrm.config import KAGGLE, ModelConfig
from blslib.dlrm.sharding import Placement, contiguous
from blslib.lab.experiments import SCENARIOS
from blslib.workloads.batch import Batch
from blslib.workloads.published import ALICCP_ROWS, capped
from blslib.workloads.sources import aliccp_batches, criteo_batches
from blslib.workloads.synthetic import Synthetic

LIGHT, HEAVY = 10, 50
TABLES_PER_RANK, ROWS, DIM, DENSE = 8, 200_000, 32, 13


@dataclass(frozen=True)
class Scenario:
    """One rank's view of a scenario.

    Attributes:
        model, placement: the whole model, and which rank holds which table.
        pool: different batches, with the bags of this rank's tables only.
        order: (N,) which batch of the pool each iteration takes.
        source: where the data are from, for captions.
    """

    model: ModelConfig
    placement: Placement
    pool: list[Batch]
    order: np.ndarray
    source: str


def build(name: str, *, ranks: int, rank: int, iterations: int, batch_size: int, max_rows: int, seed: int) -> Scenario:
    """A scenario as one rank sees it; every rank must ask for the same.

    Args:
        name: one of ``SCENARIOS``.
        ranks, rank: P and this one.
        iterations: N.
        batch_size: B.
        max_rows: cap on the rows of a table.
        seed: of batches and order.

    Raises:
        ValueError: there is no such scenario.
        blslib.workloads.files.DataError, FileNotFoundError: the data set's file is faulty or not there.
    """
    if name not in SCENARIOS:
        raise ValueError(f"no scenario {name!r}: choose from {', '.join(SCENARIOS)}")
    pool_size = min(iterations, 16)
    if name == "criteo":
        model = replace(KAGGLE, rows=capped(KAGGLE.rows, max_rows))
        placement = contiguous(model.tables, ranks)
        source = criteo_batches(batch_size, pool_size, max_rows=max_rows, seed=seed, tables=placement.tables[rank])
    elif name in ("aliccp-onehot", "aliccp-multihot"):
        rows = capped(ALICCP_ROWS, max_rows)
        model = ModelConfig(rows=rows, dim=16, bottom=(8, 64, 16), top=(64, 1), name="ali-ccp")
        placement = contiguous(model.tables, ranks)
        multi_hot = name == "aliccp-multihot"
        source = aliccp_batches(
            batch_size, pool_size, multi_hot=multi_hot, max_rows=max_rows, seed=seed, tables=placement.tables[rank]
        )
    else:
        return _made(name, ranks, rank, iterations, batch_size, max_rows, seed)
    order = np.arange(iterations) % len(source.batches)
    return Scenario(model, placement, source.batches, order, source.label)


def _made(name: str, ranks: int, rank: int, iterations: int, batch_size: int, max_rows: int, seed: int) -> Scenario:
    per_rank = [TABLES_PER_RANK] * ranks
    if name == "unequal-tables":
        per_rank = [round(n) for n in np.linspace(TABLES_PER_RANK * 2 / 3, TABLES_PER_RANK * 4 / 3, ranks)]
    placement = Placement(tuple(int(owner) for owner in np.repeat(range(ranks), per_rank)), ranks)
    tables = len(placement.owners)
    rows = (min(ROWS, max_rows),) * tables
    model = ModelConfig(rows=rows, dim=DIM, bottom=(DENSE, DIM), top=(16, 1), interaction="cat", name=name)
    # A pool of two rounds: batch j is heavy on rank j mod P.
    owners = np.array(placement.owners)

    def pooling(batch: int) -> np.ndarray:
        return np.where(owners == batch % ranks, HEAVY, LIGHT)

    uneven = name in ("rotating", "wandering", "static")
    made = Synthetic(
        rows,
        batch_size,
        pooling=pooling if uneven else LIGHT,
        seed=seed,
        iterations=2 * ranks,
        tables=placement.tables[rank],
    )
    order = np.arange(iterations) % (2 * ranks)
    if name == "wandering":
        order = np.random.default_rng(seed).integers(0, 2 * ranks, iterations)
    elif name == "static":
        order = np.full(iterations, ranks - 1) + ranks * (np.arange(iterations) % 2)
    heavy = f"{LIGHT} ids a bag" + (f", {HEAVY} on the heavy rank" if uneven else "")
    return Scenario(model, placement, list(made), order, f"generated: uniform ids, {heavy}")
