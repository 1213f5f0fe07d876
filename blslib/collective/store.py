"""Ranks that have no MPI, on one host: they meet through a store of torch's, in which each leaves words for the others.

Blocks need no more than shared memory. What MPI does besides is to bring the ranks together when an exchange is built
and when it ends, and to have a name for the processor's full fence; both are here.
"""

import platform
import threading
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, Self, TypeAlias

import numpy as np

from blslib.collective.building import Building, Fence
from blslib.collective.errors import ExchangeError, PeerError
from blslib.collective.mpi import MPI


def fence() -> Callable[[], object]:
    """The processor's full fence, without MPI.

    Raises:
        ExchangeError: none is known for this kind of processor.
    """
    if (kind := platform.machine()) not in ("x86_64", "AMD64"):
        raise ExchangeError(f"no fence is known without MPI on {kind}: install an MPI, and start the ranks by mpiexec")
    lock = threading.Lock()

    def taken() -> None:  # to take a lock that nobody holds is one locked instruction, a full fence on x86
        with lock:
            pass

    return taken


@contextmanager
def _reached() -> Iterator[None]:
    """What a store says that is gone, or what nobody of ours can have written, in words of ours."""
    try:
        yield
    except (RuntimeError, SyntaxError, ValueError) as error:
        told = str(error).partition("\n")[0]
        raise PeerError(f"the store where ranks meet is gone, with torchrun or the rank that had it: {told}") from error


class StoreBuilding(Building):
    """Building an exchange over a ``StoreComm``: every word is a value in the store, and stays there."""

    def _send(self, message: tuple[int, Any]) -> None:
        self.comm.put(*message)

    def _receive(self, everything: bool = False) -> None:
        for rank in self._missing():
            for number in (-1, self._round):
                for word in self.comm.found(number, rank):
                    self._hear(rank, number, word)

    def _bury(self) -> None:
        self._abandoned.remove(self)  # there is nothing to free
        with suppress(PeerError):
            self._send((-1, self._reason))

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

    @_reached()
    def put(self, what: object, word: Any) -> None:
        """Leave this rank's word on something, such as the number of a round: text, numbers, and what holds them.

        What the store has may be anybody's, since it asks nobody who they are: so nothing else is read from it.
        """
        self._store.set(f"{self._prefix}{what}/{self.rank}", repr(word))

    @_reached()
    def found(self, what: object, rank: int) -> list[Any]:
        """A rank's word on it, alone in a list, or nothing if it is not there."""
        key = f"{self._prefix}{what}/{rank}"
        return [literal_eval(self._store.get(key).decode())] if self._store.check([key]) else []

    def Iallgather(self, mine: np.ndarray, into: np.ndarray) -> Any:  # noqa: N802 (MPI's names, as that takes them)
        """Begin to gather the array (n,) of every rank ``into`` one (P n,); what is returned has ``Test``.

        That raises PeerError if ranks do not make the same calls, or the store is gone.
        """
        call = self._next()
        self.put(call, mine.tolist())

        def test() -> bool:
            found = [self.found(call, rank) for rank in range(self.size)]
            if not all(found):
                return False
            if len({len(word) for [word] in found}) > 1:
                raise PeerError(f"ranks make different calls on this group, or in another order, and say {found}")
            into[:] = np.ravel(found)
            return True

        return SimpleNamespace(Test=test)

    def Ibarrier(self) -> Any:  # noqa: N802
        return self.Iallgather(np.empty(0), np.empty(0))

    def Idup(self) -> tuple[Self, Any]:  # noqa: N802
        comm = type(self)(self._store, self.rank, self.size, f"{self._prefix}{self._next()}/")
        return comm, SimpleNamespace(Test=lambda: True)

    def Free(self) -> None:  # noqa: N802
        """What is in the store goes with it."""


Comm: TypeAlias = "MPI.Intracomm | StoreComm"
