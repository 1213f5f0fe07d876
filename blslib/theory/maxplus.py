"""When does each iteration end? The max-plus recurrence of bounded lag.

Rank r enters call i at ``e[r,i]`` and returns from it at ``R[r,i]``; its own work before the call takes ``c[r,i]``
seconds::

    e[r,i] = R[r,i-1] + c[r,i]
    R[r,i] = max(e[r,i], max_s e[s,i-k]) + exchange

Two operations only, max and plus: hence the name. The recurrence is exact in the model and costs P operations an
iteration. With k = 0 every rank waits for the slowest in every iteration; with k >= N nobody waits before the end
(free-running).

Three things may be added. Messages may travel (``Cost``): what a call costs the rank itself is never hidden, what a
message takes on its way is hidden by lag. Batches may come at times of their own, so that a rank starts no earlier
than ``release_s``. And the work on an arrival may be charged to the call that delivers it, which is what the DLRM loop
does with its scores; what has arrived by then depends on the times themselves, so that this part is no longer max-plus.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Seconds = np.ndarray | float


@dataclass(frozen=True)
class Cost:
    """What the exchange itself costs.

    Attributes:
        call_s: seconds of a rank's own time in each call; its blocks leave at the end of them.
        alpha_s: seconds that a message then travels, the one to oneself too.
    """

    call_s: float = 0.0
    alpha_s: float = 0.0


class Recurrence:
    """Runs of the same work at several bounds, advanced iteration by iteration, in O(P + k) memory a bound.

    Every array of times has shape (P, L), L being the number of lanes, one per bound. Lanes may also get work of their
    own, (P, L) instead of (P,), such as the replicas of a bootstrap. A bound of at least N is free-running.

    Args:
        ranks: P.
        bounds: k >= 0 of each lane.
        cost: what the exchange costs.
        delivered_s: charge the work on arrivals, too: a call hands out what is complete when it returns, or after the
            work that follows it (``after_s``). Filled, (P, N, L) for N steps, with when each iteration's arrival had
            its turn.
        polls: with ``delivered_s``, an idle rank hands out (``collect``) what comes until its next batch is there.

    Attributes:
        iteration: steps done.
        entered_s, returned_s: (P, L) float64, of the last step.

    Raises:
        ValueError: there are no bounds, or one is negative.
    """

    def __init__(
        self,
        ranks: int,
        bounds: Sequence[int],
        *,
        cost: Cost | None = None,
        delivered_s: np.ndarray | None = None,
        polls: bool = False,
    ) -> None:
        if not len(bounds) or min(bounds) < 0:
            raise ValueError(f"bound is a whole number of iterations >= 0, got {min(bounds, default='none')}")
        self.iteration = 0
        self.entered_s = self.returned_s = np.zeros((ranks, len(bounds)))
        self._bounds, self._lanes = np.asarray(bounds), np.arange(len(bounds))
        self._cost, self._delivered_s, self._polls = cost or Cost(), delivered_s, polls
        self._slots = max(bounds) + 1
        # When an iteration is complete, which is one instant for all ranks, and what its arrival makes to do.
        self._complete_s = np.full((self._slots, len(bounds)), -np.inf)
        self._arrival_s: list[Seconds] = [0.0] * self._slots
        self._after_s: Seconds = 0.0
        self._next = np.zeros((ranks, len(bounds)), np.int64)

    def step(
        self,
        work_s: np.ndarray,
        *,
        release_s: float = -np.inf,
        arrival_s: Seconds = 0.0,
        after_s: Seconds = 0.0,
        meets: np.ndarray | None = None,
    ) -> None:
        """One iteration on all ranks.

        Args:
            work_s: (P,) or (P, L) seconds of own work before the call.
            release_s: no rank starts on it earlier.
            arrival_s: () or (P,) seconds of own work on this iteration's arrival, wherever it is handed out.
            after_s: () or (P,) seconds of own work that follow the call before arrivals are looked at.
            meets: (L,) bool, the lanes in which all ranks wait for each other before that work.
        """
        slot = self.iteration % self._slots
        free_s = self._hand_out(release_s)
        if meets is not None and meets.any():
            free_s = np.where(meets, free_s.max(axis=0), free_s)
        if release_s > -np.inf:
            free_s = np.maximum(free_s, release_s)
        self.entered_s = free_s + (work_s[:, None] if work_s.ndim == 1 else work_s)
        published_s = self.entered_s + self._cost.call_s
        self._complete_s[slot] = published_s.max(axis=0) + self._cost.alpha_s
        self._arrival_s[slot], self._after_s = np.reshape(arrival_s, (-1, 1)), np.reshape(after_s, (-1, 1))
        awaited_s = self._complete_s[(self.iteration - self._bounds) % self._slots, self._lanes]
        self.returned_s = np.maximum(published_s, awaited_s)
        self.iteration += 1

    def finish(self, before_s: Seconds = 0.0, after_s: Seconds = 0.0) -> np.ndarray:
        """Drain: (L,) seconds from the start until the last rank is done with everything.

        Args:
            before_s: () or (P,) seconds of own work between the last call and the drain.
            after_s: () or (P,) seconds of own work after the drain, besides that on arrivals.
        """
        free_s = self._hand_out(np.inf)
        self._after_s, last_s = 0.0, self._complete_s[(self.iteration - 1) % self._slots]
        self.returned_s = np.maximum(free_s + np.reshape(before_s, (-1, 1)), last_s)
        return (self._hand_out(-np.inf) + np.reshape(after_s, (-1, 1))).max(axis=0)

    def _hand_out(self, release_s: float) -> np.ndarray:
        """(P, L) when every rank is done with what it was handed after its last call, in the order of iterations."""
        free_s = until_s = self.returned_s + self._after_s
        if self._delivered_s is None:
            return free_s
        for j in range(int(self._next.min()), self.iteration):
            complete_s = self._complete_s[j % self._slots]
            if self._polls:
                until_s = np.maximum(free_s, release_s)
            turned = (self._next == j) & (complete_s <= until_s)
            turn_s = np.maximum(free_s, complete_s)
            free_s = np.where(turned, turn_s + self._arrival_s[j % self._slots], free_s)
            self._next += turned
            self._delivered_s[:, j][turned] = turn_s[turned]
        return free_s


def makespans(columns: Iterable[np.ndarray], bounds: Sequence[int], cost: Cost | None = None) -> np.ndarray:
    """(L,) seconds of a whole run at each of the bounds, in one pass over a stream of (P,) columns of own work.

    Args:
        columns: at least one array (P,) of seconds, or (P, L) if every bound has work of its own.
        bounds: k >= 0 of each run.
        cost: what the exchange costs.

    Raises:
        ValueError: there are no columns, no bounds, or a bound is negative.

    Cost: O(P N) time and O(P + k) memory for each bound.
    """
    run: Recurrence | None = None
    for work_s in columns:
        run = run or Recurrence(len(work_s), bounds, cost=cost)
        run.step(work_s)
    if run is None:
        raise ValueError("a run has at least one iteration, got no columns of work")
    return run.finish()


def makespan(work_s: np.ndarray, bound: int, *, cost: Cost | None = None) -> float:
    """Seconds from the start until the last rank is done: N calls, then a drain that waits for everybody's last.

    Args:
        work_s: (P, N) float, seconds of rank r's own work before its call i.
        bound: k >= 0, iterations that the slowest rank may lag.
        cost: what the exchange costs.

    Raises:
        ValueError: ``work_s`` is no P x N matrix, or the bound is negative.

    Cost: O(P N) time, O(P + k) memory besides the argument.
    """
    work_s = matrix(work_s)
    return float(makespans(work_s.T, [min(bound, work_s.shape[1])], cost)[0])


class Times(NamedTuple):
    """When everything happens in one run, seconds from the start.

    Attributes:
        entered_s, returned_s: (P, N), of every call.
        delivered_s: (P, N) when rank r turned to iteration i's arrival, which it was handed then or, with earlier
            arrivals to work on, before.
        ended_s: when the last rank is done.
    """

    entered_s: np.ndarray
    returned_s: np.ndarray
    delivered_s: np.ndarray
    ended_s: float


def times(
    work_s: np.ndarray,
    bound: int,
    *,
    cost: Cost | None = None,
    release_s: np.ndarray | None = None,
    arrival_s: Seconds = 0.0,
    after_s: Seconds = 0.0,
    polls: bool = False,
    meets: np.ndarray | None = None,
) -> Times:
    """The times of all calls and arrivals of one run, for runs whose (P, N) matrices fit into memory.

    Args:
        work_s: (P, N) float, seconds of rank r's own work before its call i.
        bound: k >= 0, iterations that the slowest rank may lag.
        cost: what the exchange costs.
        release_s: (N,) seconds at which the batches come; no rank starts on one earlier. Default: all are there.
        arrival_s: () or (P, N) seconds of work on each arrival: its end is ``delivered_s + arrival_s``.
        after_s: () or (P, N) seconds of work after each call, before what has arrived is handed out.
        polls: an idle rank hands out what comes (``collect``) rather than what is there after a call.
        meets: (N,) bool, the iterations before whose work all ranks wait for each other. Default: none.

    Raises:
        ValueError: ``work_s`` is no P x N matrix, ``release_s`` has another N, or the bound is negative.
    """
    work_s = matrix(work_s)
    ranks, iterations = work_s.shape
    release_s = np.full(iterations, -np.inf) if release_s is None else np.asarray(release_s, np.float64)
    if release_s.shape != (iterations,):
        raise ValueError(f"release_s has one time for each of the {iterations} iterations, got shape {release_s.shape}")
    arrival_s, after_s = np.broadcast_to(arrival_s, work_s.shape), np.broadcast_to(after_s, work_s.shape)
    meets = np.zeros(iterations, bool) if meets is None else meets
    entered_s, returned_s, delivered_s = np.full((3, ranks, iterations), np.nan)
    run = Recurrence(ranks, [min(bound, iterations)], cost=cost, delivered_s=delivered_s[..., None], polls=polls)
    for i in range(iterations):
        what_follows = {"arrival_s": arrival_s[:, i], "after_s": after_s[:, i]}
        run.step(work_s[:, i], release_s=release_s[i], meets=meets[i : i + 1], **what_follows)
        entered_s[:, i], returned_s[:, i] = run.entered_s[:, 0], run.returned_s[:, 0]
    return Times(entered_s, returned_s, delivered_s, float(run.finish()[0]))


def ahead(entered_s: np.ndarray, returned_s: np.ndarray) -> np.ndarray:
    """(P, N) lag of each rank as each of its calls returns: its own calls, less those that the slowest has entered.

    Args:
        entered_s, returned_s: (P, N) seconds of every call.
    """
    slowest = np.min([np.searchsorted(rank_s, returned_s, side="right") for rank_s in entered_s], axis=0)
    return np.arange(1, entered_s.shape[1] + 1) - slowest


def limit(work_s: np.ndarray) -> float:
    """Seconds that no bound can beat: the work of the busiest rank, ``max_r sum_i c[r,i]``."""
    return float(np.asarray(work_s, dtype=np.float64).sum(axis=1).max())


def matrix(work_s: np.ndarray) -> np.ndarray:
    """A (P, N) float64 matrix of work, checked.

    Raises:
        ValueError: it is none, or is empty.
    """
    work_s = np.asarray(work_s, dtype=np.float64)
    if work_s.ndim != 2 or 0 in work_s.shape:
        raise ValueError(f"work_s is a P x N matrix with P, N >= 1, got shape {work_s.shape}")
    return work_s
