"""A scenario on one rank: the model that reads a workload, and where its tables lie.

The models of made scenarios are small but for their tables, so that lookups take most of the time, as they do at scale.
"""

from dataclasses import dataclass, replace

import numpy as np

from blslib.dlrm.config import KAGGLE, ModelConfig
from blslib.dlrm.sharding import row_starts
from blslib.placement.shards import Placement, whole
from blslib.workloads.batch import Batch
from blslib.workloads.published import ALICCP_ROWS, CRITEO_DENSE
from blslib.workloads.scenarios import workload

_MADE = ModelConfig(rows=(1,), dim=32, bottom=(CRITEO_DENSE, 32), top=(16, 1), interaction="cat")
_ALICCP = ModelConfig(ALICCP_ROWS, dim=16, bottom=(8, 64, 16), top=(64, 1))
_MODELS = {"criteo": KAGGLE, "aliccp-onehot": _ALICCP, "aliccp-multihot": _ALICCP}


@dataclass(frozen=True)
class Scenario:
    """One rank's view of a scenario.

    Attributes:
        model, placement: the whole model, and which rank holds which shards of its tables.
        pool: different batches, with the ids of this rank's shards only.
        order: (N,) which batch of the pool each iteration takes.
        source: where the data are from, for captions.
    """

    model: ModelConfig
    placement: Placement
    pool: list[Batch]
    order: np.ndarray
    source: str


def build(
    name: str,
    *,
    ranks: int,
    rank: int,
    iterations: int,
    batch_size: int,
    max_rows: int,
    seed: int,
    groups: int | None = None,
    placement: Placement | None = None,
) -> Scenario:
    """A scenario as one rank sees it; every rank must ask for the same. The batches are the same for any placement.

    Args:
        name, iterations, batch_size, max_rows, seed: as of :func:`~blslib.workloads.scenarios.workload`.
        ranks, rank: P and this one.
        groups: of tables; by default as many as ranks.
        placement: of the tables over P ranks; by default whole groups, as many on each rank.

    Raises:
        ValueError: there is no such scenario, or the placement is not over P ranks.
        blslib.placement.shards.PlacementError: it does not hold every row and column of the scenario's tables once.
        blslib.workloads.files.DataError, FileNotFoundError: the data set's file is faulty or not there.
    """
    work = workload(name, groups or ranks, iterations=iterations, batch_size=batch_size, max_rows=max_rows, seed=seed)
    model = replace(_MODELS.get(name, _MADE), rows=work.rows, name=name)
    if placement is None:
        owners = np.searchsorted(row_starts(int(work.groups[-1]) + 1, ranks), work.groups, side="right") - 1
        placement = whole(model.shapes, owners.tolist(), ranks)
    if placement.ranks != ranks:
        raise ValueError(f"placement is over {placement.ranks} ranks, {name} runs on {ranks}: place its tables anew")
    placement.check(model.shapes)
    return Scenario(model, placement, work.pool(placement.parts(rank)), work.order, work.label)
