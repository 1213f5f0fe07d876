"""Tables as values, shards, strategies, the optimum, plans: arithmetic alone, no ranks."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blslib.placement import models, plan
from blslib.placement.loads import LookupCost, imbalance, of_ranks, of_shards
from blslib.placement.optimum import optimum
from blslib.placement.shards import Placement, PlacementError, Shard, contiguous, whole
from blslib.placement.strategies import STRATEGIES, ImpossibleError, NoneFoundError, Options, assign, correlated
from blslib.placement.tables import Table, TableError, read
from tests.conftest import punctual, within

NETS = ("user", "item", "")


@st.composite
def lists(draw: st.DrawFn) -> tuple[Table, ...]:
    count = draw(st.integers(1, 12))
    numbers = st.tuples(
        st.integers(1, 5000), st.sampled_from([1, 16, 33, 64, 128, 200]), st.floats(0, 100), st.sampled_from(NETS)
    )
    return tuple(
        Table(f"t{n}", r, d, p, net=net) for n, (r, d, p, net) in enumerate(draw(st.tuples(*[numbers] * count)))
    )


def shapes(tables: tuple[Table, ...]) -> list[tuple[int, int]]:
    return [(table.rows, table.dim) for table in tables]


def held(placement: Placement, tables: tuple[Table, ...]) -> list[np.ndarray]:
    """How often each value of each table is held, replicas once: counted one by one."""
    found = [np.zeros((table.rows, table.dim), dtype=int) for table in tables]
    for shard in placement.shards:
        found[shard.table][np.ix_(shard.rows, shard.columns)] += 1
    return found


@settings(max_examples=60, deadline=None)
@given(lists(), st.integers(1, 6), st.sampled_from(sorted(STRATEGIES)))
def test_every_value_is_held_exactly_once(tables: tuple[Table, ...], ranks: int, name: str) -> None:
    try:
        placement = STRATEGIES[name](tables, ranks, Options(spare_bytes=1e5))
    except NoneFoundError:
        assert name == "net-specific"
        assert ranks < len({table.net for table in tables})
        return
    assert all((count == 1).all() for count in held(placement, tables))
    placement.check(shapes(tables))
    assert plan.from_json(plan.to_json(placement, tables), tables) == placement
    if name == "net-specific":
        assert all(len({tables[shard.table].net for shard in mine}) <= 1 for mine in placement.of_rank)


@settings(max_examples=60, deadline=None)
@given(lists(), st.integers(1, 6), st.sampled_from(sorted(STRATEGIES)), st.floats(0.9, 3))
def test_caps_are_kept_or_none_is_found(tables: tuple[Table, ...], ranks: int, name: str, room: float) -> None:
    cap = room * sum(table.bytes for table in tables) / ranks
    options = Options(cap_bytes=cap, spare_bytes=1e5)
    try:
        placement = STRATEGIES[name](tables, ranks, options)
    except (NoneFoundError, ImpossibleError):
        return
    assert of_ranks(placement, tables, options.cost).bytes.max() <= cap


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_tables_are_spread_evenly(name: str) -> None:
    tables = tuple(Table(str(n), 1000, 64, 10) for n in range(16))
    loads = of_ranks(STRATEGIES[name](tables, 4, Options()), tables, LookupCost())
    if name == "one-shard":
        assert loads.bytes.tolist() == [16 * 256_000, 0, 0, 0]
    elif name == "singular":
        assert loads.bytes.tolist() == [16 * 256_000] * 4
        assert not loads.sent_bytes.any()
    elif name != "random":
        assert imbalance(loads.time_us) == pytest.approx(1)


def test_shards_are_rated_by_hand() -> None:
    tables = (
        Table("a", 1000, 128, 6.0),
        Table("b", 10, 64, 2.0, item_bytes=1.125),
        Table("c", 10, 64, 2.0, time_us=50.0),
    )
    cost = LookupCost(
        batch=100, call_us=5.0, row_bytes=(64, 512), narrow=((1, 2.0), (2, 2.0)), wide=((1, 4.0), (2, 4.0))
    )
    shards = (
        Shard(0, range(1, 1000, 3), range(32, 64), 1),
        Shard(1, range(10), range(64), None),
        Shard(2, range(10), range(64), 0),
        Shard(2, range(10), range(64), None),
    )
    found = of_shards(shards, tables, cost, ranks=4)
    third = 333 / 1000 * 6
    assert found.bytes.tolist() == [333 * 32 * 4, 720, 2560, 2560]
    assert found.lookups.tolist() == pytest.approx([third / 4, 0.5, 2, 0.5])
    assert found.sent_bytes.tolist() == [4 * 100 * 32, 0, 4 * 100 * 64, 0]
    each = 2 + 2 * (128 - 64) / 448  # nanoseconds
    assert found.time_us[0] == pytest.approx(5 + 0.1 * third * (each + 1.5))
    whole_us = 5 + 0.1 * 2 * (2 + 2 * (256 - 64) / 448)
    quarter_us = 5 + 0.1 * 0.5 * (2 + 2 * (256 - 64) / 448)
    assert found.time_us[2:].tolist() == pytest.approx([50, 50 * quarter_us / whole_us])


def test_equal_lookups_are_not_equal_time() -> None:
    small, large = (Table(name, rows, 64, 20) for name, rows in (("small", 100), ("large", 1_000_000)))
    time_us = of_shards([Shard(0, range(100), range(64), 0), Shard(1, range(1_000_000), range(64), 0)], (small, large),
                        LookupCost()).time_us  # fmt: skip
    assert time_us[1] > 4 * time_us[0]


def test_lpt_by_hand() -> None:
    weights = np.array([[7.0], [6], [5], [4], [3]])
    assert assign(weights, np.ones(5), 2).tolist() == [0, 1, 1, 0, 0]
    assert assign(weights, np.array([1, 1, 1, 9, 1]), 2, cap=10).tolist() == [0, 1, 1, 0, 1]
    assert assign(np.ones((3, 1)), np.array([1, 3, 2]), 3).tolist() == [2, 0, 1]  # alike: by bytes


def test_no_rank_has_two_blocks_of_a_table() -> None:
    """One heavy table beside light ones: by load alone both halves might come to one rank."""
    tables = (Table("heavy", 100_000, 16, 100), *(Table(str(n), 100, 16, 60) for n in range(3)))
    for name in ("row-split", "searched"):
        placement = STRATEGIES[name](tables, 2, Options(spare_bytes=0))
        assert any(len(shard.rows) < 100_000 for shard in placement.shards if not shard.table)
        strips = [(shard.table, shard.columns, shard.rank) for shard in placement.shards]
        assert len(set(strips)) == len(strips)


MLPERF = models.tables("mlperf-v2")


@pytest.mark.parametrize(
    ("ranks", "contiguous_is", "whole_is", "sent"), [(4, 2.654, 1.869, 1.2), (8, 5.121, 3.738, 1.6)]
)
def test_mlperf_is_balanced(ranks: int, contiguous_is: float, whole_is: float, sent: float) -> None:
    """What TorchRec 1.8's planner reaches in lookups: whole tables 1.87 and 3.74, any type 1.10 and 1.08."""
    options = Options(slack={"bytes": 1.25, "lookups": 1.03}, sent=sent)
    loads = {name: of_ranks(STRATEGIES[name](MLPERF, ranks, options), MLPERF, options.cost) for name in STRATEGIES}
    assert imbalance(loads["contiguous"].lookups) == pytest.approx(contiguous_is, abs=1e-3)
    assert imbalance(loads["lookup-greedy"].lookups) == pytest.approx(whole_is, abs=1e-3)
    found = loads["searched"]
    assert imbalance(found.lookups) <= 1.03
    assert imbalance(found.bytes) <= 1.25
    assert found.sent_bytes.sum() <= sent * loads["contiguous"].sent_bytes.sum()
    assert found.time_us.max() < loads["lookup-greedy"].time_us.max() / 1.4


def test_tables_hot_together_lie_apart() -> None:
    """Two tables of four are hot in even batches, two in odd ones; all are equal in the mean."""
    tables = tuple(Table(str(n), 100, 16) for n in range(4))
    loads_us = np.array([[9, 1, 9, 1], [9, 1, 9, 1], [1, 9, 1, 9], [1, 9, 1, 9]])
    owners = [shard.rank for shard in correlated(tables, 2, loads_us).shards]
    assert owners[0] != owners[1]
    assert owners[2] != owners[3]


def random_case(seed: int, count: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.lognormal(0, spread, count), rng.lognormal(0, spread, count)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", [math.inf, 1.3])
def test_the_optimum_against_all_assignments(seed: int, room: float) -> None:
    weights, sizes = random_case(seed, 7)
    cap = room * sizes.sum() / 3
    every = np.array(np.unravel_index(np.arange(3**7), (3,) * 7)).T
    loads = np.stack([np.where(every == rank, weights, 0).sum(axis=1) for rank in range(3)])
    bytes_held = np.stack([np.where(every == rank, sizes, 0).sum(axis=1) for rank in range(3)])
    fits = (bytes_held <= cap * (1 + 1e-9)).all(axis=0)
    if not fits.any():
        with pytest.raises(ImpossibleError, match="impossible"):
            optimum(weights, sizes, 3, cap=cap)
        return
    found = optimum(weights, sizes, 3, cap=cap, gap=1e-6)
    assert found.load == pytest.approx(loads.max(axis=0)[fits].min())
    assert found.bound <= found.load * (1 + 1e-9)
    assert np.bincount(found.owners, sizes, 3).max() <= cap * (1 + 1e-6)


def test_greedy_fails_where_the_optimum_finds_one() -> None:
    """8, 7, 6, 5, 4 in two boxes of 15: the heaviest first leaves no room for the last."""
    sizes = np.array([8.0, 7, 6, 5, 4])
    tables = tuple(Table(str(n), int(size), 1) for n, size in enumerate(sizes))
    with pytest.raises(NoneFoundError, match="found none: no rank has room for 16 bytes more of table 4"):
        STRATEGIES["capacity-balanced"](tables, 2, Options(cap_bytes=60))
    assert np.bincount(optimum(sizes, sizes, 2, cap=15).owners, sizes).tolist() == [15, 15]


def test_impossible_is_said_by_simple_sums() -> None:
    tables = (Table("ads", 100, 4), Table("users", 10, 4))
    with pytest.raises(ImpossibleError, match=r"table ads needs 1,600 bytes in one piece, a rank has 1,000: cut"):
        STRATEGIES["load-balanced"](tables, 2, Options(cap_bytes=1000))
    with pytest.raises(ImpossibleError, match=r"1,760 bytes, 1 ranks of 1,700 have 1,700"):
        STRATEGIES["load-balanced"](tables, 1, Options(cap_bytes=1700))
    with pytest.raises(NoneFoundError, match="rank 0 would hold 1,760 bytes of 1,700"):
        STRATEGIES["one-shard"](tables, 2, Options(cap_bytes=1700))


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("room", [math.inf, 1.3])
def test_the_greedy_is_near_the_optimum(ranks: int, room: float) -> None:
    for seed in range(3):
        weights, sizes = random_case(seed, 60, 0.7)
        cap = room * sizes.sum() / ranks
        best = optimum(weights, sizes, ranks, cap=cap, limit_s=2)
        load = np.bincount(assign(weights[:, None], sizes, ranks, cap), weights, ranks).max()
        assert load <= 1.05 * best.load


@punctual
def test_ten_thousand_tables_in_a_fifth_of_a_second() -> None:
    weights, sizes = random_case(0, 10_000)
    started_s = time.process_time()
    owners = assign(weights[:, None], sizes, 1000)
    within(0.2, time.process_time() - started_s)
    assert imbalance(np.bincount(owners, weights)) < 2.5  # one table is so heavy


@punctual
@pytest.mark.parametrize(("tables", "room", "limit_s"), [(26, math.inf, 2.0), (257, 1.05, 10.0)])
def test_the_optimum_is_found_in_time(tables: int, room: float, limit_s: float) -> None:
    weights, sizes = random_case(1, tables)
    started_s = time.monotonic()
    found = optimum(weights, sizes, 8, cap=room * sizes.sum() / 8, limit_s=30)
    within(limit_s, time.monotonic() - started_s)
    assert found.bound >= 0.9899 * found.load


@pytest.mark.parametrize(
    ("shards", "told"),
    [
        ([Shard(0, range(4), range(2), 3)], "table 0 is placed on rank 3, there are ranks 0 to 1"),
        ([Shard(1, range(4), range(2), 0)], "there is no table 1"),
        ([], "table 0 of 4 rows and 2 columns must be held whole and once, got nothing"),
        ([Shard(0, range(3), range(2), 0)], "must be held whole"),
        ([Shard(0, range(4), range(1), 0)], "must be held whole"),
        ([Shard(0, range(4), range(2), 0)] * 2, "and once"),
        ([Shard(0, range(0, 4, 2), range(2), 0)], "must be held whole"),
        ([Shard(0, range(2), range(2), 0), Shard(0, range(1, 4, 2), range(2), 0)], "must be held whole"),
        ([Shard(0, range(2), range(2), 0), Shard(0, range(2, 4), range(1), 0)], "must be held whole"),
        ([Shard(0, range(4), range(k, 2, 2), 0) for k in (0, 1)] * 2, "must be held whole"),
    ],
)
def test_faulty_placements_are_refused(shards: list[Shard], told: str) -> None:
    with pytest.raises(PlacementError, match=told):
        Placement(tuple(shards), 2).check([(4, 2)])


def test_grids_and_blocks_are_placements() -> None:
    halves = [(range(k, 5, 2), c) for c in (range(3), range(3, 8)) for k in (0, 1)]
    Placement(tuple(Shard(0, r, c, n % 3) for n, (r, c) in enumerate(halves)), 3).check([(5, 8)])
    Placement((Shard(0, range(2, 5), range(8), 0), Shard(0, range(2), range(8), 0)), 1).check([(5, 8)])
    assert contiguous([(5, 8)] * 5, 3) == whole([(5, 8)] * 5, [0, 0, 1, 1, 2], 3)


def test_columns_are_neighbours() -> None:
    with pytest.raises(PlacementError, match=r"got rows range\(0, 4\) columns range\(0, 4, 2\)"):
        Placement(tuple(Shard(0, range(4), range(k, 4, 2), 0) for k in (0, 1)), 1).check([(4, 4)])


def test_a_rank_needs_the_rows_that_it_holds_anything_of() -> None:
    thirds = (range(2), range(2, 5), range(5, 9))
    shards = [Shard(0, rows, range(4), rank) for rows, rank in zip(thirds, (0, 1, 0), strict=True)]
    shards += [Shard(1, range(k, 9, 2), range(4), k) for k in (0, 1)]
    shards += [Shard(2, range(9), range(3), 1), Shard(2, range(9), range(3, 4), None)]
    placement = Placement(tuple(shards), 3)
    placement.check([(9, 4)] * 3)
    assert placement.parts(0) == {0: range(9), 1: range(0, 9, 2), 2: range(9)}
    assert placement.parts(1) == {0: range(2, 5), 1: range(1, 9, 2), 2: range(9)}
    assert placement.parts(2) == {2: range(9)}
    assert placement.widths == (12, 11, 0)


CSV = "name,rows,dim,pooling,net\nads,1000,64,3.5,item\n,20,16,,\n"


def test_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    path.write_text(CSV, encoding="utf-8-sig")
    expected = (Table("ads", 1000, 64, 3.5, net="item"), Table("1", 20, 16))
    assert read(path) == expected
    path.write_text(
        json.dumps([{"name": "ads", "rows": 1000, "dim": 64, "pooling": 3.5, "net": "item"}, {"rows": 20, "dim": 16}])
    )
    assert read(path) == expected
    path.write_text(json.dumps({"tables": json.loads(path.read_text())}))
    assert read(path) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no tables: give a heading"),
        ("rows,dim\n", "no tables: give a heading"),
        ("rows,dim\n5,x\n", "table 0: dim must be a whole number, got 'x'"),
        ("rows,dim\n5.5,2\n", "table 0: rows must be a whole number, got '5.5'"),
        ("rows,dim,pooling\n5,2,1;5\n", "table 0: pooling must be a number, got '1;5'"),
        ("rows,dim,pooling\n5,2,-1\n", "table 0: pooling must be 0 to 1e.15, got -1.0"),
        ("rows,dim,pooling\n5,2,nan\n", "table 0: pooling must be"),
        ("rows,dim\n0,2\n", "table 0: rows must be 1 to 1e.15, got 0"),
        ("rows,dim,item_bytes\n1,2,0\n", "table 0: item_bytes must be 0.01 to 1e.15, got 0.0"),
        ("rows\n5\n", "table 0: dim: rows and dim are needed"),
        ("rows,dim,color\n5,2,red\n", "table 0: no column 'color'"),
        ("rows,dim\n5,2,7\n", "table 0: its line has more cells than the heading: .'7'."),
        ("name,rows,dim\na,5,2\na,5,2\n", "table a: two tables have this name"),
        ("[1, 2]", "no tables"),
        ('{"rows": 3}', "no tables"),
        ("[{", "neither CSV nor JSON"),
    ],
)
def test_faulty_tables_are_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "tables.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=told) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_tables_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "tables.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match="neither CSV nor JSON in UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no", "not a plan"),
        ("[]", "not a plan"),
        ('{"ranks": 1.5, "tables": [{"table": "a", "type": "table_wise", "ranks": [0]}]}', "not a plan .* 'float'"),
        ('{"ranks": 2, "tables": [{"table": "a", "type": "table_wise", "ranks": [0.7]}]}', "not a plan .* 'float'"),
        ('{"ranks": 1, "tables": [{"table": "b", "type": "table_wise", "ranks": [0]}]}', "a table 'b', which the list"),
        ('{"ranks": 1, "tables": [{"table": "a", "type": "table_wise"}]}', "not a plan .* KeyError: 'ranks'"),
        ('{"ranks": 1, "tables": [{"table": "a", "type": "table_wise", "ranks": [0, 0]}]}', "whole and once"),
        ('{"ranks": 1, "tables": [{"table": "a", "type": "row_wise", "ranks": [0], "blocks": []}]}', None),
        ('{"ranks": 1, "tables": []}', "table a of 5 rows and 2 columns must be held whole and once, got nothing"),
        ('{"ranks": true, "tables": []}', "not a plan .* whole numbers, got True"),
        ('{"ranks": 1e300, "tables": []}', "not a plan .* 'float'"),
        ('{"ranks": 10000000, "tables": []}', "is over 1 to 1,048,576 ranks, got 10000000"),
        ('{"ranks": 1, "tables": [{"table": "a", "type": "table", "ranks": [0]}]}', "type is one of table_wise, "),
        ('{"ranks": 1, "tables": [{"table": "a", "type": "data_parallel", "ranks": [0]}]}', "without ranks"),
        (
            '{"ranks": 1, "tables": [{"table": "a", "type": "grid", "ranks": [0], "blocks": [{"row": [0, 5]}]}]}',
            "a block has rows and columns, got .'row'",
        ),
        (
            '{"ranks": 1, "tables": [{"table": "a", "type": "grid", "ranks": [0], "blocks": [{"rows": [0, 1%s]}]}]}'
            % ("0" * 30),
            "once, got rows range.0, 10+.",
        ),
        ("[" * 100_000, "not a plan .* RecursionError"),
        ('{"ranks": 1, "tables": [{"table": "a", "type": "table_wise", "ranks": [1]}]}', "there are ranks 0 to 0"),
        (
            '{"ranks": 1, "tables": [{"table": "a", "type": "row_wise", "ranks": [0], "blocks": [{"rows": [0, 4]}]}]}',
            "held whole",
        ),
    ],
)  # fmt: skip
def test_faulty_plans_are_told(text: str, told: str | None) -> None:
    tables = (Table("a", 5, 2),)
    if told is None:
        assert plan.from_json(text, tables) == whole([(5, 2)], [0], 1)
        return
    with pytest.raises(PlacementError, match=told):
        plan.from_json(text, tables)


def test_a_plan_of_blocks_is_read() -> None:
    tables = (Table("a", 5, 4), Table("b", 3, 4), Table("c", 2, 4))
    text = """{"ranks": 2, "tables": [
      {"table": "a", "type": "row_wise", "ranks": [1, 0], "blocks": [{"rows": [0, 3]}, {"rows": [3, 5]}]},
      {"table": "c", "type": "column_wise", "ranks": [0, 1], "blocks": [{"columns": [0, 1]}, {"columns": [1, 4]}]},
      {"table": "b", "type": "data_parallel", "ranks": []}]}"""
    assert plan.from_json(text, tables).shards == (
        Shard(0, range(3), range(4), 1),
        Shard(0, range(3, 5), range(4), 0),
        Shard(1, range(3), range(4), None),
        Shard(2, range(2), range(1), 0),
        Shard(2, range(2), range(1, 4), 1),
    )
