"""Limits: runs of the model whose outcome is known, the bounds they need, and their charts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from blslib.charts import models as model_charts
from blslib.lab.experiments import limits
from blslib.theory.delays import Constant, Exponential, Law, Permanent, Rotating
from blslib.theory.maxplus import limit, makespan


def config(name: str, law: Law, **changes: Any) -> limits.Config:
    return limits.Config(name, law, **{"ranks": (2, 5), "bounds": (0, 1, 4, 16), "iterations": 60, **changes})


EXPONENTIAL = config("exponential", Exponential(1e-3))


def live() -> list[dict[str, Any]]:
    """The summary of delayed.run."""
    return [
        {"law": "exponential", "ranks": ranks, "bound": bound, "iterations": 40, "repeats": 7}
        | {"predicted_s": 1 / (1 + bound / 8), "limit_s": 0.5}
        | {f"lag_effect{end}": by * (1 + bound / 8) for end, by in (("", 1.0), ("_low", 0.98), ("_high", 1.02))}
        for ranks in (2, 4)
        for bound in (0, 1, 4)
    ]


def test_all_bounds_in_one_pass_are_the_recurrence() -> None:
    for row in limits.run(EXPONENTIAL):
        columns = (Constant(2e-3) + EXPONENTIAL.delay).columns(np.random.default_rng(1), row["ranks"], 60)
        work_s = np.column_stack(list(columns))
        assert row["predicted_s"] == pytest.approx(makespan(work_s, row["bound"]), rel=1e-12)
        assert row["limit_s"] == pytest.approx(limit(work_s), rel=1e-12)


def test_the_permanent_straggler_saves_nothing() -> None:
    for row in limits.run(config("permanent", Permanent(4e-3))):
        assert row["predicted_s"] == row["limit_s"] == pytest.approx(60 * 6e-3)
    assert all(abs(row["saved_s"]) < 1e-12 for row in limits.saved(config("permanent", Permanent(4e-3))))


def test_a_rotating_delay_saves_again_and_again() -> None:
    found = pd.DataFrame(limits.saved(config("rotating", Rotating(4e-3), ranks=(4,))))
    assert set(found["bound"]) == {1, 4, 16}
    last = found[found["iteration"] == 59].set_index("bound")["saved_s"]
    assert last[16] == pytest.approx(60 * (6e-3 - 3e-3), rel=0.05)  # from 6 ms an iteration to 3 ms
    assert (found.groupby("bound")["saved_s"].diff().dropna() > -1e-12).all()


def test_the_needed_bound_and_its_memory() -> None:
    made = [
        {"law": "x", "ranks": ranks, "bound": bound, "limit_s": 1.0, "predicted_s": 1 + slack / (1 + bound)}
        for ranks, slack in ((4, 0.2), (8, 10.0))
        for bound in (0, 1, 4, 16)
    ]
    near, far = limits.needed(made, slot_bytes=1024)
    assert (near["bound"], near["memory_bytes"]) == (4, 4 * 2 * 5 * (1024 + 64))
    assert far["bound"] is far["memory_bytes"] is None
    assert limits.needed(made, within=0.2)[0]["bound"] == 0


def test_charts_say_what_they_show() -> None:
    many = limits.run(config("exponential", Exponential(1e-3), ranks=(2, 4, 1000), iterations=20))
    drawn = {
        "4 ranks, measured": model_charts.gain_by_ranks(live(), live(), cores=2),
        "up to 1,000 ranks, which nobody ran": model_charts.gain_by_ranks(many, live(), cores=2),
        "2 ranks, max-plus model": model_charts.saved_time(limits.saved(EXPONENTIAL)),
    }
    for words, chart in drawn.items():
        spec = chart.to_dict()
        caption = " ".join(spec["title"]["subtitle"])
        if "measured" in words:
            assert "live runs at 2 to 4 ranks on 2 cores" in caption
        else:
            assert words in caption
        assert len(spec["description"]) > 60
        assert "nan" not in spec["description"]
        svg = vl_convert.vegalite_to_svg(spec)
        assert len(svg) > 5000
        assert "NaN" not in svg


def test_speed_ups_are_over_bound_0_of_the_same_ranks() -> None:
    spec = model_charts.gain_by_ranks(live(), live(), cores=2).to_dict()
    assert "on the realised work of the same runs" in " ".join(spec["title"]["subtitle"])
    (values,) = spec["datasets"].values()
    assert {value["bound"] for value in values} == {1, 4}
    drawn = [value[column] for value in values for column in ("predicted", "lag_effect") if value[column] is not None]
    assert len(drawn) == 8
    assert drawn == pytest.approx([1 + value["bound"] / 8 for value in values])


def test_draws_of_the_models_own_are_named() -> None:
    many = limits.run(config("exponential", Exponential(1e-3), ranks=(2, 4), bounds=(0, 1, 4), iterations=20))
    caption = " ".join(model_charts.gain_by_ranks(many, live(), cores=2).to_dict()["title"]["subtitle"])
    assert "on draws of its own, 20 iterations." in caption
