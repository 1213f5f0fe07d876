"""A scenario on one rank: the model that reads a workload, and where its tables lie.

The models of made scenarios are small but for their tables, so that lookups take most of the time, as they do at scale.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from blslib.dlrm.config import KAGGLE, ModelConfig
from blslib.placement.shards import Placement, contiguous, whole
from blslib.workloads.batch import Batch
from blslib.workloads.published import ALICCP_ROWS, CRITEO_DENSE
from blslib.workloads.scenarios import workload

if TYPE_CHECKING:
    from blslib.lab.experiments.dlrm import Config

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
    config: "Config", ranks: int, rank: int, placement: Placement | None = None, groups: int | None = None
) -> Scenario:
    """A scenario as one rank sees it; every rank must ask for the same. The batches are the same for any placement.

    Args:
        config: with the name of the scenario, and the size and seed of its batches.
        ranks, rank: P and this one.
        placement: of the tables over P ranks; by default whole groups, as many on each rank.
        groups: of tables; by default as many as ranks.

    Raises:
        ValueError: there is no such scenario, or the placement is not over P ranks.
        blslib.placement.shards.PlacementError: it does not hold every row and column of the scenario's tables once.
        blslib.workloads.files.DataError, FileNotFoundError: the data set's file is faulty or not there.
    """
    size = {name: getattr(config, name) for name in ("iterations", "batch_size", "max_rows", "seed")}
    work = workload(config.scenario, groups or ranks, **size)
    model = replace(_MODELS.get(config.scenario, _MADE), rows=work.rows)
    if placement is None:
        groups_of = contiguous([(1, 1)] * (int(work.groups[-1]) + 1), ranks).shards
        placement = whole(model.shapes, [groups_of[group].rank for group in work.groups], ranks)
    if placement.ranks != ranks:
        raise ValueError(
            f"placement is over {placement.ranks} ranks, {config.scenario} runs on {ranks}: place its tables anew"
        )
    placement.check(model.shapes)
    return Scenario(model, placement, work.pool(placement.parts(rank)), work.order, work.label)
