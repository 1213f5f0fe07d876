"""Which rows are looked up: a law that draws ids, repeatable from (seed, table, iteration) alone.

It keeps no state, so any rank can draw any table's ids by itself and gets the same as every other rank would.
"""

from dataclasses import dataclass
from math import gcd, inf
from typing import NamedTuple

import numpy as np

IDS, DENSE, LENGTHS, ROWS = range(4)
"""Purposes of random numbers; each has streams of its own, so that draws for one do not correlate with another's."""


class Key(NamedTuple):
    """What a draw depends on."""

    seed: int
    table: int
    iteration: int

    def rng(self, purpose: int = IDS) -> np.random.Generator:
        """The generator of this key and purpose."""
        return np.random.default_rng((self.seed, purpose, self.table, self.iteration))


def scatter(index: np.ndarray, count: int, seed: int, table: int) -> np.ndarray:
    """Permute [0, count) without storing the permutation, so that neighbours land far apart.

    Each lands a golden section of the range behind the one before it, as in Fibonacci hashing.

    Args:
        index: int64 values in [0, count).
        count: size of the range, below 2**31.
        seed, table: say where the first one lands.

    Returns:
        int64 array of the same shape.
    """
    step = round(count * 0.618) or 1
    while gcd(step, count) > 1:  # only a step without a common factor visits everything
        step += 1
    return (index * step + np.random.default_rng((seed, ROWS, table)).integers(count)) % count


@dataclass(frozen=True)
class Zipf:
    """The row of popularity rank r = 1..rows is drawn with a weight of r**-exponent; 0 is uniform.

    Popular rows are scattered over the table, elsewhere for each seed and table, so that they share no pages.

    Raises:
        ValueError: the exponent is neither 0 nor above 1.
    """

    exponent: float

    def __post_init__(self) -> None:
        if self.exponent != 0 and not 1 < self.exponent < inf:
            raise ValueError(f"a Zipf exponent is 0, which is uniform, or a number above 1, got {self.exponent}")

    def __str__(self) -> str:
        return f"Zipf {self.exponent:g}" if self.exponent else "uniform"

    def draw(self, rows: int, size: int, key: Key) -> np.ndarray:
        """(size,) int64 ids in [0, rows)."""
        rng = key.rng()
        if self.exponent == 0:
            return rng.integers(rows, size=size)
        rank = np.empty(0, dtype=np.int64)
        while len(rank) < size:  # the law has no end; what lies beyond the table is drawn again
            drawn = rng.zipf(self.exponent, size)
            rank = np.concatenate([rank, drawn[drawn <= rows]])
        return scatter(rank[:size] - 1, rows, key.seed, key.table)


UNIFORM = Zipf(0.0)
"""Every row alike."""
