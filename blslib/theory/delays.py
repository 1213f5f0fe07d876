"""Laws of time: how long rank r takes, or how much longer, in iteration i. Seeded: contenders meet the same times.

A law is a frozen object. It draws whole runs as a (P, N) matrix, or streams them column by column for runs that do not
fit into memory; ``+`` composes laws, ``Constant(2e-3) + Exponential(1e-3)``. Every law knows the mean of each rank,
hence whether the imbalance that it makes is static (ranks differ in their means, which no lag can mask) or dynamic (it
changes, which lag can).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import repeat

import numpy as np

# What a field of a law has to be: in words, and as a test.
_TIME = {"rule": "a time >= 0", "holds": lambda value: value >= 0}
_SHARE = {"rule": "between 0 and 1", "holds": lambda value: 0 <= value <= 1}
_CHANCE = {"rule": "above 0 and up to 1", "holds": lambda value: 0 < value <= 1}
_SHAPE = {"rule": "> 1, below which there is no mean", "holds": lambda value: value > 1}


@dataclass(frozen=True)
class Law:
    """A law of time; subclasses say their means and, unless each rank always takes its mean, how they are drawn: as a
    ``matrix`` or in ``columns``, each of which is made of the other where a law has one alone."""

    varies = True
    """Whether a rank's time changes from iteration to iteration."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.metadata and not each.metadata["holds"](getattr(self, each.name)):
                raise ValueError(f"{each.name} is {each.metadata['rule']}, got {getattr(self, each.name)}")

    def matrix(self, rng: np.random.Generator, ranks: int, iterations: int) -> np.ndarray:
        """(P, N) float64 seconds."""
        return np.array(list(self.columns(rng, ranks, iterations))).reshape(iterations, ranks).T.copy()

    def columns(self, rng: np.random.Generator, ranks: int, iterations: int) -> Iterator[np.ndarray]:
        """N arrays (P,) float64 of seconds to be read, not written; one iteration each: a run in O(P) memory.

        The law is that of ``matrix``, the numbers are others: they are drawn in another order.
        """
        if not self.varies:
            return repeat(self.means_s(ranks), iterations)
        # Right where iterations do not depend on each other; the other laws draw columns.
        return (self.matrix(rng, ranks, 1)[:, 0] for _ in range(iterations))

    def means_s(self, ranks: int) -> np.ndarray:
        """(P,) float64, the mean time of each rank. Its greatest is the time per iteration that no bound can beat."""
        raise NotImplementedError

    def imbalance(self, ranks: int) -> str:
        """One of "none", "static", "dynamic" and "static and dynamic"."""
        means = self.means_s(ranks)
        kinds = ["static"] * bool(np.ptp(means) > 0) + ["dynamic"] * (ranks > 1 and self.varies and bool(means.any()))
        return " and ".join(kinds) or "none"

    def __add__(self, other: "Law") -> "Sum":
        return Sum(self, other)


@dataclass(frozen=True)
class _OfMean(Law):
    """Every rank has the mean ``each_s``."""

    each_s: float = field(metadata=_TIME)

    def means_s(self, ranks: int) -> np.ndarray:
        return np.full(ranks, self.each_s, np.float64)


@dataclass(frozen=True)
class _OfDelay(Law):
    """A rank is delayed by ``delay_s``, or not."""

    delay_s: float = field(metadata=_TIME)


@dataclass(frozen=True)
class Constant(_OfMean):
    """The same on every rank, always."""

    varies = False


@dataclass(frozen=True)
class Bernoulli(_OfDelay):
    """``delay_s`` with a probability, else nothing."""

    probability: float = field(default=0.1, metadata=_SHARE)

    def matrix(self, rng: np.random.Generator, ranks: int, iterations: int) -> np.ndarray:
        return self.delay_s * (rng.random((ranks, iterations)) < self.probability)

    def means_s(self, ranks: int) -> np.ndarray:
        return np.full(ranks, self.delay_s * self.probability)


@dataclass(frozen=True)
class Exponential(_OfMean):
    """Exponentially distributed."""

    def matrix(self, rng: np.random.Generator, ranks: int, iterations: int) -> np.ndarray:
        return rng.exponential(self.each_s, (ranks, iterations))


@dataclass(frozen=True)
class Pareto(_OfMean):
    """Pareto, a heavy tail: exceeds x with a probability in proportion to x to the power of -``shape``."""

    shape: float = field(default=2.5, metadata=_SHAPE)

    def matrix(self, rng: np.random.Generator, ranks: int, iterations: int) -> np.ndarray:
        least_s = self.each_s * (self.shape - 1) / self.shape
        return least_s * (1 + rng.pareto(self.shape, (ranks, iterations)))


@dataclass(frozen=True)
class Bursts(_OfDelay):
    """A Markov chain per rank: ``delay_s`` in every iteration of a burst, nothing between bursts.

    ``start`` and ``stop`` are the probabilities that a burst begins, or ends, from one iteration to the next: bursts
    last ``1/stop`` iterations in the mean, and a rank is in one for ``start / (start + stop)`` of the time.
    """

    start: float = field(default=1 / 90, metadata=_CHANCE)
    stop: float = field(default=0.1, metadata=_CHANCE)

    def columns(self, rng: np.random.Generator, ranks: int, iterations: int) -> Iterator[np.ndarray]:
        inside = rng.random(ranks) < self.start / (self.start + self.stop)
        for _ in range(iterations):
            yield self.delay_s * inside
            drawn = rng.random(ranks)
            inside = np.where(inside, drawn >= self.stop, drawn < self.start)

    def means_s(self, ranks: int) -> np.ndarray:
        return np.full(ranks, self.delay_s * self.start / (self.start + self.stop))


@dataclass(frozen=True)
class Rotating(_OfDelay):
    """``delay_s`` on rank i mod P in iteration i: the case that lag masks altogether."""

    def columns(self, rng: np.random.Generator, ranks: int, iterations: int) -> Iterator[np.ndarray]:
        return (self.delay_s * (np.arange(ranks) == i % ranks) for i in range(iterations))

    def means_s(self, ranks: int) -> np.ndarray:
        return np.full(ranks, self.delay_s / ranks)


@dataclass(frozen=True)
class Permanent(_OfDelay):
    """``delay_s`` always, on the ranks named alone (-1 is the last): the case that no lag can mask."""

    on: tuple[int, ...] = (-1,)
    varies = False

    def means_s(self, ranks: int) -> np.ndarray:
        means_s = np.zeros(ranks)
        if wrong := [rank for rank in self.on if not -ranks <= rank < ranks]:
            raise ValueError(f"on names ranks {wrong}, of which there are {ranks}: choose from {-ranks} to {ranks - 1}")
        means_s[list(self.on)] = self.delay_s
        return means_s


@dataclass(frozen=True)
class Sum(Law):
    """One after the other."""

    first: Law
    second: Law

    @property
    def varies(self) -> bool:  # type: ignore[override]
        return self.first.varies or self.second.varies

    def columns(self, rng: np.random.Generator, ranks: int, iterations: int) -> Iterator[np.ndarray]:
        return map(np.add, self.first.columns(rng, ranks, iterations), self.second.columns(rng, ranks, iterations))

    def matrix(self, rng: np.random.Generator, ranks: int, iterations: int) -> np.ndarray:
        return self.first.matrix(rng, ranks, iterations) + self.second.matrix(rng, ranks, iterations)

    def means_s(self, ranks: int) -> np.ndarray:
        return self.first.means_s(ranks) + self.second.means_s(ranks)


LAWS: dict[str, Callable[[float, int], Law]] = {
    "none": lambda mean_s, ranks: Constant(0.0),
    "bernoulli": lambda mean_s, ranks: Bernoulli(10 * mean_s, 0.1),
    "exponential": lambda mean_s, ranks: Exponential(mean_s),
    "rotating": lambda mean_s, ranks: Rotating(ranks * mean_s),
    "permanent": lambda mean_s, ranks: Permanent(ranks * mean_s),
    "pareto": lambda mean_s, ranks: Pareto(mean_s),
    "bursts": lambda mean_s, ranks: Bursts(10 * mean_s),
}
"""By name, from a mean over all ranks and iterations and the number of ranks P:

===========  ===================================================================================================
none         no delay
bernoulli    ten times the mean, with probability 0.1, else nothing: rare and long
exponential  exponentially distributed
rotating     P times the mean, on rank i mod P in iteration i
permanent    P times the mean, always on the last rank: the one that no bound can mask
pareto       Pareto with shape 2.5: a heavy tail
bursts       ten times the mean in bursts of ten iterations in the mean, a tenth of the time
===========  ===================================================================================================
"""


def named(law: str, mean_s: float, ranks: int) -> Law:
    """The law of a name in ``LAWS``, with a mean over all ranks and iterations of ``mean_s`` (or 0 for "none").

    Raises:
        ValueError: no such law.
    """
    if law not in LAWS:
        raise ValueError(f"no delay law {law!r}: choose from {', '.join(LAWS)}")
    return LAWS[law](mean_s, ranks)


def delays(law: str, ranks: int, iterations: int, mean_s: float, seed: int) -> np.ndarray:
    """(P, N) float64 seconds of delay by a law of ``LAWS``; the mean over all ranks and iterations is ``mean_s``.

    Raises:
        ValueError: no such law.
    """
    return named(law, mean_s, ranks).matrix(np.random.default_rng(seed), ranks, iterations)
