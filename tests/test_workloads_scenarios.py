"""Named data sets: the file of the environment, or a likeness; and the label that says which."""

from pathlib import Path

import numpy as np
import pytest
from blslib.workloads.sources import aliccp_batches, criteo_batches

from blslib.workloads.published import ALICCP_POOLING, ALICCP_ROWS, CRITEO_ROWS

DATA = Path(__file__).parents[1] / "../shared/data"


def sample(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"no sample file {name} in ../shared/data")
    return str(DATA / name)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch):
    monkeypatch.delenv("BLS_CRITEO", raising=False)
    monkeypatch.delenv("BLS_ALICCP", raising=False)


def test_criteo_stand_in():
    source = criteo_batches(64, 3)
    assert source.label == "generated: Criteo cardinalities, Zipf 1.1" and source.rows == CRITEO_ROWS
    assert [batch.size for batch in source.batches] == [64] * 3 and source.batches[0].dense.shape == (64, 13)
    assert source.batches[0].lookups.tolist() == [64] * 26
    capped = criteo_batches(64, 1, max_rows=1000, seed=1)
    assert capped.label == "generated: Criteo cardinalities up to 1,000 rows, Zipf 1.1" and max(capped.rows) == 1000
    assert max(ids.max() for ids in capped.batches[0].ids) < 1000


def test_aliccp_stand_in():
    many, one = aliccp_batches(256, 4), aliccp_batches(256, 4, multi_hot=False, max_rows=500)
    assert many.label == "generated: Ali-CCP vocabularies and mean lengths, multi-hot, Zipf 1.1"
    assert one.label == "generated: Ali-CCP vocabularies up to 500 rows and mean lengths, one id per field, Zipf 1.1"
    assert many.rows == ALICCP_ROWS and many.batches[0].dense.shape == (256, 8)
    mean = sum(batch.lookups for batch in many.batches) / 1024
    assert mean == pytest.approx(ALICCP_POOLING, abs=0.06)
    assert np.sort(mean)[-4:].sum() / mean.sum() == pytest.approx(0.967, abs=0.002)
    assert all(np.diff(offsets).max() <= 1 for batch in one.batches for offsets in batch.offsets)


@pytest.mark.parametrize("make", [criteo_batches, aliccp_batches])
def test_a_rank_makes_only_its_tables(make):
    whole, part = make(32, 2), make(32, 2, tables=[1, 5])
    assert whole.label == part.label
    for a, b in zip(whole.batches, part.batches, strict=True):
        assert np.array_equal(a.dense, b.dense)
        assert [len(ids) > 0 for ids in b.ids] == [t in (1, 5) for t in range(a.tables)]
        assert all(np.array_equal(a.ids[t], b.ids[t]) for t in (1, 5))


def test_criteo_file(monkeypatch):
    monkeypatch.setenv("BLS_CRITEO", sample("criteo_kaggle_tiny.csv"))
    few, many = criteo_batches(100, 3, max_rows=50), criteo_batches(100, 25, tables=range(3))
    assert few.label == "Criteo Kaggle, file criteo_kaggle_tiny.csv"
    assert many.label == "Criteo Kaggle, file criteo_kaggle_tiny.csv (1,999 samples, repeated)"
    assert [batch.size for batch in many.batches] == [100] * 25
    assert max(ids.max() for batch in few.batches for ids in batch.ids) < 50 == max(few.rows)
    assert many.batches[0].lookups.tolist() == [100] * 3 + [0] * 23


@pytest.mark.parametrize(("multi_hot", "form"), [(True, "multi-hot"), (False, "one id per field")])
def test_aliccp_file(monkeypatch, multi_hot, form):
    monkeypatch.setenv("BLS_ALICCP", sample("aliccp_multihot_small.txt"))
    source = aliccp_batches(64, 3, multi_hot=multi_hot)
    assert source.label == f"Ali-CCP, {form}, file aliccp_multihot_small.txt (10 samples, repeated)"
    assert [batch.size for batch in source.batches] == [64] * 3


def test_label_tells_what_was_left_out(monkeypatch, tmp_path):
    (tmp_path / "ali.txt").write_text("1,0,0,205:7\n2,0,1,205:8\n")
    monkeypatch.setenv("BLS_ALICCP", str(tmp_path / "ali.txt"))
    label = aliccp_batches(2, 2).label
    assert label == "Ali-CCP, multi-hot, file ali.txt (1 samples, repeated), rows left out: 1"


@pytest.mark.parametrize(("make", "variable"), [(criteo_batches, "BLS_CRITEO"), (aliccp_batches, "BLS_ALICCP")])
def test_a_named_file_that_is_missing_is_never_replaced(monkeypatch, tmp_path, make, variable):
    monkeypatch.setenv(variable, str(tmp_path / "gone.txt"))
    with pytest.raises(FileNotFoundError, match=f"gone.txt.*{variable}=FILE, or unset it"):
        make(8, 1)
