"""``python -m blslib place``: what it prints, writes and refuses. No ranks, no MPI."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blslib.lab import cli, place, tables
from blslib.lab.experiments import placed
from blslib.placement import models, plan
from blslib.placement.loads import LookupCost, imbalance
from blslib.placement.shards import whole
from blslib.placement.strategies import STRATEGIES, Options
from blslib.placement.tables import Table
from blslib.theory.imbalance import Split
from blslib.workloads.batch import Batch
from blslib.workloads.synthetic import Synthetic
from tests.conftest import ROOT, punctual, within

LIST = "name,rows,dim,pooling,net\nusers,500000,64,10,user\nads,100000,64,40,item\n"
LIST += "shops,2000,64,5,item\nhours,24,64,1,item\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "tables.csv"
    path.write_text(LIST)
    return path


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["place", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_every_strategy_has_a_row_for_every_shard(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, str(listed), "--shards", "2", "--spare", "1MiB", "--json", "-")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [(row["strategy"], row["shard"]) for row in rows] == [
        (s, n) for s in (*STRATEGIES, "optimum") for n in (0, 1)
    ]
    assert list(rows[0]) == ["strategy", "shard", "tables", "bytes", "lookups", "sent_bytes", "time_us", "requests"]
    of = {name: [row for row in rows if row["strategy"] == name] for name in (*STRATEGIES, "optimum")}
    everything = 4 * 64 * (500_000 + 100_000 + 2000 + 24)
    for name, pair in of.items():
        copies = sum(row["bytes"] for row in pair) / everything
        assert copies == 2 if name == "singular" else 1 <= copies <= 1.4
        assert sum(row["lookups"] for row in pair) == pytest.approx(56)
    assert [row["requests"] for row in of["one-shard"]] == [2, 0]
    assert [row["requests"] for row in of["net-specific"]] == [1, 1]
    assert [row["requests"] for row in of["singular"]] == [0, 0]
    busiest = {name: max(row["time_us"] for row in pair) for name, pair in of.items()}
    assert busiest["searched"] <= busiest["optimum"] <= busiest["load-balanced"] <= busiest["one-shard"]


def test_it_prints_one_screen_and_says_what_it_wrote(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, rows = tmp_path / "best.json", tmp_path / "rows.json"
    code, out, _ = ran(capsys, str(listed), "--shards", "2", "--save", str(best), "--json", str(rows))
    assert code == 0
    assert out.startswith("4 tables of tables.csv\n")
    assert f"wrote {best}\nwrote {rows}\n" in out
    assert "least time: " in out
    assert all(name in out for name in STRATEGIES)
    placement = plan.from_json(best.read_text(), tables.named(str(listed))[0])
    assert placement.ranks == 2
    assert len(json.loads(rows.read_text())) == 2 * (len(STRATEGIES) + 1)


def test_a_plan_is_audited(listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, names = tmp_path / "plan.json", ("users", "ads", "shops", "hours")
    entries = [{"table": name, "type": "table_wise", "ranks": [2 * (name == "ads")]} for name in names]
    path.write_text(json.dumps({"ranks": 3, "tables": entries}))
    code, out, _ = ran(capsys, str(listed), "--plan", str(path), "--json", "-")
    rows = [row for row in json.loads(out) if row["strategy"] == "plan"]
    assert code == 0
    assert [(row["shard"], row["tables"], row["lookups"]) for row in rows] == [(0, 3, 16), (1, 0, 0), (2, 1, 40)]
    assert str(path) in ran(capsys, str(listed), "--plan", str(path))[1]


def test_a_plan_may_be_what_its_trace_ran(listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "run.csv"
    trace.write_text(
        "rank,iteration,compute_s\n" + "".join(f"{r},{i},{1 + 2 * r}\n" for i in range(60) for r in (0, 1))
    )
    code, out, _ = ran(capsys, str(listed), "--shards", "2", "--trace", str(trace))
    assert code == 0
    assert "in the recorded run this would save 32.5% of the time" in out  # of 33.3 % static imbalance


def test_a_plan_is_shown_where_nothing_else_is_found(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    names = ("users", "ads", "shops", "hours")
    entries = [{"table": name, "type": "data_parallel", "ranks": []} for name in names]
    path.write_text("\ufeff" + json.dumps({"ranks": 2, "tables": entries}), encoding="utf-8")
    code, out, told = ran(capsys, str(listed), "--plan", str(path), "--cap", "1MiB")
    assert code == 0 and f"{path}, above the cap on 2 ranks" in out and "least time" not in out
    assert "searched: impossible: the tables have 154,118,144 bytes, 2 ranks of 1,048,576 have 2,097,152" in told
    code, _, told = ran(capsys, str(listed), "--plan", str(path), "--cap", "1MiB", "--save", str(tmp_path / "best"))
    assert code == 1 and "no placement was found" in told
    code, _, told = ran(capsys, str(listed), "--plan", str(path), "--shards", "3")
    assert code == 2 and "is for 2 ranks: leave --shards 3 out" in told


def test_a_plan_may_be_printed_alone(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys, str(listed), "--shards", "2", "--save", "-")
    assert code == 0 and plan.from_json(out, tables.named(str(listed))[0]).ranks == 2


def test_impossible_is_said_of_what_is_and_of_no_more(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of 128 MB in two halves of 64 MB: greedy ways that do not cut fail, those that cut find one."""
    code, out, told = ran(capsys, str(listed), "--shards", "2", "--cap", "80MiB", "--spare", "1MiB")
    assert code == 0 and "row-split" in out
    assert "optimum: impossible without cuts: 4 whole pieces do not fit on 2 ranks of 83,886,080 bytes" in told
    assert "replicated: found none of " in told and "ways that keeps 83,886,080 bytes on a rank" in told


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.yaml", "- rows: 2020-13-01\n  dim: 4\n", "no YAML: month must be in 1..12"),
        ("t.json", "[" * 100_000, "neither CSV nor JSON"),
        ("t.csv", "rows,dim\n" + "9" * 26 + ",4\n", "rows must be 1 to 1e+15, got 99999999999999999999999999"),
        ("t.csv", "rows,dim\n" + "9" * 9999 + ",4\n", "rows must be a whole number, got '999"),
        ("t.csv", "rows,dim,time_us\n5,4,0\n", "time_us must be 0.001 to 1e+15, got 0.0"),
    ],
)
def test_bad_lists_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    code, _, said = ran(capsys, str(tmp_path / name))
    assert code == 2 and told in said and name in said and len(said) < 400


def test_nets_that_follow_each_other_wait_for_their_own_busiest_shard() -> None:
    """Two nets of one table each: together on two shards they take as long as one after the other on one."""
    listed = (Table("a", 10, 8, net="x", time_us=30.0), Table("b", 10, 8, net="y", time_us=20.0))
    shapes = [table.shape for table in listed]
    assert place.in_turn_us(whole(shapes, [0, 1], 2), listed, LookupCost()) == pytest.approx(50)
    assert place.in_turn_us(whole(shapes, [0, 0], 1), listed, LookupCost()) == pytest.approx(50)
    pair = tuple(replace(table, net="x") for table in listed)
    assert place.in_turn_us(whole(shapes, [0, 1], 2), pair, LookupCost()) == pytest.approx(30)
    [found], _ = place.placed(pair, 2, Options(), ["load-balanced"])
    assert place.overview([found], pair, Options())[0]["in_turn_us"] == pytest.approx(30)


def test_what_a_placement_buys() -> None:
    """A third of the time is static imbalance; 1.1 times the mean leaves a tenth of the useful work of it."""
    listed = models.tables("criteo-kaggle")
    [found], failed = place.placed(listed, 2, Options(), ["load-balanced"])
    assert not failed
    uneven = found._replace(loads=found.loads._replace(time_us=found.loads.time_us * 0 + [1.1, 0.9]))
    assert place.bought(uneven, Split(60.0, 30.0, 0.0, 0.0, 90.0, 0.0, 0)) == pytest.approx((30 - 6) / 90)


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("ranks", [2, 8])
def test_heuristics_stay_near_the_optimum_on_all_models(name: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cap, and with one of 1.2 times the mean where the tables can keep that."""
    monkeypatch.setattr(place, "LIMIT_S", 1.0)
    listed = models.tables(name)
    total, largest = sum(table.bytes for table in listed), max(table.bytes for table in listed)
    for cap in (float("inf"), max(1.2 * total / ranks, 1.05 * largest)):
        found, _ = place.placed(listed, ranks, Options(cap_bytes=cap), ["load-balanced", "optimum"])
        busiest = {each.strategy: each.loads.time_us.max() for each in found}
        if "load-balanced" in busiest:
            assert busiest["load-balanced"] <= 1.05 * busiest["optimum"]


def test_aliccp_is_balanced_by_splits_and_by_replicas() -> None:
    """23 fields in a row have twice the mean on the busiest of 4 ranks; all are small enough to be everywhere."""
    listed, even = models.tables("aliccp-multihot"), {}
    for name, slack in (("contiguous", 1.0), ("row-split", 1.02), ("searched", 1.01)):
        [found], _ = place.placed(listed, 4, Options(slack={"lookups": slack}), [name])
        even[name] = imbalance(found.loads.lookups)
    assert even["contiguous"] > 2
    assert even["row-split"] <= 1.02
    assert even["searched"] <= 1.01


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no.csv"], "no file no.csv, and no model of this name: there are drm1-like"),
        (["{listed}", "--cap", "1KiB"], "impossible: table users needs"),
        (["{listed}", "--plan", "{listed}"], "not a plan as docs/placement.md has it"),
        (["{listed}", "--trace", "{listed}"], "lacks rank, iteration, compute_s"),
    ],
)
def test_it_refuses_in_words(listed: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, *(argument.format(listed=listed) for argument in arguments))
    assert code
    assert out == ""
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize("size", ["0", "-1GiB", "x", "1XB", "nan"])
def test_faulty_sizes_are_refused(listed: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["place", str(listed), f"--cap={size}"])
    assert "--cap" in capsys.readouterr().err


def test_inputs_are_not_overwritten(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ran(capsys, str(listed), "--save", str(listed))
    assert code == 2
    assert "it or its folder is named already" in err
    assert listed.read_text() == LIST


def test_tables_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text("- {name: users, rows: 500, dim: 64}\n- {rows: 20, dim: 64, pooling: 2.5}\n")
    listed, source = tables.named(str(path))
    assert ([table.name for table in listed], listed[1].pooling, source) == (["users", "1"], 2.5, "tables.yaml")
    path.write_text("a: [")
    assert "no YAML" in ran(capsys, str(path))[2]
    path.write_text("a: 3")
    assert "no tables" in ran(capsys, str(path))[2]


def test_it_needs_neither_mpi_nor_torch(listed: Path) -> None:
    code = (
        "import sys\nfor name in ('mpi4py.MPI', 'torch'):\n    sys.modules[name] = None\n"
        f"from blslib.lab import cli\nsys.exit(cli.main(['place', {str(listed)!r}, '--shards', '2']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "least time" in done.stdout


def test_the_page_shows_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "placement.md").read_text()
    example, output = (
        re.search(rf"<!-- {mark} -->\n```text\n(.*?)```", page, re.DOTALL) for mark in ("example", "output")
    )
    assert example and output
    monkeypatch.chdir(tmp_path)
    Path("tables.csv").write_text(example[1])
    assert ran(capsys, "tables.csv", "--shards", "2", "--spare", "1MiB")[1] == output[1]
    assert all(f"`{name}`" in page for name in STRATEGIES)


@punctual
def test_tables_of_a_stream_are_counted_and_timed() -> None:
    """Two tables alike but for twenty times the lookups: the second takes longer; another stream is judged the same."""
    source = Synthetic((50_000, 50_000), 256, [2, 40], iterations=3)
    listed = tables.of_batches(source.rows, 16, list(source))
    assert [(table.shape, table.pooling, table.spread) for table in listed] == [((50_000, 16), p, 0.0) for p in (2, 40)]
    each_us = tables.times_us([table.shape for table in listed], list(source), passes=11)
    assert each_us.shape == (3, 2) and (each_us > 0).all()
    uneven = tables.of_batches((9,), 4, [Batch(np.zeros((2, 1), np.float32), (np.arange(4),), (np.array([0, 1, 4]),))])
    assert (uneven[0].pooling, uneven[0].spread) == (2.0, 1.0)
    few_us, many_us = np.median(each_us, axis=0).tolist()  # others may have the core for a while
    within(many_us, few_us)


def test_a_cap_is_kept_to_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the optimum, too, whose solver does not see a millionth."""
    (tmp_path / "t.csv").write_text("name,rows,dim\na,1000000,1\nb,1000001,1\n")
    code, out, told = ran(capsys, str(tmp_path / "t.csv"), "--shards", "2", "--cap", "4000003", "--json", "-")
    assert all(row["bytes"] <= 4000003 for row in json.loads(out or "[]"))
    assert "optimum: found none that keeps the cap to the byte" in told or "optimum: impossible" in told
    assert "load-balanced: impossible: table b needs 4,000,004 bytes" in told


def test_nets_that_get_too_few_ranks_are_no_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What does not fit on the ranks of one net may fit on all."""
    (tmp_path / "t.csv").write_text("rows,dim,net\n" + "30,1,a\n" * 2 + "20,1,b\n" * 5)
    _, _, told = ran(capsys, str(tmp_path / "t.csv"), "--shards", "3", "--cap", "240")
    assert "net-specific: found none: 1 ranks for net 'a' are too few" in told or "net-specific" not in told
    assert "net-specific: impossible" not in told


def test_no_whole_tables_beat_the_best_of_whole_tables() -> None:
    listed = models.tables("drm3-like")
    found, _ = place.placed(listed, 8, Options(), ["capacity-balanced", "load-balanced", place.BEST])
    assert all(row["over_optimum"] >= 1 for row in place.overview(found, listed, Options()))


def test_a_plan_is_printed_and_rows_are_written(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.json"
    code, out, told = ran(capsys, str(listed), "--shards", "2", "--save", "-", "--json", str(rows), "--spare", "1B")
    assert code == 0 and plan.from_json(out, tables.named(str(listed))[0]).ranks == 2
    assert json.loads(rows.read_text()) and f"wrote {rows}" in told


def test_what_is_foreseen_is_judged_by_batches_that_nobody_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """In even iterations all is even; in odd ones the first table has a hundred times as much, which alone counts."""
    loads_us = np.ones((16, 8))
    loads_us[0, 1::2] = 100
    listed = tuple(Table(str(n), 100, 32, time_us=1.0) for n in range(16))
    monkeypatch.setattr(placed, "weighed", lambda config: (listed, loads_us))
    config = placed.Config("balanced", groups=2, max_rows=100, batch_size=8, strategies=("load-balanced",))
    for row in placed.foreseen(config, [2]):
        assert row["load_balance"] == pytest.approx((107 + 8) / 2 / 107)
        assert (row["lag"], row["both"]) == (pytest.approx(1), pytest.approx(1))
