"""Medians, and how sure of them one can be."""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

JUDGED = 4
"""The bound at which lag is judged, fixed beforehand: the best of those measured would mistake luck for gain."""

LEAST = 7
"""Repeats below which an interval is none, and a verdict inconclusive."""


class Interval(NamedTuple):
    """A median and its 95 % confidence interval."""

    median: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """Of a row: what is in the middle by this name, and the ends beside it."""
        return {name: self.median, f"{name}_low": self.low, f"{name}_high": self.high}


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The median of independent values and its 95 % interval, from order statistics.

    Between the j-th value from below and the j-th from above lies the median with a probability that depends on the
    number of values alone, whatever their law, but jumps with j; Hettmansperger and Sheather (Statistics and
    Probability Letters 4, 1986) interpolate between neighbours. Of five values or fewer no such interval reaches 95 %:
    then it is from the least to the greatest.

    Raises:
        ValueError: there are no values.
    """
    found = np.sort(np.asarray(values, dtype=np.float64))
    count = len(found)
    if not count:
        raise ValueError("an interval needs at least one value, got none")

    def covered(j: int) -> float:
        return 1 - 2 * sum(comb(count, i) for i in range(j)) / 2**count

    outer = max([j for j in range(1, count // 2 + 1) if covered(j) >= 0.95], default=0)
    if not outer or count < 3:
        return Interval(float(np.median(found)), float(found[0]), float(found[-1]))
    share = (covered(outer) - 0.95) / (covered(outer) - covered(outer + 1))
    weight = (count - outer) * share / (outer + (count - 2 * outer) * share)
    low = (1 - weight) * found[outer - 1] + weight * found[outer]
    high = (1 - weight) * found[count - outer] + weight * found[count - outer - 1]
    return Interval(float(np.median(found)), float(low), float(high))
