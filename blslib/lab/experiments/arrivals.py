"""Every contender where ranks come at different times: its time over what the max-plus law allows.

===========  ==========================================================================================================
balanced     all ranks work equally long
rotating     one rank at a time is late, in turn
wandering    any rank may be late, at random (bernoulli)
permanent    the last rank is always late
gather-like  all work equally long, and send to rank 0 alone: the case in which a barrier before it makes
             MPI_Alltoallv quicker (open-mpi/ompi#3255)
===========  ==========================================================================================================
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blslib.lab.experiments import delayed
from blslib.lab.options import BYTES, Given, Row, names, settings

if TYPE_CHECKING:
    from mpi4py import MPI

PATTERNS = {"balanced": "none", "rotating": "rotating", "wandering": "bernoulli", "permanent": "permanent",
            "gather-like": "none"}  # fmt: skip
"""By name, the law of delay."""

COLUMNS = "pattern contender bound ranks bytes_per_block measured_s ratio speedup lag_effect transfer"
OPTIONS = {"bytes": BYTES, "patterns": names(PATTERNS, "PATTERN")}


@dataclass(frozen=True)
class Config(delayed.Config):
    """One pattern of arrivals; else as ``delayed.Config``. Work and delays are sleeps."""

    pattern: str = "balanced"
    mean_delay_s: float = 1e-3
    base_s: float = 1e-3
    names: tuple[str, ...] = ("mpi", "mpi-barrier", "mpi-equal", "bls", "window", "gloo")
    bounds: tuple[int, ...] = (0, 1, 4)


def plan(given: Given) -> list[Config]:
    """One configuration for each pattern and size."""
    chosen = settings(given, {"repeats": 2, "iterations": 40})
    return [
        Config(pattern=pattern, bytes_per_block=size, **chosen)
        for pattern in given.patterns or PATTERNS
        for size in given.bytes or (16384,)
    ]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure. Collective; the rows are on every rank.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    gather = config.pattern == "gather-like"
    kept = tuple(name for name in config.names if not (gather and name == "mpi-equal"))
    config = replace(config, law=PATTERNS[config.pattern], to_first=gather, names=kept)
    rows = delayed.run(comm, config)
    return [{"pattern": config.pattern, **{name: row[name] for name in row if name != "law"}} for row in rows]
