"""A scenario on its ranks: the work is the same wherever its tables lie."""

from functools import partial

import numpy as np
import pytest

from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import Placement, contiguous
from blslib.lab.scenarios import Scenario, build
from blslib.workloads.scenarios import SCENARIOS, workload

RANKS = 3
SIZE = {"iterations": 10, "batch_size": 16, "max_rows": 50, "seed": 3}
on_rank = partial(build, ranks=RANKS, **SIZE)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch):
    monkeypatch.delenv("BLS_CRITEO", raising=False)
    monkeypatch.delenv("BLS_ALICCP", raising=False)


def everywhere(name: str, placement: Placement | None = None) -> list[Scenario]:
    return [on_rank(name, rank=rank, placement=placement) for rank in range(RANKS)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_placement_meets_the_same_batches(name):
    usual = everywhere(name)
    tables = usual[0].model.tables
    spread = Placement(tuple(table % RANKS for table in range(tables)), RANKS)
    lopsided = Placement((1,) * (tables - 1) + (0,), RANKS)
    whole = workload(name, RANKS, **SIZE)
    for ranks in (usual, everywhere(name, spread), everywhere(name, lopsided)):
        for i, batch in enumerate([whole.pool()[which] for which in whole.order]):
            for rank, here in enumerate(ranks):
                part = here.pool[here.order[i]]
                assert np.array_equal(part.dense, batch.dense)
                for table, owner in enumerate(here.placement.owners):
                    if owner == rank:
                        assert np.array_equal(part.ids[table], batch.ids[table])
                        assert np.array_equal(part.offsets[table], batch.offsets[table])
                    else:
                        assert not len(part.ids[table])
            # So the hot tables are the same too: what is looked up, summed over the ranks, is the scenario's load.
            lookups = sum(here.pool[here.order[i]].lookups for here in ranks)
            assert lookups == pytest.approx(16 * whole.source.pooling_at(whole.order[i]), abs=8)


def test_by_default_a_group_is_a_rank():
    for name in ("rotating", "unequal-tables"):
        assert everywhere(name)[0].placement.owners == tuple(workload(name, RANKS, **SIZE).groups)
    assert everywhere("criteo")[0].placement == contiguous(26, RANKS)
    assert on_rank("rotating", rank=0, groups=6).placement.owners == (0,) * 16 + (1,) * 16 + (2,) * 16


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_model_fits_the_batches(name):
    here = build(name, ranks=1, rank=0, **SIZE)
    assert DLRM(here.model, seed=0)(here.pool[0]).shape == (16,)


def test_a_placement_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="placement is of 26 tables over 2 ranks, criteo has 26 and runs on 3"):
        on_rank("criteo", rank=0, placement=contiguous(26, 2))
    with pytest.raises(ValueError, match="placement is of 5 tables over 3 ranks, static has 24 and runs on 3"):
        on_rank("static", rank=0, placement=contiguous(5, 3))
