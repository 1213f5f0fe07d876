"""The one-process reference: small enough to check by hand."""

import pytest

from blslib.collective.reference import BoundedLagReference, alltoallv


def test_alltoallv_transposes():
    assert alltoallv([["00", "01", "02"], ["10", "11", "12"], ["20", "21", "22"]]) == [
        ["00", "10", "20"],
        ["01", "11", "21"],
        ["02", "12", "22"],
    ]
    assert alltoallv([["alone"]]) == [["alone"]]


def test_alltoallv_wants_a_square():
    with pytest.raises(ValueError, match="rank 1 sends 3 blocks, expected one for each of 2 ranks"):
        alltoallv([["a", "b"], ["c", "d", "e"]])


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_fast_rank_returns_bound_times_alone(bound):
    ranks = BoundedLagReference(2, bound)
    for i in range(bound):
        ranks.enter(0, [f"{i}:00", f"{i}:01"])
        assert ranks.may_return(0)
        assert ranks.due(0) == 0
    ranks.enter(0, [f"{bound}:00", f"{bound}:01"])
    assert not ranks.may_return(0)
    ranks.enter(1, ["0:10", "0:11"])
    assert ranks.may_return(0)
    assert ranks.due(0) == 1


def test_each_iteration_is_delivered_once_and_in_order():
    ranks = BoundedLagReference(2, 5)
    for i in range(3):
        for rank in (1, 0):
            ranks.enter(rank, [(i, rank, 0), (i, rank, 1)])
    assert ranks.take(1, 0) == [(0, [(0, 0, 1), (0, 1, 1)])]
    assert ranks.take(1, 0) == []
    assert [i for i, _ in ranks.take(1, 2)] == [1, 2]
    assert [i for i, _ in ranks.take(0, 2)] == [0, 1, 2]
    with pytest.raises(ValueError, match="iteration 3 is not complete: 3 iterations are"):
        ranks.take(0, 3)
