"""``torch.distributed`` behind the interface of an exchange: gloo as a baseline, and "bls" as programs of torch use it.

Its groups stand beside torch's default group, which these exchanges neither need nor touch.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mpi4py import MPI

from blslib.collective.baselines import Baseline
from blslib.collective.exchange import Arrival, Block
from blslib.collective.torch.process_group import BLSGroup, BLSOptions
from blslib.collective.torch.rendezvous import mpi_store

TIMEOUT = timedelta(seconds=60)


class TorchAlltoallv(Baseline):
    """``dist.all_to_all_single`` behind the interface of an exchange, with at most ``bound`` works under way.

    Collective; arguments and errors as ``MpiAlltoallv``, of float32, plus ``backend`` ("bls" or "gloo"), ``bound``, and
    ``slot_bytes``, None if the group has to find out by itself after a first call of one float per pair, as programs
    make that try what a backend can do. At bound 0 calls are synchronous; where all counts are equal, they say nothing
    of splits.

    Cost: bound + 2 buffers to receive, and a copy of the blocks unless they lie in one buffer already.

    Attributes:
        memory_bytes: those buffers and the one for the copy, and with "bls" the rings; what gloo has is not known.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        *,
        backend: str,
        bound: int,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        slot_bytes: int | None,
    ) -> None:
        super().__init__(comm, bound, send_counts, recv_counts, np.float32)
        bls = BLSOptions(bound, slot_bytes)
        self._group = _gloo(self._comm) if backend == "gloo" else BLSGroup(self._comm.Dup(), bls, TIMEOUT)
        even = self._comm.allreduce(len({*send_counts, *recv_counts}) == 1, op=MPI.LAND)
        counts = {"output_split_sizes": recv_counts, "input_split_sizes": send_counts}
        splits: dict[str, Any] = {} if even else {name: [int(n) for n in each] for name, each in counts.items()}
        self._start = partial(dist.all_to_all_single, group=self._group, async_op=bound > 0, **splits)
        self._room = np.empty(sum(self._send_sizes), np.uint8)
        # One more than can be under way: what the last call handed out stays valid until the next.
        self._outputs = [torch.empty(sum(recv_counts)) for _ in range(bound + 2)]
        self._received = [np.split(output.numpy(), np.cumsum(recv_counts)[:-1]) for output in self._outputs]
        self.memory_bytes = self._room.nbytes + sum(output.nbytes for output in self._outputs)
        if isinstance(self._group, BLSGroup):
            if slot_bytes is None:
                dist.all_to_all_single(torch.zeros(comm.size), torch.zeros(comm.size), group=self._group)
            for _ in range(bound + 3):  # then slots have grown
                self._start(self._outputs[0], torch.zeros(sum(send_counts)), async_op=False)
            self.memory_bytes += self._group.ring_bytes

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Start this iteration's exchange, then wait until at most ``bound`` are under way."""
        sent = torch.from_numpy(self._one_buffer(blocks, self._room, pack=False).view(np.float32))
        output = self._outputs[self._posted % len(self._outputs)]
        started_s = time.perf_counter()
        work = self._start(output, sent)
        self.waited_s += time.perf_counter() - started_s
        self._outstanding.append(work)
        self._posted += 1
        return self._take(self._posted - self.bound)

    def _finished(self, work: Any, iteration: int, wait: bool) -> bool:
        if wait and work is not None:
            work.wait()
        return work is None or wait or work.is_completed()

    def close(self) -> None:
        """End the group and free the communicator. Collective."""
        if not self._closed:
            self._take(self._posted)
            self._group.shutdown()
        super().close()


def _gloo(comm: MPI.Intracomm) -> dist.ProcessGroup:
    group = dist.ProcessGroup(mpi_store(comm, TIMEOUT), comm.rank, comm.size)
    gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", group.get_group_store()), comm.rank, comm.size, TIMEOUT)
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
    group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    return group
