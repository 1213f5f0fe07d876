"""The benches, run small on two ranks: their rows, their tables, and how to add one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blslib.lab import cli, experiments, found
from blslib.lab.options import BY_GROUP
from blslib.lab.rows import derived, summary
from tests.conftest import LONG_S, ROOT

Rows = list[dict[str, Any]]

EVERY = "mpi,mpi-equal,bls,window,gloo"
PLACED = "load-balanced,correlated,row-split,singular"
SMALL = {
    "alltoallv": ["--bytes", "256,4096", "--bounds", "0,1", "--repeats", "2"],
    "delayed": ["--laws", "rotating", "--bounds", "0,4", "--repeats", "2", "--quick", "--contenders", EVERY],
    "dlrm": ["--scenarios", "rotating", "--bounds", "0,2", "--repeats", "2", "--quick"],
    "lookup": ["--repeats", "2", "--quick", "--bounds", "0"],
    "placed": ["--scenarios", "static", "--strategies", PLACED, "--bounds", "0,2", "--repeats", "2", "--quick"],
    "serving": ["--rates", "300", "--bounds", "0,4", "--repeats", "2", "--quick", "--contenders", "bls"],
    "torch": ["--bytes", "64", "--bounds", "0,1", "--repeats", "2", "--delays-ms", "3"],
}


def bench(file: Path, name: str, *options: str, extra: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A bench on two ranks, its rows in a file."""
    command = [sys.executable, "-m", "blslib", "bench", name, "--ranks", "2", "--json", str(file), *options]
    environment = os.environ | {found.EXTRA_VARIABLE: str(extra or "")}
    streams: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, timeout=5 * LONG_S, env=environment, cwd=ROOT, **streams)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    rows = {}
    for name, options in SMALL.items():
        file = tmp_path_factory.mktemp("bench") / f"{name}.json"
        done = bench(file, name, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        rows[name] = json.loads(file.read_text())
        columns, *lines = done.stdout.splitlines()[3:]
        assert columns.split() == found.load(experiments, name).COLUMNS.split()
        first = list(rows[name][0])
        keys = first[: first.index("repeat")] if "repeat" in first else first
        assert len(lines) == len({tuple(row[key] for key in keys) for row in rows[name]})
    return rows


def test_rows_may_be_printed_alone() -> None:
    done = bench(Path("-"), "alltoallv", *SMALL["alltoallv"])
    assert done.returncode == 0, done.stderr
    assert {row["contender"] for row in json.loads(done.stdout)} >= {"floor", "raw", "mpi", "bls"}
    assert done.stderr.startswith("bench alltoallv: ")


@pytest.mark.parametrize("name", [name for name in SMALL if name != "serving"])
def test_every_setting_has_its_repeats(measured: dict[str, Rows], name: str) -> None:
    lines = summary(measured[name])
    assert set(lines["repeats"]) == {int(SMALL[name][SMALL[name].index("--repeats") + 1])}
    assert set(found.load(experiments, name).COLUMNS.split()) <= set(lines)
    for column in lines:
        if column.removesuffix("_low") in lines and column.endswith("_low"):
            middle, high = lines[column.removesuffix("_low")], lines[column.removesuffix("_low") + "_high"]
            there = middle.notna()
            assert (lines[column][there] <= middle[there]).all() and (middle[there] <= high[there]).all()
    assert (lines[next(name for name in ("time_us", "measured_s", "lookup_us") if name in lines)] > 0).all()


def pairs(rows: Rows, **where: Any) -> set[tuple[str, int]]:
    """Contenders and bounds of the rows with these values."""
    here = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return {(row["contender"], row["bound"]) for row in here}


def test_every_contender_takes_part(measured: dict[str, Rows]) -> None:
    synchronous = {(name, 0) for name in ("floor", "raw", "mpi", "mpi-equal")}
    for size in (256, 4096):
        expected = synchronous | {(name, k) for name in ("bls", "bls-in-place", "window") for k in (0, 1)}
        assert pairs(measured["alltoallv"], bytes_per_block=size) == expected
    of_torch = {(name, k) for name in ("gloo", "torch", "bls") for k in (0, 1)}
    assert pairs(measured["torch"], delay_ms=0.0) == pairs(measured["torch"], delay_ms=3.0) == of_torch
    bounded = {(name, k) for name in ("bls", "window", "gloo") for k in (0, 4)}
    assert pairs(measured["delayed"]) == bounded | {("mpi", 0), ("mpi-equal", 0)}


def test_each_stands_beside_the_others(measured: dict[str, Rows]) -> None:
    lines = summary(measured["alltoallv"]).set_index(["contender", "bytes_per_block"])
    assert (lines.loc["raw", "above_raw_us"] == 0).all() and (lines.loc["raw", "share_of_raw"] == 1).all()
    assert (lines.loc["floor", "above_floor_us"] == 0).all()
    times = {(row["contender"], row["bytes_per_block"], row["repeat"]): row["time_us"] for row in measured["alltoallv"]}
    for size, above_us in lines.loc["mpi", "above_floor_us"].items():
        each = [times["mpi", size, n] - times["floor", size, n] for who, of, n in times if (who, of) == ("mpi", size)]
        assert above_us == pytest.approx(np.median(each))


def test_ranks_that_sleep_in_turn_wait_for_each_other_as_the_bound_has_it(measured: dict[str, Rows]) -> None:
    """Beside gloo with as many in flight; every call waits for a sleep at bound 0, and with lag for its own ones."""
    asleep = [row for row in measured["torch"] if row["delay_ms"]]
    assert len(asleep) == len(measured["torch"]) / 2
    for row in asleep:
        assert row["slept_us"] >= 3000 and row["time_us"] >= (1500 if row["bound"] else 3000)
    assert all(row["calls"] % 2 == 0 for row in measured["torch"])
    times = {
        (row["contender"], row["bound"], row["delay_ms"], row["repeat"]): row["time_us"] for row in measured["torch"]
    }
    for row in derived(measured["torch"]).to_dict("records"):
        bound, delay_ms, repeat = (row[name] for name in ("bound", "delay_ms", "repeat"))
        assert row["gain_over_gloo"] == times["gloo", bound, delay_ms, repeat] / row["time_us"]
        assert row["speedup_over_gloo"] == times["gloo", 0, delay_ms, repeat] / row["time_us"]
        assert row["predicted_us"] >= times[row["contender"], bound, 0.0, repeat] + row["slept_us"] / 2


def test_no_run_is_quicker_than_its_prediction(measured: dict[str, Rows]) -> None:
    # MPI waits for nobody of whom it gets nothing: the whole model everywhere has no exchange that could be predicted.
    placed = [row for row in measured["placed"] if row["strategy"] != "singular"]
    for row in measured["delayed"] + measured["dlrm"] + placed:
        assert row["measured_s"] >= row["predicted_s"] * (1 - 1e-9)
        assert row["predicted_s"] >= row["limit_s"] * (1 - 1e-9)
        assert row["limit_s"] >= row["useful_s"] > 0
        assert row["lag"] <= row["bound"]


def test_scores_are_the_same_to_the_bit(measured: dict[str, Rows]) -> None:
    assert all(row["identical"] is True for row in measured["dlrm"] + measured["serving"])


def test_packed_tables_are_smaller_and_off_by_little(measured: dict[str, Rows]) -> None:
    """A row of D values takes D + 8 bytes in int8, D / 2 + 4 in int4; their errors are half a step at most, summed."""
    lines = summary(measured["lookup"]).set_index(["kind", "rows", "dim"])
    for (kind, rows, dim), line in lines.iterrows():
        row_bytes = {"float32": 4 * dim, "int8": dim + 8, "int4": dim / 2 + 4}[kind]
        assert line["table_mib"] == rows * row_bytes / 2**20
        least, most = {"float32": (0, 0), "int8": (1e-5, 0.01), "int4": (1e-3, 0.15)}[kind]
        assert least <= line["error_rms"] <= line["error_max"] <= most


def test_placements_stand_beside_whole_groups(measured: dict[str, Rows]) -> None:
    """With the same scores, but for sums of split rows in another order; paired within each repeat."""
    found = measured["placed"]
    assert {row["strategy"] for row in found} == {BY_GROUP, "load-balanced", "correlated", "row-split", "singular"}
    for strategy in ("load-balanced", "row-split"):
        assert pairs(found, strategy=strategy) == {("mpi", 0), ("bls", 0), ("bls", 2)}
    assert all(row["identical"] is True for row in found)
    base = {row["repeat"]: row["measured_s"] for row in found if (row["strategy"], row["contender"], row["bound"]) ==
            (BY_GROUP, "bls", 0)}  # fmt: skip
    table = derived(found)
    ours = table[table["contender"] == "bls"]
    assert (ours["over_groups"] == ours["repeat"].map(base) / ours["measured_s"]).all()
    balance = summary(found).query("contender == 'bls' and bound == 0").set_index("strategy")["load_balance"]
    assert balance["load-balanced"] > balance[BY_GROUP]  # the last group has five times as much to do, always


def test_serving_has_a_row_for_every_batch_of_every_draw(measured: dict[str, Rows]) -> None:
    found = {(row["bound"], row["repeat"], row["batch"]): row for row in measured["serving"]}
    assert len(found) == len(measured["serving"]) == 2 * 2 * 60
    assert {row["contender"] for row in found.values()} == {"bls"}


def test_memory_is_slots_with_headers_and_a_page(measured: dict[str, Rows]) -> None:
    block = 256 * 8 * 32 * 4  # half of 512 samples, 8 tables, 32 float32
    for row in measured["dlrm"]:
        if row["contender"] == "bls":
            slots = 2 * 2 * (row["bound"] + 1) * (block + 64)
            assert slots < row["memory_bytes"] <= slots + 2 * 4096


COUNTING = '''"""Counts calls: an experiment of somebody else's."""

from dataclasses import dataclass

COLUMNS = "contender bound ranks counted repeats"
OPTIONS = {"upto": {"type": int, "default": 3, "help": "how far"}}


@dataclass(frozen=True)
class Config:
    upto: int
    names: tuple[str, ...] = ("bls", "slow-coach")
    bounds: tuple[int, ...] = (0, 2)


def plan(given):
    return [Config(given.upto, **({"names": given.contenders} if given.contenders else {}))]


def run(comm, config):
    from blslib.lab.compare.contest import contenders, exchanges

    found = []
    if config.upto < 0 and comm.rank == 1:
        raise ValueError("cannot count backwards")
    comm.Barrier()
    items = contenders(config.names, config.bounds)
    with exchanges(comm, items, [1] * comm.size, [1] * comm.size, 4, lambda exchange: None) as made:
        for item, exchange in made.items():
            counted = sum(len(exchange.post(blocks(comm))) for _ in range(config.upto))
            counted += len(exchange.drain())
            setting = {"contender": item.name, "bound": item.bound, "ranks": comm.size}
            found += [{**setting, "repeat": 0, "counted": counted}]
    return found


def blocks(comm):
    import numpy as np

    return [np.zeros(1, np.float32)] * comm.size
'''

SLOW_COACH = '''"""As mpi, by another name."""

from blslib.lab.compare.contenders import mpi

BOUNDED = False
build = mpi.build
'''


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    """A folder with one experiment and one contender of somebody else's, a file each."""
    for kind, name, text in (("experiments", "counting", COUNTING), ("contenders", "slow_coach", SLOW_COACH)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.py").write_text(text)
    return tmp_path


def test_one_new_file_is_one_new_experiment_or_contender(extra: Path) -> None:
    done = bench(extra / "rows.json", "counting", "--upto", "5", extra=extra)
    assert done.returncode == 0, done.stdout + done.stderr
    heading, *_, columns, first, second, third = done.stdout.splitlines()
    assert heading == "bench counting: Counts calls: an experiment of somebody else's"
    assert columns.split() == ["contender", "bound", "ranks", "counted", "repeats"]
    assert [line.split() for line in (first, second, third)] == [
        ["bls", "0", "2", "5", "1"],
        ["bls", "2", "2", "5", "1"],
        ["slow-coach", "0", "2", "5", "1"],
    ]
    # In its turn, the contender takes part in what there was before.
    done = bench(
        extra / "rows.json", "alltoallv", "--contenders", "slow-coach", "--bytes", "64", "--quick", extra=extra
    )
    assert done.returncode == 0 and {row["contender"] for row in json.loads((extra / "rows.json").read_text())} == {
        "slow-coach"
    }
    for arguments, said in (
        (["--help"], "counting"),
        (["counting", "--help"], "how far"),
        (["delayed", "--help"], "slow-coach"),
    ):
        command = [sys.executable, "-m", "blslib", "bench", *arguments]
        environment = os.environ | {found.EXTRA_VARIABLE: str(extra)}
        helped = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONG_S, cwd=ROOT)
        assert helped.returncode == 0 and said in helped.stdout


def test_a_rank_that_fails_takes_the_others_along(extra: Path) -> None:
    """They would wait for it."""
    done = bench(extra / "rows.json", "counting", "--upto", "-1", extra=extra)
    assert done.returncode == 1
    assert "ValueError: cannot count backwards" in done.stderr
    assert done.stderr.endswith("the ranks of bench counting ended with code 1, see above\n")
    assert not (extra / "rows.json").exists()


def test_a_rank_alone_without_memory_takes_the_others_along(extra: Path) -> None:
    """As a shortage of one rank's own, of which the others know nothing."""
    file = extra / "experiments" / "counting.py"
    file.write_text(file.read_text().replace("ValueError(", "MemoryError("))
    done = bench(extra / "rows.json", "counting", "--upto", "-1", extra=extra)
    assert done.returncode == 1
    assert "MemoryError: cannot count backwards" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (", "bench new is left out: SyntaxError: "),
        ("import nowhere_at_all", "bench new is left out: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("plan = run = print\nOPTIONS = {'json': {}}\nCOLUMNS = ''", "bench new: argument --json: conflicting option"),
    ],
)
def test_a_faulty_file_of_the_user_s_harms_no_other(extra: Path, text: str, said: str) -> None:
    (extra / "experiments" / "new.py").write_text(text)
    command = [sys.executable, "-m", "blslib", "bench", "alltoallv", "--help"]
    environment = os.environ | {found.EXTRA_VARIABLE: str(extra)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONG_S, cwd=ROOT)
    assert done.returncode == 0 and "--bytes" in done.stdout
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


def test_what_takes_no_part_is_told(extra: Path) -> None:
    nothing = COUNTING.replace("def run(", "def run(comm, config):\n    return []\n\n\ndef not_run(")
    (extra / "experiments" / "counting.py").write_text(nothing)
    done = bench(extra / "rows.json", "counting", "--upto", "5", extra=extra)
    assert (done.returncode, done.stderr) == (1, "bench counting measured nothing: it takes none of what was named\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "alltoallv", "--bytes", "6"], "'6': expected whole number >= 4, a multiple of 4, and below"),
        (["bench", "alltoallv", "--bounds", "-1"], "expected"),
        (["bench", "alltoallv", "--contenders", "smoke"], "choose from bls, bls-in-place, bls-sleeps, floor, gloo"),
        (
            ["bench", "delayed", "--contenders", "raw"],
            "choose from bls, bls-in-place, bls-sleeps, gloo, messages",
        ),  # it has no calls to be timed
        (["bench", "delayed", "--laws", "gauss"], "choose from none, bernoulli"),
        (["bench", "dlrm", "--scenarios", "x"], "choose from balanced"),
        (["bench", "dlrm", "--laws", "none"], "unrecognized arguments"),
        (["bench", "alltoallv", "--ranks", "0"], "--ranks"),
        (["bench", "placed", "--bytes", "64"], "unrecognized arguments"),
        (["bench", "torch", "--delays-ms", "1,-2"], "'1,-2': expected milliseconds from 0 to 1000"),
        (
            ["bench", "torch", "--contenders", "raw"],
            "choose from bls, bls-in-place, bls-sleeps, gloo",
        ),  # it would not sleep
        (["bench", "serving", "--rates", "0"], "expected number of batches a second > 0"),
        (["bench", "serving", "--rates", "nan"], "expected number of batches a second > 0"),
        (["bench", "nothing"], "invalid choice"),
        (["bench", "limits"], "invalid choice"),  # an experiment, and no bench
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


def test_what_is_named_twice_is_measured_once() -> None:
    """Else a row would have two that it could be paired with."""
    words = ["bench", "delayed", "--laws", "rotating,none,rotating", "--bytes", "64,64", "--bounds", "4,0,4"]
    given = cli.parser().parse_args(words)
    assert (given.laws, given.bytes, given.bounds) == (("rotating", "none"), (64,), (4, 0))


def test_an_experiment_that_is_none() -> None:
    with pytest.raises(
        ValueError, match=r"no 'smoke' in blslib.lab.experiments: choose from alltoallv, delayed, .*torch"
    ):
        found.load(experiments, "smoke")
