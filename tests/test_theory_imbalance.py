"""The four-way split adds up, the curve is the recurrence, and the recommended bound is the smallest that will do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blslib.theory import imbalance
from blslib.theory.delays import Constant, delays, named
from blslib.theory.imbalance import curve, recommend, split
from blslib.theory.maxplus import Cost, limit, makespan, times

WORK = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=10), elements=st.floats(0, 1e6, width=32)
)


def made(law: str, ranks: int = 4, iterations: int = 400) -> np.ndarray:
    """2 ms of work, and 1 ms in the mean of a law."""
    both = Constant(2e-3) + named(law, 1e-3, ranks)
    return both.matrix(np.random.default_rng(1), ranks, iterations)


@given(WORK, st.floats(1, 100), st.integers(0, 12))
def test_the_parts_add_up(work_s, factor, bound):
    for total_s in (None, limit(work_s), factor * limit(work_s), factor * makespan(work_s, 0)):
        found = split(work_s, total_s, bound=bound)
        parts = [found.useful_s, found.static_s, found.dynamic_s, found.exchange_s]
        assert sum(parts) == pytest.approx(found.total_s, rel=1e-9, abs=0)
        assert total_s is None or found.total_s == total_s
        assert min(parts[:3]) >= -1e-12 * found.total_s and found.won_s >= 0
        assert found.limit_s == pytest.approx(limit(work_s), rel=1e-12)
        assert found.dynamic_s + found.won_s == pytest.approx(split(work_s).dynamic_s, rel=1e-9, abs=1e-9)


def test_the_parts_by_hand():
    work_s = np.array([[3.0, 1, 1], [1, 3, 4]])
    found = split(work_s, 12.0)
    assert (found.useful_s, found.static_s, found.dynamic_s, found.exchange_s) == (6.5, 1.5, 2.0, 2.0)
    assert (found.busiest, found.limit_s, found.won_s) == (1, 8.0, 0.0)
    assert times(work_s, 1).entered_s.tolist() == [[3, 4, 5], [1, 4, 8]]


def test_what_lag_won_is_apart_from_what_it_hid():
    work_s = np.array([[3.0, 1, 1], [1, 3, 1]])  # 7 s in step, 5 s with a bound of 1
    lagged = split(work_s, 5.5, bound=1)
    assert (lagged.dynamic_s, lagged.won_s, lagged.exchange_s) == (0, 2, 0.5)
    untold = split(work_s, 5.5)  # quicker than in step: something hid 1.5 s of the waiting
    assert (untold.dynamic_s, untold.won_s, untold.exchange_s) == (2, 0, -1.5)


def test_where_each_law_ends_up():
    assert split(made("permanent")).dynamic_s == pytest.approx(0)
    assert split(made("permanent")).static_s == pytest.approx(0.4 * 3)
    assert split(made("rotating")).static_s == pytest.approx(0)
    assert split(made("rotating")).dynamic_s == pytest.approx(0.4 * 3)
    assert split(made("none")).useful_s == pytest.approx(0.8)


def test_what_is_dynamic_over_a_run_may_be_static_in_a_stretch():
    slow = np.kron(np.eye(4), np.ones((1, 10)))
    assert split(slow).dynamic_s == 30 and split(slow).static_s == 0
    stretch = split(slow[:, 10:20])
    assert stretch.static_s == 7.5 and stretch.dynamic_s == 0


def test_efficiencies_are_those_that_pop_publishes():
    """By the definitions of its page of metrics, on the table of docs/imbalance.md: 13 s of useful work on two ranks,
    8 s on the busiest, 10 s in step on an ideal network, 12 s measured; 8 s on an ideal network at a bound of 1."""
    work_s = np.array([[3.0, 1, 1], [1, 3, 4]])
    assert split(work_s, 12.0).efficiencies == {
        "load_balance": 6.5 / 8,  # mean useful computation time over the longest
        "serialisation": 8 / 10,  # the longest over the runtime on an ideal network
        "transfer": 10 / 12,  # the runtime on an ideal network over the runtime
        "communication_efficiency": 8 / 12,  # the longest over the runtime
        "parallel_efficiency": 6.5 / 12,  # the mean over the runtime
    }
    lagged = split(work_s, 9.0, bound=1).efficiencies
    assert (lagged["serialisation"], lagged["transfer"]) == (1, 8 / 9)
    for pop in (lagged, split(made("exponential"), 9.0).efficiencies):
        assert pop["communication_efficiency"] == pytest.approx(pop["serialisation"] * pop["transfer"])
        assert pop["parallel_efficiency"] == pytest.approx(pop["load_balance"] * pop["communication_efficiency"])
    assert set(split(np.zeros((2, 3))).efficiencies.values()) == {1.0}


@given(WORK, st.lists(st.integers(0, 12), min_size=1, max_size=5), st.floats(0, 2))
def test_the_curve_is_the_recurrence(work_s, bounds, exchange_s):
    assert curve(work_s, bounds, Cost(exchange_s)).tolist() == [
        makespan(work_s, k, cost=Cost(exchange_s)) for k in bounds
    ]
    travelling = curve(work_s, bounds, Cost(alpha_s=exchange_s))
    assert (travelling <= curve(work_s, bounds, Cost(exchange_s)) * (1 + 1e-9) + 1e-9).all()
    assert curve(work_s, [0], Cost(alpha_s=exchange_s)) == pytest.approx(curve(work_s, [0], Cost(exchange_s)))


def test_a_long_run_is_predicted_in_stretches(monkeypatch):
    """Never too little, and too much by less than the 256th part; at bound 0 nothing is lost."""
    work_s, bounds = made("exponential", iterations=5003), [0, 1, 3]
    exact_s = curve(work_s, bounds, Cost(1e-4))
    monkeypatch.setattr(imbalance, "STRETCH", 1)
    got_s = curve(work_s, bounds, Cost(1e-4))
    assert (got_s[1:] > exact_s[1:]).all() and (got_s <= exact_s * (1 + 1 / 256)).all()
    assert got_s[0] == pytest.approx(exact_s[0])
    assert split(work_s, bound=3).dynamic_s == pytest.approx(curve(work_s, [3])[0] - limit(work_s))


@given(WORK, st.lists(st.integers(0, 12), min_size=1, max_size=5), st.data())
def test_where_all_ranks_meet_nobody_is_ahead(work_s, bounds, data):
    """Between two meetings it is a run by itself; one in every iteration leaves nothing to win."""
    met = data.draw(hnp.arrays(bool, work_s.shape[1]))
    found = recommend(work_s, bounds=bounds, meets=met, replicas=2)
    parts = np.split(work_s, np.flatnonzero(met[1:]) + 1, axis=1)
    assert found.curve_s == pytest.approx([sum(makespan(part, k) for part in parts) for k in bounds])
    assert found.limit_s == pytest.approx(sum(limit(part) for part in parts))
    assert times(work_s, bounds[0], meets=met).ended_s == pytest.approx(found.curve_s[0])
    never = recommend(work_s, bounds=bounds, cost=Cost(1.0), meets=met | True, replicas=2)
    assert never.curve_s == pytest.approx(makespan(work_s, 0, cost=Cost(1.0)))
    assert (never.bound, never.enough) == (bounds[0], True) and never.win == pytest.approx(0)


def test_meetings_in_stretches_and_replicas(monkeypatch):
    work_s, met = made("exponential", iterations=5003), np.zeros(5003, bool)
    met[::2] = True
    whole = recommend(work_s, bounds=[0, 2], meets=met)
    assert 0 < whole.low < whole.win < whole.high < recommend(work_s, bounds=[0, 2]).low
    monkeypatch.setattr(imbalance, "STRETCH", 1)
    assert recommend(work_s, bounds=[0, 2], meets=met).curve_s == pytest.approx(whole.curve_s, rel=1 / 256)


def test_many_ranks_are_taken_in_groups_of_lanes(monkeypatch):
    work_s = made("exponential", iterations=50)
    whole = recommend(work_s, cost=Cost(1e-4))
    monkeypatch.setattr(imbalance, "ABREAST", 4 * 7)
    parts = recommend(work_s, cost=Cost(1e-4))
    assert parts.curve_s.tolist() == whole.curve_s.tolist() == curve(work_s, range(65), Cost(1e-4)).tolist()
    assert parts.travelling_s.tolist() == curve(work_s, range(65), Cost(alpha_s=1e-4)).tolist()
    assert (parts.low, parts.high) == (whole.low, whole.high)


def test_short_replicas_tell_the_interval_of_a_long_run(monkeypatch):
    work_s = made("bernoulli", iterations=3000)
    whole = recommend(work_s, bounds=[4])
    monkeypatch.setattr(imbalance, "ENOUGH_ITERATIONS", 500)
    short = recommend(work_s, bounds=[4])
    assert short.low < short.win == whole.win < short.high
    assert 0.7 < (short.high - short.low) / (whole.high - whole.low) < 1.4


@pytest.mark.parametrize("law", ["rotating", "bernoulli", "exponential", "permanent", "none"])
def test_the_smallest_bound_within_two_percent(law):
    work_s = made(law)
    found = recommend(work_s, cost=Cost(1e-4), replicas=20)
    times_s = [makespan(work_s, k, cost=Cost(1e-4)) for k in range(65)]
    limit_s = limit(work_s) + 400 * 1e-4
    assert found.enough
    assert found.bound == next(k for k, time_s in enumerate(times_s) if time_s <= 1.02 * limit_s)
    assert found.curve_s.tolist() == times_s
    assert found.limit_s == pytest.approx(limit_s)
    assert found.win == pytest.approx(1 - times_s[found.bound] / times_s[0])
    assert found.low <= found.win <= found.high
    if law in ("permanent", "none"):
        assert found.bound == found.latency_s == 0 and found.low == pytest.approx(found.high) == pytest.approx(0)
    elif law != "rotating":
        assert found.high - found.low > 0.01


def test_a_bound_that_is_not_enough_is_called_so():
    work_s = made("bursts", iterations=2000)
    found = recommend(work_s, bounds=range(9), replicas=5)
    assert not found.enough
    assert found.bound == next(k for k in range(9) if makespan(work_s, k) <= 1.02 * makespan(work_s, 8))


def test_the_interval_is_as_wide_as_other_runs_differ():
    found = recommend(made("bernoulli"), bounds=[4], replicas=100)
    wins = []
    for seed in range(40):
        work_s = 2e-3 + delays("bernoulli", 4, 400, 1e-3, seed=seed)
        wins.append(1 - makespan(work_s, 4) / makespan(work_s, 0))
    assert 2.5 * np.std(wins) < found.high - found.low < 5.5 * np.std(wins)  # 95 % are 3.9 for a bell curve


def test_the_exchange_that_travels_is_hidden():
    work_s = made("none")
    found = recommend(work_s, bounds=[1], cost=Cost(2e-4), replicas=1)
    assert found.win == 0
    assert found.hideable_s == pytest.approx(399 * 2e-4)  # all but the last, which the drain waits for
    found = recommend(work_s, bounds=[1], cost=Cost(alpha_s=2e-4), replicas=1)
    assert found.curve_s == pytest.approx([makespan(work_s, 1) + 2e-4])
    assert found.win == pytest.approx(1 - found.curve_s[0] / (makespan(work_s, 0) + 400 * 2e-4))


def test_lag_costs_latency():
    # Bound 1: the quick rank starts on the next batch at once, and has this one's arrival when the slow one posts.
    found = recommend(made("rotating", ranks=2), bounds=[1], replicas=1)
    assert 0 < found.latency_s <= found.curve_s[0] / 400


def test_no_work_at_all_wins_nothing():
    found = recommend(np.zeros((3, 20)), replicas=3)
    assert (found.bound, found.win, found.low, found.high) == (0, 0, 0, 0)
    assert split(np.zeros((3, 20))).total_s == 0


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_what_is_no_time(value):
    work_s = np.ones((3, 4))
    work_s[2, 1] = value
    with pytest.raises(ValueError, match=f"work_s holds times >= 0, got {value} of rank 2 in iteration 1"):
        split(work_s)


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"total_s is 3.9, but rank 0 alone worked for 4 s"):
        split(np.ones((2, 4)), 3.9)
    with pytest.raises(ValueError, match="rank 0 alone worked"):
        split(np.ones((2, 4)), np.nan)
    with pytest.raises(ValueError, match="P x N matrix"):
        curve(np.ones(4))
