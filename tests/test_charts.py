"""Charts of made-up rows: valid, described, honest about ranks and source, and written as SVG and small PNG."""

import html
import itertools
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert

from blslib.charts import colours, diagnosis, look, placement
from blslib.charts import models as model_charts
from blslib.charts import runs as charts
from blslib.lab import figures
from tests.conftest import ROOT

BOUNDS = (0, 1, 4)
PANELS = ("rotating", "static")


def summed(row: dict[str, Any], **measured: float) -> dict[str, Any]:
    """A line of rows.summary: medians, and the ends of their intervals."""
    ends = {f"{name}_{end}": x * by for name, x in measured.items() for end, by in (("low", 0.9), ("high", 1.1))}
    return row | measured | ends


def rows(ranks: tuple[int, ...] = (4,), names: tuple[str, ...] = ("bls", "window")) -> pd.DataFrame:
    """The summary of dlrm.run and delayed.run at once."""
    made = []
    for count in ranks:
        for panel in PANELS:
            for contender, bound in [("mpi", 0), *((name, bound) for name in names for bound in BOUNDS)]:
                gain = 1 + 0.1 * bound * (panel == "rotating")
                row = {"contender": contender, "bound": bound, "scenario": panel, "law": panel, "pattern": panel}
                row |= {"source": f"generated: {panel} ids", "ranks": count, "batch_size": 512, "iterations": 100}
                made.append(
                    summed(
                        row | {"repeats": 7 + bound},
                        speedup=1.1 * gain if bound else 1.1,
                        lag_effect=gain,
                        expected_low=0.98 * gain,
                        expected_high=1.03 * gain,
                        measured_s=2 / gain,
                        predicted_s=1.9 / gain,
                        limit_s=1.0,
                        ratio=2 / 1.9,
                    )
                )
    return pd.DataFrame(made)


def calls() -> pd.DataFrame:
    """The summary of alltoallv.run."""
    shares = {
        ("floor", 0): 0.3,
        ("raw", 0): 0.98,
        ("mpi", 0): 1.0,
        ("bls", 0): 0.9,
        ("bls", 4): 0.8,
        ("window", 4): 1.1,
    }
    return pd.DataFrame(
        summed(
            {"contender": contender, "bound": bound, "ranks": 4, "bytes_per_block": size, "repeats": 7},
            share_of_raw=share,
        )
        for size in (256, 65536)
        for (contender, bound), share in shares.items()
    )


def turns(ranks: tuple[int, ...] = (4,)) -> pd.DataFrame:
    """The summary of torch.run: two sizes, of which the larger one gains less."""
    made = []
    for count, size, delay_ms in itertools.product(ranks, (256, 65536), (0.0, 0.2, 5.0)):
        for contender, bound in itertools.product(("gloo", "torch", "bls"), (0, 1, 4)):
            gain = 1.0 if contender == "gloo" else 4.0 - delay_ms / 2 - (size > 256)
            what = {"delay_ms": delay_ms, "contender": contender, "bound": bound, "ranks": count}
            row = what | {"bytes_per_block": size, "repeats": 7, "calls": 20 * (5 if delay_ms else 20)}
            made.append(
                summed(row, gain_over_gloo=gain, expected_gain=1.2 * gain, speedup_over_gloo=gain * (bound + 1) / 2)
            )
    return pd.DataFrame(made)


def stretches() -> list[dict[str, Any]]:
    """Of timeline.run."""
    made = []
    for bound in (0, 2):
        for rank in range(4):
            for i in range(3):
                start_s = i * 0.1 / (1 + bound)
                for phase, at_s in (("work", 0.0), ("delay", 0.01), ("waiting", 0.02)):
                    made.append(
                        {"law": "rotating", "bound": bound, "rank": rank, "iteration": i, "phase": phase}
                        | {"waits_for": i - bound if i >= bound else -1, "waits_s": 0.012 * (rank != i) / (1 + bound)}
                        | {"start_s": start_s + at_s, "end_s": start_s + at_s + 0.01}
                    )
    return made


ALL = [
    (charts.timeline, stretches),
    (charts.waits, stretches),
    (charts.speedup_by_bound, rows),
    (charts.exchange_and_lag, rows),
    (charts.measured_and_predicted, rows),
    (charts.alltoallv_by_size, calls),
    (charts.gain_over_gloo, turns),
]
each_chart = pytest.mark.parametrize(("draw", "table"), ALL, ids=[draw.__name__ for draw, _ in ALL])


@each_chart
def test_said_in_words(draw: Any, table: Any) -> None:
    """The picture names ranks and cores, the description says what is to be seen."""
    spec = draw(pd.DataFrame(table()), cores=2).to_dict()
    assert "4 ranks on 2 cores" in vl_convert.vegalite_to_svg(spec)
    assert len(spec["description"]) > 60
    if table is rows:
        assert "rotating: generated: rotating ids" in " ".join(spec["title"]["subtitle"])
        assert all(panel in spec["description"] for panel in PANELS)


@each_chart
def test_axes_have_units(draw: Any, table: Any) -> None:
    text = draw(table(), cores=2).to_json()
    assert any(unit in text for unit in ("(ms", "(s)", "(×)"))
    if draw not in (charts.timeline, charts.waits):
        assert "(iterations)" in text or draw in (charts.alltoallv_by_size, charts.gain_over_gloo)


@each_chart
def test_the_legend_names_what_is_drawn(draw: Any, table: Any) -> None:
    """In the picture itself, since charts whose layers share a legend lose it if one layer gives it up."""
    svg = vl_convert.vegalite_to_svg(draw(table(), cores=2).to_dict())
    legends = {
        charts.timeline: charts.PHASES,
        charts.waits: ["rotating, bound 0", "rotating, bound 2"],  # numbers stand in its cells
        charts.exchange_and_lag: [charts.EXCHANGE, charts.LAG, charts.EXPECTED],
        charts.measured_and_predicted: [look.MPI, look.BLS, look.WINDOW, look.PREDICTED, look.LIMIT],
        charts.alltoallv_by_size: ["bounded lag, bound 0", "bounded lag, bound 4", look.LABELS["floor"]],
        charts.gain_over_gloo: [f"torch.distributed: {name}, bound {k}" for name in ("gloo", "bls") for k in (1, 4)]
        + [look.PREDICTED],
    }
    for name in legends.get(draw, [look.BLS, look.WINDOW]):
        assert f">{name}</text>" in svg


@each_chart
def test_every_column_needed_is_drawn(draw: Any, table: Any) -> None:
    """No mark stands at a place that is no number, as it would if a column were missing."""
    svg = vl_convert.vegalite_to_svg(draw(table(), cores=2).to_dict())
    assert "NaN" not in svg
    assert "undefined" not in svg


@each_chart
def test_svg_and_png(draw: Any, table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLS_OUT", str(tmp_path))
    path = figures.save(draw(table(), cores=2), "09-made-up", "-x")
    assert path == tmp_path / "figures" / "09-made-up-x.png"
    assert "<svg" in path.with_suffix(".svg").read_text()[:200]
    assert path.stat().st_size < 300_000
    assert_png(path.read_bytes())


def assert_png(png: bytes) -> None:
    """Every chunk's checksum holds, and the packed picture has as many bytes as its head says."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    place, kinds, packed = 8, [], b""
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, body = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length]) == (zlib.crc32(kind + body),)
        kinds.append(kind)
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    assert list(dict.fromkeys(kinds)) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (8, 6)
    assert len(zlib.decompress(packed)) == height * (1 + 4 * width)


@each_chart
def test_the_rows_are_left_alone(draw: Any, table: Any) -> None:
    given = pd.DataFrame(table())
    before = given.copy()
    draw(given, cores=2)
    pd.testing.assert_frame_equal(given, before)


def test_contenders_differ_without_colour() -> None:
    assert len({look.LOOKS[name][1] for name in look.LABELS.values()}) >= len(look.LABELS) - 2  # bars are squares
    assert len(set(look.LOOKS.values())) == len(look.LOOKS)


def test_one_colour_has_one_meaning() -> None:
    """Of contenders, of bounds as series, of what a rank does when, and of the parts of a run's time."""
    kinds = [{color for color, _ in look.LOOKS.values()}, look.BLUES, charts.PHASES.values(), diagnosis.COLORS.values()]
    kinds.append({color for color, _ in placement.STRATEGIES.values()})
    every = [color.upper() for kind in kinds for color in kind]
    assert len(every) == len(set(every))
    assert len(set(look.BLUES)) == len(set(look.SHAPES)) == len(look.BLUES)
    darkness = [sum(bytes.fromhex(color[1:])) for color in look.BLUES]
    assert darkness == sorted(darkness, reverse=True)
    assert look.bound_look(0)[0] == look.BLUES[0]
    assert look.bound_look(128) == look.bound_look(4096) == (look.BLUES[-1], look.SHAPES[-1])


def test_the_dictionary_of_colours_is_whole_and_the_committed_one_is_of_today() -> None:
    """Every series, bound, phase, part and strategy by its name in its colour; words and colours of the picture."""
    fresh = vl_convert.vegalite_to_svg(colours.dictionary().to_dict())
    committed = (ROOT / "figures" / "colours.svg").read_text()
    told, told_there = (re.findall(r">([^<>]+)</text>|fill=\"(#\w{6})\"", svg) for svg in (fresh, committed))
    assert told == told_there, "run the notebook 01-bounded-lag, which draws it"
    names = [name for name, _, _ in look.SERIES.values()] + [*charts.PHASES, *diagnosis.COLORS, *placement.STRATEGIES]
    assert {*names, "bound 0", "bound 128"} <= {html.unescape(name) for name, _ in told}
    every = [color for _, color, _ in look.SERIES.values()] + [*look.BLUES, *charts.PHASES.values()]
    every += [*diagnosis.COLORS.values(), *(color for color, _ in placement.STRATEGIES.values())]
    assert {color.upper() for color in every} <= {color.upper() for _, color in told}


def test_a_waiting_rank_lends_its_core_only_where_cores_are_few() -> None:
    told = [" ".join(charts.speedup_by_bound(rows(), cores=cores).to_dict()["title"]["subtitle"]) for cores in (2, 4)]
    assert ["lends its core" in each for each in told] == [True, False]
    assert ["each has its own" in each for each in told] == [False, True]


@pytest.mark.parametrize("draw", [draw for draw, table in ALL if table is rows])
def test_ranks_with_a_core_each_come_first_and_largest(draw: Any) -> None:
    spec = draw(rows((4, 2)), cores=2).to_dict()
    own, shared = spec["vconcat"]
    assert own["title"]["text"] == "2 ranks on 2 cores: each has its own"
    assert shared["title"]["text"] == "4 ranks on 2 cores: a waiting rank lends its core to a working one"
    assert own["spec"]["height"] > shared["spec"]["height"]
    (values,) = (spec["datasets"][row["data"]["name"]] for row in [own])
    assert {value["ranks"] for value in values} == {2}


def test_sleeping_ranks_need_no_cores() -> None:
    slept = rows().rename(columns={"batch_size": "bytes_per_block"})
    caption = " ".join(charts.measured_and_predicted(slept, cores=2).to_dict()["title"]["subtitle"])
    assert "4 ranks on 2 cores. Blocks of 512 bytes, 7 to 11 interleaved repeats of 100 iterations." in caption
    assert "lends" not in caption


def test_exchange_and_lag_are_told_apart() -> None:
    spec = charts.exchange_and_lag(rows(), cores=2).to_dict()
    assert "rotating 1.10 to 1.40; static 1.00 to 1.00" in spec["description"]
    (values,) = spec["datasets"].values()
    assert {value["contender"] for value in values} == {"bls"}


def test_gloo_and_torch_stand_beside_bounded_lag() -> None:
    chart = charts.speedup_by_bound(rows(names=("bls", "gloo", "torch")), cores=2, panel="law").to_dict()
    assert "gloo keeps k requests in flight." in chart["title"]["subtitle"]
    assert all(f">{look.LABELS[name]}</text>" in vl_convert.vegalite_to_svg(chart) for name in ("bls", "gloo", "torch"))


def test_the_gain_is_over_gloo_with_as_many_in_flight_and_that_of_gloo_over_one() -> None:
    chart = charts.gain_over_gloo(turns((2, 4)), cores=2).to_dict()
    assert "2 ranks on 2 cores, blocks of 256 bytes 1.50 to 4.00" in chart["description"]
    assert "4 ranks on 2 cores, blocks of 65,536 bytes 0.50 to 3.00" in chart["description"]
    assert [part["title"]["text"] for part in chart["vconcat"]] == ["2 ranks on 2 cores", "4 ranks on 2 cores"]
    drawn = [value for values in chart["datasets"].values() for value in values]
    assert {(value["contender"], value["bound"]) for value in drawn} == {
        (c, k) for c in ("gloo", "torch") for k in (1, 4)
    }
    for value in drawn:
        column = "gain_over_gloo" if value["contender"] == "torch" else "speedup_over_gloo"
        for end in ("", "_low", "_high"):
            assert value[f"gain{end}"] == value[f"{column}{end}"]
    (law,) = (
        layer for layer in chart["vconcat"][0]["spec"]["layer"] if "expected_gain" in str(layer["encoding"].get("y"))
    )
    assert law["transform"] == [{"filter": "(datum.contender === 'torch')"}]
    assert law["encoding"]["color"] == {"datum": look.PREDICTED}
    assert "awake they share those at hand" in " ".join(chart["title"]["subtitle"])


def pooled(idle: tuple[str, ...]) -> pd.DataFrame:
    """Of serving.pooled."""
    what = {"law": "bernoulli", "mean_delay_s": 2e-3, "ranks": 4, "batch_size": 128, "draws": 7, "batches": 1120}
    return pd.DataFrame(
        summed(
            what | {"contender": contender, "bound": bound, "idle": way, "rate_per_s": rate},
            **{f"{kind}_p{n}_s": 0.01 * n / 50 for kind in ("latency", "predicted") for n in (50, 95, 99)},
        )
        for rate in (20.0, 40.0)[: 3 - len(idle)]
        for contender, bound in (("mpi", 0), ("bls", 0), ("bls", 4))
        for way in idle
    )


def test_latencies_under_load_and_alone() -> None:
    for chart, name in (
        (model_charts.latency_by_rate(pooled(("polls",)), cores=2, limit_s=0.1), "bounded lag, bound 4"),
    ):
        spec = chart.to_dict()
        caption = " ".join(spec["title"]["subtitle"])
        assert "4 ranks on 2 cores" in caption
        assert "Delays are sleeps (bernoulli) of 2 ms in the mean" in caption
        assert "Open loop" in caption
        assert "Percentiles of 1,120 batches from 7 draws" in caption
        assert "bound 4" in spec["description"]
        svg = vl_convert.vegalite_to_svg(spec)
        assert "latency (ms, logarithmic)" in svg
        assert "NaN" not in svg
        assert f">{name}</text>" in svg


def test_lag_is_drawn_rank_by_rank() -> None:
    made = [{**row, "law": law, "ahead": row["rank"]} for law in PANELS for row in stretches() if row["bound"]]
    chart = charts.lag(made, cores=2).to_dict()
    svg = vl_convert.vegalite_to_svg(chart)
    for words in ("rotating", "static", "rank", "0", "3", "lag (iterations)", "time since the start (ms)"):
        assert f">{words}</text>" in svg
    assert "4 ranks on 2 cores, bound 2" in svg and "{'rotating': 3, 'static': 3}" in chart["description"]


def test_who_waits_for_whom_is_summed_by_pairs() -> None:
    """Each of four ranks waits 12 ms for each of three others at bound 0; the first calls at bound 2 for nobody."""
    spec = charts.waits(stretches(), cores=2).to_dict()
    (values,) = spec["datasets"].values()
    found = {(value["run"], value["rank"], value["waits_for"]): value["ms"] for value in values}
    pairs = {(rank, whom) for rank in range(4) for whom in range(3) if rank != whom}
    expected = {("rotating, bound 0", *pair): 12.0 for pair in pairs}
    expected |= {("rotating, bound 2", rank, 0): 4.0 * (rank != 2) for rank in (1, 2, 3)}
    assert found == pytest.approx(expected)
    assert "'rotating, bound 0': 108.0" in spec["description"]


def placed() -> pd.DataFrame:
    """The summary of placed.run."""
    made = [
        summed(
            {"scenario": scenario, "strategy": strategy, "contender": "bls", "bound": bound, "ranks": 2}
            | {"batch_size": 256, "iterations": 64, "repeats": 7, "source": f"generated: {scenario} ids"},
            over_groups=1 + 0.1 * bound,
        )
        for scenario in PANELS
        for strategy in ("by-group", "searched")
        for bound in (0, 1, 4)
    ]
    return pd.DataFrame(made)


def test_lag_stands_beside_placement() -> None:
    chart = placement.lag_and_placement(placed(), cores=2, bound=4).to_dict()
    svg = vl_convert.vegalite_to_svg(chart)
    for words in ("placement alone: bound 0", "placement and lag: bound 4", "by-group", "searched", "rotating"):
        assert f">{words}</text>" in svg
    assert "2 ranks on 2 cores" in svg and "static 1.00 to 1.40" in chart["description"]
    assert {row["bound"] for rows in chart["datasets"].values() for row in rows} == {0, 4}


def test_strategies_are_told_by_name_and_by_colour() -> None:
    table = [
        {"strategy": name, "panel": panel, "shards": shards, "value": value * shards}
        for name, value in (("load-balanced", 2.0), ("net-specific", 1.0))
        for panel in ("time", "bytes")
        for shards in (2, 4)
    ]
    dots = placement.dots([row for row in table if row["shards"] == 2], "Title", ["Line"], what="Loads")
    curves = placement.curves(table, "shards", "over one (×)", "Title", ["Line"])
    for chart in (dots, curves):
        svg, said = vl_convert.vegalite_to_svg(chart.to_dict()), chart.to_dict()["description"]
        assert all(f">{words}</text>" in svg for words in ("load-balanced", "net-specific", "time", "bytes", "Line"))
        assert "net-specific" in said
    assert "time: least 2 by net-specific" in dots.to_dict()["description"]
    assert "bytes, load-balanced: 4.00 to 8.00" in curves.to_dict()["description"]


def test_shown_as_a_picture_with_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    chart = charts.speedup_by_bound(rows(), cores=2)
    figures.show(chart)
    ((data, options),) = shown
    assert_png(data["image/png"])
    assert data["text/plain"] == options["metadata"]["image/png"]["alt"] == chart.to_dict()["description"]
    assert 700 < options["metadata"]["image/png"]["width"] < 900
