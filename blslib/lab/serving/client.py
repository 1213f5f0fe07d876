"""The client of sparse shards: starts them, asks them, notices at once when one dies, and ends them all.

One DEALER for each shard's ROUTER, since one for all would deal requests out in turn, and REQ locks up with the first
answer that does not come. Sockets are ``ipc://`` in a folder that only we may enter, and which is gone as soon as all
are connected: whoever is killed later leaves nothing behind. Other hosts are out of reach; they would need TCP, and
CURVE to know each other.
"""

import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import zmq

from blslib.dlrm.config import ModelConfig
from blslib.lab.ranks.launch import rank_environment
from blslib.lab.serving.shard import ANSWERED, ASKED, QUEUE
from blslib.placement.shards import Shard
from blslib.signals import undisturbed
from blslib.workloads.batch import Bags


class ShardError(RuntimeError):
    """A shard has ended, or takes no more requests."""


class LateError(TimeoutError):
    """A shard has not answered in time, or did not get ready."""


class Answer(NamedTuple):
    """What a shard said; times by ``perf_counter``, which processes of one host share.

    Attributes:
        shard, net: which.
        asked_s, came_s: when the request was handed over here, and when its answer was taken.
        began_s, ended_s: the look-up, in the shard.
        thread_s: seconds of a core in it.
        sums: flat (samples, summed widths) float32.
    """

    shard: int
    net: int
    asked_s: float
    came_s: float
    began_s: float
    ended_s: float
    thread_s: float
    sums: np.ndarray


class Shards(ExitStack):
    """Sparse shards, and the way to ask them. Several requests may be out at once. For one thread.

    Close it, or use ``with``: then the shards are ended, which keep nothing that could be lost. What they print goes to
    our standard error.

    Args:
        config: of the model.
        held: for each shard the parts it holds, net by net; one that holds none is not started.
        seed: of the weights.
        deadline_s: from a request until its answer.
        ready_s: until all shards have made their tables.

    Attributes:
        processes: of the shards, by number.
        process_s: by shard, seconds of cores that it had spent when it last answered.

    Raises:
        LateError: a shard did not get ready.
        ShardError: one ended instead.
    """

    def __init__(self, config: ModelConfig, held: Sequence[Sequence[Sequence[Shard]]], seed: int, *,
                 deadline_s: float = 10.0, ready_s: float = 120.0) -> None:  # fmt: skip
        super().__init__()
        self.deadline_s = deadline_s
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.process_s: dict[int, float] = {}
        self._dealers: dict[int, zmq.Socket] = {}
        self._lives: dict[int, int] = {}  # by the file number of a shard's standard input
        self._out: dict[int, tuple[int, int, float]] = {}  # by id: shard, net, and when it was asked
        self._came: dict[int, Answer] = {}
        self._numbers, self._poller, self._context = count(), zmq.Poller(), zmq.Context()
        self.callback(self._context.destroy, linger=0)
        run = os.environ.get("XDG_RUNTIME_DIR", "")  # the shortest private place: a socket's path has 107 bytes
        try:
            with undisturbed():
                folder = tempfile.TemporaryDirectory(prefix="bls-", dir=run if os.access(run, os.W_OK) else None)
            with folder as private:
                for shard, nets in enumerate(held):
                    if any(nets):
                        self._start(shard, f"ipc://{private}/{shard}", config, nets, seed)
                self._connect(ready_s)
        except BaseException:
            self.close()
            raise

    def _start(self, shard: int, address: str, *what: Any) -> None:
        command = [sys.executable, "-P", "-m", "blslib.lab.serving.shard"]
        with undisturbed():
            process = self.processes[shard] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=2, env=rank_environment(), start_new_session=True
            )
            self.callback(process.communicate)
            self.callback(process.kill)
        # Its standard input stays open: there it ends when we end, and here it is broken once the shard has.
        assert process.stdin
        with suppress(BrokenPipeError):  # which the poller will tell
            pickle.dump((address, *what), process.stdin)
            process.stdin.flush()
        dealer = self._dealers[shard] = self._context.socket(zmq.DEALER)
        dealer.linger, dealer.sndhwm, dealer.rcvhwm, dealer.immediate = 0, QUEUE, QUEUE, 1
        dealer.connect(address)  # tries again until the shard, ready, has bound it
        self._lives[process.stdin.fileno()] = shard
        self._poller.register(process.stdin, zmq.POLLERR)
        self._poller.register(dealer, zmq.POLLOUT)

    def _connect(self, ready_s: float) -> None:
        """Wait until each shard has shaken hands, which it does once its tables are made."""
        until_s, waiting = perf_counter() + ready_s, {dealer: shard for shard, dealer in self._dealers.items()}
        while waiting:
            if not (ready := self._look(until_s)):
                raise LateError(f"shard {min(waiting.values())} was not ready within {ready_s:g} s")
            for dealer in ready:
                self._poller.modify(dealer, zmq.POLLIN)
                waiting.pop(dealer)

    def _look(self, until_s: float) -> Collection[Any]:
        """Wait for dealers for which there is something to do; none if nothing has come by then.

        Raises:
            ShardError: a shard has ended.
        """
        ready = dict(self._poller.poll(math.ceil(1000 * max(until_s - perf_counter(), 0))))
        for shard in (self._lives[life] for life in self._lives.keys() & ready.keys()):
            code = self.processes[shard].wait()
            for process in self.processes.values():  # nobody is kept waiting until they have let go of their memory
                process.kill()
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            raise ShardError(f"shard {shard} ended with {how}, and the others with it: see its last words above")
        return ready.keys()

    def ask(self, shard: int, net: int, bags: Sequence[Bags]) -> int:
        """Send a request, without waiting.

        Args:
            shard: which.
            net: whose parts.
            bags: of each of its parts of that net, in order.

        Returns:
            Its id, for ``answers``.

        Raises:
            ShardError: its queue is full.
        """
        number, asked_s = next(self._numbers), perf_counter()
        ids, offsets = (np.concatenate(each) for each in zip(*bags, strict=True))
        try:
            self._dealers[shard].send_multipart(
                (ASKED.pack(number, net), ids.data, offsets.data), zmq.NOBLOCK, copy=False
            )
        except zmq.Again:
            out = sum(to == shard for to, *_ in self._out.values())
            raise ShardError(f"shard {shard} takes no more requests, {out} are out: take answers sooner") from None
        self._out[number] = shard, net, asked_s
        return number

    def answers(self, numbers: Collection[int]) -> list[Answer]:
        """Wait for the answers to some requests; in the order of their ids here.

        Raises:
            LateError: one has not come in time: none of these requests is waited for any more, and what comes of
                them later is dropped. Others may be asked.
            ShardError: a shard has ended; then all others are killed, and only closing is left to do.
        """
        while missing := [number for number in numbers if number not in self._came]:
            shard, _, asked_s = self._out[missing[0]]
            if not (ready := self._look(asked_s + self.deadline_s)):
                for number in numbers:
                    self._out.pop(number, None)
                    self._came.pop(number, None)
                raise LateError(f"shard {shard} has not answered within {self.deadline_s:g} s")
            for dealer in ready:
                self._take(dealer)
        return [self._came.pop(number) for number in numbers]

    def _take(self, dealer: zmq.Socket) -> None:
        head, frame = dealer.recv_multipart(copy=False)
        number, began_s, ended_s, thread_s, process_s = ANSWERED.unpack(head.buffer)
        if number in self._out:
            shard, net, asked_s = self._out.pop(number)
            self.process_s[shard] = process_s
            sums = np.frombuffer(frame.buffer, dtype=np.float32)
            self._came[number] = Answer(shard, net, asked_s, perf_counter(), began_s, ended_s, thread_s, sums)
