"""The protocol message by message, with a queue of events: an independent check of ``maxplus``, for small cases.

Nothing is shared with the recurrence but the shape of its answer. Ranks work, enter a call, publish a message to
everybody, wait until those of iteration ``i - k`` have come from everybody, and turn to what has arrived, just as the
exchange does it.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from blslib.theory.maxplus import Times

# What happens at one instant happens in the order of iterations, and within an iteration in this order: whoever turns
# to its arrivals finds everything there that comes at that instant.
_ENTER, _PUBLISH, _ARRIVE, _TURN = range(4)


@dataclass
class _Rank:
    received: list[int]  # messages that have come, by source
    call: int = -1  # the one it is in, or was in last; N is the drain
    waits_for: int | None = None  # iterations that must be complete before the call returns
    delivered: int = 0
    idle: bool = False
    plan: int = 0  # a turn planned under an earlier number is void

    @property
    def arrived(self) -> int:
        return min(self.received)


class _Simulation:
    def __init__(
        self,
        work_s: np.ndarray,
        bound: int,
        call_s: np.ndarray,
        travel_s: np.ndarray,
        release_s: np.ndarray,
        arrival_s: np.ndarray,
        polls: bool,
    ) -> None:
        self.work_s, self.call_s, self.travel_s = work_s, call_s, travel_s
        self.release_s, self.arrival_s, self.bound, self.polls = release_s, arrival_s, bound, polls
        self.size, self.iterations = work_s.shape
        self.ranks = [_Rank([0] * self.size) for _ in range(self.size)]
        self.entered_s, self.returned_s, self.delivered_s = np.full((3, *work_s.shape), np.nan)
        self.ended_s = 0.0
        self.queue: list[tuple[float, int, int, int, int]] = []

    def run(self) -> Times:
        happen = {_ENTER: self._enter, _PUBLISH: self._publish, _ARRIVE: self._arrive, _TURN: self._turn}
        for r in range(self.size):
            self._begin(0.0, r)
        while self.queue:
            now, iteration, kind, r, detail = heapq.heappop(self.queue)
            happen[kind](now, iteration, r, detail)
        return Times(self.entered_s, self.returned_s, self.delivered_s, self.ended_s)

    def _plan(self, at: float, iteration: int, kind: int, r: int, detail: int = 0) -> None:
        heapq.heappush(self.queue, (at, iteration, kind, r, detail))

    def _begin(self, now: float, r: int) -> None:
        i = self.ranks[r].call + 1
        at = now if i == self.iterations else max(now, self.release_s[i]) + self.work_s[r, i]
        self._plan(at, i, _ENTER, r)

    def _enter(self, now: float, i: int, r: int, _: int) -> None:
        self.ranks[r].call = i
        if i == self.iterations:
            self.ranks[r].waits_for = i
            self._look(now, r)
        else:
            self.entered_s[r, i] = now
            self._plan(now + self.call_s[r], i, _PUBLISH, r)

    def _publish(self, now: float, i: int, s: int, _: int) -> None:
        for r in range(self.size):
            self._plan(now + self.travel_s[s, r], i, _ARRIVE, r, s)
        self.ranks[s].waits_for = i + 1 - self.bound
        self._look(now, s)

    def _arrive(self, now: float, i: int, r: int, s: int) -> None:
        self.ranks[r].received[s] += 1
        self._look(now, r)

    def _look(self, now: float, r: int) -> None:
        rank = self.ranks[r]
        if rank.waits_for is not None and rank.arrived >= rank.waits_for:
            rank.waits_for = None
            if rank.call < self.iterations:
                self.returned_s[r, rank.call] = now
            self._plan(now, rank.call, _TURN, r, rank.plan)
        elif rank.idle and rank.delivered < rank.arrived:
            rank.plan += 1
            self._plan(now, rank.call, _TURN, r, rank.plan)

    def _turn(self, now: float, i: int, r: int, plan: int) -> None:
        rank = self.ranks[r]
        if plan != rank.plan:
            return
        rank.idle = False
        if self.polls:
            following = i + 1
            if rank.delivered < rank.arrived:
                self._plan(self._deliver(now, rank, r), i, _TURN, r, plan)
            elif following < self.iterations and now >= self.release_s[following]:
                self._begin(now, r)
            elif rank.delivered < self.iterations:
                rank.idle = True
                if following < self.iterations:
                    self._plan(self.release_s[following], i, _TURN, r, plan)
            self.ended_s = max(self.ended_s, now)
            return
        for _ in range(rank.arrived - rank.delivered):
            now = self._deliver(now, rank, r)
        if i < self.iterations:
            self._begin(now, r)
        self.ended_s = max(self.ended_s, now)

    def _deliver(self, now: float, rank: _Rank, r: int) -> float:
        j, rank.delivered = rank.delivered, rank.delivered + 1
        self.delivered_s[r, j] = now
        return now + float(self.arrival_s[r, j])


def simulate(
    work_s: np.ndarray,
    bound: int,
    *,
    call_s: np.ndarray | float = 0.0,
    travel_s: np.ndarray | float = 0.0,
    release_s: np.ndarray | float = 0.0,
    arrival_s: np.ndarray | float = 0.0,
    polls: bool = False,
) -> Times:
    """One run, event by event.

    Args:
        work_s: (P, N) seconds of rank r's own work before its call i.
        bound: k >= 0, iterations that the slowest rank may lag.
        call_s: () or (P,) seconds that a rank spends in each call before its messages leave.
        travel_s: () or (P, P) seconds that a message from s to r is on its way.
        release_s: () or (N,) seconds before which no rank starts on that iteration.
        arrival_s: () or (P, N) seconds of work on each arrival.
        polls: an idle rank turns to what comes, rather than to what is there after a call.

    Cost: P messages for each rank and iteration, a few microseconds each.
    """
    ranks, iterations = work_s.shape
    return _Simulation(
        work_s,
        bound,
        np.broadcast_to(call_s, ranks),
        np.broadcast_to(travel_s, (ranks, ranks)),
        np.broadcast_to(release_s, iterations),
        np.broadcast_to(arrival_s, work_s.shape),
        polls,
    ).run()
