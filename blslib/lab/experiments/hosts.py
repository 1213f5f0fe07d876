"""The channels on one host and on two, which are made of network namespaces (needs root), and with delays."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blslib.lab.options import BYTES, Given, Row, settings

if TYPE_CHECKING:
    from mpi4py import MPI

COLUMNS = "hosts contender bound ranks bytes_per_block time_us share_of_mpi delayed_ratio repeats"
OPTIONS = {"bytes": BYTES}
TWO_HOSTS = True

DELAY_S = 5e-3
"""Of one rank at a time, going round: long against a call, so that it shows what lag masks."""


@dataclass(frozen=True)
class Config:
    """One block size: single calls without delays, then a delay that rotates over the ranks.

    Attributes:
        ranks: P, even; on two hosts, half on each.
        bytes_per_block: of every block, a multiple of 4.
        iterations: of a run with delays.
    """

    ranks: int = 4
    bytes_per_block: int = 16384
    names: tuple[str, ...] = ("mpi", "bls", "messages", "window")
    bounds: tuple[int, ...] = (0, 1, 4)
    repeats: int = 7
    budget_s: float = 0.0
    iterations: int = 100
    seed: int = 1


def plan(given: Given) -> list[Config]:
    """One configuration for each size."""
    chosen = settings(given, {"bounds": (0, 4), "repeats": 3, "iterations": 60})
    return [Config(given.ranks, size, **chosen) for size in given.bytes or (16384,)]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure. Collective over P ranks of one host and, behind them, P / 2 of another; the rows are on rank 0.

    Raises:
        RuntimeError: a block arrived with wrong contents.
        ValueError: the ranks are not laid out as above.
    """
    from mpi4py import MPI

    from blslib.collective.waiting import complete

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = comm.bcast(node.size)
    node.Free()
    if (comm.size, first) != (config.ranks * 3 // 2, config.ranks):
        raise ValueError(f"{config.ranks} ranks on one host and half as many on another are needed, got {comm.size}")
    rows: list[Row] = []
    for hosts in (1, 2):
        mine = comm.rank < config.ranks // 2 or (comm.rank < config.ranks) == (hosts == 1)
        part: Any = comm.Split(int(mine))
        if mine:
            rows += [{"hosts": hosts, **row} for row in _measure(part, config)]
        part.Free()
        # Whoever does not take part stays off the cores until the others are done.
        complete(comm.Ibarrier(), "the measurement of the other ranks", 3600.0, lambda _: time.sleep(0.02))
    return rows


def _measure(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    from blslib.lab.experiments import alltoallv, delayed

    shared: dict[str, Any] = {"bytes_per_block": config.bytes_per_block, "names": config.names, "seed": config.seed}
    shared |= {"bounds": config.bounds, "repeats": config.repeats, "budget_s": config.budget_s}
    calls = alltoallv.run(comm, alltoallv.Config(**shared))
    shared |= {"law": "rotating", "mean_delay_s": DELAY_S / comm.size, "iterations": config.iterations}
    runs = delayed.run(comm, delayed.Config(**shared))
    return [
        {**call, "delayed_ratio": waited["measured_s"] / waited["predicted_s"]}
        for call, waited in zip(calls, runs, strict=True)
    ]
