"""A scenario on its ranks: the work is the same wherever its tables lie."""

from typing import Any

import numpy as np
import pytest

from blslib.dlrm.model import DLRM
from blslib.lab.experiments.dlrm import Config
from blslib.lab.scenarios import Scenario, build
from blslib.placement.shards import Placement, PlacementError, Shard, contiguous, whole
from blslib.workloads.scenarios import SCENARIOS, workload

RANKS = 3
SIZE = {"iterations": 10, "batch_size": 16, "max_rows": 50, "seed": 3}


def on_rank(name: str, rank: int, ranks: int = RANKS, **lying: Any) -> Scenario:
    return build(Config(name, **SIZE), ranks, rank, **lying)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch):
    monkeypatch.delenv("BLS_CRITEO", raising=False)
    monkeypatch.delenv("BLS_ALICCP", raising=False)


def everywhere(name: str, placement: Placement | None = None) -> list[Scenario]:
    return [on_rank(name, rank=rank, placement=placement) for rank in range(RANKS)]


def owners(here: Scenario) -> list[int | None]:
    """The rank of each table, where all are whole."""
    found = [shard.rank for shard in here.placement.shards]
    assert here.placement == whole(here.model.shapes, found, RANKS)
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_placement_meets_the_same_batches(name):
    usual = everywhere(name)
    shapes = usual[0].model.shapes
    tables = len(shapes)
    spread = whole(shapes, [table % RANKS for table in range(tables)], RANKS)
    lopsided = whole(shapes, [1] * (tables - 1) + [0], RANKS)
    work = workload(name, RANKS, **SIZE)
    for ranks in (usual, everywhere(name, spread), everywhere(name, lopsided)):
        for i, batch in enumerate([work.pool()[which] for which in work.order]):
            for rank, here in enumerate(ranks):
                part = here.pool[here.order[i]]
                assert np.array_equal(part.dense, batch.dense)
                for table, owner in enumerate(owners(here)):
                    if owner == rank:
                        assert np.array_equal(part.ids[table], batch.ids[table])
                        assert np.array_equal(part.offsets[table], batch.offsets[table])
                    else:
                        assert not len(part.ids[table])
            # So the hot tables are the same too: what is looked up, summed over the ranks, is the scenario's load.
            lookups = sum(here.pool[here.order[i]].lookups for here in ranks)
            assert lookups == pytest.approx(16 * work.source.pooling_at(work.order[i]), abs=8)


def test_by_default_a_group_is_a_rank():
    for name in ("rotating", "unequal-tables"):
        assert owners(everywhere(name)[0]) == workload(name, RANKS, **SIZE).groups.tolist()
    criteo = everywhere("criteo")[0]
    assert criteo.placement == contiguous(criteo.model.shapes, RANKS)
    assert owners(on_rank("rotating", rank=0, groups=6)) == [0] * 16 + [1] * 16 + [2] * 16
    assert owners(on_rank("rotating", rank=0, groups=2)) == [0] * 8 + [1] * 8
    assert owners(on_rank("rotating", rank=0, groups=4)) == [0] * 16 + [1] * 8 + [2] * 8


@pytest.mark.parametrize("name", ["static", "aliccp-multihot"])
def test_ids_of_split_tables_go_to_the_ranks_that_hold_their_rows(name):
    """All of every table, those of row blocks once, those of column strips with each, those of replicas everywhere."""
    shapes = everywhere(name)[0].model.shapes
    (rows, dim), all_rows = shapes[0], [range(rows) for rows, _ in shapes]
    cut, half = [range(1), range(1, 2), range(2, rows)], range(dim // 2)
    shards = [Shard(0, block, range(dim), 2 - rank) for rank, block in enumerate(cut)]
    shards += [Shard(1, all_rows[1], half, 0), Shard(1, all_rows[1], range(dim // 2, dim), 2)]
    shards += [Shard(2, range(k, shapes[2][0], 2), range(dim), k) for k in range(2)]
    shards += [Shard(t, all_rows[t], range(dim), None if t == 3 else 1) for t in range(3, len(shapes))]
    here = everywhere(name, Placement(tuple(shards), RANKS))
    for i, batch in enumerate(workload(name, RANKS, **SIZE).pool()):
        found = [scenario.pool[i] for scenario in here]
        for table, holders in enumerate([(2, 1, 0), (0, 2), (0, 1), (0, 1, 2), *[(1,)] * (len(shapes) - 4)]):
            kept = [found[rank].ids[table].tolist() for rank in holders]
            expected = [batch.ids[table].tolist()] * len(holders)
            if table in (0, 2):
                blocks = cut if table == 0 else [range(k, shapes[2][0], 2) for k in range(2)]
                expected = [[i for i in expected[0] if i in block] for block in blocks]
            assert kept == expected
            assert all(not len(part.ids[table]) for rank, part in enumerate(found) if rank not in holders)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_model_fits_the_batches(name):
    here = on_rank(name, rank=0, ranks=1)
    assert DLRM(here.model, seed=0)(here.pool[0]).shape == (16,)


def test_a_placement_that_does_not_fit_is_refused():
    shapes = on_rank("static", rank=0).model.shapes
    with pytest.raises(ValueError, match="placement is over 2 ranks, static runs on 3"):
        on_rank("static", rank=0, placement=contiguous(shapes, 2))
    with pytest.raises(PlacementError, match="table 5 of 50 rows and 32 columns must be held whole .*, got nothing"):
        on_rank("static", rank=0, placement=contiguous(shapes[:5], 3))
