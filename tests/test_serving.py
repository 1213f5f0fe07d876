"""Open-loop serving without ranks: arrivals, percentiles, the model's latencies, rates, claims and charts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from blslib.charts import models as model_charts
from blslib.charts import runs as charts
from blslib.lab import claims
from blslib.lab.compare.measure import Run
from blslib.lab.experiments import serving

RATES = (40.0, 80.0, 160.0)


def rows(idle: tuple[str, ...] = ("polls",)) -> list[dict[str, Any]]:
    """Of serving.run: MPI's latency doubles with the rate, that of bound 4 grows by half of it."""
    made = []
    for rate in RATES:
        for contender, bound in (("mpi", 0), ("bls", 0), ("bls", 4)):
            for way in idle:
                slow_s = 0.05 * rate / 40
                p99_s = slow_s if bound == 0 else (slow_s + 0.05) / 2
                row = {"contender": contender, "scenario": "balanced", "law": "bernoulli", "mean_delay_s": 2e-3}
                row |= {"source": "generated: made up", "bound": bound, "idle": way, "ranks": 4, "batch_size": 128}
                row |= {"iterations": 128, "repeats": 3, "rate_per_s": rate, "batches_per_s": 0.98 * rate}
                for percent, share in ((50, 0.2), (95, 0.8), (99, 1.0)):
                    row |= {f"latency_p{percent}_s": share * p99_s, f"latency_p{percent}_s_min": 0.9 * share * p99_s}
                    row |= {f"latency_p{percent}_s_max": 1.1 * share * p99_s, f"predicted_p{percent}_s": share * p99_s}
                    row |= {f"gains_p{percent}": " ".join(f"{slow_s / p99_s * by:.3f}" for by in (0.99, 1.0, 1.02))}
                made.append(row)
    return made


def served(due_s: list[float], entered_s: Any, returned_s: Any, scored_s: Any) -> serving.Served:
    """Freed as soon as the call returns: work on arrivals takes no time."""
    entered, returned, scored = (np.array(each, float) for each in (entered_s, returned_s, scored_s))
    edge = np.zeros((len(entered), 2))
    run = Run(edge[:, 0], entered, returned, edge, returned[:, -1])
    return serving.Served(np.array(due_s), returned, scored, run, scores=np.zeros((len(due_s), 1), np.float32))


def test_arrivals_are_a_poisson_process() -> None:
    found = serving.arrivals(50.0, 20_000, seed=3)
    gaps_s = np.diff(found, prepend=0.0)
    assert gaps_s.min() >= 0
    assert gaps_s.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.03)
    np.testing.assert_array_equal(found, serving.arrivals(50.0, 20_000, seed=3))
    assert (found[:5] != serving.arrivals(50.0, 5, seed=4)).all()
    np.testing.assert_allclose(serving.arrivals(100.0, 5, seed=3), found[:5] / 2)  # more load, the same bunches


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate_per_s": 0}, "positive number of batches per second, got 0"),
        ({"idle": ("naps",)}, "polls or sleeps, got naps"),
    ],
)
def test_a_wrong_setting_is_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        serving.ServingConfig(**wrong)


def test_latency_is_that_of_the_slowest_rank() -> None:
    found = served([0, 1], [[0.5, 1.5]] * 2, [[0.5, 1.5]] * 2, [[0.5, 1.75], [0.75, 1.5]])
    np.testing.assert_allclose(found.latency_s, [0.75, 0.75])
    assert found.batches_per_s == pytest.approx(2 / 1.75)


def test_the_model_by_hand() -> None:
    """Rank 1 takes 3 s for batch 0, everything else takes 1 s; batches come at 0 and at 10."""
    entered = np.array([[1.0, 11.0], [3.0, 11.0]])
    found = served([0, 10], entered, entered, entered)
    for bound, polls, latency_s in (
        (0, True, [3, 1]),
        (0, False, [3, 1]),
        (1, True, [3, 1]),  # an idle rank has batch 0 the moment it is complete
        (1, False, [11, 1]),  # one that sleeps has it with its next call
    ):
        np.testing.assert_allclose(found.predicted_s(bound, polls), latency_s)


def test_waking_late_is_work() -> None:
    """A rank that starts on a batch half a second after it came is charged with that, and so is its latency."""
    late = served([0, 10], [[1.5, 11]], [[1.5, 11]], [[1.5, 11]])
    np.testing.assert_allclose(late.predicted_s(0, polls=True), [1.5, 1])


def test_the_highest_rate_is_interpolated() -> None:
    found = {(row["contender"], row["bound"]): row for row in serving.highest_rates(rows(), 0.1)}
    mpi, ours = found["mpi", 0], found["bls", 4]
    assert mpi["rate_per_s"] == pytest.approx(80)
    assert mpi["predicted_per_s"] == pytest.approx(80)
    assert mpi["rate_per_s_min"] < 80 < mpi["rate_per_s_max"]
    assert 80 < ours["rate_per_s"] < 160
    assert {row["rate_per_s"] for row in serving.highest_rates(rows(), 0.01)} == {0}
    assert {row["rate_per_s"] for row in serving.highest_rates(rows(), 10.0)} == {160}


def test_latency_is_judged_rate_by_rate() -> None:
    low, middle, high = claims.latency(rows(), cores=2)
    assert low["verdict"] == "not reproduced"  # at the lowest rate all are alike
    assert (middle["verdict"], high["verdict"]) == ("reproduced", "reproduced")
    assert high["effect"] == pytest.approx(1.6)
    assert "80 batches a second, 4 ranks on 2 cores, open loop" in middle["source"]
    assert "our exchange without lag 1.00 ×" in middle["reason"]


def test_charts_say_what_they_show() -> None:
    both = rows(("polls", "sleeps"))
    for chart in (
        model_charts.latency_by_rate(rows(), cores=2, limit_s=0.1),
        model_charts.lone_batches([row for row in both if row["rate_per_s"] == RATES[0]], cores=2),
    ):
        spec = chart.to_dict()
        caption = " ".join(spec["title"]["subtitle"])
        assert "4 ranks on 2 cores" in caption
        assert "Delays are sleeps (bernoulli) of 2 ms in the mean" in caption
        assert "Open loop" in caption
        assert "bound 4" in spec["description"]
        svg = vl_convert.vegalite_to_svg(spec)
        assert "latency (ms, logarithmic)" in svg
        assert all(f">{name}</text>" in svg for name in (charts.MPI, "bound 4", "p95"))


def test_the_rows_are_left_alone() -> None:
    table = pd.DataFrame(rows())
    before = table.copy()
    model_charts.latency_by_rate(table, cores=2, limit_s=0.1)
    pd.testing.assert_frame_equal(table, before)
