"""How a group comes to be: of ranks that MPI has started, or of torch's own."""

import os
from typing import Any

from torch._C._distributed_c10d import PrefixStore

from blslib.collective.mpi import MPI
from blslib.collective.store import StoreComm
from blslib.collective.torch.autoload import NAME, under_mpi
from blslib.collective.torch.options import BLSOptions
from blslib.collective.torch.process_group import BLSGroup
from blslib.collective.torch.rendezvous import on_one_host
from blslib.collective.turns import check_process


def create(options: Any, group_options: BLSOptions | None) -> BLSGroup:
    """A group as torch asks for one: of MPI's ranks, or of torch's own.

    Raises:
        RuntimeError: ranks are not MPI's, and are others for MPI, or not all on one host.
        ExchangeError: in a process forked from a rank.
    """
    check_process()
    here = rank, size = (options.group_rank, options.group_size)
    # A connection of our own: a thread of the program's that waits in the store would make others wait, too. The store
    # may outlive a restart, or a group of the same name that was destroyed, with all that is in it: lives are counted.
    store = PrefixStore(f"bls {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", options.store.clone())
    store = PrefixStore(f"life {store.add(f'came {rank}', 1)}", store)
    if not under_mpi():
        comm = StoreComm(store, rank, size)
        if not on_one_host(comm, options.timeout):
            raise RuntimeError(
                f"the {size} ranks of this {NAME!r} group are on several hosts, between which it takes MPI: start the "
                f"program with mpiexec -f HOSTS -n {size} python PROGRAM, not with torchrun"
            )
        return BLSGroup(comm, group_options, options.timeout, PrefixStore("gloo", store))
    world, members = MPI.COMM_WORLD, list(options.global_ranks_in_group)
    if not members and here != (world.rank, world.size):
        raise RuntimeError(
            f"this process is rank {here[0]} of {here[1]} for torch and rank {world.rank} of {world.size} for MPI: "
            f"{NAME!r} takes its ranks from MPI where mpiexec has started them: say the same, or BLS_MPI=0"
        )
    # Making a communicator blocks in C: by now everybody has come.
    store.set(f"rank {rank}", "here")
    store.wait([f"rank {rank}" for rank in range(size)], options.timeout)
    group = world.group.Incl(members) if members else world.group
    return BLSGroup(world.Create_group(group), group_options, options.timeout, store)
