"""Laws of delay: how much longer rank r takes in iteration i. Seeded, so that every contender meets the same delays."""

from collections.abc import Callable

import numpy as np

Law = Callable[[np.random.Generator, int, int, float], np.ndarray]


def _none(rng: np.random.Generator, ranks: int, iterations: int, mean_s: float) -> np.ndarray:
    return np.zeros((ranks, iterations))


def _bernoulli(rng: np.random.Generator, ranks: int, iterations: int, mean_s: float) -> np.ndarray:
    return 10 * mean_s * (rng.random((ranks, iterations)) < 0.1)


def _exponential(rng: np.random.Generator, ranks: int, iterations: int, mean_s: float) -> np.ndarray:
    return rng.exponential(mean_s, (ranks, iterations))


def _rotating(rng: np.random.Generator, ranks: int, iterations: int, mean_s: float) -> np.ndarray:
    return ranks * mean_s * (np.arange(iterations)[None, :] % ranks == np.arange(ranks)[:, None])


def _permanent(rng: np.random.Generator, ranks: int, iterations: int, mean_s: float) -> np.ndarray:
    delays = np.zeros((ranks, iterations))
    delays[-1] = ranks * mean_s
    return delays


LAWS: dict[str, Law] = {
    "none": _none,
    "bernoulli": _bernoulli,
    "exponential": _exponential,
    "rotating": _rotating,
    "permanent": _permanent,
}
"""By name:

===========  ===================================================================================================
none         no delay
bernoulli    ten times the mean, with probability 0.1, else nothing: rare and long
exponential  exponentially distributed
rotating     P times the mean, on rank i mod P in iteration i
permanent    P times the mean, always on the last rank: the one that no bound can mask
===========  ===================================================================================================
"""


def delays(law: str, ranks: int, iterations: int, mean_s: float, seed: int) -> np.ndarray:
    """(P, N) float64 seconds of delay; the mean over all ranks and iterations is ``mean_s`` (or 0 for "none").

    Raises:
        ValueError: no such law.
    """
    if law not in LAWS:
        raise ValueError(f"no delay law {law!r}: choose from {', '.join(LAWS)}")
    return LAWS[law](np.random.default_rng(seed), ranks, iterations, mean_s)
