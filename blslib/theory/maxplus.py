"""When does each iteration end? The max-plus recurrence of bounded lag.

Rank r enters call i at ``e[r,i]`` and returns from it at ``R[r,i]``; its own work before the call takes ``c[r,i]``
seconds::

    e[r,i] = R[r,i-1] + c[r,i]
    R[r,i] = max(e[r,i], max_s e[s,i-k]) + exchange

Two operations only, max and plus: hence the name. The recurrence is exact in the model and costs P operations an
iteration. With k = 0 every rank waits for the slowest in every iteration; with k unbounded nobody waits before the end.
"""

import numpy as np


def makespan(
    work_s: np.ndarray,
    bound: int,
    *,
    exchange_s: float = 0.0,
    before_drain_s: np.ndarray | float = 0.0,
    after_drain_s: np.ndarray | float = 0.0,
) -> float:
    """Seconds from the start until the last rank is done: N calls, then a drain that waits for everybody's last.

    Args:
        work_s: (P, N) float, seconds of rank r's own work before its call i.
        bound: k >= 0, iterations that the slowest rank may lag.
        exchange_s: seconds that each call costs by itself.
        before_drain_s: (P,) float, own work between the last call and the drain.
        after_drain_s: (P,) float, own work after the drain.

    Raises:
        ValueError: ``work_s`` is no P x N matrix, or the bound is negative.

    Cost: O(P N) time, O(P + k) memory besides the argument.
    """
    work_s = np.asarray(work_s, dtype=np.float64)
    if work_s.ndim != 2 or 0 in work_s.shape:
        raise ValueError(f"work_s is a P x N matrix with P, N >= 1, got shape {work_s.shape}")
    if bound < 0:
        raise ValueError(f"bound is a whole number of iterations >= 0, got {bound}")
    ranks, iterations = work_s.shape
    returned = np.zeros(ranks)
    all_entered: list[float] = []
    for i in range(iterations):
        entered = returned + work_s[:, i]
        all_entered.append(entered.max())
        returned = entered if i < bound else np.maximum(entered, all_entered[i - bound])
        returned = returned + exchange_s
    drained = np.maximum(returned + before_drain_s, all_entered[-1] + exchange_s)
    return float((drained + after_drain_s).max())


def limit(work_s: np.ndarray) -> float:
    """Seconds that no bound can beat: the work of the busiest rank, ``max_r sum_i c[r,i]``."""
    return float(np.asarray(work_s, dtype=np.float64).sum(axis=1).max())
