"""The protocol message by message, with a queue of events: an independent check of ``maxplus``, for small cases.

Nothing is shared with the recurrence but the shape of its answer. Ranks work, enter a call, publish a message to
everybody, wait until those of iteration ``i - k`` have come from everybody, and turn to what has arrived, just as the
exchange does it.
"""

import heapq
from collections.abc import Generator
from contextlib import suppress

import numpy as np

from blslib.theory.maxplus import Times

# What happens at one instant happens in the order of iterations, and within an iteration in this order: whoever turns
# to its arrivals finds everything there that comes at that instant.
_PUBLISH, _ARRIVE, _TURN = range(3)
_NEVER = np.inf

Wait = tuple[float, int, int, float]
"""Until this instant, in this place of its order (iteration, kind), or until so many iterations are complete."""


def simulate(
    work_s: np.ndarray,
    bound: int,
    *,
    call_s: float = 0.0,
    travel_s: float = 0.0,
    release_s: np.ndarray | float = 0.0,
    arrival_s: np.ndarray | float = 0.0,
    after_s: np.ndarray | float = 0.0,
    polls: bool = False,
) -> Times:
    """One run, event by event.

    Args:
        work_s: (P, N) seconds of rank r's own work before its call i.
        bound: k >= 0, iterations that the slowest rank may lag.
        call_s: seconds that a rank spends in each call before its messages leave.
        travel_s: seconds that a message is on its way.
        release_s: () or (N,) seconds before which no rank starts on that iteration.
        arrival_s: () or (P, N) seconds of work on each arrival.
        after_s: () or (P, N) seconds of work that follow each call, before the rank turns to arrivals.
        polls: an idle rank turns to what comes, rather than to what is there after a call.

    Cost: P messages for each rank and iteration, a few microseconds each.
    """
    ranks, iterations = work_s.shape
    start_s = [*np.broadcast_to(release_s, iterations).tolist(), _NEVER]
    on_arrival_s, follows_s = (np.broadcast_to(each, work_s.shape).tolist() for each in (arrival_s, after_s))
    entered_s, returned_s, delivered_s = np.full((3, ranks, iterations), np.nan)
    ended_s = np.zeros(ranks)
    received = [[0] * ranks for _ in range(ranks)]  # messages at r from s
    queue: list[tuple[float, int, int, int, int]] = []  # instant, iteration, kind, rank, and source or number of a wait

    def life(r: int) -> Generator[Wait, float, None]:
        """What rank r does; it is told the instant at which each of its waits ends."""
        now, delivered = 0.0, 0
        for i in range(iterations + 1):
            if i == iterations:  # drain
                now = yield now, i, _PUBLISH, _NEVER
                now = yield _NEVER, i, _TURN, iterations
            else:
                entered_s[r, i] = now = max(now, start_s[i]) + float(work_s[r, i])
                now = yield now + call_s, i, _PUBLISH, _NEVER
                for destination in range(ranks):
                    heapq.heappush(queue, (now + travel_s, i, _ARRIVE, destination, r))
                returned_s[r, i] = now = yield _NEVER, i, _TURN, i + 1 - bound
                now = yield now + follows_s[r][i], i, _TURN, _NEVER
            there = min(received[r])
            while delivered < there or (polls and delivered < iterations and now < start_s[i + 1]):
                if delivered < there:
                    delivered_s[r, delivered] = now
                    until_s, needed = now + on_arrival_s[r][delivered], _NEVER
                    delivered += 1
                else:
                    until_s, needed = start_s[i + 1], delivered + 1
                if polls:
                    now = yield until_s, i, _TURN, needed
                    there = min(received[r])
                else:
                    now = until_s
        ended_s[r] = now

    def begin(r: int, wait: Wait) -> None:
        """Let rank r wait, and put the end of it into the queue where that is known."""
        until_s, i, kind, needed = waits[r] = wait
        numbers[r] += 1
        heapq.heappush(queue, (now if min(received[r]) >= needed else until_s, i, kind, r, numbers[r]))

    now, lives = 0.0, [life(r) for r in range(ranks)]
    waits, numbers = [(0.0, 0, _PUBLISH, _NEVER)] * ranks, [0] * ranks
    for r in range(ranks):
        begin(r, next(lives[r]))
    while queue:
        now, _, kind, r, detail = heapq.heappop(queue)
        if kind == _ARRIVE:
            received[r][detail] += 1
            _, i, _, needed = waits[r]
            if min(received[r]) >= needed:
                heapq.heappush(queue, (now, i, _TURN, r, numbers[r]))
        elif detail == numbers[r]:  # otherwise that wait is over
            with suppress(StopIteration):
                begin(r, lives[r].send(now))
    return Times(entered_s, returned_s, delivered_s, float(ended_s.max()))
