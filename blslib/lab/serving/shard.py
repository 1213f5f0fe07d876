"""A sparse shard: a process that holds parts of tables, and answers look-ups until its client is gone.

A request is three frames: ``ASKED``, then int64 ids of all parts one behind the other, then their offsets. An answer is
two: ``ANSWERED``, then the pooled sums. Between requests the process sleeps in the kernel; it keeps nothing of them.
"""

import pickle
import struct
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
import zmq
from torch.nn.functional import embedding_bag

from blslib.dlrm.config import ModelConfig
from blslib.dlrm.sharding import initial_weights
from blslib.placement.shards import Shard

ASKED = struct.Struct("<qq")
"""Before a request: its id, and the number of the net."""
ANSWERED = struct.Struct("<q4d")
"""Before an answer: the id, when the look-up began and ended (``perf_counter``, one clock for all processes of a host),
seconds of the thread in it, and seconds of the whole process since its start."""
QUEUE = 256
"""Messages that may wait in each direction at either end."""


def _whole_numbers(frame: zmq.Frame) -> np.ndarray:
    """Of a frame, in place; a copy only where the library has laid them at an odd address."""
    return np.require(np.frombuffer(frame.buffer, dtype=np.int64), requirements="A")


def _sums(weight: torch.Tensor, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    bags = torch.from_numpy(offsets)
    return embedding_bag(torch.from_numpy(ids), weight, bags, mode="sum", include_last_offset=True).numpy()


def serve(address: str, config: ModelConfig, nets: Sequence[Sequence[Shard]], seed: int) -> None:
    """Answer until standard input ends, of which the client holds the other end: with it, we are gone.

    Args:
        address: to bind once all is ready, ``ipc://`` and a path.
        config: of the model.
        nets: the parts held here, net by net.
        seed: of the weights.
    """
    weights = [[initial_weights(config, shard, seed) for shard in net] for net in nets]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger, router.sndhwm, router.rcvhwm = 0, QUEUE, QUEUE
        router.bind(address)
        poller = zmq.Poller()
        for source in (router, sys.stdin.fileno()):
            poller.register(source, zmq.POLLIN)
        while sys.stdin.fileno() not in dict(poller.poll()):
            client, head, *frames = router.recv_multipart(copy=False)
            began_s, thread_s = time.perf_counter(), time.thread_time()
            number, net = ASKED.unpack(head.buffer)
            ids, offsets = map(_whole_numbers, frames)
            offsets = offsets.reshape(len(weights[net]), -1)
            parts = zip(weights[net], np.split(ids, offsets[:-1, -1].cumsum()), offsets, strict=True)
            found = [_sums(*part) for part in parts]
            sums = np.ascontiguousarray(np.concatenate(found, axis=1))  # fresh: it is read while the next one is made
            spent_s = time.perf_counter(), time.thread_time() - thread_s, time.process_time()
            said = ANSWERED.pack(number, began_s, *spent_s)
            router.send_multipart((client, said, sums.data), zmq.NOBLOCK, copy=False)


if __name__ == "__main__":
    serve(*pickle.load(sys.stdin.buffer))
