"""The scenarios: which tables are hot when; data sets from the file of the environment, or in their likeness."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from blslib.workloads.published import ALICCP_POOLING, ALICCP_ROWS, CRITEO_ROWS
from blslib.workloads.scenarios import HEAVY, LIGHT, SCENARIOS, workload

DATA = Path(__file__).parents[1] / "../shared/data"
make = partial(workload, groups=3, iterations=12, batch_size=32, max_rows=100)


def sample(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"no sample file {name} in ../shared/data")
    return str(DATA / name)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch):
    monkeypatch.delenv("BLS_CRITEO", raising=False)
    monkeypatch.delenv("BLS_ALICCP", raising=False)


def hot_groups(name: str) -> list[list[int]]:
    """In each iteration, the groups whose tables are hot."""
    work = make(name)
    return [np.unique(work.groups[work.source.pooling_at(work.order[i]) == HEAVY]).tolist() for i in range(12)]


def test_which_groups_are_hot_when():
    assert hot_groups("balanced") == hot_groups("unequal-tables") == [[]] * 12
    assert hot_groups("rotating") == [[i % 3] for i in range(12)]
    assert hot_groups("static") == [[2]] * 12
    wandering = Counter(group for [group] in hot_groups("wandering"))
    assert sorted(wandering) == [0, 1, 2] and wandering.total() == 12
    assert hot_groups("wandering") != hot_groups("rotating")
    assert make("wandering", seed=1).order.tolist() != make("wandering", seed=2).order.tolist()
    work = make("rotating")
    assert np.bincount(work.groups).tolist() == [8, 8, 8]
    assert all(((work.source.pooling_at(work.order[i]) == HEAVY) == (work.groups == i % 3)).all() for i in range(12))
    assert set(work.source.pooling_at(work.order[0])) == {LIGHT, HEAVY}
    assert np.bincount(make("unequal-tables").groups).tolist() == [5, 8, 11]


def test_loads_belong_to_batches_groups_or_tables():
    """Of a batch all tables alike, of a group those in it, of a table by itself; 10 ids in the mean."""
    for name, different in (("batch-loads", 1), ("group-loads", 3), ("table-loads", 24)):
        work = make(name)
        loads = np.array([work.source.pooling_at(batch) for batch in range(16)])
        assert [len(np.unique(load)) for load in loads] == [different] * 16
        assert len(np.unique(loads)) == 16 * different
        if name == "group-loads":
            assert all(len(np.unique(load[work.groups == group])) == 1 for load in loads for group in range(3))
        assert loads.mean() == pytest.approx(LIGHT)
        assert loads.max() > 2 * LIGHT


@pytest.mark.parametrize("name", SCENARIOS)
def test_batches_are_what_the_load_says(name):
    work = make(name)
    pool = work.pool()
    assert len(work.rows) == len(work.groups) == pool[0].tables and max(work.rows) <= 100
    assert len(work.order) == 12 and work.label.startswith("generated: ")
    for which in work.order:
        lookups = pool[which].lookups / pool[which].size
        assert lookups == pytest.approx(work.source.pooling_at(which), abs=0.5)
        if name in ("rotating", "criteo"):
            assert lookups.tolist() == work.source.pooling_at(which).tolist()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_rank_makes_only_its_tables(name):
    work = make(name)
    for whole, part in zip(work.pool(), work.pool({t: range(work.rows[t]) for t in (1, 5)}), strict=True):
        assert np.array_equal(whole.dense, part.dense)
        for t in range(whole.tables):
            assert np.array_equal(part.ids[t], whole.ids[t] if t in (1, 5) else [])


def test_a_rank_makes_only_its_rows():
    work = make("aliccp-multihot")
    parts = {3: range(1, work.rows[3], 2), 8: range(1), 14: range(9, 20)}
    for whole, part in zip(work.pool(), work.pool(parts), strict=True):
        for t in range(whole.tables):
            assert part.ids[t].tolist() == [i for i in whole.ids[t].tolist() if i in parts.get(t, ())]


def test_no_such_scenario():
    with pytest.raises(ValueError, match="no scenario 'x': choose from balanced, rotating, .*, aliccp-multihot"):
        make("x")


def test_criteo_stand_in():
    work = workload("criteo", 1, iterations=3, batch_size=64)
    pool = work.pool()
    assert work.label == "generated: likeness of Criteo Kaggle, Zipf 1.1" and work.rows == CRITEO_ROWS
    assert [batch.size for batch in pool] == [64] * 3 and pool[0].dense.shape == (64, 13)
    assert pool[0].lookups.tolist() == [64] * 26
    capped = workload("criteo", 1, iterations=1, batch_size=64, max_rows=1000, seed=1)
    assert capped.label == "generated: likeness of Criteo Kaggle, up to 1,000 rows a table, Zipf 1.1"
    assert max(capped.rows) == 1000
    assert max(ids.max() for ids in capped.pool()[0].ids) < 1000


def test_aliccp_stand_in():
    many, one = (workload(f"aliccp-{name}", 1, iterations=4, batch_size=256) for name in ("multihot", "onehot"))
    assert many.label == "generated: likeness of Ali-CCP, multi-hot, Zipf 1.1"
    assert one.label == "generated: likeness of Ali-CCP, one id per field, Zipf 1.1"
    pool = many.pool()
    assert many.rows == ALICCP_ROWS and pool[0].dense.shape == (256, 8)
    mean = sum(batch.lookups for batch in pool) / 1024
    assert mean == pytest.approx(ALICCP_POOLING, abs=0.06)
    assert np.sort(mean)[-4:].sum() / mean.sum() == pytest.approx(0.967, abs=0.002)
    assert all(np.diff(offsets).max() <= 1 for batch in one.pool() for offsets in batch.offsets)


def test_criteo_file(monkeypatch):
    monkeypatch.setenv("BLS_CRITEO", sample("criteo_kaggle_tiny.csv"))
    few = workload("criteo", 1, iterations=3, batch_size=100, max_rows=50)
    many = workload("criteo", 1, iterations=25, batch_size=200)
    assert few.label == "Criteo Kaggle, file criteo_kaggle_tiny.csv"
    assert many.label == "Criteo Kaggle, file criteo_kaggle_tiny.csv (1,999 samples, repeated)"
    assert [batch.size for batch in many.pool()] == [200] * 16 and many.order.tolist() == [*range(16), *range(9)]
    assert max(ids.max() for batch in few.pool() for ids in batch.ids) < 50 == max(few.rows)
    assert many.pool({t: range(many.rows[t]) for t in range(3)})[0].lookups.tolist() == [200] * 3 + [0] * 23
    assert many.pool()[many.order[20]].lookups.tolist() == [200] * 26


@pytest.mark.parametrize(("name", "form"), [("aliccp-multihot", "multi-hot"), ("aliccp-onehot", "one id per field")])
def test_aliccp_file(monkeypatch, name, form):
    monkeypatch.setenv("BLS_ALICCP", sample("aliccp_multihot_small.txt"))
    work = workload(name, 1, iterations=3, batch_size=64)
    assert work.label == f"Ali-CCP, {form}, file aliccp_multihot_small.txt (10 samples, repeated)"
    assert [batch.size for batch in work.pool()] == [64] * 3
    assert (work.pool()[0].lookups.max() > 100 * 64) == (form == "multi-hot")


def test_label_tells_what_was_left_out(monkeypatch, tmp_path):
    (tmp_path / "ali.txt").write_text("1,0,0,205:7\n2,0,1,205:8\n")
    monkeypatch.setenv("BLS_ALICCP", str(tmp_path / "ali.txt"))
    label = workload("aliccp-multihot", 1, iterations=2, batch_size=2).label
    assert label == "Ali-CCP, multi-hot, file ali.txt (1 samples, repeated), rows left out: 1"


@pytest.mark.parametrize(("name", "variable"), [("criteo", "BLS_CRITEO"), ("aliccp-onehot", "BLS_ALICCP")])
def test_a_named_file_that_is_missing_is_never_replaced(monkeypatch, tmp_path, name, variable):
    monkeypatch.setenv(variable, str(tmp_path / "gone.txt"))
    with pytest.raises(FileNotFoundError, match=f"gone.txt.*{variable}=FILE, or unset it"):
        make(name)
