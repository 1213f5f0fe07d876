"""Which rows are looked up: laws that draw ids, each repeatable from (seed, table, iteration) alone.

A law keeps no state, so any rank can draw any table's ids by itself and gets the same as every other rank would.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

IDS, DENSE, LENGTHS, ROWS, CARDS = range(5)
"""Purposes of random numbers; each has streams of its own, so that draws for one do not correlate with another's."""


class Key(NamedTuple):
    """What a draw depends on."""

    seed: int
    table: int
    iteration: int

    def rng(self, purpose: int = IDS) -> np.random.Generator:
        """The generator of this key and purpose."""
        return np.random.default_rng((self.seed, purpose, self.table, self.iteration))


class Skew(Protocol):
    """A law of lookups; ``str()`` of it names it in labels and captions."""

    def draw(self, rows: int, size: int, key: Key) -> np.ndarray:
        """(size,) int64 ids in [0, rows)."""


def scatter(index: np.ndarray, count: int, seed: int, table: int, purpose: int = ROWS) -> np.ndarray:
    """Permute [0, count) pseudo-randomly without storing the permutation.

    An unbalanced Feistel network over the next power of two; values that land outside are sent through again until they
    come back inside, which keeps it a bijection.

    Args:
        index: int64 values in [0, count).
        count: size of the range, at most 2**62.
        seed, table, purpose: choose the permutation.

    Returns:
        int64 array of the same shape.
    """
    bits = max(2, (count - 1).bit_length())
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
    # Odd factors and addends of 64 bits; the high half of a product is well mixed, so it is what a round uses.
    keys = np.random.default_rng((seed, purpose, table)).integers(1 << 63, size=(3, 2, 2), dtype=np.uint64)
    keys = keys * np.uint64(2) + np.uint64(1)
    value = index.astype(np.uint64)
    outside: np.ndarray | slice = slice(None)
    while True:
        part = value[outside]
        left, right = part >> low, part & low_mask
        for (factor, addend), (other_factor, other_addend) in keys:
            left ^= ((right * factor + addend) >> np.uint64(32)) * other_factor >> np.uint64(32) & high_mask
            right ^= ((left * other_factor + other_addend) >> np.uint64(32)) * factor >> np.uint64(32) & low_mask
        value[outside] = left << low | right
        outside = np.flatnonzero(value >= count)
        if not len(outside):
            return value.astype(np.int64)


_HEAD = 4096


@lru_cache(maxsize=256)
def _zipf_head(rows: int, exponent: float) -> tuple[np.ndarray, float]:
    """Weights of the first ``_HEAD`` ranks, summed up, and the weight of all the ranks behind them."""
    head = np.cumsum(np.arange(1, min(rows, _HEAD) + 1, dtype=np.float64) ** -exponent)
    low, high = _HEAD + 0.5, rows + 0.5
    if rows <= _HEAD:
        tail = 0.0
    elif exponent == 1:
        tail = float(np.log(high / low))
    else:
        tail = (high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent)
    return head, tail


@dataclass(frozen=True)
class Zipf:
    """The row of popularity rank r = 1..rows is drawn with a weight of r**-exponent; 0 is uniform.

    The first 4,096 ranks are drawn from their exact distribution. Behind them the sum is replaced by the integral of
    x**-exponent between half-integers, which is off by less than exponent * (exponent + 1) / (24 * 4096**2) of a row's
    weight. Popular rows are scattered over the table, differently for each seed and table, so that they share no pages.
    """

    exponent: float

    def __post_init__(self) -> None:
        if not (0 <= self.exponent < np.inf):
            raise ValueError(f"a Zipf exponent must be finite and not negative, got {self.exponent}: 0 is uniform")

    def __str__(self) -> str:
        return f"Zipf {self.exponent:g}" if self.exponent else "uniform"

    def draw(self, rows: int, size: int, key: Key) -> np.ndarray:
        """(size,) int64 ids in [0, rows)."""
        rng = key.rng()
        if self.exponent == 0:
            return rng.integers(rows, size=size)
        head, tail = _zipf_head(rows, self.exponent)
        weight = rng.random(size) * (head[-1] + tail)
        rank = np.searchsorted(head, weight, side="right")
        behind = np.flatnonzero(rank >= len(head))
        if len(behind):
            into, low, power = weight[behind] - head[-1], _HEAD + 0.5, 1 - self.exponent
            x = low * np.exp(into) if power == 0 else (low**power + power * into) ** (1 / power)
            # x lies in [4096.5, rows + 0.5) and is rounded to a rank counted from 1; clip guards the last edge.
            rank[behind] = np.clip(np.rint(x).astype(np.int64) - 1, 0, rows - 1)
        return scatter(rank, rows, key.seed, key.table)


UNIFORM = Zipf(0.0)
"""Every row alike."""
