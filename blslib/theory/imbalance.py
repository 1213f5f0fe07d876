"""Where a run's time went, and what lag would win: the four-way split, the time at every bound, a bound to choose.

The split is exact. With ``c[r,i]`` the own work of rank r in iteration i, a run takes

=========  ============================================  =============================================
useful     ``mean_r sum_i c[r,i]``                       what perfect balance would take
static     ``max_r sum_i c[r,i]`` less useful            a rank that has more to do: move work
dynamic    ``sum_i max_r c[r,i]`` less both              waiting for somebody else each time: lag
exchange   the measured time less all three              what the exchange itself takes
=========  ============================================  =============================================
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, sqrt

import numpy as np

from blslib.theory.maxplus import Cost, Recurrence, matrix, times

BOUNDS = range(65)
TOLERANCE = 0.02
"""How far from the limit is close enough."""
ENOUGH_ITERATIONS = 2048
"""Of a longer run so many tell the latency, and make a replica of the bootstrap."""
STRETCH = 1 << 14
"""Iterations, or 256 times the greatest bound: a longer run is predicted in stretches of at most so many, side by side,
each of which all ranks begin together. That loses the lag at its end, and so less than one part in 256."""
ABREAST = 1 << 20
"""Ranks times lanes of a recurrence that are advanced together: 8 MiB for each of its arrays."""


@dataclass(frozen=True)
class Split:
    """The time of a run in four parts, in seconds; they add up to ``total_s``.

    Attributes:
        useful_s, static_s: as in the table above.
        dynamic_s: the waiting that the bound of the run left; at bound 0 all of it.
        exchange_s: what is left. Below 0 if the run was quicker than its bound allows: that much of the waiting was
            hidden by something else, such as an exchange that was started early.
        total_s: of the whole run.
        won_s: dynamic imbalance that the bound of the run had won already: 0 at bound 0.
        busiest: the rank with the most work.
    """

    useful_s: float
    static_s: float
    dynamic_s: float
    exchange_s: float
    total_s: float
    won_s: float
    busiest: int

    @property
    def limit_s(self) -> float:
        """The busiest rank's work, which no bound can beat."""
        return self.useful_s + self.static_s

    @property
    def efficiencies(self) -> dict[str, float]:
        """POP's metrics (https://pop-coe.eu) by name: load balance is 1 without static imbalance, serialisation without
        dynamic, transfer without exposed exchange (above 1 where that is negative); the others are their products."""
        ideal_s = self.limit_s + self.dynamic_s
        ratios = {
            "load_balance": (self.useful_s, self.limit_s),
            "serialisation": (self.limit_s, ideal_s),
            "transfer": (ideal_s, self.total_s),
            "communication_efficiency": (self.limit_s, self.total_s),
            "parallel_efficiency": (self.useful_s, self.total_s),
        }
        return {name: part_s / whole_s if whole_s else 1.0 for name, (part_s, whole_s) in ratios.items()}


def split(work_s: np.ndarray, total_s: float | None = None, *, bound: int = 0) -> Split:
    """Take a run apart.

    Args:
        work_s: (P, N) seconds of own work.
        total_s: measured time of the run; by default what it takes if the exchange costs nothing.
        bound: the bound that the run had; 0 if it was synchronous. What it won on imbalance is then told apart from
            what it hid of the exchange: the first is ``won_s``, the second already missing from ``exchange_s``.

    Raises:
        ValueError: ``work_s`` is no P x N matrix of times >= 0, or ``total_s`` is less than one rank's work.
    """
    work_s = _checked(work_s)
    by_rank = work_s.sum(axis=1)
    useful_s, limit_s = float(by_rank.mean()), float(by_rank.max())
    synchronous_s = max(limit_s, float(work_s.max(axis=0).sum()))
    ideal_s = min(max(limit_s, float(curve(work_s, [bound])[0])), synchronous_s) if bound else synchronous_s
    total_s = ideal_s if total_s is None else float(total_s)
    if not total_s >= limit_s * (1 - 1e-6):
        raise ValueError(
            f"total_s is {total_s:g}, but rank {by_rank.argmax()} alone worked for {limit_s:g} s: "
            "total_s is the time of the whole run, and both must be in seconds"
        )
    static_s, dynamic_s = limit_s - useful_s, ideal_s - limit_s
    won_s = synchronous_s - ideal_s
    return Split(useful_s, static_s, dynamic_s, total_s - ideal_s, total_s, won_s, int(by_rank.argmax()))


def curve(
    work_s: np.ndarray, bounds: Sequence[int] = BOUNDS, cost: Cost | None = None, meets: np.ndarray | None = None
) -> np.ndarray:
    """(len(bounds),) predicted seconds of the run at each bound.

    Args:
        work_s: (P, N) seconds of own work.
        bounds: k >= 0 of each run.
        cost: of the exchange. ``Cost(s)`` if every rank spends that time itself, in the call; ``Cost(alpha_s=s)`` if
            the blocks are on their way for so long while the ranks may go on. The truth lies between: the difference
            is what a bound hides of the exchange, at most, on top of what it wins on imbalance.
        meets: as for ``recommend``.

    Raises:
        ValueError: as for ``split``, or a bound is negative.
    """
    work_s = _checked(work_s)
    ranks, iterations = work_s.shape
    meets = np.zeros(iterations, bool) if meets is None else meets
    lags, most = [min(bound, iterations) for bound in bounds], max(1, ABREAST // ranks)
    stretches = -(-iterations // max(STRETCH, 256 * max(lags, default=0)))
    whole = iterations // stretches * stretches
    total_s = np.zeros(len(lags))
    rows = np.vstack([work_s, meets])
    # The stretches are lanes of one recurrence, what is left over is a short one.
    for part in (rows[:, :whole].reshape(ranks + 1, stretches, -1), rows[:, whole:].reshape(ranks + 1, 1, -1)):
        for first in range(0, max(1, len(lags)), most):
            few = lags[first : first + most]
            run = Recurrence(ranks, few * part.shape[1], cost=cost)
            for column in np.moveaxis(part, 2, 0):
                lanes = np.repeat(column, len(few), axis=1)
                run.step(lanes[:-1], meets=lanes[-1] > 0)
            total_s[first : first + most] += run.finish().reshape(-1, len(few)).sum(axis=0)
    return total_s


@dataclass(frozen=True)
class Recommendation:
    """The smallest bound that comes close to the limit, and what it wins and costs.

    Attributes:
        bound: the smallest one within ``TOLERANCE`` of ``limit_s``; if ``enough`` is False none of those tried is, and
            this is the smallest within it of the best of them: a greater one may win more.
        limit_s: the busiest rank's work (between any two ``meets``) and the ranks' own time in all calls: no bound wins
            more on imbalance, but a run that hides some of the exchange as well may be quicker.
        win: share of the time at bound 0 that the bound saves: dynamic imbalance, and what it hides of the messages'
            way (``cost.alpha_s``).
        low, high: 95 % interval of ``win``, from a block bootstrap over iterations.
        hideable_s: what the bound would save on top, at most, if the exchange needed none of the ranks' own time.
        latency_s: how much longer a batch takes from the start of its work to its arrival, in the mean, when
            batches follow each other without a pause.
        curve_s, travelling_s, ideal_s: (len(bounds),) predicted seconds at each bound: if the exchange takes its ranks
            time, if it travels, as ``curve`` has it, and if it takes none.
    """

    bound: int
    enough: bool
    limit_s: float
    win: float
    low: float
    high: float
    hideable_s: float
    latency_s: float
    curve_s: np.ndarray
    travelling_s: np.ndarray
    ideal_s: np.ndarray


def recommend(
    work_s: np.ndarray,
    *,
    bounds: Sequence[int] = BOUNDS,
    cost: Cost | None = None,
    meets: np.ndarray | None = None,
    replicas: int = 200,
) -> Recommendation:
    """Which bound would help this run?

    Args:
        work_s: (P, N) seconds of own work.
        bounds: those to choose from, in ascending order.
        cost: of the exchange: what each call costs each rank of its own time, and how long messages are on their way
            besides, which lag hides.
        meets: (N,) bool, the iterations in which another operation makes all ranks wait for each other: there nobody is
            ahead of anybody, whatever the bound. They are taken to wait at its beginning. Default: none.
        replicas: of the bootstrap.

    Raises:
        ValueError: as for ``split``, or there are no bounds, or one is negative.
    """
    work_s = _checked(work_s)
    iterations = work_s.shape[1]
    meets = np.zeros(iterations, bool) if meets is None else meets
    cost = cost or Cost()
    *predicted, synchronous_s = curve(work_s, [*bounds, 0], cost, meets).tolist()
    curve_s, travelling_s = np.array(predicted), curve(work_s, bounds, Cost(alpha_s=cost.call_s + cost.alpha_s), meets)
    apart = np.flatnonzero(np.r_[True, meets[1:]])
    limit_s = float(np.add.reduceat(work_s, apart, axis=1).max(axis=0).sum()) + iterations * cost.call_s
    enough = bool(curve_s.min() <= (1 + TOLERANCE) * limit_s)
    at = int((curve_s <= (1 + TOLERANCE) * (limit_s if enough else curve_s.min())).argmax())
    bound = int(bounds[at])
    win = 1 - predicted[at] / synchronous_s if synchronous_s else 0.0
    wins, drawn = _replicas(work_s, bound, cost, meets, replicas)
    # Where two blocks of iterations meet, a little less is won than in the run itself: the interval is put around that.
    # Replicas shorter than the run differ more, by the square root.
    low, high = win + (np.percentile(wins, [2.5, 97.5]) - np.median(wins)) * sqrt(drawn / iterations)
    return Recommendation(
        bound=bound,
        enough=enough,
        limit_s=limit_s,
        win=win,
        low=float(low),
        high=float(high),
        hideable_s=predicted[at] - float(travelling_s[at]),
        latency_s=_longer_s(work_s[:, :ENOUGH_ITERATIONS], bound, cost, meets) if bound else 0.0,
        curve_s=curve_s,
        travelling_s=travelling_s,
        ideal_s=curve(work_s, bounds, meets=meets),
    )


def _replicas(work_s: np.ndarray, bound: int, cost: Cost, meets: np.ndarray, replicas: int) -> tuple[np.ndarray, int]:
    """The win of resampled runs, and their length: blocks of iterations, as these depend on each other, long beside
    the bound."""
    iterations = work_s.shape[1]
    total = min(iterations, ENOUGH_ITERATIONS)
    length = max(1, min(total // 4, max(isqrt(iterations), 8 * (bound + 1))))
    every = np.random.default_rng(1).integers(iterations, size=(-(-total // length), replicas))
    wins = []
    for starts in np.array_split(every, -(-replicas * len(work_s) // ABREAST), axis=1):
        run = Recurrence(len(work_s), [bound] * starts.shape[1], cost=cost)
        synchronous_s = np.full(starts.shape[1], total * (cost.call_s + cost.alpha_s))
        for i in range(total):
            places = (starts[i // length] + i % length) % iterations
            drawn = work_s[:, places]
            run.step(drawn, meets=meets[places])
            synchronous_s += drawn.max(axis=0)
        wins.append((synchronous_s - run.finish()) / np.where(synchronous_s > 0, synchronous_s, 1.0))
    return np.concatenate(wins), total


def _longer_s(work_s: np.ndarray, bound: int, cost: Cost, meets: np.ndarray) -> float:
    """How much longer than at bound 0, in the mean, from the start of a batch's work to its arrival, on the rank where
    that takes longest."""
    found = times(work_s, bound, cost=cost, meets=meets)
    response_s = (found.delivered_s - found.entered_s + work_s).max(axis=0)
    return float((response_s - work_s.max(axis=0)).mean()) - float(cost.call_s) - cost.alpha_s


def _checked(work_s: np.ndarray) -> np.ndarray:
    work_s = matrix(work_s)
    wrong = np.argwhere(~(np.isfinite(work_s) & (work_s >= 0)))
    if len(wrong):
        rank, i = wrong[0]
        raise ValueError(f"work_s holds times >= 0, got {work_s[rank, i]} of rank {rank} in iteration {i}")
    return work_s
