"""How torch's ranks meet where MPI has started them: without an address, a port, or variables to set."""

import platform
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse
from zlib import crc32

import numpy as np
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed import default_pg_timeout

from blslib.collective.mpi import MPI
from blslib.collective.segments import whereabouts
from blslib.collective.store import Comm
from blslib.collective.turns import check_process
from blslib.collective.waiting import complete

LOOPBACK = "127.0.0.1"


def on_one_host(comm: Comm, timeout: timedelta) -> bool:
    """Whether all ranks of ``comm`` are on the same host. Collective."""
    mine, everyone = np.array([crc32(f"{platform.node()} {whereabouts()}".encode())]), np.zeros(comm.size, np.int64)
    complete(comm.Iallgather(mine, everyone), "the rendezvous", timeout.total_seconds())
    return bool((everyone == mine).all())


def mpi_store(comm: Any, timeout: timedelta) -> Store:
    """A store that all ranks of ``comm`` share, at a port of rank 0; on one host none but its own programs reach it."""
    check_process()
    one_host, names = on_one_host(comm, timeout), comm.allgather(MPI.Get_processor_name())
    # For a name one has to ask the name service, and wait where there is one that does not answer.
    host = LOOPBACK if one_host else names[0]
    listening = socket.create_server((LOOPBACK if one_host else "", 0)) if comm.rank == 0 else None
    port = comm.bcast(listening and listening.getsockname()[1])
    mine = listening.detach() if listening else None
    return TCPStore(host, port, comm.size, comm.rank == 0, timeout, wait_for_workers=False, master_listen_fd=mine)


def meet(url: str, timeout: timedelta = default_pg_timeout, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """What torch's rendezvous ``env://`` does among ranks of MPI, in the words of such handlers."""
    given, world = parse_qs(urlparse(url).query), MPI.COMM_WORLD
    rank, size = int(given.get("rank", [world.rank])[0]), int(given.get("world_size", [world.size])[0])
    yield mpi_store(world, timeout), rank, size
