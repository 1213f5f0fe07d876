"""Who may call an exchange: one thread at a time, of the process that built it."""

import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from blslib.collective.errors import ExchangeError

Result = TypeVar("Result")

IS_FORKED = (
    "this process was forked from the rank that built the exchange, which is that rank's alone: hand data to the rank "
    "and let it post them"
)
_IS_BUSY = (
    "another call on this exchange is under way: it serves one thread at a time, so take turns, or build one for each "
    "thread"
)


class Turns:
    """What takes one call at a time, and none in a forked child of its process."""

    def __init__(self) -> None:
        """Raises ExchangeError as ``check_process`` does."""
        check_process()
        self._over: str | None = None  # why no call is legal any more
        self._turn: dict[int, object] = {}  # at 0, who is in a call
        _ALL.add(self)

    def _retire(self, why: str) -> None:
        """There is nothing left to call, in any process."""
        self._over = why
        _ALL.discard(self)

    def _alone(self, act: Callable[[Any], Result], argument: Any) -> Result:
        """Do what a call does; one that comes meanwhile is refused with RuntimeError, whatever this one is doing.

        Python looks for signals when a function begins and after calls of C functions, not between other instructions.
        So Ctrl-C finds the turn not taken yet, or comes within the ``try``; and what gives the turn back calls nothing.
        """
        turn = self._turn
        mine: object = object()
        try:
            if turn.setdefault(0, mine) is not mine:
                mine = None
                raise RuntimeError(_IS_BUSY)
            return act(argument)
        finally:
            if mine is not None and 0 in turn and turn[0] is mine:
                del turn[0]


_ALL: weakref.WeakSet[Turns] = weakref.WeakSet()
FORKED: list[bool] = []
"""Whether this process was forked from a rank."""


def check_process() -> None:
    """Make sure that this process may exchange.

    Raises:
        ExchangeError: it was forked from a rank, a process that had started MPI or had an exchange or a group.
    """
    if FORKED:
        raise ExchangeError(IS_FORKED)


def _end_in_child() -> None:
    if _ALL or "mpi4py.MPI" in sys.modules:
        FORKED.append(True)
    for each in _ALL:
        each._over, each._turn = IS_FORKED, {}


os.register_at_fork(after_in_child=_end_in_child)
