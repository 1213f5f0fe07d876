"""How ranks build an exchange together: every step has the deadline, and a rank that fails tells the others why.

MPI's collectives block in C, or, polled and then left, can never be taken back. So the ranks meet on a communicator of
the exchange's own, by small messages from each to each: in every round each says one word and hears all others'. A rank
that gives up sends its reason in place of its word. Nothing comes from it after that, so whoever has heard the last of
all others may free the communicator: at once where all give up together, else when the next exchange is built.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

from blslib.collective.errors import LateError, PeerError, in_words
from blslib.collective.layout import LINE_BYTES
from blslib.collective.mpi import MPI, failures
from blslib.collective.waiting import yield_then_sleep

_TAG = 4
_LINGER_S = 0.1
"""How long a rank that gives up waits for the others to have heard of it."""

_LOOKS = 100

ON_ALL = {kind.__name__: kind for kind in (ValueError, MemoryError, OSError, LateError, PeerError)}
"""Failures which all ranks raise as they are, in the same words."""

_WHAT = "building the exchange"

Fence = tuple[Callable[[], object], Callable[[], object]]
"""The processor's full fence, and what gives back whatever it needs."""


class Building:
    """One rank's part in building one exchange, on a duplicate of ``parent``.

    Attributes:
        rank, size: of both.
        words: what all ranks said first, by rank.
    """

    _abandoned: list["Building"] = []  # noqa: RUF012 (of the process: what could not be freed yet)

    words: list[Any]

    def __init__(self, parent: Any, timeout_s: float, deadline_s: float) -> None:
        self.rank, self.size, self._parent = parent.rank, parent.size, parent
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._duplicate: list[Any] = []  # the communicator, and the request that makes it
        self._others = [rank for rank in range(self.size) if rank != self.rank]
        self._round = 0
        self._words: dict[tuple[int, int], Any] = {}  # by round and rank
        self._reasons: dict[int, tuple[str, str]] = {}  # by rank that has given up: kind and text
        self._sends: list[MPI.Request] = []
        self._reason: tuple[str, str] | None = None  # to be told by this rank
        self._told = self._heard = False

    @property
    def comm(self) -> Any:
        """The duplicate, from ``start`` on."""
        return self._duplicate[0]

    @property
    def was_missed(self) -> bool:
        """Whether the others had given up before this rank came: they may be building the next one already."""
        return self._round == 0 and self._heard and self._reason is not None and self._reason[0] == "LateError"

    def start(self) -> None:
        """Make the communicator. Collective."""
        self._begin()
        try:
            self._wait(self._duplicate[1].Test, lambda: "a rank")
        except failures():
            self._duplicate[:] = [None, None]  # MPI has no more, and no word of this one holds from now on
            raise

    def _begin(self) -> None:
        # In one call of C, which Ctrl-C cannot part from its result: MPI will write to it.
        self._duplicate.extend(chain.from_iterable(map(type(self._parent).Idup, [self._parent])))

    def gather(self, word: Any) -> list[Any]:
        """Every rank's word in this round, by rank; a word is small: text, numbers, and what holds them. Collective.

        Raises:
            LateError: the deadline passed, here or on another rank; the text names who did not take part.
            ValueError, MemoryError, OSError: another rank gave up with such an error; same text.
            PeerError: another rank gave up otherwise.
        """
        self._words[self._round, self.rank] = word
        self._send((self._round, word))
        self._wait(self._is_round_over, lambda: ", ".join(f"rank {rank}" for rank in self._missing()) or "a rank")
        self._sends.clear()
        self._round += 1
        return [self._words.pop((self._round - 1, rank)) for rank in range(self.size)]

    def _is_round_over(self) -> bool:
        self._receive()
        for rank in self._missing():
            if rank in self._reasons:
                self._heard = True
                kind, text = self._reason = self._reasons[rank]
                raise ON_ALL[kind](text)
        return not self._missing() and self._sent()

    def _missing(self) -> list[int]:
        return [rank for rank in self._others if (self._round, rank) not in self._words]

    def fence(self) -> Fence:
        """MPI's, for which Python has no other name; nobody stores to the window that it needs."""
        window = MPI.Win.Allocate_shared(LINE_BYTES, 1, comm=MPI.COMM_SELF)
        window.Lock_all(MPI.MODE_NOCHECK)

        def give_back() -> None:
            if window:
                window.Unlock_all()
                window.Free()

        return window.Sync, give_back

    def give_up(self, error: BaseException, linger_s: float = _LINGER_S) -> None:
        """Tell the others why this rank gives up, and free the communicator if all of them have given up as well.

        Also the end of an exchange that has failed, if nothing of it is under way any more.
        """
        if self._reason is None:
            if type(error).__name__ in ON_ALL:
                self._reason = type(error).__name__, str(error)
            else:
                self._reason = "PeerError", f"rank {self.rank} failed while {_WHAT}: {in_words(error)}"
        if not self._duplicate:  # all ranks make equally many, or the next ones would not be the same one's
            with suppress(*failures()):  # it has no more
                self._begin()
        if not self._duplicate or self._duplicate[1] is None:
            return
        self._abandoned.append(self)
        deadline_s, attempt = time.monotonic() + linger_s, 0
        while self._bury_all() and time.monotonic() < deadline_s:
            attempt += 1
            yield_then_sleep(attempt)

    def _wait(self, over: Callable[[], bool], missing: Callable[[], str]) -> None:
        attempt = 0
        while not over():
            attempt += 1
            # A few looks are due in any case: who comes too late should hear so, and not find the others late.
            if attempt > _LOOKS and time.monotonic() > self._deadline_s:
                raise LateError(f"{_WHAT} timed out after {self._timeout_s:g} s: {missing()} did not take part")
            self._bury_all()
            yield_then_sleep(attempt)

    def _send(self, message: tuple[int, Any]) -> None:
        self._sends += [self.comm.isend(message, rank, _TAG) for rank in self._others]

    def _sent(self) -> bool:
        """Whether all that was said has left this rank."""
        return all(send.Test() for send in self._sends)

    def _receive(self, everything: bool = False) -> None:
        """Take in what is here. A message of round -1 is a reason, and its sender's last."""
        status = MPI.Status()
        while self.comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG if everything else _TAG, status):
            source, kind = status.Get_source(), status.Get_tag()
            if kind != _TAG:  # what an exchange had still to receive: its sender may be away, so nobody waits for it
                self._sends.append(self.comm.Irecv([bytearray(status.Get_count(MPI.BYTE)), MPI.BYTE], source, kind))
                continue
            self._hear(source, *self.comm.recv(source=source, tag=_TAG))

    def _hear(self, source: int, number: int, word: Any) -> None:
        if number < 0:
            self._reasons[source] = word
        else:
            self._words[number, source] = word

    def _bury_all(self) -> bool:
        """Go on with the end of all that were given up; whether this is among those that have not come to it."""
        with _BURYING:
            for building in list(self._abandoned):
                building._bury()
        return self in self._abandoned

    def _bury(self) -> None:
        """Tell all, hear all, free."""
        if not self._duplicate[1].Test():
            return
        if not self._told:
            self._told = True
            self._send((-1, self._reason))
        self._receive(everything=True)
        if len(self._reasons) == len(self._others) and self._sent():
            self.comm.Free()
            self._abandoned.remove(self)


_BURYING = threading.Lock()


def meet(comm: Any, timeout_s: float, word: Any) -> Building:
    """Begin to build an exchange, and say the first word. Collective.

    A rank that was missed before, since it was interrupted or away when an attempt began, finds that all others have
    given that one up; it then goes on to the next.

    Raises:
        LateError, PeerError, ValueError, MemoryError, OSError: as ``Building.gather``.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        building = getattr(comm, "building", Building)(comm, timeout_s, deadline_s)
        try:
            building.start()
            building.words = building.gather(word)
            return building
        except BaseException as error:
            building.give_up(error)
            if not (isinstance(error, LateError) and building.was_missed and time.monotonic() < deadline_s):
                raise
