"""The ``torch.distributed`` backend ``"bls"``: bounded lag for programs that call ``all_to_all_single`` already.

``docs/torch.md`` says what a program gains and what it must keep in mind. All-to-alls go through one
``BoundedLagAlltoallv`` per group, everything else through gloo. Like an exchange, a group serves one thread at a time.
"""

import atexit
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.errors import ExchangeError
from blslib.collective.exchange import Arrival
from blslib.collective.statistics import Statistics
from blslib.collective.store import Comm
from blslib.collective.torch.autoload import NAME
from blslib.collective.torch.gloo import GlooGroup, keep, tensors_in
from blslib.collective.torch.options import BLSOptions
from blslib.collective.torch.work import AllToAllWork, Bytes, RefusedError, Tensors, flat_bytes, seconds
from blslib.collective.turns import FORKED, IS_FORKED
from blslib.collective.waiting import complete

LEAST_SLOT_BYTES = 4096

_AGREEMENT = "the all-to-all's agreement on slots"


class BLSGroup(GlooGroup):
    """A group of ranks whose all-to-alls may lag.

    Collective: every rank of ``comm`` makes it, and shuts it down. The exchange is built by the first all-to-all, which
    therefore waits for all ranks; so does one that makes larger slots.

    Args:
        comm: the group's own; freed by ``shutdown``.
        options: None takes the environment's.
        timeout: of every wait that is given no other.
        store: where gloo's ranks meet; None has them meet through MPI.

    Attributes:
        bound, calls_per_batch: as in the options, or the environment: a program takes its depth, in batches, from here.

    Raises:
        TypeError, ValueError: options, or variables of the environment, that mean nothing.
    """

    def __init__(self, comm: Comm, options: BLSOptions | None, timeout: timedelta, store: Store | None = None) -> None:
        options = options or BLSOptions()
        if not isinstance(options, BLSOptions):
            raise TypeError(f"pg_options of a {NAME!r} group are BLSOptions, got {type(options).__name__}")
        self.bound = _setting(options.bound, "BLS_BOUND") or 0
        self.calls_per_batch = options.calls_per_batch
        self._slot_bytes = _setting(options.slot_bytes, "BLS_SLOT_BYTES")
        super().__init__(comm, timeout, store)
        self._ranks = comm.size
        self._exchange: BoundedLagAlltoallv | None = None
        self._posted = 0
        self._replaced_at = 0  # the iteration that is number 0 of the present exchange
        self._outstanding: dict[int, AllToAllWork] = {}  # by iteration
        self._largest = self._ask_at = 0
        self._found = np.zeros(comm.size, np.int64)
        self._answer: Any = None
        self._calling = threading.Lock()
        self._open = True
        self._name = ""
        atexit.register(self._leave)
        _GROUPS.add(self)

    @property
    def memory_bytes(self) -> int:
        """What the exchange has allocated on this rank; nothing before the first all-to-all."""
        return self._exchange.memory_bytes if self._exchange else 0

    @property
    def calls(self) -> int:
        """All-to-alls so far, the same number on every rank: what one batch adds is its ``calls_per_batch``."""
        return self._posted

    def statistics(self) -> Statistics | None:
        """Of the all-to-alls on this rank since slots were last made larger; None before the first."""
        return self._exchange.statistics() if self._exchange else None

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,  # noqa: A002 (torch's name)
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        opts: Any = None,
        timeout: timedelta | None = None,
    ) -> AllToAllWork:
        """As ``dist.all_to_all_single``. ``input`` may be used again on return, ``output`` after ``wait``.

        Raises:
            RefusedError: splits or tensors that do not fit; nothing was sent, and the group can go on. Whatever goes
                wrong in the exchange is raised by ``wait``.
        """
        room = _room(output)
        pieces = self._pieces(room, output_splits, "output")
        return self._post(self._pieces(input, input_splits, "input"), [output], [room], pieces, timeout or opts)

    alltoall_base = all_to_all_single

    def alltoall(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None, timeout: timedelta | None = None
    ) -> AllToAllWork:
        """As ``dist.all_to_all``: a tensor for every rank, and one from every rank."""
        if not len(outputs) == len(inputs) == self._ranks:
            given = f"{len(outputs)} outputs and {len(inputs)} inputs"
            raise RefusedError(f"all_to_all takes one tensor per rank: expected {self._ranks}, got {given}")
        rooms = [_room(output) for output in outputs]
        pieces = [flat_bytes(room) for room in rooms]
        return self._post([flat_bytes(tensor) for tensor in inputs], outputs, rooms, pieces, timeout or opts)

    def allgather(self, outputs: Any, inputs: Any, *given: Any, **options: Any) -> dist.Work:
        """As ``dist.all_gather``. Where sizes differ, which gloo refuses, it is an all-to-all, and may lag like one."""
        found = list(tensors_in(outputs))
        if len({each.numel() for each in found}) > 1:
            return self.alltoall(found, list(tensors_in(inputs)) * self._ranks, *given, **options)
        return self._hand_over("allgather", outputs, inputs, *given, **options)

    def _pieces(self, tensor: torch.Tensor, splits: Sequence[int], name: str) -> list[np.ndarray]:
        """The bytes of a tensor, cut along its first dimension into one block per rank; views if it is in one piece."""
        flat = flat_bytes(tensor)
        rows = tensor.shape[0] if tensor.ndim else 1
        if not splits:
            # Of fewer rows than ranks bytes are shared, as by gloo: the reference DLRM tries it so with 4 numbers on 8.
            if rows % self._ranks and (rows > self._ranks or len(flat) % self._ranks):
                raise RefusedError(
                    f"{name} has {rows} rows, which {self._ranks} ranks cannot share equally: give {name}_split_sizes"
                )
            return list(flat.reshape(self._ranks, -1))
        if len(splits) != self._ranks or sum(splits) != rows or min(splits) < 0:
            raise RefusedError(
                f"{name}_split_sizes are {self._ranks} numbers >= 0 that add up to the {rows} rows of {name}, "
                f"got {list(splits)}"
            )
        row_bytes = len(flat) // max(rows, 1)
        return [flat[start * row_bytes : end * row_bytes] for start, end in pairwise((0, *accumulate(splits)))]

    def _post(self, blocks: Bytes, outputs: Tensors, rooms: Tensors, pieces: Bytes, options: Any) -> AllToAllWork:
        given = options if isinstance(options, timedelta) else getattr(options, "timeout", None)
        timeout_s = seconds(given, self._timeout_s)
        work = AllToAllWork(self, outputs, rooms, pieces, timeout_s)
        if self.failure is None:
            with self._my_call():
                try:
                    exchange = self._exchange
                    if exchange is None or self._slot_bytes is None:
                        exchange = self._fitting(blocks, timeout_s)
                    exchange.timeout_s = timeout_s
                    arrivals = exchange.post(blocks)
                    # Only now is it this group's next all-to-all.
                    work.iteration = self._posted
                    self._outstanding[work.iteration] = work
                    self._posted += 1
                    self._take(arrivals)
                except BaseException as error:
                    self._fell(error)
        if self.failure is not None:
            work.fail(self.failure)
        return work

    def collect(self, through: int | None, timeout_s: float) -> None:
        """Wait for all up to iteration ``through``; without it, take in what is there. Errors go to the works."""
        assert self._exchange is not None
        if through is None and self._calling.locked():
            return  # whoever calls takes it in
        with self._my_call():
            try:
                self._exchange.timeout_s = timeout_s
                self._take(self._exchange.collect(None if through is None else max(through - self._replaced_at, -1)))
            except BaseException as error:
                self._fell(error)

    def _my_call(self) -> threading.Lock:
        """To be held during a call of the exchange and until what it returns is copied: the next may overwrite it.

        A lock's own ``with`` lets no interrupt fall between taking it and the beginning of the block.
        """
        if self._calling.locked():
            raise RuntimeError(
                "another call on this group is under way: it serves one thread at a time, so take turns, or make a "
                "group for each thread"
            )
        return self._calling

    def _take(self, arrivals: list[Arrival]) -> None:
        for number, blocks in arrivals:
            iteration = self._replaced_at + number
            self._outstanding[iteration].arrive(blocks)
            del self._outstanding[iteration]

    def _fell(self, error: BaseException) -> None:
        """What an error in a call means: it is the caller's if nothing was sent, else the end of the group.

        Whatever is none of the exchange's own errors, such as an interrupt, is raised as well.
        """
        if isinstance(error, RefusedError) or (isinstance(error, MemoryError) and self._exchange is None):
            raise error
        if isinstance(error, ExchangeError | MemoryError):  # the second if there is no room for a large block
            if self._replaced_at:
                error.add_note(f"iterations are counted from {self._replaced_at} on, when slots were made larger")
            self.fail(error)
            return
        self.abort(error)
        raise error

    def fail(self, error: Exception) -> None:
        """Fail what is under way, and whatever comes."""
        super().fail(error)
        if self._answer:  # MPI has not finished it, as far as we know, and may write there
            keep(self._answer)
        while self._outstanding:
            self._outstanding.popitem()[1].fail(self.failure or error)

    def _fitting(self, blocks: Bytes, timeout_s: float) -> BoundedLagAlltoallv:
        """The exchange for the next all-to-all: built by the first, and again where blocks have outgrown its slots.

        Unless their size was given, ranks ask each other for their largest block in calls 0, 1 and about twice as many
        each time, and look at the answer as many calls later as may be under way, and one more: by then everybody has
        come to the call that asked, so only a rebuilding waits for ranks to come, and all do it in the same call.
        """
        if self._slot_bytes is not None:
            self._exchange = self._build(self._slot_bytes, timeout_s)
            return self._exchange
        self._largest = max(self._largest, *map(len, blocks))
        if self._posted == self._ask_at:
            self._answer = self._comm.Iallgather(np.array([self._largest]), self._found)
        assert self._answer is not None
        if self._exchange is not None and self._posted < self._ask_at + self._exchange.bound + 1:
            if self._posted >= self._ask_at:
                self._answer.Test()  # MPI moves it on in calls alone
            return self._exchange
        complete(self._answer, _AGREEMENT, timeout_s)
        largest = int(self._found.max())
        if self._exchange is None:
            self._exchange = self._build(max(largest * 5 // 4, LEAST_SLOT_BYTES), timeout_s)
        elif largest > self._exchange.slot_bytes:
            self._exchange.timeout_s = timeout_s
            self._take(self._exchange.drain())
            with suppress(MemoryError):  # on all ranks: they go on with the slots they have
                old, self._exchange = self._exchange, self._build(largest * 5 // 4, timeout_s)
                self._replaced_at = self._posted
                old.close()
        self._ask_at = 2 * self._posted or 1
        return self._exchange

    def _build(self, slot_bytes: int, timeout_s: float) -> BoundedLagAlltoallv:
        try:
            bound = self.bound * self.calls_per_batch
            return BoundedLagAlltoallv(
                self._comm, bound=bound, slot_bytes=slot_bytes, dtype=np.uint8, timeout_s=timeout_s
            )
        except ValueError as error:
            raise RefusedError(str(error)) from error

    # --- names and end: what torch asks of every group --------------------------------------------------------------

    def getBackendName(self) -> str:  # noqa: N802 (these names are torch's)
        return NAME

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def shutdown(self) -> None:
        """Finish what is under way and give everything back. Collective unless something failed before.

        Torch cannot go on after an error here, so an error becomes a warning; works that were under way raise it.
        """
        if not self._open:
            return
        with self._my_call():
            try:
                self._end()
                self.fail(ExchangeError("the group is destroyed"))
            except Exception as error:
                self.fail(error)
                self._leave_exchange(error)
                text = f"group {self._name!r} ended with an error: {self.failure}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            except BaseException as error:
                self.abort(error)
                raise
            finally:
                self._forget()

    def _end(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._exchange is not None:
            self._exchange.timeout_s = self._timeout_s
            self._take(self._exchange.drain())
            self._exchange.close()
        if self._answer is not None:
            # Only now, as it may be known only now that a rank posted less often.
            complete(self._answer, _AGREEMENT, self._timeout_s)
        complete(self._comm.Ibarrier(), f"the end of group {self._name!r}", self._timeout_s)
        self._comm.Free()
        self._gloo = None  # which finishes what it has in hand

    def abort(self, error: BaseException | None = None) -> None:
        """End without the other ranks, and tell them why."""
        if not self._open:
            return
        why = "" if error is None else f": {type(error).__name__}: {error}"
        self.fail(ExchangeError(f"the group was aborted{why}"))
        self._leave_exchange(error or ExchangeError("the group was aborted"))
        self._forget()

    def _leave_exchange(self, error: BaseException) -> None:
        """Close it without the others, and tell them why unless they know."""
        if self._exchange is not None:
            with suppress(RuntimeError):  # another thread is in a call, and frees nothing while it waits
                self._exchange.__exit__(type(error), error, None)

    def _forget(self) -> None:
        self._open = False
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        """At the end of a program that did not destroy the group: the other ranks may be waiting for this one."""
        error = getattr(sys, "last_value", None)
        self.abort(error) if error else self.shutdown()


_GROUPS: WeakSet[BLSGroup] = WeakSet()


def _disown() -> None:
    """In a forked child, leave all groups to the parent: they end here, and nobody else is told."""
    for group in list(_GROUPS):
        FORKED.extend([True] * group._open)
        group._forget()
        group.fail(ExchangeError(IS_FORKED))


os.register_at_fork(after_in_child=_disown)  # so that no call has to ask: in a child every group has failed


def _room(output: torch.Tensor) -> torch.Tensor:
    """Where an output is received: in itself, or in a draft if its memory does not hold its values in one piece."""
    if output.layout != torch.strided or (output.is_contiguous() and not output.is_conj() and not output.is_neg()):
        return output
    return torch.empty_like(output, memory_format=torch.contiguous_format)


def _setting(given: int | None, variable: str) -> int | None:
    """An option, else the environment's."""
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{variable} is a whole number, got {text!r}") from None
