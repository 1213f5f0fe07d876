"""What torch adds: ``all_to_all_single`` over the backend ``"bls"``, over gloo, and the same exchange without torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from blslib.lab.compare.measure import Contender, contenders, exchanges, interleaved
from blslib.lab.experiments import dlrm as recommend
from blslib.lab.experiments.alltoallv import Loop
from blslib.lab.rows import Row, spread

_NAMES = {"mpi": "mpi", "gloo": "gloo", "torch": "bls", "torch-probed": "bls-probed", "bls": "bare"}
"""What the contenders of ``measure`` are called in this table, which is about torch."""


@dataclass(frozen=True)
class TorchConfig:
    """One size of block: gloo, and "bls" with torch and without ("bare"), at every bound; with torch also where the
    first call was a small one.

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
    that of a batch. Every contender ends with the blocks in one buffer of the caller's. Every block carries its
    iteration, which is checked on arrival.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    return _loop(comm, config) if isinstance(config, LoopConfig) else _calls(comm, config)


def _calls(comm: MPI.Intracomm, config: TorchConfig) -> list[Row]:
    items = contenders(("gloo", "torch", "torch-probed", "bls"), config.bounds)
    mean = config.bytes_per_block // 4
    more = 0 if config.even else mean // 2
    counts = [mean + (more if (comm.rank + peer) % 2 else -more) for peer in range(comm.size)]
    loop = Loop(comm, counts)
    with exchanges(comm, items, counts, counts, 4 * (mean + more)) as made:
        # gloo is so much slower that the same number of calls would be a blink for the others.
        calls = {item: loop.calls(made[item]) for item in items}

        def once(item: Contender) -> float:
            # What torch receives lies in one tensor already.
            return loop.time_us(made[item], calls[item], copy=item.name == "bls")

        times_us = interleaved(config.repeats, items, once)
    what = {"what": "all_to_all_single", "bytes_per_block": config.bytes_per_block, "even": config.even}
    gloo_us = times_us[Contender("gloo", 0)]
    return [
        _row(comm, item, what, np.divide(gloo_us, found_us)) | spread("time_us", found_us)
        for item, found_us in times_us.items()
    ]


def _row(comm: MPI.Intracomm, item: Contender, what: Row, speedups: np.ndarray) -> Row:
    who = {"contender": _NAMES[item.name], "bound": item.bound, "ranks": comm.size, "repeats": len(speedups)}
    return what | who | spread("speedup_over_gloo", speedups)


def _loop(comm: MPI.Intracomm, config: LoopConfig) -> list[Row]:
    sizes: dict[str, Any] = {"bounds": config.bounds, "iterations": config.iterations, "repeats": config.repeats}
    found = recommend.run(
        comm, recommend.RecommendConfig(config.scenario, names=("mpi", "gloo", "torch", "bls"), **sizes)
    )
    speedups = [np.array(row["speedups"].split(), float) for row in found]  # over MPI, by repeat
    (gloo,) = [over_mpi for row, over_mpi in zip(found, speedups, strict=True) if row["contender"] == "gloo"]
    what = {"what": f"dlrm {config.scenario}", "bytes_per_block": None, "even": None}
    return [
        _row(comm, Contender(row["contender"], row["bound"]), what, over_mpi / gloo)
        | {name.replace("iteration_s", "time_us"): row[name] * 1e6 for name in row if name.startswith("iteration_s")}
        for row, over_mpi in zip(found, speedups, strict=True)
    ]
