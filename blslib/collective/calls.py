"""How a call of an exchange is made: it waits with a deadline, hears of failures, and notes whom it has waited for."""

import math
import time
from collections.abc import Callable
from typing import Any

from blslib.collective.errors import BlockError, ExchangeError, LateError, PeerError, in_words
from blslib.collective.exchange import Arrival
from blslib.collective.mpi import failures
from blslib.collective.notices import CLOSED, FAILED, LATE, Notice
from blslib.collective.protocol import BoundedLag, Steps
from blslib.collective.ring import Ring, UnexpectedSize
from blslib.collective.statistics import Statistics
from blslib.collective.turns import Turns
from blslib.collective.waiting import Policy

IS_CLOSED = "exchange is closed"
_LOOKS_PER_CLOCK = 16
_PULSE_S = 0.1  # how often a rank that waits asks whether those it waits for are alive


class Calls(Turns):
    """Calls of a rank's core over its memory; what ends one in its midst is the end of the exchange, and is told.

    Attributes:
        rank, timeout_s: of the exchange.
    """

    rank: int
    timeout_s: float
    _core: BoundedLag
    _memory: Ring

    def _begin(self, waiting: Policy, size: int, bound: int) -> None:
        self._waiting = waiting
        self._felt_s, self._end = 0.0, math.inf  # the end: of the rank that is known to have closed after the fewest
        self._slowest, self._waited_s, self._waited_for_s, self._lags = self.rank, 0.0, [0.0] * size, [0] * (bound + 1)

    def _run(self, call: Callable[[Any], Steps], argument: Any) -> list[Arrival]:
        """Make a call of the core, and wait where it does.

        Whatever ends it in its midst, such as Ctrl-C, is the end of the exchange.
        """
        attempt, started_s = 0, 0.0
        if self._over is not None:
            raise ExchangeError(self._over)
        try:
            if self._memory.alarmed():
                self._hear(0)
            for need in call(argument):
                if not attempt:
                    started_s = self._seen_s = time.perf_counter()
                attempt += 1
                self._pause(attempt, need, started_s)
            if attempt:
                self._note(attempt >= _LOOKS_PER_CLOCK)
            return self._core.deliver()
        except UnexpectedSize as found:
            source, sent, expected = found.args
            text = f"rank {source} -> rank {self.rank} sent {sent} bytes in iteration {self._core.delivered}, "
            raise self._fail(BlockError(f"{text}rank {self.rank} expected {expected}")) from None
        except failures() as failure:
            behind = [rank for rank, n in enumerate(self._memory.counters.tolist()) if n < self._core.posted]
            said = str(failure).strip().splitlines()[-1]
            text = f"MPI cannot go on, a rank among {behind} or the way to it may be gone; it says: {said}"
            raise self._fail(PeerError(text)) from failure
        except BaseException as error:
            self._fail(error)
            raise

    def _pause(self, attempt: int, need: int, started_s: float) -> None:
        self._waiting(attempt)
        if self._over is not None:  # another thread has left the ``with`` block
            raise ExchangeError(self._over)
        if need > self._end or self._memory.alarmed():
            self._hear(need)
        if attempt % _LOOKS_PER_CLOCK == 0:
            self._look(need)
            self._watch(started_s, lambda: self._behind(need), lambda: self._late(need))

    def _look(self, need: int) -> None:
        """Who is the furthest behind now was so since the last look; this rank itself where its own sends are."""
        counts = self._memory.counts()
        self._slowest = counts.index(min(counts)) if min(counts) < need else self.rank
        self._note(True)

    def _note(self, known: bool) -> None:
        """That this rank has waited since the last note, and, if it is known, for whom."""
        now_s = time.perf_counter()
        self._waited_s += now_s - self._seen_s
        self._waited_for_s[self._slowest] += known * (now_s - self._seen_s)
        self._seen_s = now_s

    def statistics(self) -> Statistics:
        """What it has moved and whom it has waited for so far, on this rank; also when it has failed or is closed.

        Cost: that of a ``collect``. What it asks of other calls is 0.1 us, and 0.2 us of those that wait.
        """
        if self._over != IS_CLOSED:
            moved = self._core.posted, self._memory.sent_bytes, self._memory.large_blocks
            self._statistics = Statistics(*moved, self._waited_s, tuple(self._waited_for_s), tuple(self._lags))
        return self._statistics

    def _watch(self, started_s: float, awaited: Callable[[], list[int]], late: Callable[[], str]) -> None:
        """Raise if a wait has passed its deadline, or if a rank that it waits for is on this host and not alive."""
        now_s = time.perf_counter()
        if now_s - started_s > self.timeout_s:
            text = f"rank {self.rank} timed out: {late()}"
            self._hear(0)  # after that look: whoever has gone from closed to late meanwhile is heard, not named
            raise LateError(text)
        if now_s - self._felt_s > _PULSE_S:
            self._felt_s = now_s
            for rank in awaited():
                if rank != self.rank and rank in self._memory.segments and self._memory.segments[rank].ended():
                    self._hear(0)  # it may have said why
                    raise PeerError(
                        f"rank {rank} is gone: its process ended without a word after posting "
                        f"{self._memory.counts()[rank]} iterations; its launcher or the system's log may say why"
                    )

    def _behind(self, need: int) -> list[int]:
        return [rank for rank, n in enumerate(self._memory.counts()) if n < need]

    def _late(self, need: int) -> str:
        posted, counts = self._core.posted, self._memory.counts()
        behind = [f"rank {r} (posted {counts[r]}, {posted - counts[r]} behind)" for r in self._behind(need)]
        waited = f"posted {posted} and waited {self.timeout_s:g} s for {', '.join(behind) or 'its own sends'}"
        return f"{waited}; so far {self.statistics()}"

    def _hear(self, need: int) -> None:
        """Read the others' notices; raise if one of them means that the first ``need`` iterations never come."""
        for rank, notice in self._memory.notices().items():
            if rank == self.rank:
                continue
            if notice.state in (FAILED, LATE):
                kind = LateError if notice.state == LATE else PeerError
                raise self._fail(kind(notice.text), notice)  # passed on in its own words
            if notice.state == CLOSED:
                self._end = min(self._end, notice.posted)
                if notice.posted < need:
                    raise PeerError(
                        f"rank {rank} closed after {notice.posted} iterations, rank {self.rank} waits for iteration "
                        f"{need - 1}: every rank must post equally often"
                    )

    def _fail(self, error: BaseException, notice: Notice | None = None) -> BaseException:
        """Tell the others of a failure and remember it, once. Returns it, to be raised."""
        if self._over is None:
            said = in_words(error)
            if notice is None:
                state, posted = LATE if isinstance(error, LateError) else FAILED, self._core.posted
                words = error if isinstance(error, ExchangeError) else said
                notice = Notice(state, posted, f"rank {self.rank} failed after posting {posted} iterations: {words}")
            self._memory.tell(notice)
            self._over = f"exchange has failed, only close is legal now: {said}"
        return error
