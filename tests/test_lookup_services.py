"""Look-ups on shards of their own: the same scores as in one process, and what happens when a shard dies or hangs."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from mpi4py import MPI

from blslib.diagnosis import traces
from blslib.dlrm.config import ModelConfig
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import initial_weights
from blslib.lab import bench
from blslib.lab.experiments import distributed
from blslib.lab.serving.client import LateError, ShardError, Shards
from blslib.lab.serving.scorer import Scorer
from blslib.placement.shards import Placement, Shard, whole
from blslib.placement.tables import Table
from blslib.workloads.synthetic import Synthetic
from tests.conftest import LONG_S, ROOT, alive, punctual, until, within

MODEL = ModelConfig(rows=(90, 40, 7, 300, 1, 60), dim=8, bottom=(5, 8), top=(4, 1))
SHAPES = [(rows, 8) for rows in MODEL.rows]
NETS = (0, 0, 0, 1, 1, 1)
SEED = 3
REQUEST = [Synthetic(MODEL.rows, size, [2, 0.5, 3, 9, 1, 4], dense_features=5, seed=size).batch(0) for size in (33, 1)]
SCORES = np.concatenate([DLRM(MODEL, seed=SEED)(batch) for batch in REQUEST])


def cut(table: int, *parts: tuple[range, range, int | None]) -> Placement:
    """Two shards that share the tables, one of them in parts."""
    others = whole(SHAPES, [0, 1, 0, 1, None, 0], 2).shards
    return Placement(
        (*(shard for shard in others if shard.table != table), *(Shard(table, *part) for part in parts)), 2
    )


ALL, LEFT, RIGHT = range(8), range(3), range(3, 8)
WHOLE = Shard(0, range(90), ALL, 0)
PLACEMENTS = {
    "replicated": whole(SHAPES, [None] * 6, 2),
    "one shard, and one without": whole(SHAPES, [0] * 6, 2),
    "whole tables": whole(SHAPES, [1, 0, None, 1, 0, 1], 2),
    "nets apart": whole(SHAPES, [0, 0, 0, 1, 1, 1], 2),
    "columns": cut(3, *((range(300), range(3 * k, min(3 * k + 3, 8)), rank) for k, rank in enumerate((1, None, 0)))),
    "neighbouring rows": cut(3, (range(0, 70), ALL, 1), (range(70, 300), ALL, 0)),
    "every third row": cut(3, *((range(k, 300, 3), ALL, (k + 1) % 2) for k in range(3))),
    "rows and columns": cut(3, *((range(k, 300, 2), c, k) for k in range(2) for c in (LEFT, RIGHT))),
}


@pytest.fixture(scope="module", autouse=True)
def strict() -> Iterator[None]:
    """Warnings are errors in shards as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "error")
        yield


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where folders of sockets are made: a short path, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
        assert not list(Path(folder).iterdir())


def two(**how: float) -> Scorer:
    return Scorer(MODEL, NETS, PLACEMENTS["whole tables"], SEED, **how)


@pytest.fixture(scope="module")
def alike() -> Iterator[Scorer]:
    """For tests that harm nobody."""
    with two() as scorer:
        yield scorer


def send(scorer: Scorer, shard: int, number: int) -> None:
    os.kill(scorer.processes[shard].pid, number)


@pytest.mark.parametrize("name", [name for name in PLACEMENTS if name != "whole tables"])  # those are in other tests
def test_scores_are_those_of_one_process(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with Scorer(MODEL, NETS, PLACEMENTS[name], SEED) as scorer:
        found = [scorer.score(REQUEST) for _ in range(2)]
        held = [shard for shard, parts in enumerate(PLACEMENTS[name].of_rank) if parts]
        assert list(scorer.processes) == held
    for each in found:
        if "row" in name:
            np.testing.assert_allclose(each.scores, SCORES, rtol=1e-5)
        else:
            np.testing.assert_array_equal(each.scores, SCORES)
        for answer in each.answers:
            assert answer.asked_s < answer.began_s < answer.ended_s < answer.came_s
            assert 0 < answer.thread_s < answer.ended_s - answer.began_s + 1e-4
        assert len(each.fanned_s) == 2 and each.fanned_s[0][1] <= each.fanned_s[1][0]
    np.testing.assert_array_equal(found[0].scores, found[1].scores)  # whoever answered first
    assert capfd.readouterr() == ("", "")


def test_requests_are_counted_with_and_without_ids(alike: Scorer) -> None:
    nothing = [REQUEST[0].only({table: range(MODEL.rows[table]) for table in (0, 3, 5)}, MODEL.rows)]
    found = [alike.score(REQUEST[:1]), alike.score(nothing)]
    assert [(len(each.answers), each.with_ids) for each in found] == [(4, 4), (4, 2)]


def test_several_requests_may_be_out_at_once_and_two_clients_side_by_side(alike: Scorer) -> None:
    bags = [(np.array([row]), np.array([0, 1])) for row in range(3)]
    with Shards(MODEL, [[[WHOLE]]], SEED) as shards:
        numbers = [shards.ask(0, 0, [bag]) for bag in bags]
        np.testing.assert_array_equal(alike.score(REQUEST).scores, SCORES)
        found = {number: shards.answers([number])[0] for number in reversed(numbers)}
        for row, number in enumerate(numbers):
            np.testing.assert_array_equal(found[number].sums, initial_weights(MODEL, WHOLE, SEED)[row])


@punctual
def test_a_shard_that_dies_is_named_at_once(private: Path) -> None:
    with two() as scorer:
        scorer.score(REQUEST)
        started = [psutil.Process(process.pid) for process in scorer.processes.values()]
        died_s = []

        def kill() -> None:
            time.sleep(0.2)  # by then its client waits for it
            died_s.append(time.perf_counter())
            send(scorer, 1, signal.SIGKILL)

        send(scorer, 1, signal.SIGSTOP)
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ShardError, match="shard 1 ended with SIGKILL"):
            scorer.score(REQUEST)
        noticed_s = time.perf_counter()
        killer.join()
        assert until(lambda: not alive(started))  # the other one neither
        with pytest.raises(ShardError):
            scorer.score(REQUEST)
    within(0.05, noticed_s - died_s[0])


@punctual
def test_a_shard_that_hangs_is_named_at_the_deadline_and_its_late_answer_dropped() -> None:
    with two(deadline_s=0.5) as scorer:
        scorer.score(REQUEST)
        send(scorer, 1, signal.SIGSTOP)
        began_s = time.perf_counter()
        with pytest.raises(LateError, match=r"shard 1 has not answered within 0\.5 s"):
            scorer.score(REQUEST[::-1])
        took_s = time.perf_counter() - began_s
        send(scorer, 1, signal.SIGCONT)
        scorer.deadline_s = LONG_S
        np.testing.assert_array_equal(scorer.score(REQUEST).scores, SCORES)
        assert not scorer._came and not scorer._out
    assert took_s >= 0.5
    within(0.6, took_s)


def test_a_full_queue_is_an_error_and_blocks_nobody(private: Path) -> None:
    many = [(np.zeros(1 << 14, np.int64), np.array([0, 1 << 14]))]
    with two() as scorer:
        send(scorer, 1, signal.SIGSTOP)
        with pytest.raises(ShardError, match=r"shard 1 takes no more requests, \d+ are out: take answers sooner"):
            [scorer.ask(1, 0, many) for _ in range(5000)]


@punctual
def test_a_waiting_shard_costs_nothing(alike: Scorer) -> None:
    for _ in range(2):
        alike.score(REQUEST)
    before_s, began_s = dict(alike.process_s), time.perf_counter()
    time.sleep(2)
    found = alike.score(REQUEST)
    for shard, spent_s in alike.process_s.items():
        busy_s = sum(each.thread_s for each in found.answers if each.shard == shard)
        within(1e-3, (spent_s - before_s[shard] - busy_s) / (time.perf_counter() - began_s), "of a core")


def test_a_shard_that_is_not_ready_in_time_is_named(private: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(LateError, match=r"shard 0 was not ready within 0\.05 s"):
        two(ready_s=0.05)
    assert psutil.Process().children() == before


def test_a_shard_that_fails_before_it_is_ready_says_why(private: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ShardError, match="shard 0 ended with code 1"):
        Shards(MODEL, [[[WHOLE]]], seed=-1)
    assert "ValueError" in capfd.readouterr().err


MAIN = """
import sys, time
from tests import test_lookup_services as test
if __name__ == "__main__":
    print("begins", flush=True)
    with test.two() as scorer:
        print(*(process.pid for process in scorer.processes.values()), flush=True)
        while True:
            scorer.score(test.REQUEST)
"""


@pytest.mark.parametrize(("number", "ready"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGKILL, True)])
def test_whoever_ends_the_client_ends_all(number: int, ready: bool, private: Path) -> None:
    """By Ctrl-C while shards start, or while they work; or by a SIGKILL, which leaves it no time to end them."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", MAIN], env=os.environ | {"PYTHONPATH": str(ROOT)}, **how) as main:
        assert main.stdout and main.stdout.readline() == "begins\n"
        if ready:
            shards = [psutil.Process(int(pid)) for pid in main.stdout.readline().split()]
            assert not list(private.iterdir())  # of sockets, as soon as they are connected
        else:
            assert until(lambda: len(psutil.Process(main.pid).children()) == 2)
            shards = psutil.Process(main.pid).children()
        assert len(shards) == 2
        main.send_signal(number)
        told = main.communicate(timeout=LONG_S)[1]
    assert "KeyboardInterrupt" in told if number == signal.SIGINT else main.returncode == -signal.SIGKILL
    assert told.count("Traceback") == (number == signal.SIGINT)  # shards have nothing to say
    assert until(lambda: not alive(shards))


SMALL = distributed.Config(
    tables=tuple(Table(str(i), rows, 8, 1.5, net=str(i // 2)) for i, rows in enumerate((50, 400, 30, 20))),
    bottom=(5, 8),
    top=(4, 1),
    strategies=("singular", "capacity-balanced", "one-shard"),
    rates_per_s=(0.0, 400.0),
    requests=12,
    batch_size=32,
    repeats=2,
)


def test_the_bench_has_a_row_for_every_request_and_a_trace(tmp_path: Path) -> None:
    rows = distributed.run(MPI.COMM_SELF, dataclasses.replace(SMALL, timelines=str(tmp_path)))
    table = pd.DataFrame(rows)
    keys = ["strategy", "shards", "rate_per_s", "repeat", "request"]
    assert len(table) == len(table[keys].drop_duplicates()) == 3 * 2 * 2 * 12
    assert set(zip(table["strategy"], table["shards"], strict=True)) == {
        ("singular", 0),
        ("capacity-balanced", 2),
        ("one-shard", 1),
    }
    assert (table["difference"] == 0).all()
    assert (table[["latency_s", "embedded_s", "cpu_s"]] > 0).all(axis=None)
    assert (table["latency_s"] > table["embedded_s"]).all()
    alone = table["shards"] == 0
    assert (table["asked"] == 2 * table["shards"] * -(-table["samples"] // 32))[table["shards"] < 2].all()
    assert (table["asked_with_ids"] <= table["asked"]).all()
    assert (table.loc[alone, ["asked", "lookups_s"]] == 0).all(axis=None)
    assert (table.loc[~alone, ["asked", "lookups_s"]] > 0).all(axis=None)
    head, *lines = bench.table("distributed", rows).splitlines()
    assert head.split() == distributed.COLUMNS.split() and len(lines) == 3 * 2

    events = json.loads((tmp_path / "capacity-balanced-2-0.json").read_text())["traceEvents"]
    assert {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"} == {0: "main", 1: "shard 0", 2: "shard 1"}
    spans = pd.DataFrame([each for each in events if each["ph"] == "X"])
    assert set(spans["name"]) == {"request", "net 0", "net 1", "look-up"}
    for name, pids in (("request", {0}), ("look-up", {1, 2})):
        assert set(spans.loc[spans["name"] == name, "pid"]) == pids
    trace = traces.read([tmp_path / "capacity-balanced-2-0.csv"])
    assert trace.work_s.shape == (2, 12)
    assert trace.work_s.sum() == pytest.approx(spans.loc[spans["name"] == "look-up", "dur"].sum() / 1e6)


def test_requests_are_heavy_tailed_split_and_the_same_for_every_contender() -> None:
    config = dataclasses.replace(SMALL, requests=300)
    found, again = distributed.requests(config, 1), distributed.requests.__wrapped__(config, 1)
    for one, other in zip(found, again, strict=True):
        for this, that in zip(one, other, strict=True):
            np.testing.assert_equal((this.dense, this.ids), (that.dense, that.ids))
    sizes = np.array([sum(batch.size for batch in request) for request in found])
    assert max(batch.size for request in found for batch in request) == config.batch_size
    assert min(batch.size for request in found for batch in request) > 0
    assert np.median(sizes) == pytest.approx(config.samples, rel=0.25)
    assert np.percentile(sizes, 99) > 5 * np.median(sizes) and sizes.max() <= config.most
    assert [len(request) for request in found] == (-(-sizes // config.batch_size)).tolist()
    other = distributed.requests(config, 2)
    assert [len(request) for request in other] != [len(request) for request in found]


def test_a_plan_is_one_configuration_on_one_rank() -> None:
    asked = {"bounds": None, "repeats": 3, "quick": False, "strategies": ("singular",), "shards": (2, 4)}
    [(config, ranks)] = distributed.plan(Namespace(**asked, rates=(50.0,), timelines=None))
    assert ranks == 1 and config.repeats == 3 and config.rates_per_s == (0.0, 50.0)
    assert config.strategies == ("singular",) and config.shards == (2, 4)
