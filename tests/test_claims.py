"""Verdicts on made-up rows whose verdict is known, and what the tables say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blslib.lab import claims
from blslib.lab.compare.intervals import Interval

WORDS = ["gain as predicted", "no gain, as predicted", "contradicts the prediction", "inconclusive"]


def rows(
    lag: float, *, repeats: int = 9, spread: float = 0.01, work: float = 1.0, **columns: Any
) -> list[dict[str, Any]]:
    """Of ``dlrm.run``: MPI takes 1.2 of bound 0, and the model lets ``work`` times as much be masked as nothing."""
    setting = {"scenario": "made up", "source": "generated: ones", "ranks": 2} | columns
    made = []
    for contender, bound, seconds in (("mpi", 0, 1.2 * lag), ("bls", 0, lag), ("bls", 4, 1.0)):
        for repeat in range(repeats):
            noise = 1 + spread * (2 * repeat / max(repeats - 1, 1) - 1) * (bound == 0)
            own_s = {"predicted_s": 0.98 if bound else 0.98 * work, "foreseen_s": 0.98 if bound else 0.98 * work}
            measured = {"measured_s": seconds * noise, **own_s, "limit_s": 0.95, "useful_s": 0.9}
            key = {"contender": contender, "bound": bound, **setting, "repeat": repeat}
            made.append(key | measured | {"identical": True})
    return made


@pytest.mark.parametrize(
    ("lag", "low", "high", "expected"),
    [
        ((1.40, 1.35, 1.45), 1.35, 1.50, "gain as predicted"),
        ((1.40, 1.35, 1.45), 1.50, 1.60, "gain as predicted"),  # misses it by less than 5 %
        ((1.40, 1.35, 1.42), 1.50, 1.60, "contradicts the prediction"),  # by more
        ((1.40, 1.35, 1.45), 1.00, 1.02, "contradicts the prediction"),  # much gain, none expected
        ((1.00, 0.98, 1.02), 1.00, 1.02, "no gain, as predicted"),
        ((1.00, 0.98, 1.02), 1.04, 1.40, "no gain, as predicted"),
        ((1.02, 1.00, 1.04), 1.06, 1.08, "contradicts the prediction"),  # no gain, some expected
        ((0.90, 0.88, 0.92), 1.00, 1.20, "contradicts the prediction"),  # a loss
        ((0.93, 0.90, 0.96), 0.92, 0.94, "no gain, as predicted"),  # a loss that was expected: of latency alone
        ((1.06, 1.03, 1.09), 1.01, 1.20, "gain as predicted"),  # of the exchange
        ((1.03, 1.01, 1.06), 1.01, 1.20, "gain as predicted"),
        ((1.03, 1.01, 1.06), 1.01, 1.04, "inconclusive"),  # a little less is expected
        ((1.02, 0.99, 1.06), 1.01, 1.20, "inconclusive"),
        ((1.30, 0.99, 1.60), 1.20, 1.40, "inconclusive"),
        ((0.97, 0.94, 1.00), 1.00, 1.02, "inconclusive"),
    ],
)
def test_verdicts(lag: tuple[float, ...], low: float, high: float, expected: str) -> None:
    found, reason = claims.verdict(Interval(*lag), low, high, repeats=7)
    assert found == expected and reason
    assert claims.verdict(Interval(*lag), low, high, repeats=6) == ("inconclusive", "fewer than 7 repeats")


def test_an_interval_of_5_percent_decides_but_at_the_edges() -> None:
    """Whatever is expected: all that is left open holds 0.95, or 1.05 although less is expected."""
    rng = np.random.default_rng(1)
    for _ in range(20_000):
        low, width, expected_low = rng.uniform(0.85, 1.3), rng.uniform(0, 0.05), rng.uniform(1, 1.3)
        expected_high = expected_low * rng.uniform(1, 1.3)
        found, _ = claims.verdict(Interval(low + width / 2, low, low + width), expected_low, expected_high, 7)
        assert found in WORDS
        if found == "inconclusive":
            assert low < 0.95 <= low + width or (expected_high < 1.05 < low + width)


@pytest.mark.parametrize(("lag", "work", "verdict"), [(1.3, 1.3, WORDS[0]), (1.0, 1.0, WORDS[1]), (1.0, 1.3, WORDS[2])])
def test_lag_is_judged_and_the_exchange_stands_beside_it(lag: float, work: float, verdict: str) -> None:
    (found,) = claims.judge(rows(lag, work=work), "(b) made up", cores=2)
    assert found["verdict"] == verdict
    assert found["lag"] == pytest.approx(lag, rel=0.01) and found["lag_low"] < found["lag"] < found["lag_high"]
    assert found["exchange"] == pytest.approx(1.2)
    assert found["whole"] == pytest.approx(found["exchange"] * found["lag"], rel=0.01)
    assert found["expected_low"] == pytest.approx(lag / (lag - 0.98 * (work - 1)), rel=0.01)
    assert (found["ranks"], found["cores"], found["own_cores"], found["repeats"]) == (2, 2, True, 9)
    assert "bound 4, 9 repeats; 1.05 × the busiest rank's work" in found["reason"]
    assert ", which was 1.00 × that at bound 0" in found["reason"]


def test_each_scenario_is_judged_by_itself() -> None:
    both = rows(1.5, work=1.5, scenario="rotating") + rows(1.0, scenario="static", spread=0.1)
    found = claims.judge(pd.DataFrame(both), "(b) made up", cores=4, headlines=["static"])
    assert [claim["verdict"] for claim in found] == ["gain as predicted", "inconclusive"]
    assert [claim["headline"] for claim in found] == [False, True]
    assert found[1]["source"] == "static, 2 ranks on 4 cores"
    assert "too wide to tell an effect of 5 % from none" in found[1]["reason"]
    (law,) = claims.judge(rows(1.5, law="exponential"), "(c) made up", cores=4, by="law")
    assert law["source"].startswith("exponential, 2 ranks")


def test_few_repeats_decide_nothing() -> None:
    (found,) = claims.judge(rows(1.5, work=1.5, repeats=6), "(b) made up", cores=2)
    assert found["verdict"] == "inconclusive" and found["reason"].startswith("fewer than 7 repeats")


def test_computing_ranks_on_shared_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="4 computing ranks took turns on 2 cores: judge a run on at most 2 ranks"):
        claims.judge(rows(1.5, ranks=4), "(b) made up", cores=2)
    (found,) = claims.judge(rows(1.5, work=1.5, ranks=4, bytes_per_block=64), "(c) made up", cores=2)
    assert found["source"] == "made up, 4 ranks, sleeps around the bare exchange"
    assert not found["own_cores"]


@pytest.mark.parametrize("gone", [("mpi", 0), ("bls", 0), ("bls", 4)])
def test_what_is_judged_must_have_been_measured_once(gone: tuple[str, int]) -> None:
    left = [row for row in rows(1.5) if (row["contender"], row["bound"]) != gone]
    with pytest.raises(ValueError, match="of scenario 'made up' there is not one run each to judge: measure mpi"):
        claims.judge(left, "(b) made up", cores=2)
    two = [row | {"batch_size": size, "repeat": row["repeat"]} for size in (1, 2) for row in rows(1.5)]
    two = [{"batch_size": row["batch_size"], **row} for row in two]
    with pytest.raises(ValueError, match="one setting at a time"):
        claims.judge(two, "(b) made up", cores=2)


def delayed(ranks: int, bounds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Of ``delayed.run``: all masked from as many bounds on as there are ranks."""
    made = []
    for contender, bound in [("mpi", 0), *(("bls", bound) for bound in bounds)]:
        for repeat in range(7):
            key = {"contender": contender, "bound": bound, "law": "rotating", "ranks": ranks, "bytes_per_block": 64}
            over = (1.01 if bound >= ranks else ranks) + 0.001 * repeat
            own_s = {
                "predicted_s": 1.0 if bound >= ranks else ranks,
                "foreseen_s": 1.0 if bound >= ranks else ranks,
                "limit_s": 1.0,
                "useful_s": 1.0,
            }
            made.append(key | {"repeat": repeat, "measured_s": over} | own_s)
    return made


def test_masked_is_judged_at_a_bound_of_the_ranks_or_more() -> None:
    found = claims.masked(delayed(4, (0, 1, 4, 16)) + delayed(8, (0, 4, 8, 16)), cores=2, headlines=[4])
    assert [claim["verdict"] for claim in found] == ["gain as predicted"] * 2
    assert [claim["ranks"] for claim in found] == [4, 8]
    assert [claim["headline"] for claim in found] == [True, False]
    assert "bound 8, 7 repeats; 1.01 × the busiest rank's work (mpi 8.00 ×)" in found[1]["reason"]
    with pytest.raises(ValueError, match="on 8 ranks at a bound of that or more"):
        claims.masked(delayed(8, (0, 4)), cores=2)


def test_what_has_no_partner_is_no_repeat() -> None:
    """Nine repeats, of which three can be paired, or four have a time."""
    lonely = [row for row in rows(1.0) if (row["contender"], row["bound"]) != ("bls", 0) or row["repeat"] < 3]
    untimed = [row | {"measured_s": math.nan} if row["repeat"] > 3 else row for row in rows(1.0)]
    for made in (lonely, untimed):
        (found,) = claims.judge(made, "x", cores=2)
        assert found["verdict"] == "inconclusive" and found["reason"].startswith("fewer than 7 repeats; ")
    assert claims.verdict(Interval(1.0, 0.99, 1.01), math.nan, math.nan, 9)[0] == "inconclusive"


def test_accuracy_takes_true_alone_for_true() -> None:
    for identical in (math.nan, "False", "True", None):
        (found,) = claims.accuracy([row | {"identical": identical} for row in rows(1.0)], "made up")
        assert found["verdict"] == "fails"
    with pytest.raises(ValueError, match="no runs to judge"):
        claims.accuracy([], "made up")


def test_accuracy_counts_runs_and_is_all_or_nothing() -> None:
    served = {"contender": "bls", "rate_per_s": 40, "repeat": 0}
    good = rows(1.0) + [served | {"batch": i, "latency_s": 0.1, "identical": True} for i in range(5)]
    (found,) = claims.accuracy(good, "made up")
    assert (found["verdict"], found["reason"]) == ("holds", "bit-identical in 28 runs")
    (bad,) = claims.accuracy([*good, good[-1] | {"repeat": 1, "identical": False}], "made up")
    assert (bad["verdict"], bad["reason"]) == ("fails", "1 of 29 runs differ")
    (one,) = claims.headlines([found, bad])
    assert (one["verdict"], one["reason"]) == ("fails", "1 of 57 runs differ")


def served(ranks: int = 2, draws: int = 9) -> list[dict[str, Any]]:
    """Of ``serving.run``, at two rates; latencies differ from draw to draw only."""
    seconds = {("mpi", 0): (0.14, 0.12), ("bls", 0): (0.13, 0.12), ("bls", 4): (0.10, 0.09)}
    made = []
    for rate in (40.0, 80.0):
        for (who, bound), (measured_s, predicted_s) in seconds.items():
            key = {"contender": who, "bound": bound, "idle": "polls", "rate_per_s": rate, "ranks": ranks}
            for repeat in range(draws):
                times = {"latency_s": measured_s * (1 + 0.001 * repeat * bound), "predicted_s": predicted_s}
                made += [key | {"repeat": repeat, "batch": i} | times | {"identical": True} for i in range(20)]
    return made


def test_latency_is_longer_or_shorter() -> None:
    low, high = claims.latency(served(), cores=2, headlines=[80])
    assert low["source"] == "40 batches a second, 2 ranks on 2 cores"
    assert [low["headline"], high["headline"]] == [False, True]
    assert low["verdict"] == "gain as predicted"
    assert (low["expected_low"], low["expected_high"]) == pytest.approx((1.29, 0.13 / 0.09), abs=0.01)
    assert low["lag"] == pytest.approx(1.3, rel=0.04) and low["exchange"] == pytest.approx(0.14 / 0.13)
    assert low["lag_low"] <= low["lag"] < low["lag_high"]
    assert "bound 4, 180 batches of 9 draws" in low["reason"]
    whole, exchange = claims.markdown([low]).splitlines()[-1].split(" | ")[1:3]
    assert whole.startswith("26 % shorter (26 % shorter to 2")
    assert exchange == "7 % shorter (7 % shorter to 7 % shorter)"
    (few, _) = claims.latency(served(draws=5), cores=2)
    assert few["verdict"] == "inconclusive"
    with pytest.raises(ValueError, match="4 computing ranks took turns on 2 cores"):
        claims.latency(served(ranks=4), cores=2)


@pytest.mark.parametrize(("gain", "words"), [(0.93, "8 % longer"), (1.5625, "36 % shorter"), (1.001, "as long")])
def test_latencies_are_longer_or_shorter(gain: float, words: str) -> None:
    assert claims._shorter(gain) == words


def test_tables_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLS_OUT", str(tmp_path))
    found = claims.judge(
        rows(1.5, work=1.5), "(b) irregular accesses: throughput better", cores=2, headlines=["made up"]
    )
    found += claims.judge(rows(1.0, repeats=3), "(a) balanced: no notable advantage", cores=2)
    found += claims.accuracy(rows(1.0), "made up")
    path = claims.write("09-made-up", found)
    assert path == tmp_path / "data" / "09-made-up" / "claims.json"
    read = json.loads(path.read_text())
    assert read == found
    text = claims.table(read)
    assert max(map(len, text.splitlines())) <= 120
    assert text.index("(a) balanced") < text.index("(b) irregular")
    flat = " ".join(text.split())
    assert "fewer" in flat and "bit-identical in" in flat
    head, rule, *lines = claims.markdown(read).splitlines()
    assert head == "| claim | whole | of which exchange | of which lag | theory expects | verdict | reason |"
    assert {line.count("|") for line in (head, rule, *lines)} == {8} and len(lines) == 3
    head, rule, *lines = claims.markdown(claims.headlines(read), reasons=False).splitlines()
    assert {line.count("|") for line in (head, rule, *lines)} == {7} and len(lines) == 2
    assert lines[0].startswith("| (b) irregular accesses: throughput better (made up, 2 ranks on 2 cores) | 1.80 (1.7")
    assert lines[0].endswith("| 1.49 to 1.53 | gain as predicted |")
    assert lines[1] == "| (e) accuracy fully preserved (every run) | bit-identical in 27 runs |  |  |  | holds |"
    (open_one,) = claims.markdown(found[1:2], reasons=False).splitlines()[2:]
    assert open_one.endswith("| inconclusive: fewer than 7 repeats |")


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ((1.01, 1.00, 1.04), "holds"),
        ((1.10, 1.06, 1.20), "fails"),
        ((0.90, 0.80, 0.99), "fails"),
        ((1.03, 1.00, 1.06), "inconclusive"),
        ((1.03, 0.90, 1.20), "inconclusive"),
    ],
)
def test_a_statement_about_a_number(value: tuple[float, ...], verdict: str) -> None:
    claim = claims.stated("(x) all is even", "made up", Interval(*value), 1.0, 1.05, 9)
    assert (claim["verdict"], claim["repeats"], claim["quantity"]) == (verdict, 9, "statement")
    assert "{:.2f} ({:.2f} to {:.2f}); at least 1.00 and at most 1.05 was meant".format(*value) in claims.markdown(
        [claim]
    )
    assert claims.headlines([claim]) == []
    assert claims.table([claim]).splitlines()[-1].strip()
