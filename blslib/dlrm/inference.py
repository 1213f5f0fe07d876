"""The inference loop, over any exchange.

In one step a rank looks its tables up for the whole batch, posts the pooled sums, runs the bottom MLP while they travel
and scores every batch that has arrived by then: with a bound of k that may be one of k iterations ago. Nothing else is
sent, so nothing but the exchange makes ranks wait for each other. Each batch is scored by itself and from the same
bytes, so its scores are the same to the bit whatever the bound and whenever it arrives.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from blslib.collective.exchange import Arrival, Exchange
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import own_rows
from blslib.workloads.batch import Batch


class Scored(NamedTuple):
    """One batch, scored.

    Attributes:
        iteration: counted from 0 in this loop.
        scores: (rows,) float32, of the samples of this rank: ``sharding.own_rows``.
        response_s: from the start of its lookup to its scores.
    """

    iteration: int
    scores: np.ndarray
    response_s: float


@dataclass
class Times:
    """Where the seconds of one rank went.

    All but ``response_s`` together are the time from the start of the first step to the end of ``finish``.

    Attributes:
        work_s: per iteration, from the return of the post before it until its own: scoring what had arrived, what the
            caller does between steps, lookup, delay; not what ``collect`` took. The ``c`` of the max-plus recurrence.
        exchange_s: per iteration, inside calls of the exchange.
        response_s: per batch, as in ``Scored``.
        tail_s: work after the last post.
        drain_s: inside the exchange in ``finish``.
    """

    work_s: list[float] = field(default_factory=list)
    exchange_s: list[float] = field(default_factory=list)
    response_s: list[float] = field(default_factory=list)
    tail_s: float = 0.0
    drain_s: float = 0.0


class Inference:
    """Scores batches one step at a time. Every rank takes the same steps with the same batches.

    Args:
        model: this rank's part.
        exchange: bounded-lag or any other, with nothing outstanding; it stays the caller's to close.
        before_post: called with the iteration after the lookup of each step. What it takes counts as own work: sleep
            here to delay a rank.

    Attributes:
        times: grows with every step.

    Raises:
        ValueError: if model and exchange disagree about rank or P.
    """

    def __init__(self, model: DLRM, exchange: Exchange, *, before_post: Callable[[int], None] | None = None) -> None:
        if (model.rank, model.placement.ranks) != (exchange.rank, exchange.size):
            raise ValueError(
                f"model is rank {model.rank} of {model.placement.ranks}, "
                f"exchange is rank {exchange.rank} of {exchange.size}: build both for the same communicator"
            )
        self.model, self.exchange, self.times = model, exchange, Times()
        self._before_post = before_post
        self._pending: deque[tuple[float, torch.Tensor]] = deque()  # start and dense vectors of what still travels
        self._left: float | None = None  # when the last call of the exchange returned
        self._work = self._inside = 0.0  # since the last entry in times

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[Scored]:
        """Take in one batch; return those whose scores are ready, in order."""
        start = perf_counter()
        if self._left is None:
            self._left = start
        blocks = self.model.tables.lookup(batch)
        if self._before_post is not None:
            self._before_post(len(self.times.work_s))
        arrivals = self._call(self.exchange.post, blocks)
        self.times.work_s.append(self._work)
        self._work = 0.0
        mine = own_rows(batch.size, self.model.rank, self.model.placement.ranks)
        self._pending.append((start, self.model.bottom(batch.dense[mine])))
        ready = [self._score(arrival) for arrival in arrivals]
        if self._pending:  # something may have come in meanwhile
            ready += [self._score(arrival) for arrival in self._call(self.exchange.collect)]
        self.times.exchange_s.append(self._inside)
        self._inside = 0.0
        return ready

    @torch.inference_mode()
    def poll(self) -> list[Scored]:
        """Score what has arrived meanwhile, without waiting: for a server that has no next batch yet."""
        return [self._score(arrival) for arrival in self._call(self.exchange.collect)] if self._pending else []

    @torch.inference_mode()
    def finish(self) -> list[Scored]:
        """Wait for all that still travels and score it."""
        if self._left is None:
            return []
        ready = [self._score(arrival) for arrival in self._call(self.exchange.drain)]
        if self._pending:
            raise RuntimeError(f"exchange drained, yet {len(self._pending)} batches have not arrived")
        self.times.tail_s += self._work + perf_counter() - self._left
        self.times.drain_s += self._inside
        self._left, self._work, self._inside = None, 0.0, 0.0
        return ready

    def run(self, batches: Iterable[Batch]) -> Iterator[Scored]:
        """``step`` for each of the batches, then ``finish``: every batch once, in order."""
        for batch in batches:
            yield from self.step(batch)
        yield from self.finish()

    def _call(self, function: Callable[..., list[Arrival]], *arguments: object) -> list[Arrival]:
        entered = perf_counter()
        assert self._left is not None
        self._work += entered - self._left
        arrivals = function(*arguments)
        self._left = perf_counter()
        self._inside += self._left - entered
        return arrivals

    def _score(self, arrival: Arrival) -> Scored:
        if not self._pending:
            raise RuntimeError(
                f"iteration {arrival.iteration} arrived, which this loop did not post: drain the exchange beforehand"
            )
        start, dense = self._pending.popleft()
        scores = self.model.score(dense, arrival.blocks)
        response_s = perf_counter() - start
        self.times.response_s.append(response_s)
        return Scored(len(self.times.response_s) - 1, scores, response_s)
