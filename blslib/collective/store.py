"""Ranks that have no MPI, on one host: they meet through a store of torch's, in which each leaves words for the others.

Blocks need no more than shared memory. What MPI does besides is to bring the ranks together when an exchange is built
and when it ends, and to have a name for the processor's full fence; both are here.
"""

import ctypes
import platform
import threading
from ast import literal_eval
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Self, TypeAlias

import numpy as np

from blslib.collective.building import Building, Fence
from blslib.collective.errors import ExchangeError
from blslib.collective.mpi import MPI


def fence() -> Callable[[], object]:
    """The processor's full fence, without MPI.

    Raises:
        ExchangeError: there is no such thing here.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        lock = threading.Lock()

        def taken() -> None:  # to take a lock that nobody holds is one locked instruction, a full fence on x86
            with lock:
                pass

        return taken
    try:
        return partial(ctypes.PyDLL("libatomic.so.1").atomic_thread_fence, 5)  # sequentially consistent
    except OSError as error:
        raise ExchangeError(f"no fence without MPI ({error}): install libatomic, or start ranks by mpiexec") from None


class StoreBuilding(Building):
    """Building an exchange over a ``StoreComm``: every word is a value in the store, and stays there."""

    def _send(self, message: tuple[int, Any]) -> None:
        self.comm.put(*message)

    def _receive(self, everything: bool = False) -> None:
        for rank in self._others:
            for number, known in ((-1, rank in self._reasons), (self._round, (self._round, rank) in self._words)):
                for word in () if known else self.comm.found(number, rank):
                    self._hear(rank, number, word)

    def fence(self) -> Fence:
        return fence(), lambda: None


class StoreComm:
    """What an exchange asks of a communicator, over a store. Collective calls are numbered, as MPI's are.

    Args:
        store: with ``set``, ``get`` and ``check``, as torch's have; shared by these ranks alone.
        rank, size: this one, and P.
        prefix: before all keys.
    """

    building = StoreBuilding

    def __init__(self, store: Any, rank: int, size: int, prefix: str = "") -> None:
        self.rank, self.size = rank, size
        self._store, self._prefix, self._calls = store, prefix, 0

    def _next(self) -> str:
        self._calls += 1
        return f"call {self._calls}"

    def put(self, what: object, word: Any) -> None:
        """Leave this rank's word on something, such as the number of a round: text, numbers, and what holds them.

        What the store has may be anybody's, since it asks nobody who they are: so nothing else is read from it.
        """
        self._store.set(f"{self._prefix}{what}/{self.rank}", repr(word))

    def found(self, what: object, rank: int) -> list[Any]:
        """A rank's word on it, alone in a list, or nothing if it is not there."""
        key = f"{self._prefix}{what}/{rank}"
        return [literal_eval(self._store.get(key).decode())] if self._store.check([key]) else []

    def Iallgather(self, mine: np.ndarray, into: np.ndarray) -> Any:  # noqa: N802 (MPI's names, as that takes them)
        """Begin to gather the array (n,) of every rank ``into`` one (P n,); what is returned has ``Test``."""
        call = self._next()
        self.put(call, mine.tolist())

        def test() -> bool:
            found = [self.found(call, rank) for rank in range(self.size)]
            if done := all(found):
                into[:] = np.ravel(found)
            return done

        return SimpleNamespace(Test=test)

    def Ibarrier(self) -> Any:  # noqa: N802
        return self.Iallgather(np.empty(0), np.empty(0))

    def Idup(self) -> tuple[Self, Any]:  # noqa: N802
        comm = type(self)(self._store, self.rank, self.size, f"{self._prefix}{self._next()}/")
        return comm, SimpleNamespace(Test=lambda: True)

    def Free(self) -> None:  # noqa: N802
        """What is in the store goes with it."""


Comm: TypeAlias = "MPI.Intracomm | StoreComm"
