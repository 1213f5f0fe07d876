"""The benches, run small on two ranks, and the parts that they are made of."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from blslib.collective.exchange import Arrival
from blslib.lab import cli
from blslib.lab import rows as records
from blslib.lab.bench import PLANS
from blslib.lab.compare.measure import Contender, Run, Timed, contenders, interleaved
from blslib.lab.experiments import alltoallv as micro
from blslib.lab.experiments import soak
from tests.conftest import LONG_S, punctual, within

Rows = list[dict[str, Any]]

SMALL = {
    "alltoallv": ["--bytes", "256,4096", "--bounds", "0,1", "--repeats", "2"],
    "delayed": ["--laws", "rotating", "--bounds", "0,4", "--repeats", "1", "--quick"],
    "dlrm": ["--scenarios", "rotating", "--bounds", "0,2", "--repeats", "1", "--quick"],
    "soak": ["--minutes", "0.05", "--bounds", "0,3"],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    found = {}
    for name, options in SMALL.items():
        file = tmp_path_factory.mktemp("bench") / f"{name}.json"
        command = [sys.executable, "-m", "blslib", "bench", name, "--ranks", "2", "--json", str(file), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5 * LONG_S, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = json.loads(file.read_text())
        assert all(column in done.stdout for column in PLANS[name].columns)
        assert len(done.stdout.splitlines()) == 4 + len(found[name])
    return found


@pytest.mark.parametrize("name", SMALL)
def test_every_measured_column_has_its_spread(measured: dict[str, Rows], name: str) -> None:
    assert measured[name]
    for row in measured[name]:
        assert set(PLANS[name].columns) <= set(row)
        for column in row:
            if column.endswith("_min"):
                least, median, greatest = (row[column.removesuffix("_min") + end] for end in ("_min", "", "_max"))
                assert 0 < least <= median <= greatest


def test_alltoallv_measures_every_contender(measured: dict[str, Rows]) -> None:
    rows = measured["alltoallv"]
    expected = {("mpi", 0), ("mpi-equal", 0), *((name, k) for name in ("bls", "window") for k in (0, 1))}
    for size in (256, 4096):
        for copied in (False, True):
            here = [row for row in rows if (row["bytes_per_block"], row["copied_out"]) == (size, copied)]
            assert {(row["contender"], row["bound"]) for row in here} == expected
    assert all(row["share_of_mpi"] == 1 for row in rows if row["contender"] == "mpi")


def test_no_run_is_quicker_than_its_prediction(measured: dict[str, Rows]) -> None:
    for row in measured["delayed"] + measured["dlrm"]:
        assert row["ratio_min"] >= 1
        assert row["predicted_s"] >= row["limit_s"] * (1 - 1e-9)
        assert row["lag"] <= row["bound"]


def test_scores_are_the_same_to_the_bit(measured: dict[str, Rows]) -> None:
    assert all(row["identical_scores"] is True for row in measured["dlrm"])


def test_a_soak_checks_every_byte(measured: dict[str, Rows]) -> None:
    (row,) = measured["soak"]
    assert row["wrong"] == 0 and row["fds"] == row["fds_start"]
    assert row["blocks"] > row["exchanges"] > 0 and row["bytes"] > row["blocks"]
    sizes = np.full((3, 2, 2), 5)
    text = np.arange(100, dtype=np.uint8)
    check = soak.Check(0, text, sizes, np.full((3, 2, 2), 7))
    right, wrong = text[7:12], text[8:13]
    check.take([Arrival(0, [right, right]), Arrival(2, [right, right]), Arrival(2, [right, wrong])])
    assert (check.due, check.wrong) == (3, 2)  # one out of order, one with other bytes


def test_memory_is_slots_and_headers(measured: dict[str, Rows]) -> None:
    block = 256 * 8 * 32 * 4  # half of 512 samples, 8 tables, 32 float32
    for row in measured["dlrm"]:
        if row["contender"] == "bls":
            assert row["memory_bytes"] == 2 * 2 * (row["bound"] + 1) * (block + 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "alltoallv", "--bytes", "6"], "'6': expected whole number >= 4, a multiple of 4, and below"),
        (["bench", "alltoallv", "--bounds", "-1"], "expected"),
        (["bench", "delayed", "--laws", "gauss"], "choose from none, bernoulli"),
        (["bench", "dlrm", "--scenarios", "x"], "choose from balanced"),
        (["bench", "dlrm", "--laws", "none"], "unrecognized arguments"),
        (["bench", "alltoallv", "--ranks", "0"], "--ranks"),
        (["bench", "simulate", "--ranks", "0"], "'0': expected whole number >= 1, and below"),
        (["bench", "soak", "--minutes", "nan"], "invalid number of minutes > 0"),
        (["bench", "soak", "--minutes", "-1"], "invalid number of minutes > 0"),
        (["bench", "nothing"], "invalid choice"),
        (["bench", "alltoallv", "--json", "no/such/folder/x.json"], "its folder does not exist"),
    ],
)
def test_a_wrong_word_is_told_at_once(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err


def test_interleaving_moves_on() -> None:
    items = contenders(("mpi", "bls"), (0, 4))
    assert items == [Contender("mpi", 0), Contender("bls", 0), Contender("bls", 4)]
    order: list[Contender] = []
    assert interleaved(3, items, order.append) == dict.fromkeys(items, [None] * 3)
    assert [sorted(order[i : i + 3]) for i in (0, 3, 6)] == [sorted(items)] * 3
    assert [order[i] for i in (0, 3, 6)] == items


def test_lag_and_work_of_a_run() -> None:
    # Rank 0 returns from calls at 1, 2, 3; rank 1 enters at 0, 2.5, 2.9.
    run = Run(
        started_s=np.array([0.0, 0.0]),
        entered_s=np.array([[0.5, 1.5, 2.5], [0.0, 2.5, 2.9]]),
        returned_s=np.array([[1.0, 2.0, 3.0], [1.0, 2.6, 3.0]]),
        drained_s=np.array([[3.0, 3.1], [3.0, 3.2]]),
        ended_s=np.array([3.5, 3.2]),
    )
    assert run.lag == 1
    assert run.measured_s == 3.5
    np.testing.assert_allclose(run.work_s, [[0.5, 0.5, 0.5], [0.0, 1.5, 0.3]])
    np.testing.assert_allclose(run.waiting_s, [1.6, 1.4])
    # By hand, synchronous: 0.5, then 2.0, then 2.5, then 0.4 after the drain on rank 0.
    assert run.predicted_s(0) == pytest.approx(2.9)


@punctual
def test_what_collect_takes_is_no_work() -> None:
    """In every call of the exchange time is waiting, and outside of them it is work."""
    nap_s = 0.02

    class Sleeping:
        rank, size = 0, 1

        def post(self, blocks: object) -> list[Arrival]:
            return []

        def collect(self, through: int | None = None) -> list[Arrival]:
            time.sleep(nap_s)
            return [Arrival(0, [])] if through is None else []

        def drain(self) -> list[Arrival]:
            return []

    timed = Timed(MPI.COMM_SELF, Sleeping())
    timed.start()
    for _ in range(3):
        timed.post([])
        assert timed.collect() == [Arrival(0, [])] and timed.collect(0) == []
    timed.drain()
    run = timed.end()
    assert run.waiting_s.sum() >= 6 * nap_s
    assert run.work_s.shape == (1, 3)
    within(nap_s, float(run.work_s.max()), run)
    within(nap_s, run.predicted_s(0), run)


def test_the_timed_loop_compares_whole_blocks() -> None:
    class Faulty:
        def post(self, blocks: tuple[np.ndarray, ...]) -> list[Arrival]:
            blocks[0][-1] += 1
            return [Arrival(0, list(blocks))]

        def drain(self) -> list[Arrival]:
            return []

    loop = micro.Loop(MPI.COMM_SELF, [8])
    loop.run(Faulty(), 3)
    with pytest.raises(RuntimeError, match="1 wrong items, 3 of 3 arrivals"):
        loop.check(3)


@dataclass(frozen=True)
class Config:
    x: int = 1


def test_rows_are_written_with_what_they_were_measured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.OUT_VARIABLE, str(tmp_path))
    path = records.write("09-test", "rows", [{"a": 1, **records.spread("t_s", [3.0, 1.0, 2.0])}], [Config()])
    assert path.read_text().splitlines() == ["a,t_s,t_s_min,t_s_max", "1,2.0,1.0,3.0"]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["configurations"] == [{"x": 1}]
    assert {"processor", "cores", "mpi", "torch", "mpi_settings"} <= set(about["provenance"])
    with pytest.raises(ValueError, match="has columns"):
        records.write("09-test", "rows", [{"b": 1}], [])
    with pytest.raises(ValueError, match="differ in their columns"):
        records.write("09-test", "other", [{"a": 1}, {"b": 1}], [])
    with pytest.raises(ValueError, match="nothing to write"):
        records.write("09-test", "other", [], [])
