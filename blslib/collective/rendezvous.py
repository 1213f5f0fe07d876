"""How torch's ranks meet where MPI has started them: without an address, a port, or variables to set."""

import atexit
import importlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from mpi4py import MPI
from torch._C._distributed_c10d import FileStore, Store, TCPStore
from torch.distributed import default_pg_timeout

from blslib.collective.torch_mpi import own_mpi
from blslib.collective.waiting import complete

Handler = Callable[..., Iterator[tuple[Store, int, int]]]


def mpi_store(comm: MPI.Intracomm, timeout: timedelta) -> Store:
    """A store that all ranks of ``comm`` share: a file on one host, else a port of rank 0. Collective."""
    own_mpi()
    complete(comm.Ibarrier(), "the rendezvous", timeout.total_seconds())
    hosts = comm.allgather(MPI.Get_processor_name())
    if len(set(hosts)) == 1:  # a port would ask the name service who is there, and wait for one that does not answer
        path = comm.bcast(os.path.join(tempfile.gettempdir(), f"bls-{secrets.token_hex(6)}"))
        if comm.rank == 0:
            atexit.register(Path(path).unlink, missing_ok=True)  # whoever closes it last removes it, but need not come
        return FileStore(path, comm.size)
    store = TCPStore(hosts[0], 0, comm.size, True, timeout, wait_for_workers=False) if comm.rank == 0 else None
    port = comm.bcast(store.port if store else 0)
    return store or TCPStore(hosts[0], port, comm.size, False, timeout, wait_for_workers=False)


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
