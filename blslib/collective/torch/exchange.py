"""``torch.distributed`` behind the interface of an exchange: gloo as a baseline, and "bls" as programs of torch use it.

Its groups stand beside torch's default group, which these exchanges neither need nor touch.
"""

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
from blslib.collective.torch import BLSGroup, BLSOptions
from blslib.collective.torch.gloo import gloo_group

TIMEOUT = timedelta(seconds=60)


class TorchAlltoallv(Baseline):
    """``dist.all_to_all_single`` behind the interface of an exchange, with at most ``bound`` works under way.

    Collective; arguments and errors as ``MpiAlltoallv``, of float32, plus ``backend`` ("bls" or "gloo"), ``bound``, and
    ``slot_bytes`` for "bls". At bound 0 calls are synchronous; where all counts are equal, they say nothing of splits.
    On one host gloo talks over loopback, unless GLOO_SOCKET_IFNAME in the environment says otherwise.

    Cost: bound + 1 buffers to receive, one to send from, with gloo bound + 1, since it reads them until a work is done;
    and a copy of blocks that were not composed.

    Attributes:
        memory_bytes: those buffers, and with "bls" the rings; what gloo has is not known.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        *,
        backend: str,
        bound: int,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        slot_bytes: int,
    ) -> None:
        super().__init__(comm, bound, send_counts, recv_counts, np.float32, rooms=None if backend == "gloo" else 1)
        if backend == "gloo":
            self._group = gloo_group(self._comm, TIMEOUT, threads=bound + 2)
        else:
            self._group = BLSGroup(self._comm.Dup(), BLSOptions(bound, slot_bytes), TIMEOUT)
        even = self._comm.allreduce(len({*send_counts, *recv_counts}) == 1, op=MPI.LAND)
        counts = {"output_split_sizes": recv_counts, "input_split_sizes": send_counts}
        splits: dict[str, Any] = {} if even else {name: [int(n) for n in each] for name, each in counts.items()}
        self._start = partial(dist.all_to_all_single, group=self._group, async_op=bound > 0, **splits)
        self._outputs = [torch.from_numpy(buffer.view(np.float32)) for buffer in self._buffers]
        self._inputs = [torch.from_numpy(room.view(np.float32)) for room in self._rooms]
        if isinstance(self._group, BLSGroup):
            self._start(self._outputs[0], torch.zeros(sum(send_counts)), async_op=False)  # builds the rings
            self.memory_bytes += self._group.memory_bytes

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Start this iteration's exchange, then wait until at most ``bound`` are under way."""
        sent = self._inputs[self._room(blocks)]
        output = self._outputs[self._posted % len(self._outputs)]
        self._outstanding.append(self._start(output, sent))
        self._posted += 1
        return self._take(self._posted - self.bound, looks=False)  # as a program with a queue does

    def _finished(self, work: Any, iteration: int, wait: bool) -> bool:
        if work is not None:
            if not (wait or work.is_completed()):
                return False
            work.wait()  # raises what has gone wrong
        return True

    def close(self) -> None:
        """End the group and free the communicator. Collective."""
        if not self._closed:
            self._take(self._posted)
            self._group.shutdown()
        super().close()
