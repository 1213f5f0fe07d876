"""Lookup traces, their reuse histogram, and draws in the likeness of either."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blslib.workloads.files import DataError
from blslib.workloads.published import META_REUSE
from blslib.workloads.reuse import Reuse, Trace, read_trace, summarise
from blslib.workloads.skew import Key

SAMPLE = Path(__file__).parents[1] / "../shared/data/meta_reuse_low_500k.txt"
real = pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample file {SAMPLE.name} in ../shared/data")


def test_published_histograms_are_whole():
    for histogram in META_REUSE.values():
        assert len(histogram.accesses) == len(histogram.rows) == 17
        assert histogram.accesses.sum() == pytest.approx(1, abs=0.005)
        assert histogram.rows.sum() == pytest.approx(1, abs=0.005)


def test_summary_of_a_trace_counted_by_hand():
    ids = np.repeat([7, 1, 4, 9, 2], [1, 2, 3, 4, 40])
    histogram = summarise(ids, "hand", bins=5)
    assert histogram.rows == pytest.approx([0.2, 0.2, 0.4, 0, 0.2])
    assert histogram.accesses == pytest.approx([0.02, 0.04, 0.14, 0, 0.8])
    assert histogram.accesses_per_row == 10


@pytest.mark.parametrize("name", META_REUSE)
def test_one_deck_has_the_published_histogram(name):
    law, rows, key = Reuse(META_REUSE[name]), 300_000, Key(1, 2, 0)
    each, members = law.deck(rows)
    deck = int(each @ members)
    ids = np.concatenate([law.draw(rows, deck // 8, key._replace(iteration=i)) for i in range(8)])
    seen = summarise(ids, name)
    # Three decimals are published, and the sizes of the hottest bins have to be guessed.
    assert np.abs(seen.accesses - law.histogram.accesses).max() < 0.006
    assert np.abs(seen.rows - law.histogram.rows).max() < 0.004
    assert seen.accesses_per_row == pytest.approx(law.histogram.accesses_per_row, rel=0.01)
    assert len(np.unique(ids)) == pytest.approx(rows, rel=1e-3)


@given(rows=st.integers(1, 3000), size=st.integers(1, 200), iteration=st.integers(0, 10**6))
def test_reuse_stays_inside_any_table(rows, size, iteration):
    each, members = Reuse().deck(rows)
    assert members.sum() == rows and (each > 0).all() and (members > 0).all()
    ids = Reuse().draw(rows, size, Key(0, 3, iteration))
    assert ids.dtype == np.int64 and ids.shape == (size,) and 0 <= ids.min() <= ids.max() < rows


def test_reuse_keeps_its_skew_in_small_tables():
    ids = Reuse().draw(1000, 6000, Key(0, 0, 0))
    top = np.sort(np.bincount(ids, minlength=1000))[::-1]
    assert 0.7 < top[:123].sum() / len(ids) < 0.8  # published: 12.3 % of the rows get 71.9 % of the accesses


def test_reading_and_replaying(tmp_path):
    path = tmp_path / "trace.txt"
    path.write_text("".join(f"{n}\n" for n in range(100)))
    trace = Trace(read_trace(path), "t")
    drawn = np.concatenate([trace.draw(1000, 30, Key(0, 5, i)) for i in range(10)])
    assert np.array_equal(np.diff(drawn) % 100, np.ones(299)) and str(trace) == "trace t"
    assert np.array_equal(np.bincount(drawn), np.full(100, 3))
    assert drawn[0] != trace.draw(1000, 1, Key(0, 6, 0))[0]
    assert trace.draw(7, 30, Key(0, 5, 0)).max() == 6
    path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_trace(path.with_suffix(".gz")), trace.ids)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "line 1: empty file: expected at least one row of data, got none"),
        ("1\n2\nx7\n", "line 3: not an id: expected one integer of up to 18 digits, 0 or more, got 'x7'"),
        ("1\n-2\n", "line 2: not an id"),
        ("1\n\n", "line 2: not an id"),
        ("1\n23", "line 2: cut short"),
    ],
)
def test_faulty_traces(tmp_path, content, text):
    (tmp_path / "trace.txt").write_text(content)
    with pytest.raises(DataError, match=text) as caught:
        read_trace(tmp_path / "trace.txt")
    assert "trace.txt" in str(caught.value)


def test_missing_trace(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of a file with one id per line"):
        read_trace(tmp_path / "none.txt")


@real
def test_real_trace():
    ids = read_trace(SAMPLE)
    assert (len(ids), ids.min(), ids.max(), len(np.unique(ids))) == (379_910, 0, 499_999, 231_073)
    histogram = summarise(ids, SAMPLE.stem)
    assert histogram.rows[0] == pytest.approx(0.638, abs=0.001)
    assert histogram.accesses_per_row == pytest.approx(1.64, abs=0.01)
    assert histogram.accesses.sum() == pytest.approx(1) and histogram.rows.sum() == pytest.approx(1)
    # A histogram measured here drives the same sampler as the published ones.
    law = Reuse(histogram)
    each, members = law.deck(231_073)
    drawn = summarise(law.draw(231_073, int(each @ members), Key(0, 0, 0)), "drawn")
    assert np.abs(drawn.accesses - histogram.accesses).max() < 0.002
    assert np.abs(drawn.rows - histogram.rows).max() < 0.002
    # And a whole replay has exactly the trace's own histogram.
    replay = summarise(Trace(ids, "t").draw(500_000, len(ids), Key(4, 0, 0)), "replay")
    assert np.array_equal(replay.accesses, histogram.accesses) and np.array_equal(replay.rows, histogram.rows)
