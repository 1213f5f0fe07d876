"""The max-plus recurrence against its definition, and the laws of delay against their means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blslib.theory.delays import LAWS, delays
from blslib.theory.maxplus import limit, makespan

WORK = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(0, 10, width=32)
)


def by_definition(
    work_s: np.ndarray, bound: int, exchange_s: float, before_s: np.ndarray, after_s: np.ndarray
) -> float:
    """The recurrence as it is written, every e[r,i] and R[r,i] kept; the drain is one more wait for everybody."""
    ranks, iterations = work_s.shape
    e, returned = np.zeros(work_s.shape), np.zeros(work_s.shape)
    for i in range(iterations):
        for r in range(ranks):
            e[r, i] = (returned[r, i - 1] if i else 0.0) + work_s[r, i]
        for r in range(ranks):
            slowest = max(e[s, i - bound] for s in range(ranks)) if i >= bound else 0.0
            returned[r, i] = max(e[r, i], slowest) + exchange_s
    last = max(e[:, -1]) + exchange_s
    return max(max(returned[r, -1] + before_s[r], last) + after_s[r] for r in range(ranks))


@given(WORK, st.integers(0, 15), st.floats(0, 3), st.integers(0, 99))
def test_makespan_is_the_recurrence(work_s, bound, exchange_s, seed):
    before_s, after_s = np.random.default_rng(seed).exponential(2, (2, len(work_s))) * (seed > 0)
    got = makespan(work_s, bound, exchange_s=exchange_s, before_drain_s=before_s, after_drain_s=after_s)
    assert got == pytest.approx(by_definition(work_s, bound, exchange_s, before_s, after_s))


@given(WORK)
def test_the_two_ends(work_s):
    assert makespan(work_s, 0) == pytest.approx(work_s.max(axis=0).sum())
    assert makespan(work_s, work_s.shape[1]) == pytest.approx(limit(work_s))
    assert limit(work_s) == pytest.approx(max(sum(row) for row in work_s.tolist()))


@given(WORK, st.integers(0, 12))
def test_a_larger_bound_never_costs(work_s, bound):
    assert limit(work_s) <= makespan(work_s, bound + 1) * (1 + 1e-12) <= makespan(work_s, bound) * (1 + 2e-12)


def test_by_hand():
    work_s = np.array([[3.0, 1, 1], [1, 3, 1]])  # who is slow changes: 7 s in step, 5 s of work each
    assert makespan(work_s, 0) == 7
    assert makespan(work_s, 1) == 5
    assert makespan(work_s, 0, exchange_s=0.5) == 8.5
    assert makespan(work_s, 1, after_drain_s=2.0) == 7
    one_way = np.array([[0.0, 0, 0, 0], [2, 2, 2, 2]])  # always the same one: no bound helps
    assert [makespan(one_way, bound) for bound in (0, 1, 9)] == [8, 8, 8]


def test_a_rotating_delay_is_masked_from_a_bound_of_the_ranks():
    work_s = delays("rotating", 4, 400, 1e-3, seed=0)
    assert makespan(work_s, 0) == pytest.approx(4 * limit(work_s))
    assert makespan(work_s, 4) <= 1.01 * limit(work_s)


def test_nothing_masks_a_permanent_delay():
    work_s = delays("permanent", 4, 50, 1e-3, seed=0)
    assert makespan(work_s, 0) == pytest.approx(makespan(work_s, 50)) == pytest.approx(limit(work_s))


@pytest.mark.parametrize("work_s", [np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((1, 2, 3))])
def test_no_matrix(work_s):
    with pytest.raises(ValueError, match="work_s is a P x N matrix with P, N >= 1, got shape"):
        makespan(work_s, 0)


def test_no_bound():
    with pytest.raises(ValueError, match="bound is a whole number of iterations >= 0, got -1"):
        makespan(np.zeros((2, 2)), -1)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_laws_have_their_mean(law, ranks):
    d = delays(law, ranks, 20_000, 2e-3, seed=1)
    assert d.shape == (ranks, 20_000)
    assert d.dtype == np.float64
    assert (d >= 0).all()
    assert d.mean() == (0 if law == "none" else pytest.approx(2e-3, rel=0.1))


@pytest.mark.parametrize("law", LAWS)
def test_laws_repeat(law):
    assert (delays(law, 3, 50, 1e-3, seed=4) == delays(law, 3, 50, 1e-3, seed=4)).all()
    if law in ("bernoulli", "exponential"):
        assert (delays(law, 3, 50, 1e-3, seed=4) != delays(law, 3, 50, 1e-3, seed=5)).any()


def test_what_the_laws_say():
    d = delays("bernoulli", 4, 10_000, 1e-3, seed=2)
    assert sorted(set(d.ravel())) == [0, 0.01]
    assert (d > 0).mean() == pytest.approx(0.1, abs=0.01)
    d = delays("rotating", 3, 7, 1e-3, seed=0)
    assert (d > 0).argmax(axis=0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert ((d > 0).sum(axis=0) == 1).all()
    assert d.max() == pytest.approx(3e-3)
    d = delays("permanent", 3, 7, 1e-3, seed=0)
    assert (d[:2] == 0).all()
    assert d[2].tolist() == pytest.approx([3e-3] * 7)
    d = delays("exponential", 2, 10_000, 1e-3, seed=3)
    assert np.median(d) == pytest.approx(1e-3 * np.log(2), rel=0.05)


def test_no_such_law():
    with pytest.raises(
        ValueError, match="no delay law 'gamma': choose from none, bernoulli, exponential, rotating, permanent"
    ):
        delays("gamma", 2, 2, 1e-3, seed=0)
