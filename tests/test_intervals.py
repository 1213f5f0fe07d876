"""Intervals of the median: how often they hold it, and what they say of few values."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from blslib.lab.compare.intervals import LEAST, interval

SAMPLES = 10_000
"""Of each law and size; the standard error of a share near 95 % is then 0.2 %."""

LAWS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "lognormal": (lambda rng, count: rng.lognormal(size=(SAMPLES, count)), 1.0),
    "exponential": (lambda rng, count: rng.exponential(size=(SAMPLES, count)), math.log(2)),
    "pareto": (lambda rng, count: rng.pareto(1.5, size=(SAMPLES, count)), 2 ** (1 / 1.5) - 1),
}
"""Skewed values, and their median."""


@pytest.mark.parametrize("count", [LEAST, 15, 40])
@pytest.mark.parametrize("law", LAWS)
def test_of_100_intervals_94_to_97_hold_the_median(law: str, count: int) -> None:
    draw, median = LAWS[law]
    found = [interval(values) for values in draw(np.random.default_rng(3), count)]
    share = sum(low <= median <= high for _, low, high in found) / SAMPLES
    print(f"{law}, {count} repeats: {share:.1%}")
    assert 0.94 <= share <= 0.97


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], (3.0, 3.0, 3.0)),
        ([3.0, 1.0], (2.0, 1.0, 3.0)),
        ([5.0, 1.0, 2.0], (2.0, 1.0, 5.0)),
        ([2.0] * 9, (2.0, 2.0, 2.0)),
    ],
)
def test_few_values_and_equal_ones(values: list[float], expected: tuple[float, float, float]) -> None:
    assert interval(values) == pytest.approx(expected)


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one value, got none"):
        interval([])


@pytest.mark.parametrize("count", range(1, 60))
def test_the_median_lies_within_and_the_order_of_values_is_nothing(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    median, low, high = found = interval(values)
    assert values.min() <= low <= median <= high <= values.max()
    assert median == np.median(values)
    assert found == interval(values[::-1])


def test_more_values_make_it_narrower() -> None:
    found = [interval(np.linspace(1, 2, count)) for count in (5, 7, 15, 40, 200)]
    widths = [each.high - each.low for each in found]
    assert widths == sorted(widths, reverse=True)
