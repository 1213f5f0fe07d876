"""The one clock: when each call of an exchange was entered and when it returned, whatever the exchange."""

from collections.abc import Sequence
from itertools import accumulate
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np

from blslib.collective.exchange import Arrival, Block, Exchange


class Call(NamedTuple):
    """One call that returned, on the clock of ``time.perf_counter``, which the processes of a host share.

    Attributes:
        kind: of the three that wait.
        iteration: posts entered before it through the same ``Clock``; of a post, its own iteration counted from there.
        entered_s, returned_s: seconds.
    """

    kind: Literal["post", "collect", "drain"]
    iteration: int
    entered_s: float
    returned_s: float


class Clock(Exchange):
    """An exchange, bounded-lag or baseline, that notes its calls; each note costs about 0.2 us.

    A call that raises is not noted. Calls come from one thread at a time, as the exchanges ask for. Leaving the
    ``with`` block leaves that of the exchange; what was noted stays.

    Attributes:
        exchange: what is wrapped.
        rank, size, bound: its own.
    """

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange
        self.rank, self.size, self.bound = exchange.rank, exchange.size, exchange.bound
        self.in_place = getattr(exchange, "in_place", False)
        self._notes: list[Any] = []  # kind, entered, returned, kind, ...: flat, so that the collector has less to visit
        self._note, self._post = self._notes.extend, exchange.post

    def compose(self, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
        return self.exchange.compose(counts)

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        entered_s = perf_counter()
        arrivals = self._post(blocks)
        self._note(("post", entered_s, perf_counter()))
        return arrivals

    def collect(self, through: int | None = None) -> list[Arrival]:
        entered_s = perf_counter()
        arrivals = self.exchange.collect(through)
        self._note(("collect", entered_s, perf_counter()))
        return arrivals

    def drain(self) -> list[Arrival]:
        entered_s = perf_counter()
        arrivals = self.exchange.drain()
        self._note(("drain", entered_s, perf_counter()))
        return arrivals

    @property
    def calls(self) -> list[Call]:
        """All calls so far, in order; built anew each time."""
        kinds, *times_s = (self._notes[part::3] for part in range(3))
        posts = accumulate((kind == "post" for kind in kinds), initial=0)
        return list(map(Call, kinds, posts, *times_s))

    def close(self) -> None:
        self.exchange.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.exchange.__exit__(kind, error, trace)
