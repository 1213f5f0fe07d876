"""A ``torch.distributed`` group that hands to gloo whatever is not an all-to-all."""

import ctypes
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import partialmethod
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from blslib.collective.errors import ExchangeError
from blslib.collective.store import Comm
from blslib.collective.torch.rendezvous import LOOPBACK, mpi_store, on_one_host
from blslib.collective.torch.work import RefusedError, in_words, on_cpu

_HANDED_OVER = (
    "allreduce allreduce_coalesced broadcast reduce reduce_scatter reduce_scatter_single _reduce_scatter_base "
    "reduce_scatter_single_coalesced reduce_scatter_tensor_coalesced allgather allgather_coalesced _allgather_base "
    "all_gather_single all_gather_single_coalesced allgather_into_tensor_coalesced gather scatter barrier send recv "
    "recv_anysource"
)
"""Torch's names for what gloo does: Python looks for them here, and so does C++ for most."""

_IN_ONE_PIECE = {"allreduce", "broadcast", "reduce", "reduce_scatter", "scatter", "send", "recv", "recv_anysource"}
"""Where gloo takes a tensor's memory for its values, and would move what lies between them without a word."""


def gloo_group(comm: Comm, timeout: timedelta, store: Store | None = None, threads: int = 2) -> dist.ProcessGroup:
    """Torch's own group over gloo for the ranks of ``comm``. Collective.

    On one host it talks over loopback, unless GLOO_SOCKET_IFNAME in the environment says otherwise.

    Args:
        comm: says who and where the ranks are.
        timeout: of the ranks' meeting, and of every wait that is given no other.
        store: where the ranks meet; None has them meet through MPI.
        threads: works that it can have in hand at once; each is busy with one until that is done.

    Raises:
        ExchangeError: they have not met, or have found no way to each other.
    """
    store = mpi_store(comm, timeout) if store is None else store
    one_host, interfaces = on_one_host(comm, timeout), os.environ.get("GLOO_SOCKET_IFNAME")
    options = dist.ProcessGroupGloo._Options()
    options._timeout, options._threads = timeout, threads
    try:
        if interfaces:
            options._devices = [dist.ProcessGroupGloo.create_device(interface=name) for name in interfaces.split(",")]
        elif one_host:  # the default asks the name service who this host is, and may leave it for that
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
        else:
            options._devices = [dist.ProcessGroupGloo.create_default_device()]
        gloo = dist.ProcessGroupGloo(PrefixStore("gloo", store), comm.rank, comm.size, options)
    except RuntimeError as error:
        raise ExchangeError(
            f"gloo has not connected rank {comm.rank} to the others over {interfaces or 'the interface it chose'}: let "
            f"GLOO_SOCKET_IFNAME name one that reaches them, on every rank, or see what those ranks say: {error}"
        ) from error
    group = dist.ProcessGroup(store, comm.rank, comm.size)
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
    group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    return group


class GlooGroup(dist.ProcessGroup):
    """A group of ranks that holds a plain one over gloo, and calls it for all but all-to-alls.

    It has no backend of torch's registered: what C++ wants of a group past its Python methods, such as
    ``torch.ops.c10d.alltoall_base_``, torch refuses, where gloo would pass the exchange by.

    Args:
        comm: the group's own.
        timeout: of every wait that is given no other.
        store: where the ranks meet; None has them meet through MPI.

    Attributes:
        failure: why nothing works any more, if it is so.
    """

    def __init__(self, comm: Comm, timeout: timedelta, store: Store | None) -> None:
        super().__init__(comm.rank, comm.size)
        self._comm, self._timeout_s = comm, timeout.total_seconds()
        self.failure: Exception | None = None
        self._gloo: dist.ProcessGroup | None = gloo_group(comm, timeout, store)

    def _hand_over(self, name: str, *given: Any, **options: Any) -> dist.Work:
        """Call gloo, whose errors and works are the caller's.

        Raises:
            ExchangeError: the group has failed or ended.
            RefusedError: tensors that gloo would not refuse, and get wrong.
        """
        gloo = self._gloo  # which another thread may be about to end
        if gloo is None:
            raise self.failure or ExchangeError("the group has ended")
        for tensor in tensors_in([*given, *options.values()]):
            _check(name, tensor)
        return getattr(gloo, name)(*given, **options)

    def fail(self, error: Exception) -> None:
        """Fail whatever comes, and keep what gloo has in hand: its end would wait for that."""
        self.failure = self.failure or in_words(error)
        keep(self._gloo)
        self._gloo = None

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout_s = timeout.total_seconds()
        if self._gloo is not None:
            self._gloo.set_timeout(timeout)


for _name in _HANDED_OVER.split():
    setattr(GlooGroup, _name, partialmethod(GlooGroup._hand_over, _name))


def keep(what: object) -> None:
    """Keep an object for good: neither what uses its memory nor its own end has to be waited for, not even at exit."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(what))


def tensors_in(given: Any) -> Iterator[torch.Tensor]:
    """Tensors out of lists of lists of them and other arguments."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for each in given:
            yield from tensors_in(each)


def _check(name: str, tensor: torch.Tensor) -> None:
    on_cpu(tensor)
    if tensor.layout == torch.strided and (
        tensor.is_conj() or tensor.is_neg() or (name in _IN_ONE_PIECE and not tensor.is_contiguous())
    ):
        raise RefusedError(
            f"tensor of {name} is strided {tensor.stride()}, conjugated or negated as a view, and gloo would take its "
            "memory for its values: call resolve_conj(), resolve_neg() and contiguous() first"
        )
