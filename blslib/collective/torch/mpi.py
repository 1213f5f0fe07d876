"""A ``torch.distributed`` group whose collectives MPI does: all of them but the all-to-alls.

They are one table, which says how mpi4py does what torch calls by another name. Every call is a non-blocking one of
MPI's, polled: waits keep torch's timeouts, and Ctrl-C works.
"""

import operator
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial, partialmethod
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist

from blslib.collective.errors import ExchangeError
from blslib.collective.mpi import MPI
from blslib.collective.torch.work import RefusedError, Tensors, Work, dense, flat_bytes, in_words, seconds, write
from blslib.collective.waiting import complete


class _MpiWork(Work):
    """A collective that MPI does; its group keeps it until it is done, as MPI needs its memory so long.

    Attributes:
        request: MPI's, once it is started.
    """

    request: MPI.Request

    def __init__(
        self,
        group: "MpiGroup",
        name: str,
        memory: object,
        outputs: Sequence[torch.Tensor],
        finish: Callable[[], None],
        timeout_s: float,
    ) -> None:
        """``memory`` is what MPI reads and writes, which a request does not keep; ``finish`` is called in the end."""
        super().__init__(group, list(outputs), timeout_s)
        self._group, self._name, self._memory, self._finish = group, name, memory, finish
        self._status = MPI.Status()

    def Test(self) -> bool:  # noqa: N802 (to be polled like a request)
        """Whether MPI is done with it; in any thread."""
        with self._group.turn:
            if self in self._group.requests:
                try:
                    if not self.request.Test(self._status):
                        return False
                    if not self._done:
                        self._finish()
                except Exception as error:
                    self.fail(error)
                self._done = True
                self._group.requests.discard(self)
        return True

    def _advance(self, timeout_s: float | None) -> None:
        try:
            if timeout_s is None:
                self.Test()
            else:
                complete(self, self._name, timeout_s)
        except ExchangeError as error:
            self.fail(error)
        except BaseException as error:
            self._group.abort(error)
            raise

    def _source_rank(self) -> int:
        return self._status.Get_source()


class _Call(NamedTuple):
    """A call as mpi4py wants it.

    Attributes:
        send, receive: flat; with a reduction of items, else of bytes. Where torch works in place, ``receive`` starts as
            a copy of ``send``.
        sends, receives: the same, with the size of every rank's piece; None where this rank has none.
        send_sizes: sizes of the pieces to send.
        op, root: if there are such.
    """

    send: np.ndarray
    receive: np.ndarray
    sends: list | None
    receives: list | None
    send_sizes: list[int]
    op: Any
    root: int


class _Settings(NamedTuple):
    """What torch's options say, or the overloads that take it one by one."""

    op: Any
    root: int
    timeout: timedelta | None


_CALLS: dict[str, Callable[[MPI.Intracomm, _Call], MPI.Request]] = {
    "allreduce": lambda comm, c: comm.Iallreduce(c.send, c.receive, c.op),
    "reduce": lambda comm, c: comm.Ireduce(c.send, c.receive, c.op, c.root),
    "reduce_scatter": lambda comm, c: comm.Ireduce_scatter(c.send, c.receive, c.send_sizes, c.op),
    "broadcast": lambda comm, c: comm.Ibcast(c.receive, c.root),
    "allgather": lambda comm, c: comm.Iallgatherv(c.send, c.receives),
    "gather": lambda comm, c: comm.Igatherv(c.send, c.receives, c.root),
    "scatter": lambda comm, c: comm.Iscatterv(c.sends, c.receive, c.root),
}
"""By torch's name. Torch calls them with tensors, or with outputs and inputs, and with options."""

_ALSO_CALLED = {
    "allreduce": ["allreduce_coalesced"],
    "allgather": ["allgather_coalesced", "all_gather_single", "_allgather_base"],
    "reduce_scatter": ["reduce_scatter_single", "_reduce_scatter_base"],
}

_REDUCTIONS = ("allreduce", "reduce", "reduce_scatter")

_OPS = {"SUM": MPI.SUM, "AVG": MPI.SUM, "PRODUCT": MPI.PROD, "MIN": MPI.MIN, "MAX": MPI.MAX}
_OPS |= {"BAND": MPI.BAND, "BOR": MPI.BOR, "BXOR": MPI.BXOR}

_CALCULATED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int32}
"""For types that MPI does not calculate in, those that stand in for them."""


_GROUPS: WeakSet["MpiGroup"] = WeakSet()

_KEPT: set[_MpiWork] = set()
"""What MPI had not finished when its group failed: it may use their memory until the process ends."""

_PID = os.getpid()


def own_mpi() -> None:
    """Make sure that this process may use MPI.

    Raises:
        ExchangeError: it was forked from a rank.
    """
    if os.getpid() != _PID:
        raise ExchangeError(
            f"process {os.getpid()} was forked from the rank that is process {_PID}, and MPI knows only that one: let "
            "the rank exchange, or start the child by spawn"
        )


def _disown() -> None:
    for group in list(_GROUPS):
        group.disown()


os.register_at_fork(after_in_child=_disown)  # so that no call has to ask: in a child every group has failed


class MpiGroup(dist.ProcessGroup):
    """A group of MPI ranks that does what is in the table above, barriers and messages.

    Args:
        comm: the group's own.
        timeout: of every wait that is given no other.

    Attributes:
        failure: why nothing works any more, if it is so.
        requests: what MPI has not finished.
        turn: held while MPI starts a request or looks at one, which it does not let two threads do at once.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: timedelta) -> None:
        super().__init__(comm.rank, comm.size)
        self._comm, self._timeout_s = comm, timeout.total_seconds()
        self.failure: Exception | None = None
        self.requests: set[_MpiWork] = set()
        self.turn = threading.RLock()
        _GROUPS.add(self)

    def fail(self, error: Exception) -> None:
        """Fail what is under way, and whatever comes."""
        self.failure = self.failure or in_words(error)
        _KEPT.update(self.requests)
        for work in list(self.requests):
            work.fail(self.failure)

    def abort(self, error: BaseException | None = None) -> None:
        """End without the other ranks."""
        why = "" if error is None else f": {type(error).__name__}: {error}"
        self.fail(ExchangeError(f"the group was aborted{why}"))

    def disown(self) -> None:
        """In a forked child, leave the group to the parent: it ends here, and nobody else is told."""
        try:
            own_mpi()
        except ExchangeError as error:
            self.fail(error)

    def timeout_s(self, options: Any) -> float:
        """The call's own timeout if it has one, in its options or in their place, else the group's."""
        given = options if isinstance(options, timedelta) else getattr(options, "timeout", None)
        return seconds(given, self._timeout_s)

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout_s = timeout.total_seconds()

    def _mpi(self, name: str, *given: Any, **options: Any) -> Work:
        """A call of the table, in any of the forms that torch has for it.

        Raises:
            RefusedError: tensors, a reduction or types that MPI or this backend cannot do.
        """
        tensors, settings = _understood(*given, **options)
        inputs, outputs = tensors[-1], tensors[0]
        if not inputs + outputs:
            raise RefusedError(f"{name} takes at least one tensor, got none")
        reduces = name in _REDUCTIONS
        kind = (inputs or outputs)[0].dtype
        mean = reduces and settings.op == dist.ReduceOp.AVG
        if mean and not (kind.is_floating_point or kind.is_complex):
            raise RefusedError(f"reduction AVG of {kind} would not be of that type: reduce by SUM and divide")
        if reduces:
            kind = _CALCULATED_IN.get(kind, kind)
        sent = torch.cat([torch.empty(0, dtype=kind), *(each.detach().reshape(-1).to(kind) for each in inputs)])
        received = sent.clone() if len(tensors) == 1 else torch.empty(sum(map(torch.numel, outputs)), dtype=kind)
        try:
            send, receive = (flat.numpy() if reduces else flat_bytes(flat) for flat in (sent, received))
        except TypeError as error:
            raise RefusedError(f"MPI cannot calculate in {kind}: {error}") from error
        unit = 1 if reduces else kind.itemsize
        send_sizes, receive_sizes = self._sizes(inputs, unit), self._sizes(outputs, unit)
        call = _Call(
            send,
            receive,
            [send, send_sizes] if inputs else None,
            [receive, receive_sizes] if outputs else None,
            send_sizes,
            _op(settings.op) if reduces else None,
            settings.root,
        )

        def finish() -> None:
            if mean:
                received.div_(self.size())
            for tensor, piece in zip(outputs, received.split([each.numel() for each in outputs]), strict=True):
                write(tensor, piece)

        return self._start(name, lambda: _CALLS[name](self._comm, call), call, outputs, finish, settings)

    def _start(
        self,
        name: str,
        start: Callable[[], MPI.Request],
        memory: object = None,
        outputs: Sequence[torch.Tensor] = (),
        finish: Callable[[], None] = lambda: None,
        options: Any = None,
    ) -> Work:
        """Have MPI start a collective, unless it refuses the arguments."""
        work = _MpiWork(self, name, memory, outputs, finish, self.timeout_s(options))
        if self.failure is not None:
            work.fail(self.failure)
            return work
        try:
            with self.turn:
                self.requests.add(work)  # before MPI has its memory
                work.request = start()
        except Exception as error:  # of MPI's own kind, or what mpi4py says of types, counts and ranks
            self.requests.discard(work)
            raise RefusedError(f"MPI cannot do this {name}: {error}") from error
        except BaseException as error:
            self.abort(error)
            raise
        return work

    def _sizes(self, tensors: Tensors, unit: int) -> list[int]:
        """The size of every rank's piece: of one tensor each, or of equal parts."""
        sizes = [tensor.numel() * unit for tensor in tensors]
        return sizes if len(sizes) == self.size() else [sum(sizes) // self.size()] * self.size()

    def _each(self, name: str, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        works = [self._mpi(name, *pair, opts) for pair in zip(outputs, inputs, strict=True)]
        for work in works:
            work.wait()
        return works[-1]

    all_gather_single_coalesced = allgather_into_tensor_coalesced = partialmethod(_each, "allgather")
    reduce_scatter_single_coalesced = reduce_scatter_tensor_coalesced = partialmethod(_each, "reduce_scatter")

    def barrier(self, opts: Any = None, timeout: timedelta | None = None) -> Work:
        return self._start("barrier", self._comm.Ibarrier, options=timeout or opts)

    def send(self, tensors: Tensors, to: int, tag: int) -> Work:
        sent = flat_bytes(tensors[0])
        return self._start("send", lambda: self._comm.Isend([sent, MPI.BYTE], to, tag), sent)

    def recv(self, tensors: Tensors, source: int, tag: int) -> Work:
        (target,) = _flat(tensors)
        received = torch.empty(target.numel(), dtype=target.dtype)
        into = [flat_bytes(received), MPI.BYTE]
        start = partial(self._comm.Irecv, into, source, tag)
        return self._start("recv", start, received, tensors, lambda: write(target, received))

    def recv_anysource(self, tensors: Tensors, tag: int) -> Work:
        return self.recv(tensors, MPI.ANY_SOURCE, tag)


for _call in _CALLS:
    for _name in [_call, *_ALSO_CALLED.get(_call, [])]:
        setattr(MpiGroup, _name, partialmethod(MpiGroup._mpi, _call))


def _understood(
    *given: Any, opts: Any = None, op: Any = dist.ReduceOp.SUM, root: int = 0, timeout: timedelta | None = None
) -> tuple[list[Tensors], _Settings]:
    """The tensors of a call, or its outputs and inputs; and what its options say, or the arguments in their place."""
    tensors = [list(_flat(each)) for each in given if isinstance(each, torch.Tensor | Sequence)]
    for each in given[len(tensors) :]:
        if isinstance(each, dist.ReduceOp | dist.ReduceOp.RedOpType):
            op = each
        elif isinstance(each, timedelta):
            timeout = each
        elif hasattr(each, "__index__"):
            root = operator.index(each)
        elif each is not None:
            opts = each
    op, root = getattr(opts, "reduceOp", op), getattr(opts, "rootRank", root)
    return tensors, _Settings(op, root, getattr(opts, "timeout", timeout))


def _flat(tensors: Any) -> Iterator[torch.Tensor]:
    """Tensors out of lists of lists of them."""
    if isinstance(tensors, torch.Tensor):
        yield dense(tensors)
    else:
        for each in tensors:
            yield from _flat(each)


def _op(reduction: Any) -> MPI.Op:
    name = getattr(reduction, "op", reduction).name
    if name not in _OPS:
        raise RefusedError(f"reduction {name} is none of MPI's: choose from {', '.join(_OPS)}")
    return _OPS[name]
