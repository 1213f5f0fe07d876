"""What torch adds: ``all_to_all_single`` over the backend ``"bls"``, over gloo, and the same exchange without torch."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.exchange import Arrival
from blslib.lab.experiments import recommend
from blslib.lab.experiments.measure import Contender, interleaved
from blslib.lab.experiments.micro import LEAST_CALLS, MOST_CALLS, TARGET_S
from blslib.lab.experiments.torch_exchange import torch_group
from blslib.lab.ranks.progress import report
from blslib.lab.results.records import Row, spread


@dataclass(frozen=True)
class TorchConfig:
    """One size of block: gloo, and "bls" with torch and without ("bare"), at every bound.

    Attributes:
        bytes_per_block: the mean over all pairs, a multiple of 8.
        even: every block of this size; otherwise every other one is half as large again, and its neighbour half.
    """

    bytes_per_block: int = 16384
    even: bool = True
    bounds: tuple[int, ...] = (0, 1, 4)
    repeats: int = 7


@dataclass(frozen=True)
class LoopConfig:
    """The DLRM loop of ``recommend`` over gloo and "bls"; fields as there."""

    scenario: str = "rotating"
    bounds: tuple[int, ...] = (0, 1, 4)
    iterations: int = 64
    repeats: int = 15


def run(comm: MPI.Intracomm, config: TorchConfig | LoopConfig) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    The time of a call is the slowest rank's whole loop, all waits included, over the number of calls; in the DLRM loop,
    that of a batch. Every contender ends with the blocks in one tensor of the caller's. Every block carries its
    iteration, which is checked there.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    return _loop(comm, config) if isinstance(config, LoopConfig) else _calls(comm, config)


def _calls(comm: MPI.Intracomm, config: TorchConfig) -> list[Row]:
    items = [Contender("gloo", 0), *(Contender(name, bound) for name in ("bls", "bare") for bound in config.bounds)]
    made = {item: _Caller(comm, item, config) for item in items}
    calls = {}
    for item, caller in made.items():  # gloo is so much slower that the same number would be a blink for the others
        caller.time_us(2 * (item.bound + 1))
        calls[item] = int(np.clip(TARGET_S * 1e6 / caller.time_us(LEAST_CALLS), LEAST_CALLS, MOST_CALLS))
    times_us: dict[Contender, list[float]] = {item: [] for item in items}
    for step, item in enumerate(interleaved(config.repeats, items)):
        report(step, config.repeats * len(items))
        times_us[item].append(made[item].time_us(calls[item]))
    for caller in made.values():
        caller.close()
    what = {"what": "all_to_all_single", "bytes_per_block": config.bytes_per_block, "even": config.even}
    gloo_us = times_us[items[0]]
    return [
        _row(comm, item, what, np.divide(gloo_us, found_us)) | spread("time_us", found_us)
        for item, found_us in times_us.items()
    ]


def _row(comm: MPI.Intracomm, item: Contender, what: Row, speedups: np.ndarray) -> Row:
    who = {"contender": item.name, "bound": item.bound, "ranks": comm.size, "repeats": len(speedups)}
    return what | who | spread("speedup_over_gloo", speedups)


class _Caller:
    """One contender in its timed loop, with all its buffers made once."""

    def __init__(self, comm: MPI.Intracomm, item: Contender, config: TorchConfig) -> None:
        self._comm, self.bound = comm, item.bound
        rank, size, mean = comm.rank, comm.size, config.bytes_per_block // 4

        def items_of(source: int, to: int) -> int:
            return mean if config.even else mean + (mean // 2 if (source + to) % 2 else -(mean // 2))

        self._sent_counts = [items_of(rank, to) for to in range(size)]
        self._counts = [items_of(source, rank) for source in range(size)]
        self._sent = torch.arange(sum(self._sent_counts), dtype=torch.float32) % 8191
        self._outputs = [torch.empty(sum(self._counts)) for _ in range(item.bound + 1)]
        self._stamps = np.cumsum([0, *self._sent_counts[:-1]])
        self._arriving = np.cumsum([0, *self._counts[:-1]])
        self._exchange: BoundedLagAlltoallv | None = None
        slot_bytes = 4 * (mean if config.even else mean + mean // 2)
        if item.name == "bare":
            self._exchange = BoundedLagAlltoallv(
                comm, bound=item.bound, slot_bytes=slot_bytes, recv_counts=self._counts
            )
        else:
            self._group = torch_group(comm, item.name, item.bound, slot_bytes)
        self._splits = (None, None) if config.even else (self._counts, self._sent_counts)

    def time_us(self, calls: int) -> float:
        run = self._through_torch if self._exchange is None else self._bare
        self._wrong = self._next = 0
        self._comm.Barrier()
        started_s = time.perf_counter()
        run(calls)
        elapsed_s = time.perf_counter() - started_s
        if self._wrong or self._next != calls:
            raise RuntimeError(f"rank {self._comm.rank}: {self._wrong} wrong blocks, {self._next} of {calls} arrivals")
        return self._comm.allreduce(elapsed_s, op=MPI.MAX) / calls * 1e6

    def _through_torch(self, calls: int) -> None:
        """As a program would: at most ``bound`` works under way, taken in order."""
        sent, stamped, bound = self._sent, self._sent.numpy(), self.bound
        out_splits, in_splits = self._splits
        under_way: deque[Any] = deque()
        for i in range(calls):
            stamped[self._stamps] = i
            output = self._outputs[i % len(self._outputs)]
            work = dist.all_to_all_single(output, sent, out_splits, in_splits, self._group, async_op=bound > 0)
            under_way.append(work)
            if i >= bound:
                self._look(under_way.popleft())
        while under_way:
            self._look(under_way.popleft())

    def _look(self, work: Any) -> None:
        if work is not None:
            work.wait()
        output = self._outputs[self._next % len(self._outputs)].numpy()
        self._wrong += int((output[self._arriving] != self._next).sum())
        self._next += 1

    def _bare(self, calls: int) -> None:
        assert self._exchange is not None
        stamped = self._sent.numpy()
        blocks = tuple(np.split(stamped, self._stamps[1:]))
        for i in range(calls):
            stamped[self._stamps] = i
            self._copy(self._exchange.post(blocks))
        self._copy(self._exchange.drain())

    def _copy(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            output = self._outputs[self._next % len(self._outputs)].numpy()
            np.concatenate(arrival.blocks, out=output)
            self._look(None)

    def close(self) -> None:
        end: Callable[[], None] = self._group.shutdown if self._exchange is None else self._exchange.close
        end()


def _loop(comm: MPI.Intracomm, config: LoopConfig) -> list[Row]:
    sizes: dict[str, Any] = {"bounds": config.bounds, "iterations": config.iterations, "repeats": config.repeats}
    names = {"mpi": "mpi", "gloo": "gloo", "torch": "bls", "bls": "bare"}  # there, and here
    found = recommend.run(comm, recommend.RecommendConfig(config.scenario, names=tuple(names), **sizes))
    speedups = [np.array(row["speedups"].split(), float) for row in found]  # over MPI, by repeat
    (gloo,) = [over_mpi for row, over_mpi in zip(found, speedups, strict=True) if row["contender"] == "gloo"]
    what = {"what": f"dlrm {config.scenario}", "bytes_per_block": None, "even": None}
    return [
        _row(comm, Contender(names[row["contender"]], row["bound"]), what, over_mpi / gloo)
        | {name.replace("iteration_s", "time_us"): row[name] * 1e6 for name in row if name.startswith("iteration_s")}
        for row, over_mpi in zip(found, speedups, strict=True)
    ]
