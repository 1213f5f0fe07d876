"""The laws of delay: their means, what they say of themselves, and closed forms against simulation."""

import itertools

import numpy as np
import pytest

from blslib.theory.delays import (
    LAWS,
    Bernoulli,
    Bursts,
    Constant,
    Exponential,
    Law,
    Pareto,
    Permanent,
    Rotating,
    delays,
    named,
)
from blslib.theory.maxplus import makespans


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_laws_have_their_mean(law, ranks):
    d = delays(law, ranks, 20_000, 2e-3, seed=1)
    assert d.shape == (ranks, 20_000)
    assert d.dtype == np.float64
    assert (d >= 0).all()
    assert d.mean() == (0 if law == "none" else pytest.approx(2e-3, rel=0.1))
    assert d.mean() == pytest.approx(named(law, 2e-3, ranks).means_s(ranks).mean(), rel=0.1)


@pytest.mark.parametrize("law", LAWS)
def test_laws_repeat(law):
    assert (delays(law, 3, 50, 1e-3, seed=4) == delays(law, 3, 50, 1e-3, seed=4)).all()
    if law not in ("none", "rotating", "permanent"):
        assert (delays(law, 3, 50, 1e-3, seed=4) != delays(law, 3, 50, 1e-3, seed=5)).any()


def test_what_the_laws_say():
    d = delays("bernoulli", 4, 10_000, 1e-3, seed=2)
    assert sorted(set(d.ravel())) == [0, 0.01]
    assert (d > 0).mean() == pytest.approx(0.1, abs=0.01)
    d = delays("rotating", 3, 7, 1e-3, seed=0)
    assert (d > 0).argmax(axis=0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert ((d > 0).sum(axis=0) == 1).all()
    assert d.max() == pytest.approx(3e-3)
    d = delays("permanent", 3, 7, 1e-3, seed=0)
    assert (d[:2] == 0).all()
    assert d[2].tolist() == pytest.approx([3e-3] * 7)
    d = delays("exponential", 2, 10_000, 1e-3, seed=3)
    assert np.median(d) == pytest.approx(1e-3 * np.log(2), rel=0.05)


def test_no_such_law():
    with pytest.raises(
        ValueError, match="no delay law 'gamma': choose from none, bernoulli, exponential, rotating, permanent"
    ):
        delays("gamma", 2, 2, 1e-3, seed=0)


SOME: dict[str, Law] = {
    "constant": Constant(0.5),
    "bernoulli": Bernoulli(2.0, 0.3),
    "exponential": Exponential(0.7),
    "pareto": Pareto(0.7, 3.5),
    "bursts": Bursts(2.0, start=0.2, stop=0.4),
    "rotating": Rotating(3.0),
    "permanent": Permanent(3.0, on=(0, -1)),
    "sum": Constant(0.2) + Exponential(0.5),
    "sum of three": Rotating(3.0) + Permanent(0.2) + Bernoulli(1.0),
}


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_rank_has_the_mean_it_says(name, ranks):
    law = SOME[name]
    whole = law.matrix(np.random.default_rng(1), ranks, 20_000)
    streamed = np.array(list(law.columns(np.random.default_rng(2), ranks, 20_000)))
    assert whole.shape == streamed.T.shape == (ranks, 20_000)
    assert whole.mean(axis=1) == pytest.approx(law.means_s(ranks), rel=0.05)
    assert streamed.mean(axis=0) == pytest.approx(law.means_s(ranks), rel=0.05)
    assert whole.std(axis=1) == pytest.approx(streamed.std(axis=0), rel=0.2, abs=1e-12)
    assert ranks == 1 or (whole.std(axis=1).max() > 1e-12) == law.varies


@pytest.mark.parametrize("name", SOME)
def test_closed_form_of_the_limit(name):
    law, ranks, iterations = SOME[name], 5, 6_000
    [free_s] = makespans(law.columns(np.random.default_rng(4), ranks, iterations), [iterations])
    assert free_s / iterations == pytest.approx(law.means_s(ranks).max(), rel=0.08)


def test_what_kind_of_imbalance_a_law_makes():
    kinds = {name: law.imbalance(4) for name, law in SOME.items()}
    assert kinds.pop("constant") == "none"
    assert kinds.pop("permanent") == "static"
    assert kinds.pop("sum of three") == "static and dynamic"
    assert set(kinds.values()) == {"dynamic"}
    assert Permanent(1.0).imbalance(1) == "none" == named("none", 1.0, 4).imbalance(4)
    assert Exponential(1.0).imbalance(1) == Exponential(0.0).imbalance(4) == "none"


def test_bursts_last():
    inside = Bursts(1.0, start=0.05, stop=0.25).matrix(np.random.default_rng(5), 2, 50_000)
    lengths = [len(list(run)) for row in inside for on, run in itertools.groupby(row) if on]
    assert np.mean(lengths) == pytest.approx(4, rel=0.05)
    assert inside.mean() == pytest.approx(0.05 / 0.3, rel=0.05)


def test_heavy_tails_are_heavy():
    d = Pareto(1.0, 1.5).matrix(np.random.default_rng(6), 1, 100_000)
    assert d.min() == pytest.approx(1 / 3, rel=1e-3)
    for seconds in (2, 10, 50):
        assert (d > seconds).mean() == pytest.approx((3 * seconds) ** -1.5, rel=0.25)


def test_laws_compose():
    law = Constant(2.0) + Rotating(3.0)
    assert law.matrix(np.random.default_rng(0), 2, 3).tolist() == [[5, 2, 5], [2, 5, 2]]
    assert law == Constant(2.0) + Rotating(3.0) != Constant(3.0)
    assert Bursts(1.0).matrix(np.random.default_rng(0), 2, 0).shape == (2, 0)


@pytest.mark.parametrize(
    ("law", "said"),
    [
        (lambda: Constant(-1.0), "each_s is a time >= 0, got -1.0"),
        (lambda: Exponential(float("nan")), "each_s is a time >= 0, got nan"),
        (lambda: Bernoulli(1.0, 1.5), "probability is between 0 and 1, got 1.5"),
        (lambda: Pareto(1.0, 1.0), "shape is > 1, below which there is no mean, got 1.0"),
        (lambda: Bursts(1.0, stop=0.0), "stop is above 0 and up to 1, got 0.0"),
        (
            lambda: Permanent(1.0, on=(2,)).means_s(2),
            r"on names ranks \[2\], of which there are 2: choose from -2 to 1",
        ),
    ],
)
def test_what_a_law_refuses(law, said):
    with pytest.raises(ValueError, match=said):
        law()
