"""Charts of made-up rows: valid, described, honest about ranks and source, and written as SVG and small PNG."""

import struct
import zlib
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import pytest
import vl_convert

from blslib.charts import runs as charts
from blslib.lab import figures

BOUNDS = (0, 1, 4)
PANELS = ("rotating", "static")


def rows() -> list[dict[str, Any]]:
    """Of recommend.run and delayed.run at once."""
    made = []
    for scenario in PANELS:
        for contender, bound in [("mpi", 0), *((name, bound) for name in ("bls", "window") for bound in BOUNDS)]:
            speedup = 1 + 0.1 * bound * (scenario == "rotating")
            measured = {"speedup_over_mpi": speedup, "measured_s": 2 / speedup, "predicted_s": 1.9 / speedup}
            measured |= {"limit_s": 1.0, "ratio": 2 / 1.9, "batches_per_s": 50 * speedup, "waiting_s": 0.5}
            spread = {
                f"{name}_{end}": value * by
                for name, value in measured.items()
                for end, by in (("min", 0.9), ("max", 1.1))
            }
            row = {
                "contender": contender,
                "scenario": scenario,
                "law": scenario,
                "source": f"generated: {scenario} ids",
            }
            row |= {"bound": bound, "ranks": 4, "batch_size": 512, "iterations": 100, "repeats": 5}
            row |= {
                "response_p50_s": 0.01,
                "response_p95_s": 0.02,
                "response_p99_s": None,
                "waiting_by_rank_s": "0.1 0.2 0.3 0.4",
            }
            made.append(row | measured | spread)
    return made


def stretches() -> list[dict[str, Any]]:
    """Of timeline.run."""
    made = []
    for bound in (0, 2):
        for rank in range(4):
            for i in range(3):
                start_s = i * 0.1 / (1 + bound)
                for phase, at_s in (("work", 0.0), ("delay", 0.01), ("waiting", 0.02)):
                    made.append(
                        {"bound": bound, "rank": rank, "iteration": i, "phase": phase}
                        | {"start_s": start_s + at_s, "end_s": start_s + at_s + 0.01}
                    )
    return made


ALL = [
    (charts.timeline, stretches),
    (charts.speedup_by_bound, rows),
    (charts.measured_and_predicted, rows),
    (charts.response_times, rows),
    (charts.waiting, rows),
]
each_chart = pytest.mark.parametrize(("draw", "table"), ALL, ids=[draw.__name__ for draw, _ in ALL])


@each_chart
def test_said_in_words(draw: Any, table: Any) -> None:
    """The caption names ranks and cores, the description says what is to be seen."""
    spec = draw(pd.DataFrame(table()), cores=2).to_dict()
    caption = " ".join(spec["title"]["subtitle"])
    assert "4 ranks on 2 cores" in caption
    assert len(spec["description"]) > 60
    if draw is not charts.timeline:
        assert "rotating: generated: rotating ids" in caption
        assert all(panel in spec["description"] for panel in PANELS)


@each_chart
def test_axes_have_units(draw: Any, table: Any) -> None:
    text = draw(table(), cores=2).to_json()
    assert "(iterations)" in text or "(ms)" in text
    assert any(unit in text for unit in ("(ms", "(s)", "(×)"))


@each_chart
def test_the_legend_names_what_is_drawn(draw: Any, table: Any) -> None:
    """In the picture itself, since charts whose layers share a legend lose it if one layer gives it up."""
    svg = vl_convert.vegalite_to_svg(draw(table(), cores=2).to_dict())
    legends = {charts.timeline: charts.PHASES, charts.waiting: ["waiting in the exchange (s)"]}
    for name in legends.get(draw, [charts.BLS, charts.WINDOW]):
        assert f">{name}</text>" in svg


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
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (8, 6)
    assert len(zlib.decompress(packed)) == height * (1 + 4 * width)


def test_the_rows_are_left_alone() -> None:
    table = pd.DataFrame(rows())
    before = table.copy()
    charts.waiting(table, cores=2)
    pd.testing.assert_frame_equal(table, before)


def test_contenders_differ_without_colour() -> None:
    looks = [charts.LOOKS[label] for label in charts.LABELS.values()]
    assert len({shape for _, shape, _ in looks}) == len(looks)
    assert len({colour for colour, _, _ in charts.LOOKS.values()}) == len(charts.LOOKS)


def test_a_percentile_of_too_few_is_not_drawn() -> None:
    text = charts.response_times(rows(), cores=2).to_json()
    assert "p95" in text
    assert "p99" not in text


def test_a_waiting_rank_lends_its_core_only_where_cores_are_few() -> None:
    told = [" ".join(charts.waiting(rows(), cores=cores).to_dict()["title"]["subtitle"]) for cores in (2, 4)]
    assert ["lends its core" in each for each in told] == [True, False]


def test_shown_as_a_picture_with_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    monkeypatch.delenv(figures.INTERACTIVE_VARIABLE, raising=False)
    chart = charts.speedup_by_bound(rows(), cores=2)
    figures.show(chart)
    ((data, options),) = shown
    assert_png(data["image/png"])
    assert data["text/plain"] == options["metadata"]["image/png"]["alt"] == chart.to_dict()["description"]
    assert 700 < options["metadata"]["image/png"]["width"] < 900


def test_shown_live_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda chart: shown.append((chart, alt.renderers.active)))
    monkeypatch.setenv(figures.INTERACTIVE_VARIABLE, "1")
    before, chart = alt.renderers.active, charts.waiting(rows(), cores=2)
    figures.show(chart)
    assert shown == [(chart, "jupyter")]
    assert alt.renderers.active == before
