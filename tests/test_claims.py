"""Verdicts on made-up rows whose verdict is known, and what the tables say."""

import json
from pathlib import Path
from typing import Any

import pytest

from blslib.lab import claims

MODEST = [0.97, 0.98, 1.0, 1.02, 1.03]


def rows(at_bound: list[float], without_lag: list[float] | None = None, **columns: Any) -> list[dict[str, Any]]:
    """Of recommend.run: bounded lag at bound 0 and at the bound that is judged."""
    made = []
    for bound, speedups in ((0, without_lag or [1.0] * len(at_bound)), (claims.BOUND, at_bound)):
        row = {"contender": "bls", "scenario": "made up", "law": "none", "source": "generated", "bound": bound}
        row |= {"ranks": 4, "repeats": len(speedups), "identical_scores": True, "limit_s": 1.0, "predicted_s": 1.25}
        row |= {"speedups": " ".join(map(str, speedups)), "speedup_over_mpi": sorted(speedups)[len(speedups) // 2]}
        made.append(row | columns)
    return made


def delayed(measured_s: list[float], bounds: tuple[int, ...] = (4, 8, 16)) -> list[dict[str, Any]]:
    """Of delayed.run."""
    row = {"contender": "bls", "law": "rotating", "ranks": 4, "limit_s": 1.0}
    mpi = {**row, "contender": "mpi", "bound": 0, "measured_s": 4.0}
    return [mpi, *({**row, "bound": k, "measured_s": s} for k, s in zip(bounds, measured_s, strict=True))]


@pytest.mark.parametrize(
    ("speedups", "verdict"),
    [
        (MODEST, "reproduced"),
        ([1.2, 1.25, 1.3, 1.35, 1.4], "not reproduced"),
        ([0.9, 1.0, 1.1, 1.2, 1.3], "inconclusive"),
        ([0.5, 0.55, 0.6, 0.6, 0.65], "reproduced"),
    ],
)
def test_no_advantage(speedups: list[float], verdict: str) -> None:
    (found,) = claims.no_advantage(rows(speedups), cores=4)
    assert found["verdict"] == verdict
    assert found["low"] <= found["effect"] <= found["high"]


def test_a_loss_is_no_advantage_but_is_told() -> None:
    (found,) = claims.no_advantage(rows([0.5, 0.55, 0.6]), cores=4)
    assert "notably slower" in found["reason"]


def test_ranks_that_share_cores_are_told() -> None:
    reasons = [claims.no_advantage(rows([1.3, 1.3, 1.4]), cores=cores)[0]["reason"] for cores in (2, 4)]
    assert ["take turns" in reason for reason in reasons] == [True, False]


@pytest.mark.parametrize(
    ("speedups", "without_lag", "verdict"),
    [
        ([1.4, 1.5, 1.5, 1.6, 1.7], None, "reproduced"),
        (MODEST, None, "not reproduced"),
        ([1.01, 1.02, 1.03, 1.04, 1.04], None, "not reproduced"),  # real, perhaps, but too small to be meant
        ([0.8, 0.9, 1.2, 1.4, 1.5], None, "inconclusive"),
        ([1.4, 1.5, 1.5, 1.6, 1.7], [1.4, 1.5, 1.5, 1.6, 1.7], "not reproduced"),  # a quicker exchange and no lag
    ],
)
def test_better(speedups: list[float], without_lag: list[float] | None, verdict: str) -> None:
    (found,) = claims.better(rows(speedups, without_lag), "(b) made up", cores=4)
    assert found["verdict"] == verdict
    assert ("the model lets lag win back no more" in found["reason"]) == (verdict != "reproduced")


def test_each_scenario_and_law_is_judged_by_itself() -> None:
    both = rows([1.5] * 3, scenario="rotating") + rows([1.0] * 3, scenario="static", predicted_s=1.0)
    found = claims.better(both, "(b) made up", cores=4)
    assert [claim["verdict"] for claim in found] == ["reproduced", "not reproduced"]
    assert "static" in found[1]["source"]
    assert "imbalance that changes is 0%" in found[1]["reason"]
    (law,) = claims.better(rows([1.5] * 3, law="exponential"), "(c) made up", cores=4, by="law")
    assert law["source"].startswith("exponential, 4 ranks on 4 cores")


def test_the_judged_bound_must_have_been_measured() -> None:
    with pytest.raises(ValueError, match="no row of bounded lag at bound 4 with scenario 'made up'"):
        claims.no_advantage(rows(MODEST)[:1], cores=4)


@pytest.mark.parametrize(
    ("measured_s", "verdict"),
    [([1.01, 1.02, 1.03], "reproduced"), ([1.2, 1.3, 1.2], "not reproduced"), ([1.0, 1.04, 1.2], "inconclusive")],
)
def test_masked(measured_s: list[float], verdict: str) -> None:
    (found,) = claims.masked(delayed(measured_s))
    assert found["verdict"] == verdict
    assert "MPI_Alltoallv takes 4.00 ×" in found["reason"]


def test_masked_needs_a_bound_of_at_least_the_ranks() -> None:
    with pytest.raises(ValueError, match="bound of at least the number of ranks"):
        claims.masked(delayed([1.0, 1.0], bounds=(0, 1)))
    narrow = claims.masked(delayed([3.0, 1.0], bounds=(1, 4)))
    assert narrow[0]["effect"] == 1.0


def test_accuracy_is_all_or_nothing() -> None:
    good = rows(MODEST)
    (found,) = claims.accuracy(good, "made up")
    assert (found["verdict"], found["effect"]) == ("reproduced", 1.0)
    (found,) = claims.accuracy([*good, {**good[0], "identical_scores": False}], "made up")
    assert found["verdict"] == "not reproduced"
    assert "1 of 3 settings differ" in found["reason"]


def test_the_interval_is_seeded_and_holds_the_median() -> None:
    values = [1.0, 1.1, 1.3, 1.9, 0.7]
    assert claims.interval(values) == claims.interval(values)
    median, low, high = claims.interval(values)
    assert min(values) <= low < median < high <= max(values)
    assert median == 1.1
    assert claims.interval([2.0] * 4) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="at least one value"):
        claims.interval([])


def test_tables_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLS_OUT", str(tmp_path))
    found = claims.better(rows([1.5] * 3), "(b) made up: better", cores=2) + claims.no_advantage(rows(MODEST), cores=2)
    path = claims.write("09-made-up", found)
    assert path == tmp_path / "data" / "09-made-up" / "claims.json"
    read = json.loads(path.read_text())
    assert read == found
    assert all(
        list(claim) == ["claim", "source", "effect", "low", "high", "unit", "verdict", "reason"] for claim in read
    )
    text = claims.table(read)
    assert "direction only" in text.splitlines()[0]
    assert max(map(len, text.splitlines())) <= 120
    assert text.index("(a) balanced") < text.index("(b) made up: better")
    lines = claims.markdown(read).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {6}
