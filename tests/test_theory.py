"""The max-plus recurrence against its definition, and against a simulation of every message."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blslib.theory.delays import delays
from blslib.theory.maxplus import Cost, Recurrence, Times, limit, makespan, makespans, times
from tests.simulate import simulate

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
    run = Recurrence(len(work_s), [min(bound, work_s.shape[1])], cost=Cost(exchange_s))
    for column in work_s.T:
        run.step(column)
    got = run.finish(before_s, after_s)[0]
    assert got == pytest.approx(by_definition(work_s, bound, exchange_s, before_s, after_s))
    nothing = np.zeros(len(work_s))
    got = makespan(work_s, bound, cost=Cost(exchange_s))
    assert got == pytest.approx(by_definition(work_s, bound, exchange_s, nothing, nothing))


@given(WORK)
def test_the_two_ends(work_s):
    assert makespan(work_s, 0) == pytest.approx(work_s.max(axis=0).sum())
    assert makespan(work_s, work_s.shape[1]) == makespan(work_s, 10**15) == pytest.approx(limit(work_s))
    assert times(work_s, 10**15).ended_s == makespan(work_s, 10**15)
    assert limit(work_s) == pytest.approx(max(sum(row) for row in work_s.tolist()))


@given(WORK, st.integers(0, 12))
def test_a_larger_bound_never_costs(work_s, bound):
    assert limit(work_s) <= makespan(work_s, bound + 1) * (1 + 1e-12) <= makespan(work_s, bound) * (1 + 2e-12)


def test_by_hand():
    work_s = np.array([[3.0, 1, 1], [1, 3, 1]])  # who is slow changes: 7 s in step, 5 s of work each
    assert makespan(work_s, 0) == 7
    assert makespan(work_s, 1) == 5
    assert makespan(work_s, 0, cost=Cost(0.5)) == 8.5
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


EIGHTHS = st.integers(0, 16).map(lambda n: n / 8)  # sums of these are exact, in any order


def same(one: Times, other: Times) -> None:
    for name, mine, theirs in zip(Times._fields, one, other, strict=True):
        assert np.array_equal(mine, theirs), (name, mine, theirs)


@given(WORK, st.integers(0, 15))
def test_the_recurrence_is_the_protocol_message_by_message(work_s, bound):
    same(times(work_s, bound), simulate(work_s, bound))
    assert makespan(work_s, bound) == simulate(work_s, bound).ended_s


@given(st.data())
def test_so_it_is_with_costs_clocks_and_work_on_arrivals(data):
    ranks, iterations = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    bound, polls = data.draw(st.integers(0, 8)), data.draw(st.booleans())

    def drawn(*shape: int) -> np.ndarray:
        return data.draw(hnp.arrays(np.float64, shape, elements=EIGHTHS))

    cost = Cost(call_s=data.draw(EIGHTHS), alpha_s=data.draw(EIGHTHS))
    work_s, arrival_s = drawn(ranks, iterations), drawn(ranks, iterations)
    about = {"release_s": np.cumsum(drawn(iterations)), "after_s": drawn(ranks, iterations)}
    about |= {"arrival_s": arrival_s, "polls": polls}
    found = times(work_s, bound, cost=cost, **about)
    same(found, simulate(work_s, bound, call_s=cost.call_s, travel_s=cost.alpha_s, **about))
    assert (found.returned_s[:, bound:] >= found.entered_s.max(axis=0)[: max(0, iterations - bound)]).all()
    assert (found.delivered_s >= found.entered_s.max(axis=0)).all()


@given(WORK, st.lists(st.integers(0, 15), min_size=1, max_size=5), st.floats(0, 2), st.floats(0, 2))
def test_several_bounds_in_one_pass(work_s, bounds, call_s, alpha_s):
    assert makespans(iter(work_s.T), bounds).tolist() == [makespan(work_s, bound) for bound in bounds]
    cost = Cost(call_s, alpha_s)
    together = Recurrence(len(work_s), bounds, cost=cost)
    for column in work_s.T:
        together.step(column)
    assert together.finish().tolist() == [makespan(work_s, bound, cost=cost) for bound in bounds]


def test_lanes_may_have_work_of_their_own():
    first, second = np.random.default_rng(0).exponential(size=(2, 3, 20))
    together = makespans(np.stack([first, second], axis=-1).swapaxes(0, 1), [2, 5])
    assert together.tolist() == [makespan(first, 2), makespan(second, 5)]


def test_what_a_call_costs_stays_and_what_a_message_takes_is_hidden():
    work_s = np.ones((3, 100))
    assert makespan(work_s, 0, cost=Cost(0.5)) == makespan(work_s, 0, cost=Cost(alpha_s=0.5)) == 150
    assert makespan(work_s, 1, cost=Cost(0.5)) == 150
    assert makespan(work_s, 1, cost=Cost(alpha_s=0.5)) == 100.5  # only the drain still waits for the last


def test_work_on_arrivals_is_charged_where_they_are_handed_out():
    work_s = np.array([[1.0, 1, 1], [2, 1, 1]])
    # Bound 1. Rank 0 enters its first call at 1 and returns at once with nothing; rank 1's block comes at 2.
    found = times(work_s, 1, arrival_s=0.25)
    assert found.entered_s.tolist() == [[1, 2, 3.25], [2, 3.25, 4.5]]
    assert found.delivered_s.tolist() == [[2, 3.25, 4.5], [2, 3.25, 4.5]]
    assert found.ended_s == 4.75


def test_a_lone_batch_waits_for_the_next_unless_its_rank_polls():
    work_s, release_s = np.array([[1.0, 1], [2, 2]]), np.array([0.0, 10])
    assert times(work_s, 4, release_s=release_s).delivered_s.tolist() == [[11, 12], [2, 12]]
    polled = times(work_s, 4, release_s=release_s, polls=True)
    assert polled.delivered_s.tolist() == [[2, 12], [2, 12]]
    assert polled.entered_s.tolist() == [[1, 11], [2, 12]]


def test_what_comes_during_the_work_after_a_call_need_not_wait_for_the_next():
    work_s, release_s = np.array([[1.0, 1], [2, 2]]), np.array([0.0, 10])
    for after_s, delivered_s in ((0.5, 11.5), (1.0, 2), (1.5, 2.5)):
        assert times(work_s, 4, release_s=release_s, after_s=after_s).delivered_s[0, 0] == delivered_s


def test_memory_does_not_grow_with_the_run():
    def peak(iterations: int) -> int:
        tracemalloc.start()
        makespans((np.ones(1000) for _ in range(iterations)), [0, 8, 64])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(1000) < 1.1 * peak(200) < 1.1 * 400_000


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Recurrence(2, []), "bound is a whole number of iterations >= 0, got none"),
        (lambda: makespans(np.zeros((2, 2)), [3, -2]), "got -2"),
        (lambda: makespans([], [0]), "got no columns of work"),
        (lambda: times(np.zeros((2, 3)), 0, release_s=np.zeros(2)), r"each of the 3 iterations, got shape \(2,\)"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
