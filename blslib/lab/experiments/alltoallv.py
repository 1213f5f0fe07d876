"""One call of the exchange over block sizes: filled, exchanged, read, beside MPI in its strongest form and a floor.

``floor`` fills and reads the same blocks without any exchange; ``raw`` is a bare mpi4py loop, and ``mpi`` the same
behind our interface.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blslib.collective.mpi import MPI
from blslib.lab.compare.contest import Contender, contenders, exchanges, interleaved, lag_known, rows
from blslib.lab.compare.loop import LEAST_CALLS, Loop
from blslib.lab.options import BYTES, Given, Row, settings

COLUMNS = "contender bound ranks bytes_per_block time_us above_floor_us above_raw_us share_of_raw memory_bytes repeats"
OPTIONS = {"bytes": BYTES}


@dataclass(frozen=True)
class Config:
    """One block size, every contender at every bound.

    Attributes:
        bytes_per_block: of every block, a multiple of 4.
        repeats, budget_s: at least so many, and until lag's effect is known or so many seconds are spent.
    """

    bytes_per_block: int = 16384
    names: tuple[str, ...] = ("floor", "raw", "mpi", "mpi-equal", "bls", "bls-in-place", "window")
    bounds: tuple[int, ...] = (0, 1, 4, 16)
    repeats: int = 15
    budget_s: float = 20.0
    seed: int = 1


def plan(given: Given) -> list[Config]:
    """One configuration for each size."""
    sizes = given.bytes or ((256, 16384, 262144) if given.quick else tuple(4**n for n in range(3, 11)))
    return [Config(size, **settings(given, quick={"bounds": (0, 1, 4), "repeats": 7})) for size in sizes]


def run(comm: "MPI.Intracomm", config: Config, before_post: Callable[[int], None] | None = None) -> list[Row]:
    """Measure. Collective; the rows are on every rank. Every block is checked.

    Args:
        comm: of the ranks that exchange.
        config: what to measure.
        before_post: is called with each iteration first, though not by the bare loops.

    Raises:
        RuntimeError: a block arrived with wrong contents.
    """
    items, counts = contenders(config.names, config.bounds), [config.bytes_per_block // 4] * comm.size
    loop = Loop(comm, counts, counts)

    def warm_up(exchange: Any) -> None:
        loop.run(exchange, 2 * exchange.bound + LEAST_CALLS)

    with exchanges(comm, items, counts, counts, config.bytes_per_block, warm_up) as made:
        calls = {item: loop.calls(made[item], before_post) for item in items}

        def once(item: Contender) -> float:
            return loop.time_us(made[item], calls[item], before_post)

        found = interleaved(comm, items, once, config, lag_known(float))

    def measured(item: Contender, _: int, time_us: float) -> Row:
        return {"time_us": time_us, "calls": calls[item], "memory_bytes": made[item].memory_bytes}

    return rows(found, {"ranks": comm.size, "bytes_per_block": config.bytes_per_block}, measured)
