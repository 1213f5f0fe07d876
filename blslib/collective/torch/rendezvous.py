"""How torch's ranks meet where MPI has started them: without an address, a port, or variables to set."""

import atexit
import importlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore
from torch.distributed import default_pg_timeout

from blslib.collective.errors import ExchangeError
from blslib.collective.mpi import MPI
from blslib.collective.waiting import complete

Handler = Callable[..., Iterator[tuple[Store, int, int]]]

_PID = os.getpid()

_FILES: dict[tuple[int, ...], tuple[FileStore, Iterator[int]]] = {}
"""By ranks of the world: the file they share on their host, and numbers for what they use it for, one after another."""


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


def mpi_store(comm: MPI.Intracomm, timeout: timedelta) -> Store:
    """A store that all ranks of ``comm`` share: a file on one host, else a port of rank 0. Collective."""
    own_mpi()
    one_host = on_one_host(comm, timeout)
    ranks = tuple(comm.allgather(MPI.COMM_WORLD.rank))
    if one_host:  # a port would ask the name service who is there, and wait for one that does not answer
        if ranks not in _FILES:
            _FILES[ranks] = _file(comm, timeout), count()
        file, numbers = _FILES[ranks]
        return PrefixStore(f"{next(numbers)}", file)
    host = comm.bcast(MPI.Get_processor_name())
    store = TCPStore(host, 0, comm.size, True, timeout, wait_for_workers=False) if comm.rank == 0 else None
    port = comm.bcast(store.port if store else 0)
    return store or TCPStore(host, port, comm.size, False, timeout, wait_for_workers=False)


def on_one_host(comm: MPI.Intracomm, timeout: timedelta) -> bool:
    """Whether all ranks of ``comm`` are on the same host. Collective: waits in MPI once all have come, no sooner."""
    complete(comm.Ibarrier(), "the rendezvous", timeout.total_seconds())
    return len(set(comm.allgather(MPI.Get_processor_name()))) == 1


def _file(comm: MPI.Intracomm, timeout: timedelta) -> FileStore:
    """A store in a file without a name, which goes with the last of its ranks, however they end.

    A ``FileStore`` opens its file by name every time, so that each rank keeps it open and names it by what Linux calls
    an open file. Elsewhere it has a name, which the end of rank 0 removes if it is an orderly one.
    """
    path = comm.bcast(os.path.join(tempfile.gettempdir(), f"bls-{secrets.token_hex(6)}"))
    unlink = partial(Path(path).unlink, missing_ok=True)
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        mine = f"/proc/self/fd/{opened}"
        unnamed = os.path.exists(mine)
        complete(comm.Ibarrier(), "the rendezvous", timeout.total_seconds())
    except BaseException:
        unlink()
        raise
    if unnamed:
        unlink()
        return FileStore(mine)
    os.close(opened)
    if comm.rank == 0:
        atexit.register(unlink)
    return FileStore(path)


def install() -> None:
    """Let torch's ``env://``, its default, ask MPI where the environment does not say who and where we are."""
    # torch.distributed has a function of the module's name.
    handlers: dict[str, Handler] = importlib.import_module("torch.distributed.rendezvous")._rendezvous_handlers
    from_environment = handlers["env"]

    def meet(url: str, timeout: timedelta = default_pg_timeout, **rest: Any) -> Iterator[tuple]:
        given = parse_qs(urlparse(url).query)
        if "MASTER_ADDR" in os.environ and ("RANK" in os.environ or "rank" in given):
            yield from from_environment(url, timeout=timeout, **rest)
        world = MPI.COMM_WORLD
        rank, size = int(given.get("rank", [world.rank])[0]), int(given.get("world_size", [world.size])[0])
        yield mpi_store(world, timeout), rank, size

    handlers["env"] = meet
