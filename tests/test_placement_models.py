"""Models as tables: what the file says is what comes out, and what nobody has published is called so."""

import math
from collections import Counter

import numpy as np
import pytest

from blslib.dlrm.config import KAGGLE
from blslib.placement import models
from blslib.placement.models import NAMES, source, tables
from blslib.placement.tables import TableError
from blslib.workloads import published

ASSUMED = ("drm1-like", "drm2-like", "drm3-like")


def a_line(monkeypatch: pytest.MonkeyPatch, **cells: str) -> None:
    """Put a model "mine" of one line into the file."""
    line = dict.fromkeys(models._LINES[0], "") | {"model": "mine", "tables": "4", "rows": "8", "dim": "2"} | cells
    monkeypatch.setattr(models, "_LINES", [line])
    monkeypatch.setattr(models, "NAMES", ("mine",))


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_draws_a_model_once_and_for_all(name):
    again, other = tables(name), tables(name, seed=1)
    assert tables(name) == again
    assert (again == other) == (name not in ASSUMED)
    assert Counter(table.rows for table in again) == Counter(table.rows for table in other)
    assert [table.name for table in again] == [str(t) for t in range(len(again))]


@pytest.mark.parametrize(
    ("name", "count", "total", "largest", "nets"),
    [
        ("drm1-like", 257, 194e9, 4e9, {"user": 129, "product": 128}),
        ("drm2-like", 133, 139e9, 4e9, {"user": 67, "product": 66}),
        ("drm3-like", 39, 200e9, 179e9, {"": 39}),
    ],
)
@pytest.mark.parametrize("seed", [0, 5])
def test_assumed_models_have_their_total_and_largest_table(name, count, total, largest, nets, seed):
    model = tables(name, seed)
    row_bytes = model[0].dim * model[0].item_bytes
    assert len(model) == count and Counter(table.net for table in model) == nets
    assert abs(sum(table.bytes for table in model) - total) <= row_bytes
    sizes = sorted(table.bytes for table in model)
    assert abs(sizes[-1] - largest) <= row_bytes / 2
    assert sizes[count // 2] < np.mean(sizes)  # a long tail
    assert [table.bytes for table in model] != sizes[::-1]  # and by no order of size
    assert all(table.pooling > 0 for table in model)


def test_the_giant_of_drm3_leaves_little_to_the_rest():
    *rest, second, giant = sorted(table.bytes for table in tables("drm3-like"))
    assert giant == 179e9 and second == 4e9 and sum(rest) + second == pytest.approx(21e9)


def test_drawn_pooling_is_lognormal_as_the_caption_says():
    logs = np.log([table.pooling for seed in range(20) for table in tables("drm1-like", seed)])
    assert logs.mean() == pytest.approx(math.log(models.POOLING), abs=0.1)
    assert logs.std() == pytest.approx(models.SIGMA, abs=0.1)
    assert "pooling drawn, lognormal with median 10 and sigma 1: our definition" in source("drm1-like")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_assumed_is_called_so(name):
    said = source(name)
    assert said.startswith(f"{name}: ") and len(said) > len(name) + 10
    assert ("assumed: unverified recollection of arXiv 2011.02084, confidence medium" in said) == (name in ASSUMED)
    assert ("sizes by a lognormal law through total and largest: our definition" in said) == (name in ASSUMED)
    assert ("pooling drawn" in said) == (name in ASSUMED)
    assert "2011.02084" not in said.replace("recollection of arXiv 2011.02084", "")


def test_every_line_has_a_source_and_no_assumed_one_has_pooling():
    for line in models._LINES:
        assert line["source"], line
        assert line["source"].startswith("assumed: unverified recollection of") == line["model"].startswith("drm"), line
        assert bool(line["pooling"]) != line["model"].startswith("drm"), line


@pytest.mark.parametrize(
    ("name", "count", "rows", "dim", "pooling"),
    [
        ("deeprecsys-rm1", 8, 4_000_000, 32, 80),
        ("deeprecsys-rm2", 31, 500_000, 64, 120),
        ("deeprecsys-rm3", 10, 2_000_000, 32, 20),
    ],
)
def test_deeprecsys(name, count, rows, dim, pooling):
    assert [(table.rows, table.dim, table.pooling) for table in tables(name)] == [(rows, dim, pooling)] * count


def test_what_the_workloads_know_too_is_the_same():
    kaggle, aliccp = tables("criteo-kaggle"), tables("aliccp-multihot")
    assert tuple(table.rows for table in kaggle) == published.CRITEO_ROWS == KAGGLE.rows
    assert {(table.dim, table.pooling) for table in kaggle} == {(KAGGLE.dim, 1)}
    assert tuple(table.rows for table in aliccp) == published.ALICCP_ROWS
    assert tuple(table.pooling for table in aliccp) == published.ALICCP_POOLING


def test_mlperf():
    model = tables("mlperf-v2")
    assert len(model) == 26 and {table.dim for table in model} == {128}
    assert sum(table.pooling for table in model) == 214
    assert max(table.pooling for table in model) / (214 / 4) == pytest.approx(1.869, abs=5e-4)
    assert sum(table.bytes for table in model) / 2**30 == pytest.approx(97.4, abs=0.05)
    assert max(table.bytes for table in model) / 2**30 == pytest.approx(19.07, abs=5e-3)


def test_better_numbers_need_the_file_alone(monkeypatch):
    a_line(monkeypatch, rows="7 8 9 1", pooling="1 2.5 3 0", item_bytes="1.5", net="a b", source="the paper")
    model = tables("mine")
    assert [(table.rows, table.pooling, table.net) for table in model] == [
        (7, 1, "a"),
        (8, 2.5, "b"),
        (9, 3, "a"),
        (1, 0, "b"),
    ]
    assert model[0].bytes == 21 and source("mine") == "mine: the paper"


@pytest.mark.parametrize("law", ["lognormal", "pareto"])
@pytest.mark.parametrize("share", [0.2, 0.26, 0.5, 0.9])
def test_laws_meet_total_and_largest(monkeypatch, law, share):
    cells = {"rows": "", "dim": "16", "item_bytes": "4", "total_bytes": "1e9", "largest_bytes": str(share * 1e9)}
    a_line(monkeypatch, tables="5", law=law, **cells)
    sizes = [table.bytes for table in tables("mine")]
    assert max(sizes) == pytest.approx(share * 1e9, abs=32) and sum(sizes) == pytest.approx(1e9, abs=64)


def test_tables_of_which_only_the_total_is_known_are_equal(monkeypatch):
    a_line(monkeypatch, rows="", dim="1", item_bytes="1", total_bytes="4e6")
    assert [table.rows for table in tables("mine")] == [10**6] * 4


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"tables": "many"}, "models.csv, model mine: invalid literal for int.*'many'"),
        ({"pooling": "1 2 3"}, "model mine: pooling has 3 values: give 1, or 4 for as many tables"),
        ({"rows": "0"}, "models.csv, model mine: table 0: rows must be 1 to 1e.15, got 0"),
        ({"rows": "", "item_bytes": "4", "total_bytes": "x"}, "could not convert string to float: 'x'"),
        (
            {"rows": "", "item_bytes": "4", "total_bytes": "1e6", "largest_bytes": "2e5", "law": "pareto"},
            "cannot have 1e",
        ),
        ({"rows": "", "item_bytes": "4", "total_bytes": "1e6", "largest_bytes": "4e5"}, "1e.06 bytes by law equal"),
        ({"rows": "", "item_bytes": "4", "law": "zipf"}, "law is one of equal, lognormal, pareto, got zipf"),
    ],
)
def test_faulty_lines_are_named(monkeypatch, cells, words):
    a_line(monkeypatch, **cells)
    with pytest.raises(TableError, match=words):
        tables("mine")


@pytest.mark.parametrize("ask", [tables, source])
def test_an_unknown_model_is_answered_by_those_there_are(ask):
    with pytest.raises(TableError, match="no model 'drm9': choose from drm1-like, drm2-like"):
        ask("drm9")
