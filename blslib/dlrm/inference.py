"""The inference loop, over any exchange.

In one step a rank looks its tables up for the whole batch, into the memory from which the others will read the sums,
posts that, does what needs no other rank (bottom MLP, replicated tables) while blocks travel, and scores every batch
that has arrived by then: with a bound of k that may be one of k iterations ago. Nothing else is sent, so nothing but
the exchange makes ranks wait for each other. Each batch is scored by itself and from the same bytes, added in the same
order, so its scores are the same to the bit whatever the bound and whenever it arrives.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from blslib.collective.exchange import Arrival, Exchange
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import send_counts
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


class Inference:
    """Scores batches one step at a time. Every rank takes the same steps with the same batches.

    Args:
        model: this rank's part.
        exchange: bounded-lag or any other, with nothing outstanding; it stays the caller's to close. In a
            ``collective.clock.Clock`` it notes when it was called: what passes between calls is own work.
        before_post: called with the iteration after the lookup of each step. What it takes counts as own work: sleep
            here to delay a rank.

    Raises:
        ValueError: if model and exchange disagree about rank or P.
    """

    def __init__(self, model: DLRM, exchange: Exchange, *, before_post: Callable[[int], None] | None = None) -> None:
        if (model.rank, model.placement.ranks) != (exchange.rank, exchange.size):
            raise ValueError(
                f"model is rank {model.rank} of {model.placement.ranks}, "
                f"exchange is rank {exchange.rank} of {exchange.size}: build both for the same communicator"
            )
        self.model, self.exchange = model, exchange
        self._before_post = before_post
        self._pending: deque[tuple[float, torch.Tensor]] = deque()  # start and home of what still travels
        self._posted = 0
        self._size, self._counts = -1, list[int]()  # of the last batch, and the items of its blocks

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[Scored]:
        """Take in one batch; return those whose scores are ready, in order."""
        start_s = perf_counter()
        if batch.size != self._size:
            self._size = batch.size
            self._counts = send_counts(self.model.placement, self.model.rank, batch.size).tolist()
        blocks = self.model.tables.lookup(batch, self.exchange.compose(self._counts))
        if self._before_post is not None:
            self._before_post(self._posted)
        arrivals = self.exchange.post(blocks)
        self._posted += 1
        self._pending.append((start_s, self.model.home(batch)))
        return self._score(arrivals) + self.poll()  # something may have come in meanwhile

    @torch.inference_mode()
    def poll(self) -> list[Scored]:
        """Score what has arrived meanwhile, without waiting: for a server that has no next batch yet."""
        return self._score(self.exchange.collect()) if self._pending else []

    @torch.inference_mode()
    def finish(self) -> list[Scored]:
        """Wait for all that still travels and score it."""
        ready = self._score(self.exchange.drain())
        if self._pending:
            raise RuntimeError(f"exchange drained, yet {len(self._pending)} batches have not arrived")
        return ready

    def run(self, batches: Iterable[Batch]) -> Iterator[Scored]:
        """``step`` for each of the batches, then ``finish``: every batch once, in order."""
        for batch in batches:
            yield from self.step(batch)
        yield from self.finish()

    def _score(self, arrivals: list[Arrival]) -> list[Scored]:
        return [self._score_one(arrival) for arrival in arrivals]

    def _score_one(self, arrival: Arrival) -> Scored:
        if not self._pending:
            raise RuntimeError(
                f"iteration {arrival.iteration} arrived, which this loop did not post: drain the exchange beforehand"
            )
        iteration = self._posted - len(self._pending)
        start_s, home = self._pending.popleft()
        scores = self.model.score(home, arrival.blocks)
        return Scored(iteration, scores, perf_counter() - start_s)
