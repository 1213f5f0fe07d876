"""From a recorded run to advice: parts that add up, a sentence that says what to do, and the command around it."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert

from blslib.charts import diagnosis as charts
from blslib.charts.look import BLS, LIMIT, LOOKS, PREDICTED
from blslib.collective.layout import Layout
from blslib.diagnosis.diagnose import COLUMNS, PARTS, Diagnosis, _duration, diagnose, text
from blslib.diagnosis.traces import Trace, read
from blslib.lab.cli import main
from blslib.theory.delays import delays
from blslib.theory.imbalance import split
from blslib.theory.maxplus import Cost, makespan
from tests.conftest import ROOT, punctual, within
from tests.test_traces import document, event, run_of, traces

RNG = np.random.default_rng(3)
QUIET_S = 0.01 + np.zeros((4, 200))
WANDERING_S = QUIET_S + delays("exponential", 4, 200, 5e-3, seed=2)
STATIC_S = QUIET_S + delays("permanent", 4, 200, 5e-3, seed=2)
SWITCHING_S = 0.01 * (1.0 + (np.arange(800)[None, :] // 200 == np.arange(4)[:, None]))


def of(work_s: np.ndarray, exchange_s: float = 0.0, **more: object) -> Diagnosis:
    """The diagnosis of a synchronous run of this work, whose every call takes so long by itself."""
    total_s = makespan(work_s, 0, cost=Cost(exchange_s))
    return diagnose(Trace(work_s, total_s, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("work_s", [QUIET_S, WANDERING_S, STATIC_S, SWITCHING_S, STATIC_S + WANDERING_S])
@pytest.mark.parametrize("exchange_s", [0.0, 1e-3])
def test_the_parts_add_up(work_s: np.ndarray, exchange_s: float) -> None:
    found = of(work_s, exchange_s)
    rows = found.rows_of_parts()
    assert [row["part"] for row in rows] == list(PARTS.values())
    assert sum(row["seconds"] for row in rows) == pytest.approx(found.parts.total_s, rel=1e-9)
    assert sum(row["share"] for row in rows) == pytest.approx(1, rel=1e-9)
    assert found.advice.curve_s[0] == pytest.approx(found.parts.total_s, rel=1e-9)
    assert found.advice.curve_s.min() >= found.advice.limit_s * (1 - 1e-9)
    assert (found.advice.travelling_s <= found.advice.curve_s * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (of(QUIET_S), "nothing to win: 100% of the time is useful work"),
        (of(STATIC_S), "50% static on rank 3: move tables first; bounded lag has nothing to win (0.0% dynamic)"),
        (of(QUIET_S, 1e-2), "50% exchange: a quicker one or finer overlap; bounded lag has nothing to win"),
        (of(SWITCHING_S), "38% dynamic: a bound of 60 would win 22% ("),
        (of(SWITCHING_S, calls_per_batch=7), "a bound of 60 calls (of which a batch has 7: lag 9 batches) would win"),
        (of(SWITCHING_S), "), larger ones more"),
        (
            diagnose(Trace(WANDERING_S, makespan(WANDERING_S, 1), 1)),
            "the run had has won 19% on imbalance, one of 2 ",
        ),
        (diagnose(Trace(WANDERING_S, makespan(WANDERING_S, 1), 1)), "would win another 3%"),
        (diagnose(Trace(WANDERING_S, makespan(WANDERING_S, 16), 16)), "one of 2 would do as well"),
        (diagnose(Trace(WANDERING_S, makespan(WANDERING_S, 2), 2)), "no other wins more"),
        (diagnose(Trace(QUIET_S + 1e-3 * (np.arange(200) == 7)[None, :] * np.eye(4)[:, :1], None)), "nothing to win"),
    ],
)
def test_verdicts(found: Diagnosis, said: str) -> None:
    assert said in found.verdict


def test_the_verdict_names_what_each_remedy_wins() -> None:
    """The example that everybody quotes: some of both, and an exchange that lag hides as well."""
    found = of(WANDERING_S + STATIC_S / 9, 1e-3)
    dynamic, static = found.share("dynamic"), found.share("static")
    bound, advice = found.advice.bound, found.advice
    lag, tables, exchange = found.verdict.split("; ")
    assert lag == (
        f"{dynamic:.0%} dynamic: a bound of {bound} would win {advice.win:.0%} "
        f"({100 * advice.low:.0f} to {advice.high:.0%})"
    )
    assert tables == f"{static:.0%} static on rank 3: move tables as well"
    assert exchange.startswith("5% exchange: a quicker one or finer overlap, of which the same bound hides up to ")
    assert advice.win == pytest.approx(1 - found.advice.curve_s[bound] / found.advice.curve_s[0])
    # What is hidden of the exchange is no part of what is won on imbalance.
    assert advice.win <= dynamic + 1e-9
    assert found.advice.curve_s[bound] - advice.hideable_s == pytest.approx(found.advice.travelling_s[bound])


def test_the_screen() -> None:
    work_s = STATIC_S / 9 + WANDERING_S
    found = of(work_s, 1e-3, slot_bytes=1 << 16, form="records", notes=("mind the gap",))
    lines = text(found).splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert len(lines) <= 36
    assert lines[0] == "4 ranks, 200 iterations (records)"
    rows = {line[2:20].strip(): line for line in lines[2:7]}
    seconds = [float(re.findall(r"([\d.]+) s ", rows[name])[0]) for name in PARTS.values()]
    assert sum(seconds) == pytest.approx(found.parts.total_s, abs=2e-3)
    assert f"{found.parts.total_s:.3f} s 100.0%" in rows["measured"]
    bars = [rows[name].count("█") for name in PARTS.values()]
    np.testing.assert_allclose(bars, [24 * found.share(part) for part in PARTS], atol=1)
    assert f"rank 3 works {work_s[3].sum() / work_s.sum(axis=1).mean():.2f} times the mean" in rows["static imbalance"]
    pop = found.parts.efficiencies
    assert lines[7] == (
        f"  POP: load balance {pop['load_balance']:.1%}, serialisation {pop['serialisation']:.1%}, transfer "
        f"{pop['transfer']:.1%}, communication {pop['communication_efficiency']:.1%}, parallel "
        f"{pop['parallel_efficiency']:.1%}"
    )
    (mark,) = [line for line in lines if "<- within 2 % of the limit" in line]
    bound = found.advice.bound
    assert mark.split()[0] == str(bound)
    assert f" {found.at(bound).efficiencies['serialisation']:.1%} " in mark
    slots = 2 * (bound + 1)
    memory = 4 * slots * 65536 / 2**20
    assert f"a bound of {bound} costs 4 x {slots} slots = {memory:.1f} MiB on each rank; a batch waits" in text(found)
    assert lines[-3] == "note: mind the gap"
    assert lines[-2].startswith("note: assumed that nothing else in the loop makes all ranks wait, such as a barrier")


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1, 1e3, 1e6])
@pytest.mark.parametrize("work_s", [QUIET_S, WANDERING_S, STATIC_S, np.full((3, 60), 0.1)])
def test_figures_as_a_person_would_write_them(work_s: np.ndarray, scale: float) -> None:
    """No minus zero, no thousands of milliseconds, no 0.000 s."""
    for exchange_s in (0.0, 1e-4 * scale):
        shown = text(of(scale * work_s, exchange_s, slot_bytes=100))
        assert not re.search(r"-0(\.0+)?\b(?!\.)", shown), shown
        assert not re.search(r"\d{4,}(\.\d+)? (ms|us|bytes|[KM]iB)", shown), shown
        assert float(re.findall(r"measured +([\d.]+)", shown)[0]) >= 0.1, shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(8.1188, "8.12 s"), (8118.8, "8119 s"), (0.99996, "1.00 s"), (0.9994, "999 ms"), (0.0135, "13.5 ms"),
     (4.2e-5, "42.0 us"), (9.996e-3, "10.0 ms"), (0.0, "0.00 us"), (123.4, "123 s")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert _duration(seconds) == said


def test_the_screen_of_special_runs() -> None:
    assert "slots of the largest block on each rank" in text(of(WANDERING_S))
    assert "costs" not in text(of(QUIET_S))
    assert "\n  work alone " in text(diagnose(Trace(WANDERING_S, None)))
    assert "<- within 2 % of the best" in text(of(SWITCHING_S))
    assert "note: 20 iterations are few" in text(of(WANDERING_S[:, :20]))
    lagging = diagnose(Trace(WANDERING_S, makespan(WANDERING_S, 2), bound=2))
    won_s = makespan(WANDERING_S, 0) - makespan(WANDERING_S, 2)
    assert f"its bound has won      {won_s:.3f} s of dynamic imbalance already" in text(lagging)
    assert lagging.share("exchange") == pytest.approx(0, abs=1e-12)
    idle = text(diagnose(Trace(np.zeros((2, 60)), None)))
    assert "nothing to win" in idle.lower()


@pytest.mark.parametrize(
    ("every", "said"),
    [
        (
            1,
            "dynamic: a bound would win nothing, since all ranks meet in x::allreduce in every iteration as well: let",
        ),
        (2, "%), where all ranks meet in x::allreduce in 100 of 200 iterations"),
        (1000, "%), where all ranks meet in x::allreduce in 1 of 200 iterations"),
    ],
)
def test_the_headline_knows_of_other_meetings(every: int, said: str) -> None:
    """A recorded run in which something else makes the ranks wait for each other, too."""
    free = of(WANDERING_S, meets=np.zeros(200, bool))
    found = of(WANDERING_S, meets=np.arange(200) % every == 0, meeting="x::allreduce")
    assert said in found.verdict
    assert found.as_row()["met_iterations"] == len(range(0, 200, every))
    assert found.advice.win <= free.advice.win and not any("assumed" in note for note in [*found.notes, *free.notes])
    if every == 1:
        assert found.advice.win == 0 and "would win" not in found.verdict.replace("would win nothing", "")
        assert "costs" not in text(found) and f"{found.advice.limit_s:9.3f} s" in text(found).split("limit")[1]
        quiet = of(QUIET_S, meets=np.ones(200, bool), meeting="x::allreduce").verdict
        assert quiet == "nothing to win: 100% of the time is useful work, waiting in x::allreduce included"


def with_allreduce(exchange_ms: float, before_ms: np.ndarray, after_ms: np.ndarray) -> list[Any]:
    """Traces of ranks that work, meet in an allreduce, work, and exchange, all of it in one after the other."""
    documents = []
    for rank in range(len(before_ms)):
        events, clock_ms = [event("c10d::alltoall_base_", 0, exchange_ms)], exchange_ms
        for i in range(before_ms.shape[1]):
            met_ms = clock_ms + before_ms[:, i].max() + 0.5
            entered_ms = clock_ms + before_ms[rank, i]
            events += [event("aten::mm", clock_ms, before_ms[rank, i])]
            events += [event("c10d::allreduce_", entered_ms, met_ms - entered_ms)]
            events += [event("aten::relu", met_ms, after_ms[rank, i])]
            begins_ms, clock_ms = met_ms + after_ms[rank, i], met_ms + after_ms[:, i].max() + exchange_ms
            events += [event("c10d::alltoall_base_", begins_ms, clock_ms - begins_ms)]
        documents.append(document(events, rank, len(before_ms)))
    return documents


MEET = "all ranks meet in c10d::allreduce_ in every iteration"


@pytest.mark.parametrize(
    ("exchange_ms", "after", "said"),
    [
        (0.01, 0.0, "^nothing to win: .*, waiting in c10d::allreduce_ included$"),
        (2.0, 0.0, rf"exchange: .*; bounded lag has nothing to win \(0.0% dynamic\), since {MEET} as well$"),
        (2.0, 1.0, rf"^\d+% dynamic: a bound would win nothing, since {MEET} as well: let that lag too"),
    ],
)
def test_an_allreduce_in_every_iteration_stands_in_the_headline(
    tmp_path: Path, exchange_ms: float, after: float, said: str
) -> None:
    """Delays before it show as work, since it waits for them; those after it show as dynamic, and no bound helps."""
    rng = np.random.default_rng(1)
    before_ms, after_ms = rng.exponential(3, (2, 3, 60))
    found = diagnose(read(traces(tmp_path, *with_allreduce(exchange_ms, 1 + before_ms, 1 + after * after_ms))))
    assert re.search(said, found.verdict), found.verdict


def test_rows_of_load() -> None:
    """A row for each rank and each of the first 40 iterations, over the mean of the whole run."""
    rows = of(STATIC_S).rows_of_load()
    assert [(row["rank"], row["iteration"]) for row in rows] == list(np.ndindex(4, 40))
    assert rows[-1] == {"rank": 3, "iteration": 39, "work_s": pytest.approx(0.03), "over_mean": pytest.approx(2)}
    assert len(of(STATIC_S[:, :7]).rows_of_load()) == 4 * 7


def test_efficiencies_at_every_bound() -> None:
    """What the four parts, and POP's numbers, would be: those of a run at that bound."""
    found = of(WANDERING_S + STATIC_S, 1e-3)
    for k in (0, 2, 16):
        run = split(found.trace.work_s, makespan(found.trace.work_s, k, cost=Cost(1e-3)), bound=k)
        assert found.at(k).efficiencies == pytest.approx(run.efficiencies)
    rows = found.rows_of_bounds()
    assert [row["bound"] for row in rows] == list(range(65))
    assert found.at(0).efficiencies == pytest.approx(found.parts.efficiencies)
    assert rows[8]["parallel_efficiency"] == pytest.approx(found.parts.useful_s / found.advice.curve_s[8])
    assert rows[64]["serialisation"] == pytest.approx(1, abs=0.01)
    met = of(WANDERING_S, 1e-3, meets=np.ones(200, bool))
    assert met.at(64).efficiencies == pytest.approx(met.parts.efficiencies)


# --- charts ----------------------------------------------------------------------------------------------------------


def test_charts_draw_and_describe_themselves() -> None:
    runs = {"static": of(STATIC_S, 1e-3), "wandering": of(WANDERING_S, 1e-3)}
    measured = [
        {"case": case, "bound": k, "over_synchronous": over, "over_synchronous_low": 0.4, "over_synchronous_high": 1.0}
        for case in runs
        for k, over in ((0, 1.0), (4, 0.5))
    ]
    parts, bounds, load = (
        [{"case": case, **row} for case, found in runs.items() for row in getattr(found, f"rows_of_{name}")()]
        for name in ("parts", "bounds", "load")
    )
    drawn = charts.parts(parts), charts.bounds(bounds, measured), charts.load(load)
    for chart in (*drawn, charts.bounds(bounds)):
        assert len(vl_convert.vegalite_to_svg(chart.to_dict())) > 2000
    told = [chart.to_dict() for chart in drawn]
    static = runs["static"]
    assert f"static {static.share('static'):.0%} static, 0% dynamic" in told[0]["description"]
    chosen = runs["wandering"].advice
    assert f"wandering bound {chosen.bound} to {1 - chosen.win:.0%}" in told[1]["description"]
    assert "bounded lag, measured, over its own time" in str(told[1]["title"])
    assert "static rank 3 at 2.00" in told[2]["description"]
    rows = next(iter(told[1]["datasets"].values()))
    points = {(row["case"], row["bound"]): row for row in rows if row.get("over_synchronous") is not None}
    assert len(points) == len(measured) and points["static", 4]["over_synchronous"] == 0.5


def test_one_colour_one_meaning() -> None:
    """The parts of a run are no contender's colour; what is measured has bounded lag's, the model its own."""
    assert not set(charts.COLORS.values()) & {color for color, *_ in LOOKS.values()}
    assert list(charts.COLORS) == list(PARTS.values())
    rows = [{"case": "x", **row} for row in of(WANDERING_S, 1e-3).rows_of_bounds()]
    point = {"case": "x", "bound": 4, "over_synchronous": 0.9, "over_synchronous_low": 0.8, "over_synchronous_high": 1}
    *model, bars, dots, diamond = charts.bounds(rows, [point]).to_dict()["spec"]["layer"]
    assert bars["encoding"]["color"] == dots["encoding"]["color"] == {"value": LOOKS[BLS][0]}
    assert {layer["mark"]["color"] for layer in [*model, diamond]} == {LOOKS[PREDICTED][0], LOOKS[LIMIT][0]}


def test_a_map_of_more_ranks_than_can_be_drawn() -> None:
    work_s = 0.01 + np.arange(300)[:, None] / 1e5 + np.zeros((300, 48))
    rows = [{"case": case, **row} for case in ("a", "b") for row in of(work_s).rows_of_load()]
    chart = charts.load(rows).to_dict()
    (drawn,) = chart["datasets"].values()
    assert {row["rank"] for row in drawn} == set(range(238, 300)) and len(drawn) == 2 * 40 * 62
    assert "Drawn are the 62 busiest ranks." in str(chart["title"])


# --- the command -----------------------------------------------------------------------------------------------------


def recorded(folder: Path, work_s: np.ndarray, name: str = "run") -> Path:
    path = folder / name
    wait_s = work_s.max(axis=0) - work_s + 1e-3
    rows = [f"{r},{i},{work_s[r, i]},{wait_s[r, i]}" for r in range(len(work_s)) for i in range(work_s.shape[1])]
    path.write_text("\n".join(["rank,iteration,compute_s,exchange_s", *rows]))
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, numbers, page = recorded(tmp_path, WANDERING_S), tmp_path / "numbers.json", tmp_path / "page.html"
    options = ["--slot-bytes", "1024", "--json", str(numbers), "--html", str(page)]
    assert main(["diagnose", str(path), *options]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("4 ranks, 200 iterations (CSV)\n")
    assert "\nread 0.0 MB in 0." in shown
    found = json.loads(numbers.read_text())
    parts = [found["split"][f"{part}_s"] for part in PARTS]
    assert sum(parts) == pytest.approx(found["split"]["total_s"], rel=1e-9)
    assert found["split"]["total_s"] == pytest.approx(WANDERING_S.max(axis=0).sum() + 0.2)
    assert [row["bound"] for row in found["bounds"]] == list(range(65))
    bound = found["recommendation"]["bound"]
    assert found["recommendation"]["memory_bytes"] == Layout(4, bound, 1024).ring_bytes
    assert found["work_by_rank_s"] == pytest.approx(WANDERING_S.sum(axis=1).tolist())
    assert found["efficiencies"]["parallel_efficiency"] == pytest.approx(found["shares"]["useful"])
    assert found["bounds"][0]["transfer"] == pytest.approx(found["efficiencies"]["transfer"])
    assert found["read_s"] > 0
    written = page.read_text()
    assert found["verdict"][1:] in written
    assert "vegaEmbed" in written and "<script src" not in written and "cdn" not in written
    assert main(["diagnose", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == found["verdict"]


@punctual
@pytest.mark.parametrize("ranks", [4, 64])
def test_a_million_rows_take_three_seconds(tmp_path: Path, ranks: int) -> None:
    """Of a processor which pandas has read the same file on in half a second; a slower one may take longer."""
    rng, count = np.random.default_rng(1), 1_000_000 // ranks
    path = tmp_path / "run"
    with path.open("w") as file:
        file.write("rank,iteration,compute_s,exchange_s\n")
        for rank in range(ranks):
            drawn = enumerate(rng.integers(1000, 9999, count).tolist())
            file.writelines(f"{rank},{i},0.00{digits},0.001\n" for i, digits in drawn)

    def run(*command: str) -> tuple[str, float]:
        """What it prints, and the seconds of a processor that it takes."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = (sys.executable, *command, str(path))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    _, read_s = run("-c", "import sys, pandas; pandas.read_csv(sys.argv[1])")
    said, took_s = run("-m", "blslib", "diagnose")
    assert said.startswith(f"{ranks} ranks, {count} iterations (CSV)\n")
    within(3.0 * max(1.0, read_s / 0.5), took_s)


def test_the_command_for_a_sampled_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    path.write_text("rank,iteration,compute_s\n" + "".join(
        f"{8 * r},{10 * i},{seconds}\n" for (r, i), seconds in np.ndenumerate(WANDERING_S)))  # fmt: skip
    assert main(["diagnose", str(path)]) == 2
    assert capsys.readouterr().err.endswith(": give the files of all ranks, or say --sampled\n")
    assert main(["diagnose", str(path), "--sampled"]) == 0
    shown = capsys.readouterr().out
    assert "\nnote: 4 of at least 25 ranks were recorded: 0, 8, 16, 24 count as 0 to 3. Split and advice are" in shown
    assert "\nnote: 200 of the iterations 0 to 1990 were recorded, and count as 0 to 199: work that" in shown
    assert "costs at least 25 x " in shown
    assert main(["diagnose", str(path), "--sampled", "--slot-bytes", "64", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recorded_ranks"] == [0, 8, 16, 24]
    advice = found["recommendation"]
    assert advice["memory_bytes"] == Layout(25, advice["bound"], 64).ring_bytes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.csv"], "cannot read nowhere.csv: No such file or directory\n"),
        (["empty"], "empty is empty: record the run again\n"),
        (["half"], "half is only half written (19 characters and no end): wait until its rank has ended"),
        (["run", "--json", "no/folder/x"], "cannot write no/folder/x: its folder does not exist\n"),
        (["run", "--html", "no/folder/x"], "cannot write no/folder/x: its folder does not exist\n"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path, QUIET_S)
    (tmp_path / "empty").touch()
    (tmp_path / "half").write_text('{"traceEvents": [{}')
    assert main(["diagnose", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(said) and shown.err.count("\n") == 1
    assert not shown.out


def test_help_and_no_mpi(tmp_path: Path) -> None:
    """The command explains itself, and a diagnosis starts no MPI and loads neither torch nor a chart."""
    done = subprocess.run(
        [sys.executable, "-m", "blslib", "diagnose", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for word in ("rank,iteration,compute_s", "--json", "--html", "--slot-bytes", "docs/diagnose.md"):
        assert word in done.stdout
    script = (
        "import sys\nfrom blslib.lab.cli import main\n"
        f"assert main(['diagnose', {str(recorded(tmp_path, QUIET_S))!r}]) == 0\n"
        "print([name for name in ('mpi4py.MPI', 'torch', 'altair') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith(("torch.", "mpi4py.MPI")):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
for module in ("torch", "mpi4py.MPI"):
    try:
        __import__(module)
    except ImportError:
        continue
    sys.exit(f"{module} can be imported")
from blslib.lab.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("form", ["CSV", "traces"])
def test_where_neither_mpi_nor_torch_can_be_imported(tmp_path: Path, form: str) -> None:
    files = [recorded(tmp_path, WANDERING_S)]
    if form == "traces":
        files = traces(tmp_path, *(document(run_of(WANDERING_S[rank]), rank) for rank in (0, 1)))
    page = tmp_path / "page.html"
    command = [sys.executable, "-c", BLOCKED, "diagnose", *map(str, files)]
    if form == "traces":
        command += ["--html", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dynamic imbalance" in done.stdout
    assert form == "CSV" or "vegaEmbed" in page.read_text()


def test_the_documentation_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (ROOT / "docs" / "diagnose.md").read_text()
    script, output = (
        re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", said, re.DOTALL)[1]  # type: ignore[index]
        for name in ("example", "output")
    )
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    assert main(["diagnose", "run.csv"]) == 0
    shown = capsys.readouterr().out
    assert shown.partition("read ")[0] == output
