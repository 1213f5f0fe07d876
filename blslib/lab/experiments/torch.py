"""torch's all_to_all_single over bls and over gloo, with up to k in flight, beside bls without torch ("bls")."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blslib.lab.experiments import alltoallv
from blslib.lab.options import Given, Row, settings

if TYPE_CHECKING:
    from mpi4py import MPI

COLUMNS = "contender bound ranks bytes_per_block even time_us speedup_over_gloo memory_bytes repeats"
OPTIONS = alltoallv.OPTIONS


@dataclass(frozen=True)
class Config(alltoallv.Config):
    """One size of block, at every bound; with torch also where the first call was a small one.

    Attributes:
        bytes_per_block: the mean over all pairs, a multiple of 8.
        even: every block of this size; otherwise every other one is half as large again, and its neighbour half.
    """

    even: bool = True
    names: tuple[str, ...] = ("gloo", "torch", "torch-probed", "bls")
    bounds: tuple[int, ...] = (0, 1, 4)
    repeats: int = 7


def plan(given: Given) -> list[Config]:
    """One configuration for each size, even and uneven."""
    sizes = given.bytes or ((256, 16384, 262144) if given.quick else (256, 4096, 16384, 65536, 262144, 1048576))
    chosen = settings(given, {"repeats": 3})
    return [Config(size, even=even, **chosen) for even in (True, False) for size in sizes]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure, as ``alltoallv`` does. Collective; the rows are on every rank, beside gloo where it takes part.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    mean = config.bytes_per_block // 4
    more = 0 if config.even else mean // 2
    counts = [mean + (more if (comm.rank + peer) % 2 else -more) for peer in range(comm.size)]
    rows = alltoallv.measure(comm, config, counts, 4 * (mean + more))
    gloo_us = {row["repeat"]: row["time_us"] for row in rows if (row["contender"], row["bound"]) == ("gloo", 0)}
    for row in rows if gloo_us else ():
        row["speedup_over_gloo"] = gloo_us[row["repeat"]] / row["time_us"]
    return [{"even": config.even, **row} for row in rows]
