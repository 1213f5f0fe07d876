"""Open-loop serving without ranks: arrivals, percentiles, the model's latencies, gains, rates and charts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from blslib.charts import models as model_charts
from blslib.lab.compare.run import Run
from blslib.lab.experiments import serving

RATES = (40.0, 80.0, 160.0)

DRAWS = (0.9, 0.7, 1.0, 0.8, 0.95, 0.85, 0.9)
"""By how much the latencies of one draw of arrivals differ from those of the longest, alike for every contender."""

BATCHES = 40


def rows(idle: tuple[str, ...] = ("polls",)) -> list[dict[str, Any]]:
    """Of serving.run: MPI's 99th percentile doubles with the rate, that of bound 4 grows by half of it.

    Half of the batches take a fifth of that.
    """
    made = []
    for rate in RATES:
        for contender, bound, way in [
            (name, k, way) for name, k in (("mpi", 0), ("bls", 0), ("bls", 4)) for way in idle
        ]:
            slow_s = 0.05 * rate / 40
            p99_s = slow_s if bound == 0 else (slow_s + 0.05) / 2
            row = {"contender": contender, "bound": bound, "idle": way, "law": "bernoulli", "mean_delay_s": 2e-3}
            row |= {"batch_size": 128, "rate_per_s": rate, "ranks": 4}
            for repeat, factor in enumerate(DRAWS):
                for i in range(BATCHES):
                    predicted_s = p99_s * (1.0 if i % 2 else 0.2)
                    times = {"latency_s": factor * predicted_s, "predicted_s": predicted_s, "identical": True}
                    made.append({**row, "repeat": repeat, "batch": i, **times})
    return made


def of(rate: float) -> list[dict[str, Any]]:
    return [row for row in rows() if row["rate_per_s"] == rate]


def served(due_s: list[float], entered_s: Any, returned_s: Any, scored_s: Any, **more: Any) -> serving.Served:
    """Freed as soon as the call returns, unless told: work on arrivals takes no time."""
    entered, returned, scored = (np.array(each, float) for each in (entered_s, returned_s, scored_s))
    edge, collected_s = np.zeros((len(entered), 2)), np.zeros((len(entered), entered.shape[1] + 1))
    run = Run(edge[:, 0], entered, returned, collected_s, edge, returned[:, -1])
    freed = np.array(more.pop("freed_s", returned), float)
    scores = np.zeros((len(due_s), 1), np.float32)
    return serving.Served(np.array(due_s), freed, scored, run, scores, **more)


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
        serving.Config(**wrong)


def test_latency_is_that_of_the_slowest_rank() -> None:
    found = served([0, 1], [[0.5, 1.5]] * 2, [[0.5, 1.5]] * 2, [[0.5, 1.75], [0.75, 1.5]])
    np.testing.assert_allclose(found.latency_s, [0.75, 0.75])


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


def test_what_has_come_when_a_step_looks_again_is_scored_then() -> None:
    """Rank 1 takes 3 s for batch 0, everything else takes 1 s; rank 0's step looks again, sooner or later."""
    entered = np.array([[1.0, 11.0], [3.0, 11.0]])
    for looked_s, latency_s in ((2.5, 12.5), (4.0, 4)):
        looked = np.array([[looked_s, 12.5], [3, 11]])
        found = served([0, 10], entered, entered, entered, freed_s=looked, looked_s=looked)
        np.testing.assert_allclose(found.predicted_s(1, polls=False), [latency_s, 2.5])


def test_waking_late_is_work() -> None:
    """A rank that starts on a batch half a second after it came is charged with that, and so is its latency."""
    late = served([0, 10], [[1.5, 11]], [[1.5, 11]], [[1.5, 11]])
    np.testing.assert_allclose(late.predicted_s(0, polls=True), [1.5, 1])


def test_what_follows_the_call_is_work_on_an_arrival_but_for_what_collect_takes() -> None:
    freed_s, collected_s = [[1.5, 11.5]], np.array([[0.25, 0.0]])
    found = served([0, 10], [[1, 11]], [[1, 11]], [[1.5, 11.5]], freed_s=freed_s, collected_s=collected_s)
    np.testing.assert_allclose(found.predicted_s(0, polls=True), [1.25, 1.5])


def test_percentiles_are_of_all_batches_of_all_draws() -> None:
    found = serving.pooled(rows()).set_index(["contender", "bound", "rate_per_s"])
    assert len(found) == 9
    assert set(found["draws"]) == {7} and set(found["batches"]) == {7 * BATCHES}
    line = found.loc["mpi", 0, 80.0]
    assert line["latency_p99_s"] == pytest.approx(0.1)
    assert line["predicted_p99_s"] == pytest.approx(0.1)
    assert line["latency_p50_s"] == pytest.approx(np.median([row["latency_s"] for row in of(80) if row["bound"] == 0]))
    for name in ("p50", "p95", "p99"):
        low, high = line[f"latency_{name}_s_low"], line[f"latency_{name}_s_high"]
        assert low <= line[f"latency_{name}_s"] <= high
    assert 0.08 <= line["latency_p99_s_low"] < line["latency_p99_s_high"] == pytest.approx(0.1)


def test_draws_are_never_taken_apart() -> None:
    """Were batches drawn one by one, the interval would be far narrower than draws differ."""
    draws = [{**row, "latency_s": 1.0 + row["repeat"]} for row in of(40.0) if row["contender"] == "mpi"]
    (line,) = serving.pooled(draws).to_dict("records")
    assert line["latency_p50_s"] == 4.0
    assert line["latency_p50_s_low"] <= 2.0 and line["latency_p50_s_high"] >= 6.0


def test_gains_compare_the_same_draws() -> None:
    gain = serving.gains(of(160.0), 99)
    assert gain.median == pytest.approx(0.2 / 0.125)
    assert gain.low == pytest.approx(gain.median) == gain.high  # whichever draws, they are drawn together
    assert serving.gains(of(160.0), 50, ("bls", 0)) == pytest.approx((1, 1, 1))
    assert serving.gains(of(160.0), 99, over=("bls", 0)) == pytest.approx(gain)
    with pytest.raises(ValueError, match=r"no rows of .*'bls', 16"):
        serving.gains(of(160.0), 99, ("bls", 16))


def test_the_highest_rate_is_interpolated() -> None:
    found = serving.highest_rates(rows(), 0.1).set_index(["contender", "bound"])
    mpi, ours = found.loc["mpi", 0], found.loc["bls", 4]
    assert mpi["rate_per_s"] == pytest.approx(80)
    assert mpi["predicted_per_s"] == pytest.approx(80)
    assert mpi["rate_per_s_low"] == pytest.approx(80) and mpi["rate_per_s_high"] > 80
    assert 80 < ours["rate_per_s"] < 160
    assert set(found["limit_s"]) == {0.1}
    assert set(serving.highest_rates(rows(), 0.01)["rate_per_s"]) == {0}
    assert set(serving.highest_rates(rows(), 10.0)["rate_per_s"]) == {160}


def test_one_slow_draw_at_a_low_rate_does_not_count_at_all_higher_ones() -> None:
    """The least rate has 0.11 s by chance, the next 0.0909 s, so that both stand at 0.1 s; then it climbs."""
    p99_s = dict(zip(RATES, (0.11, 1 / 11, 1.0), strict=True))
    chance = [
        {**row, "latency_s": p99_s[row["rate_per_s"]], "predicted_s": 0.01}
        for row in rows()
        if row["contender"] == "mpi"
    ]
    (line,) = serving.highest_rates(chance, 0.1001).to_dict("records")
    assert line["rate_per_s"] == pytest.approx(80, abs=0.1)
    assert serving.highest_rates(chance, 0.0999)["rate_per_s"].item() == 0


def test_charts_say_what_they_show() -> None:
    for chart in (model_charts.latency_by_rate(serving.pooled(rows()), cores=2, limit_s=0.1),):
        spec = chart.to_dict()
        caption = " ".join(spec["title"]["subtitle"])
        assert "4 ranks on 2 cores" in caption
        assert "Delays are sleeps (bernoulli) of 2 ms in the mean" in caption
        assert "Open loop" in caption
        assert "280 batches from 7 draws" in caption
        assert "bound 4" in spec["description"]
        svg = vl_convert.vegalite_to_svg(spec)
        assert "latency (ms, logarithmic)" in svg
        assert "bound 4" in svg and "MPI_Alltoallv" in svg


def test_the_rows_are_left_alone() -> None:
    table = pd.DataFrame(rows())
    pooled = serving.pooled(table)
    before = table.copy(), pooled.copy()
    serving.highest_rates(table, 0.1)
    model_charts.latency_by_rate(pooled, cores=2, limit_s=0.1)
    for now, then in zip((table, pooled), before, strict=True):
        pd.testing.assert_frame_equal(now, then)
