"""Rows: what is paired with what, what follows from the times, how they are summed up and written."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from blslib.lab import rows as records
from blslib.lab.bench import table
from blslib.lab.compare.intervals import interval
from blslib.lab.options import Row
from blslib.lab.rows import derived, over, summary
from blslib.theory.delays import delays
from blslib.theory.maxplus import Cost, makespan

Rows = list[dict[str, Any]]


def run(contender: str, bound: int, repeat: int, measured_s: float, **more: Any) -> dict[str, Any]:
    """A row as ``delayed.run`` makes them; unless told, synchronous work of 8 s that lag brings down to 6 s."""
    times = {
        "measured_s": measured_s,
        "predicted_s": 6.0 if bound else 8.0,
        "foreseen_s": 6.0 if bound else 8.0,
        "limit_s": 5.0,
    }
    row = {"contender": contender, "bound": bound, "law": "rotating", "repeat": repeat, **times, "useful_s": 4.0}
    return row | more


def runs() -> Rows:
    """Three repeats of MPI, and of bounded lag at 0 and 4; no two of them alike, and in no order."""
    made = []
    for repeat, factor in ((2, 4.0), (0, 1.0), (1, 2.0)):
        made += [run("bls", 4, repeat, 7.0 * factor), run("mpi", 0, repeat, 12.0 * factor)]
    return [*made, *(run("bls", 0, repeat, 10.0 * factor) for repeat, factor in ((0, 1.0), (1, 2.0), (2, 4.0)))]


def test_the_other_is_that_of_the_same_repeat_wherever_it_stands() -> None:
    rows = runs()
    alone_s = over(rows, "measured_s", bound=0)
    assert list(alone_s / derived(rows)["measured_s"]) == [
        {"mpi": 1.0, "bls": 10 / 7 if row["bound"] else 1.0}[row["contender"]] for row in rows
    ]
    mpi_s = over(rows, "measured_s", contender="mpi", bound=0)
    assert list(mpi_s) == [12.0 * (1, 2, 4)[row["repeat"]] for row in rows]
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=1)
    assert (over(shuffled, "measured_s", contender="mpi", bound=0).sort_index() == mpi_s).all()


def test_the_other_is_that_of_the_same_setting() -> None:
    rows = runs() + [row | {"law": "permanent", "measured_s": 3.0} for row in runs()]
    found = derived(rows)
    assert set(found.loc[found["law"] == "permanent", "speedup"]) == {1.0}
    assert set(over(rows, "measured_s", contender="mpi", bound=0)) == {12.0, 24.0, 48.0, 3.0}


def test_where_none_is_there_is_nothing() -> None:
    """A contender or a repeat is missing: what would be paired with it is NaN, and left out of the summary."""
    ours = [row for row in runs() if row["contender"] == "bls"]
    assert derived(ours)["speedup"].isna().all()
    assert "speedup" not in summary(ours)
    short = [row for row in runs() if (row["contender"], row["repeat"]) != ("mpi", 1)]
    assert derived(short).groupby("repeat")["speedup"].count().to_dict() == {0: 3, 1: 0, 2: 3}
    assert summary(short).set_index(["contender", "bound"])["speedup"]["bls", 4] == pytest.approx(12 / 7)
    wide = derived([row for row in ours if row["bound"]])
    assert wide[["lag_effect", "expected_low", "expected_high"]].isna().all(axis=None)


def test_what_follows_from_the_times_by_hand() -> None:
    lines = derived([run("mpi", 0, 0, 12.0), run("bls", 0, 0, 10.0), run("bls", 4, 0, 7.0)]).to_dict("records")
    mpi, alone, lagging = lines
    assert (mpi["speedup"], mpi["lag_effect"]) == (1, 1)
    assert (alone["speedup"], alone["lag_effect"]) == (1.2, 1)
    assert lagging["speedup"] == pytest.approx(alone["speedup"] * lagging["lag_effect"])  # exchange times lag
    assert lagging["lag_effect"] == pytest.approx(10 / 7)
    # Of the 10 s at bound 0 lag masks 8 - 6 s, and at most the 2 s of the exchange besides.
    assert lagging["expected_low"] == pytest.approx(10 / 8)
    assert lagging["expected_high"] == pytest.approx(10 / 6)
    assert lagging["ratio"] == pytest.approx(7 / 6)
    assert (lagging["load_balance"], lagging["serialisation"]) == (4 / 5, 5 / 6)
    assert lagging["transfer"] == pytest.approx(6 / 7)
    # POP: their product is the parallel efficiency, the mean of the useful work over the time.
    for line in lines:
        product = line["load_balance"] * line["serialisation"] * line["transfer"]
        assert product == pytest.approx(line["useful_s"] / line["measured_s"])
    assert (alone["expected_low"], alone["expected_high"]) == (1, pytest.approx(10 / 8))


def test_what_is_expected_keeps_its_order() -> None:
    """Also where the exchange exposes nothing at bound 0, and where a run is quicker than the law, as none can be."""
    found = derived([run("bls", 0, 0, 8.0), run("bls", 4, 0, 12.0)]).iloc[1]
    assert found["expected_low"] == found["expected_high"] == pytest.approx(8 / 6)
    worse = derived([run("bls", 0, 0, 7.0), run("bls", 4, 0, 6.5)]).iloc[1]
    assert worse["expected_low"] == worse["expected_high"] == pytest.approx(7 / 5)


def test_single_calls_stand_beside_the_floor_and_the_bare_loop() -> None:
    def call(contender: str, time_us: float, repeat: int = 0, **more: Any) -> dict[str, Any]:
        return {"contender": contender, "bound": 0, "repeat": repeat, "time_us": time_us} | more

    rows = [call("floor", 4.0), call("raw", 10.0), call("mpi", 12.0), call("bls", 9.0), call("bls", 8.0, 1)]
    ours, lonely = derived(rows).to_dict("records")[-2:]
    assert ours["share_of_raw"] == 0.9
    assert (ours["above_raw_us"], ours["above_floor_us"]) == (-1.0, 5.0)
    assert all(math.isnan(lonely[name]) for name in ("share_of_raw", "above_floor_us"))
    assert "speedup" not in ours


def turn(contender: str, bound: int, delay_ms: float, time_us: float, ranks: int = 2, repeat: int = 0) -> Row:
    """A row as ``torch.run`` makes them, for sleeps that last as long as they should."""
    what = {"contender": contender, "bound": bound, "delay_ms": delay_ms, "ranks": ranks, "repeat": repeat}
    return what | {"time_us": time_us, "slept_us": 1000 * delay_ms}


def test_gloo_is_beaten_where_it_has_as_many_in_flight() -> None:
    """Beside gloo one at a time, and pair by pair, with the cost of each contender's own calls at that bound."""
    rows = [turn("gloo", 0, 0.0, 400.0), turn("gloo", 4, 0.0, 200.0), turn("torch", 4, 0.0, 50.0)]
    rows += [turn("gloo", 0, 1.0, 1500.0), turn("gloo", 4, 1.0, 600.0), turn("torch", 4, 1.0, 500.0)]
    rows += [turn("torch", 4, 1.0, 700.0, repeat=1)]
    alone, deep, ours, alone_asleep, deep_asleep, ours_asleep, unpaired = derived(rows).to_dict("records")
    assert (alone["gain_over_gloo"], deep["gain_over_gloo"], deep["speedup_over_gloo"]) == (1, 1, 2)
    assert (ours["gain_over_gloo"], ours["expected_gain"], ours["speedup_over_gloo"]) == (4, 4, 8)
    assert (deep_asleep["speedup_over_gloo"], ours_asleep["speedup_over_gloo"]) == (2.5, 3)
    assert ours_asleep["gain_over_gloo"] == 1.2
    assert alone_asleep["predicted_us"] == 400 + 1000
    assert ours_asleep["expected_gain"] == pytest.approx((200 + 500) / (50 + 500))  # each sleeps every other time
    assert all(math.isnan(unpaired[name]) for name in ("gain_over_gloo", "expected_gain", "speedup_over_gloo"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("bound", [0, 1, 2, 4, 16])
@pytest.mark.parametrize("call_us", [1.0, 300.0, 4000.0])
def test_what_is_predicted_of_sleeps_in_turn_is_the_max_plus_law(ranks: int, bound: int, call_us: float) -> None:
    rows = [turn("torch", bound, 0.0, call_us, ranks), turn("torch", bound, 1.0, 9e9, ranks)]
    calls = 100 * ranks
    work_us = delays("rotating", ranks, calls, 1000 / ranks, seed=1)
    whole_us = makespan(work_us, bound, cost=Cost(call_us))
    assert derived(rows)["predicted_us"].iloc[1] == pytest.approx(whole_us / calls, rel=0.03)


def test_a_summary_has_a_line_for_each_setting_in_their_order() -> None:
    rows = runs()
    found = summary(rows)
    assert list(zip(found["contender"], found["bound"], strict=True)) == [("bls", 4), ("mpi", 0), ("bls", 0)]
    assert set(found["repeats"]) == {3}
    assert "repeat" not in found
    first = found.iloc[0]
    assert tuple(first[["measured_s", "measured_s_low", "measured_s_high"]]) == (14.0, 7.0, 28.0)
    # The median of the ratios, pair by pair, whatever the spread of the times.
    assert tuple(first[["lag_effect", "lag_effect_low", "lag_effect_high"]]) == pytest.approx((10 / 7,) * 3)
    many = [run("bls", 0, repeat, seconds) for repeat, seconds in enumerate((9.0, 3.0, 8.0, 1.0, 5.0, 7.0, 2.0))]
    assert tuple(summary(many).loc[0, ["measured_s", "measured_s_low", "measured_s_high"]]) == interval(
        [row["measured_s"] for row in many]
    )


def test_truths_hold_always_or_not_at_all() -> None:
    rows = [
        run("bls", bound, repeat, 1.0, identical=bound == 0 or repeat < 2) for bound in (0, 4) for repeat in (0, 1, 2)
    ]
    found = summary(rows)
    assert list(found["identical"]) == [True, False]
    assert found["identical"].dtype == bool
    assert "identical_low" not in found


def test_words_and_settings_without_a_value() -> None:
    """A setting may be missing in some rows; measured words have no median."""
    rows = [run("bls", 0, repeat, 1.0, note="x") | {"law": law} for law in (None, "x") for repeat in (0, 1)]
    found = summary(rows)
    assert list(found["repeats"]) == [2, 2]
    assert "note" not in found


@dataclass(frozen=True)
class Config:
    x: int = 1


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(records.OUT_VARIABLE, str(tmp_path))
    return tmp_path


def test_rows_are_written_with_what_they_were_measured_with(out: Path) -> None:
    path = records.write("09-test", "rows", [{"a": 1, "t_s": 1 / 3, "n": 12345678901, "ok": True}], [Config()])
    assert path == out / "data" / "09-test" / "rows.csv"
    assert path.read_text().splitlines() == ["a,t_s,n,ok", "1,0.333333333,12345678901,True"]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["configurations"] == [{"x": 1}]
    assert {"processor", "cores", "mpi", "torch", "mpi_settings"} <= set(about["provenance"])
    records.write("09-test", "rows", [{"b": 1}], [])  # of another version: results are of the last run
    assert path.read_text().splitlines() == ["b", "1"]
    with pytest.raises(ValueError, match="differ in their columns"):
        records.write("09-test", "other", [{"a": 1}, {"b": 1}], [])
    with pytest.raises(ValueError, match="nothing to write"):
        records.write("09-test", "other", [], [])


def test_what_is_read_again_sums_up_alike(out: Path) -> None:
    rows = [row | {"identical": row["repeat"] != 1, "measured_s": row["measured_s"] / 3} for row in runs()]
    path = records.write("09-test", "rows", rows, [])
    pd.testing.assert_frame_equal(summary(pd.read_csv(path)), summary(rows), rtol=1e-8)
    with path.open(newline="") as file:
        assert [list(row) for row in csv.DictReader(file)] == [list(row) for row in rows]


def test_a_printed_table_has_medians_with_their_intervals_and_blanks() -> None:
    rows = [row | {"ranks": 2, "bytes_per_block": 16384, "lag": 1} for row in runs() if row["contender"] == "bls"]
    printed = table("delayed", rows).splitlines()
    assert len(printed) == 3
    assert "14 [7 to 28]" in printed[1] and "16,384" in printed[1]
    alone = table("dlrm", [row | {"scenario": "x", "ranks": 2, "memory_bytes": 1, "identical": True} for row in runs()])
    assert alone.splitlines()[1].split()[-1] == "True"
    assert "nan" not in alone
