"""The two channels of the exchange side by side: all ranks on one host, and half of them on a second one over TCP."""

import time
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

from blslib.collective.waiting import complete
from blslib.lab.experiments import alltoallv as micro
from blslib.lab.experiments import delayed
from blslib.lab.rows import Row

DELAY_S = 5e-3
"""Of one rank at a time, going round: long against a call, so that it shows what lag masks."""

_NAMES = ("mpi", "bls", "messages", "window")


@dataclass(frozen=True)
class HostsConfig:
    """One block size: single calls without delays, then a delay that rotates over the ranks.

    Attributes:
        ranks: P, even; on two hosts, half on each.
        bytes_per_block: of every block, a multiple of 4.
        iterations: of a run with delays.
    """

    ranks: int = 4
    bytes_per_block: int = 16384
    bounds: tuple[int, ...] = (0, 1, 4)
    repeats: int = 9
    iterations: int = 200


def run(comm: MPI.Intracomm, config: HostsConfig) -> list[Row]:
    """Measure. Collective over P ranks of one host and, behind them, P / 2 of another; the rows are on rank 0.

    Raises:
        RuntimeError: a block arrived with wrong contents.
        ValueError: the ranks are not laid out as above.
    """
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
            rows += _measure(part, config, hosts)
        part.Free()
        # Whoever does not take part stays off the cores until the others are done.
        complete(comm.Ibarrier(), "the measurement of the other ranks", 3600.0, lambda _: time.sleep(0.02))
    return rows


def _measure(comm: MPI.Intracomm, config: HostsConfig, hosts: int) -> list[Row]:
    shared: dict[str, Any] = {"bytes_per_block": config.bytes_per_block, "names": _NAMES, "bounds": config.bounds}
    calls = micro.run(comm, micro.MicroConfig(repeats=config.repeats, **shared))
    shared |= {"law": "rotating", "mean_delay_s": DELAY_S / comm.size, "iterations": config.iterations}
    runs = delayed.run(comm, delayed.DelayedConfig(repeats=max(1, config.repeats // 3), **shared))
    rows = []
    for call, waited in zip([row for row in calls if not row["copied_out"]], runs, strict=True):
        names = {"bls": "ring" if hosts == 1 else "mixed"}
        rows.append(
            {"hosts": hosts, **call, "contender": names.get(call["contender"], call["contender"])}
            | {f"delayed_{name}": value for name, value in waited.items() if name.startswith("ratio")}
        )
    return rows
