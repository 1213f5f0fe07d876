"""torch's all_to_all_single over bls and over gloo, with up to k in flight, beside bls without torch ("bls").

In iteration i rank i mod P sleeps before it posts. A program that keeps k requests of gloo in flight lags by k already;
this, and no synchronous program, is what the backend has to beat.

=================  ===================================================================================================
speedup_over_gloo  over gloo with one request at a time: what gloo has of it is the gain of changing the program alone
gain_over_gloo     over gloo with as many requests in flight: what the backend adds
expected_gain      the same by the max-plus law, for sleeps as long as they are here and a call that costs each what it
                   was measured to without any sleep
=================  ===================================================================================================

What is expected assumes that a call is its rank's own work altogether, which no lag hides, and never gets cheaper. With
bls it is, but gloo has threads, which move blocks while their rank sleeps, and find its core free then. Gloo may
therefore be quicker than assumed: take what is expected for the most that the backend can add.
"""

import time
from dataclasses import dataclass

from blslib.collective.mpi import MPI
from blslib.lab.compare.loop import LEAST_CALLS, MOST_CALLS
from blslib.lab.compare.run import delaying
from blslib.lab.experiments import alltoallv
from blslib.lab.options import Given, Row, number, settings, several

COLUMNS = "contender bound ranks bytes_per_block delay_ms time_us speedup_over_gloo gain_over_gloo expected_gain repeats"  # fmt: skip # noqa: E501
DELAY = number(float, "milliseconds from 0 to 1000", lambda value: 0 <= value <= 1000)
DELAYS = {"type": several(DELAY), "metavar": "MS,...", "default": "0,0.2,1,5", "help": "sleeps, 0 always (%(default)s)"}
OPTIONS = alltoallv.OPTIONS | {"delays-ms": DELAYS}


@dataclass(frozen=True)
class Config(alltoallv.Config):
    """One size of block, at every bound with every delay.

    Attributes:
        delays_ms: slept by rank i mod P in iteration i. Without any is measured first, also if 0 is not among them.
    """

    delays_ms: tuple[float, ...] = (0.0, 0.2, 1.0, 5.0)
    names: tuple[str, ...] = ("gloo", "torch", "bls")
    bounds: tuple[int, ...] = (0, 1, 4)
    repeats: int = 7


def plan(given: Given) -> list[Config]:
    """One configuration for each size."""
    chosen = settings(given, {"bounds": (0, 4), "repeats": 3})
    return [Config(size, delays_ms=given.delays_ms, **chosen) for size in given.bytes or (256, 16384, 262144)]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Measure, as ``alltoallv`` does, delay after delay. Collective; the rows are on every rank.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    rows: list[Row] = []
    for delay_ms in dict.fromkeys((0.0, *config.delays_ms)):
        sleep = delaying(comm, "rotating", MOST_CALLS + comm.size, delay_ms / 1000 / comm.size, config.seed)
        started_s = time.perf_counter()
        for i in range(LEAST_CALLS):
            sleep(i)
        slept_us = 1e6 * comm.allreduce(time.perf_counter() - started_s) / LEAST_CALLS  # one rank sleeps in each
        found = alltoallv.run(comm, config, sleep)
        rows += [{"delay_ms": delay_ms, **row, "slept_us": slept_us} for row in found]
    return rows
