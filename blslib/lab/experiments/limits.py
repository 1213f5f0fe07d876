"""What no bound can do, and what bounds would do far beyond this machine: runs of the max-plus model, nothing live.

An iteration is a constant piece of work plus a delay; the exchange costs nothing. Times are those of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blslib.collective.layout import Layout
from blslib.lab.options import Row
from blslib.theory.delays import Constant, Law
from blslib.theory.maxplus import makespans, times


@dataclass(frozen=True)
class Config:
    """One law of delay, over numbers of ranks and bounds.

    Attributes:
        name: of the law, for rows and figures.
        delay: of every rank and iteration, in seconds.
        work_s: of every rank and iteration, before the delay.
        iterations: N of each run.
    """

    name: str
    delay: Law
    ranks: tuple[int, ...] = (2, 4, 8, 32, 128, 1024, 10_000, 100_000)
    bounds: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128)
    iterations: int = 500
    work_s: float = 2e-3
    seed: int = 1

    @property
    def law(self) -> Law:
        """Of a rank's whole time in an iteration: the work, then the delay."""
        return Constant(self.work_s) + self.delay


def run(config: Config) -> list[Row]:
    """Run the model: all bounds at once, the work drawn as it is needed, in O(P) memory for each bound.

    Returns:
        A row for each number of ranks and bound; ``limit_s`` is the time of a run in which nobody ever waits.
    """
    rows = []
    for ranks in config.ranks:
        columns = config.law.columns(np.random.default_rng(config.seed), ranks, config.iterations)
        *predicted_s, limit_s = makespans(columns, (*config.bounds, config.iterations))
        common = {"law": config.name, "ranks": ranks, "iterations": config.iterations, "limit_s": float(limit_s)}
        rows += [
            {**common, "bound": bound, "predicted_s": float(seconds)}
            for bound, seconds in zip(config.bounds, predicted_s, strict=True)
        ]
    return rows


def saved(config: Config) -> list[Row]:
    """How much earlier each iteration is complete everywhere than it would be without lag, on the first of ``ranks``.

    Returns:
        A row for each iteration and bound above 0.
    """
    work_s = config.law.matrix(np.random.default_rng(config.seed), config.ranks[0], config.iterations)
    complete_s = {bound: times(work_s, bound).entered_s.max(axis=0) for bound in (0, *config.bounds)}
    return [
        {"law": config.name, "ranks": config.ranks[0], "bound": bound, "iteration": i, "saved_s": float(seconds)}
        for bound in config.bounds
        if bound
        for i, seconds in enumerate(complete_s[0] - complete_s[bound])
    ]


def needed(rows: Sequence[Row], *, within: float = 0.05, slot_bytes: int = 16384) -> list[Row]:
    """The smallest bound that comes close to the limit, for each law and number of ranks.

    Args:
        rows: of ``run``.
        within: how close, as a share of the limit.
        slot_bytes: of one block, for the memory of a rank's slots at that bound.

    Returns:
        Rows in which bound and memory are None where no bound that was tried comes so close.
    """
    import pandas as pd

    found = []
    for (law, ranks), group in pd.DataFrame(rows).groupby(["law", "ranks"], sort=False):
        close = group.loc[group["predicted_s"] <= (1 + within) * group["limit_s"], "bound"]
        bound = int(close.min()) if len(close) else None
        memory = None if bound is None else Layout(ranks, bound, slot_bytes).ring_bytes
        found.append({"law": law, "ranks": ranks, "within": within, "bound": bound, "memory_bytes": memory})
    return found
