"""Synthetic batches and the laws of lookups."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blslib.workloads.batch import Batch
from blslib.workloads.published import (
    ALICCP_FIELDS,
    ALICCP_POOLING,
    ALICCP_ROWS,
    CRITEO_ROWS,
    capped,
)
from blslib.workloads.skew import UNIFORM, Key, Zipf, scatter
from blslib.workloads.synthetic import Synthetic


def same(a, b) -> bool:
    pairs = [(a.dense, b.dense), *zip(a.ids, b.ids, strict=True), *zip(a.offsets, b.offsets, strict=True)]
    return all(np.array_equal(x, y) for x, y in pairs)


def test_published_numbers_add_up():
    assert (len(CRITEO_ROWS), sum(CRITEO_ROWS)) == (26, 33_762_577)
    assert len(ALICCP_FIELDS) == len(ALICCP_ROWS) == len(ALICCP_POOLING) == 23
    assert sum(ALICCP_POOLING) == pytest.approx(629.36, abs=0.01)
    assert list(ALICCP_FIELDS) == sorted(ALICCP_FIELDS, key=lambda field: tuple(map(int, field.split("_"))))
    assert capped((5, 50), 10) == (5, 10) and capped((5, 50), None) == (5, 50)
    with pytest.raises(ValueError, match="max_rows=0"):
        capped((5,), 0)


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**32), table=st.integers(0, 50))
def test_scatter_is_a_permutation(count, seed, table):
    assert np.array_equal(np.sort(scatter(np.arange(count), count, seed, table)), np.arange(count))


@given(count=st.integers(2**30, 2**31 - 1), seed=st.integers(0, 9))
def test_scatter_stays_inside_and_apart_on_huge_ranges(count, seed):
    out = scatter(np.arange(500) * ((count - 1) // 499), count, seed, 0)
    assert 0 <= out.min() <= out.max() < count and len(np.unique(out)) == 500


@pytest.mark.parametrize("count", [4096, 10_000, 200_000, 10_131_227])
def test_scatter_differs_by_seed_and_table_and_parts_neighbours(count):
    index = np.arange(4096)
    variants = [scatter(index, count, *key) for key in ((0, 0), (1, 0), (0, 1))]
    for n, a in enumerate(variants):
        assert abs(np.corrcoef(index, a)[0, 1]) < 0.05
        assert all((a == b).mean() < 0.01 for b in variants[:n])
    # The hundred hottest rows share no 32-row pages, nor do they crowd into a part of the table.
    hot = np.sort(variants[0][:100])
    assert np.diff(hot).min() >= 32 or count < 8192
    assert np.diff(hot).max() < 4 * count / 100


@pytest.mark.parametrize("exponent", [0.0, 1.02, 1.1, 1.3, 2.5])
@pytest.mark.parametrize("rows", [1, 7, 5000, 300_000])
def test_zipf_follows_its_law(exponent, rows):
    ids = Zipf(exponent).draw(rows, 200_000, Key(3, 1, 4))
    assert ids.dtype == np.int64 and 0 <= ids.min() <= ids.max() < rows
    rank = np.arange(rows) if exponent == 0 else np.argsort(scatter(np.arange(rows), rows, 3, 1))
    seen = np.cumsum(np.bincount(rank[ids], minlength=rows)) / len(ids)
    weight = np.cumsum(np.arange(1, rows + 1.0) ** -exponent)
    assert np.abs(seen - weight / weight[-1]).max() < 1.95 / np.sqrt(len(ids))  # Kolmogorov-Smirnov at 0.1 %


def test_zipf_reaches_the_last_row_and_reports_a_bad_exponent():
    assert len(np.unique(Zipf(1.02).draw(500, 400_000, Key(0, 0, 0)))) == 500
    for bad in (-0.1, 0.9, 1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a Zipf exponent is 0, which is uniform, or a number above 1, got"):
            Zipf(bad)
    assert (str(Zipf(1.1)), str(UNIFORM)) == ("Zipf 1.1", "uniform")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(1, 10_000), min_size=1, max_size=6),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
    iteration=st.integers(0, 1000),
    exponent=st.sampled_from([0.0, 1.1]),
    data=st.data(),
)
def test_any_rank_makes_the_same_and_keeps_any_tables(rows, size, seed, iteration, exponent, data):
    pooling = data.draw(st.lists(st.floats(0, 9), min_size=len(rows), max_size=len(rows)))
    mine = data.draw(st.sets(st.sampled_from(range(len(rows)))))
    make = {"rows": rows, "batch_size": size, "pooling": pooling, "skew": Zipf(exponent), "seed": seed}
    whole = Synthetic(**make).batch(iteration)
    part = Synthetic(**make).batch(iteration).only({t: range(rows[t]) for t in mine}, rows)
    assert whole.size == part.size == size and part.tables == len(rows)
    for table, count in enumerate(rows):
        assert table not in mine or np.array_equal(part.ids[table], whole.ids[table])
        ids, offsets = whole.ids[table], whole.offsets[table]
        lengths = np.diff(offsets)
        assert ids.dtype == offsets.dtype == np.int64 and len(offsets) == size + 1 and offsets[0] == 0
        assert offsets[-1] == len(ids) == whole.lookups[table]
        assert set(lengths) <= {int(pooling[table]), int(np.ceil(pooling[table]))}
        assert not len(ids) or 0 <= ids.min() <= ids.max() < count
        assert part.lookups[table] == (len(ids) if table in mine else 0)
    assert whole.dense.dtype == np.float32 and 0 <= whole.dense.min() <= whole.dense.max() < 1


@settings(max_examples=40)
@given(
    bags=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6),
    part=st.sampled_from(
        [range(10), range(3), range(4, 10), range(5, 6), range(1, 10, 2), range(7, 10, 8), range(4, 4)]
    ),
)
def test_a_batch_is_cut_to_the_rows_of_a_part(bags, part):
    ids, ends = np.array([i for bag in bags for i in bag], dtype=np.int64), np.cumsum([0, *map(len, bags)])
    batch = Batch(np.ones((len(bags), 2), np.float32), (ids, ids), (ends, ends))
    cut = batch.only({1: part}, (10, 10))
    assert cut.dense is batch.dense and cut.lookups.tolist() == [0, sum(i in part for bag in bags for i in bag)]
    assert cut.ids[1].dtype == cut.offsets[1].dtype == np.int64
    starts = cut.offsets[1].tolist()
    assert [cut.ids[1][a:b].tolist() for a, b in pairwise(starts)] == [[i for i in bag if i in part] for bag in bags]
    assert same(cut.only({1: part}, (10, 10)), cut)


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        ([0, 7], [0, 1, 2], "table 1 has rows 0 to 6, the batch asks for 0 to 7"),
        ([-1, 5], [0, 1, 2], "table 1 has rows 0 to 6, the batch asks for -1 to 5"),
        ([0, 1], [0, 1, 3], "bad bags for table 1 of 7 rows: offsets must rise from 0 to 2"),
        ([0, 1], [1, 1, 2], "bad bags for table 1"),
        ([0, 1], [0, 3, 2], "bad bags for table 1"),
    ],
)
@pytest.mark.parametrize("part", [range(3), range(3, 7), range(1, 7, 3)])
def test_what_is_cut_away_is_checked(ids, offsets, message, part):
    bags = (np.array([0]), np.array(ids)), (np.array([0, 1, 1]), np.array(offsets))
    batch = Batch(np.ones((2, 1), np.float32), *bags)
    with pytest.raises(ValueError, match=message):
        batch.only({1: part}, (7, 7))


def test_seed_table_and_iteration_each_change_the_ids():
    def ids(seed, table, iteration):
        return Synthetic([10**6] * 2, 100, seed=seed).batch(iteration).ids[table]

    first = ids(0, 0, 0)
    assert np.array_equal(first, ids(0, 0, 0))
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert (first == ids(*other)).mean() < 0.05


def test_pooling_may_depend_on_the_iteration():
    rotating = Synthetic([50] * 4, 8, pooling=lambda i: np.where(np.arange(4) == i % 4, 50, 10), iterations=6)
    lookups = np.array([batch.lookups for batch in rotating])
    assert lookups.shape == (6, 4)
    assert np.array_equal(lookups, 8 * np.where(np.arange(4) == np.arange(6)[:, None] % 4, 50, 10))


def test_fractional_pooling_has_the_right_mean():
    source = Synthetic([100], 20_000, pooling=2.25)
    assert source.batch(0).lookups[0] / 20_000 == pytest.approx(2.25, abs=0.02)
    assert not np.array_equal(source.batch(0).offsets[0], source.batch(1).offsets[0])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        ({"rows": [], "batch_size": 1}, "rows and batch_size must be 1 or more"),
        ({"rows": [3, 0], "batch_size": 1}, r"rows=\(3, 0\)"),
        ({"rows": [3], "batch_size": 0}, "batch_size=0"),
        (
            {"rows": [3, 3], "batch_size": 1, "pooling": [1, 2, 3]},
            r"one for each of the 2 tables, got \[1.0, 2.0, 3.0\]",
        ),
        ({"rows": [3], "batch_size": 1, "pooling": -1}, "pooling of iteration 0 must be a number >= 0"),
        ({"rows": [3], "batch_size": 1, "pooling": lambda i: np.nan}, "pooling of iteration 0"),
    ],
)
def test_arguments_that_do_not_fit(make, text):
    with pytest.raises(ValueError, match=text):
        Synthetic(**make).batch(0)
