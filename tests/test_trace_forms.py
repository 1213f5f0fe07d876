"""Runs as others recorded them: folders, other separators and units, and traces that tell nothing of what is asked."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blslib.diagnosis import chrome
from blslib.diagnosis.traces import LONG_S, RECORD_COLUMNS, TraceError, read
from blslib.lab.cli import main
from tests.conftest import ROOT
from tests.test_traces import WORK_S, document, event, lines, run_of, table, traces

MANY_S = np.arange(36).reshape(12, 3) / 1000 + 0.001
"""Of twelve ranks, so that the names of two files have two digits."""
ROWS = "0,0,0.25,0.5\n0,1,1.5,0.125\n1,0,2.5,1\n1,1,1,4\n"
TIMED = "rank,iteration,compute_s,exchange_s"


def folder_of(place: Path, documents: list[Any], name: str = "rank{}.json.gz") -> Path:
    place.mkdir()
    for i, each in enumerate(documents):
        (place / name.format(i)).write_bytes(gzip.compress(json.dumps(each).encode()))
    return place


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "run", [document(run_of(MANY_S[r]), r, 12) for r in range(12)])


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_stands_for_the_files_in_it(recorded: Path) -> None:
    found = read([recorded])
    np.testing.assert_allclose(found.work_s, MANY_S, rtol=1e-6)
    assert not found.notes
    assert found.paths == tuple(recorded / f"rank{r}.json.gz" for r in range(12))


def test_folders_and_files_together(tmp_path: Path) -> None:
    ranks = [document(run_of(MANY_S[r]), r, 12) for r in range(12)]
    first, second = folder_of(tmp_path / "a", ranks[:5]), folder_of(tmp_path / "b", ranks[5:11])
    (alone,) = traces(tmp_path, ranks[11])
    np.testing.assert_allclose(read([second, alone, first]).work_s, MANY_S, rtol=1e-6)
    with pytest.raises(TraceError, match="6 of 12 ranks missing"):
        read([second])


def test_ranks_that_only_names_tell_go_by_their_numbers(tmp_path: Path) -> None:
    """In the order of letters host10 comes before host2."""
    place = folder_of(tmp_path / "run", [run_of(MANY_S[r]) for r in range(12)], "host{}_trace.json")
    found = read([place])
    np.testing.assert_allclose(found.work_s, MANY_S, rtol=1e-6)
    assert found.notes == ("no trace says its rank: numbered in the order given, in a folder by name, 2 before 10",)


def test_a_folder_of_csv(tmp_path: Path) -> None:
    for rank in (0, 1):
        rows = "".join(f"{row}\n" for row in ROWS.splitlines() if row[0] == str(rank)).replace(",", ";")
        table(tmp_path, lines(TIMED.replace(",", ";"), rows), f"{rank}.csv")
    found = read([tmp_path])
    np.testing.assert_array_equal(found.work_s, [[0.25, 1.5], [2.5, 1]])
    assert found.notes == ("separated by ';'",)  # once, not for each file


JUNK = {
    "README.md": (b"# Traces\nof, a, run", "neither CSV nor a trace, it begins with '# Traces'"),
    "config.json": (b'{"batch": 3}', "JSON without traceEvents"),
    "gpu.csv": (b"time,util\n1,2\n", "has the columns time, util and lacks rank, iteration, compute_s"),
    "log.jsonl": (b'{"a": 1}\n{"a": 2}\n', "is no JSON near character"),
    "picture.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "no text in UTF-8"),
    "replay.et": (b"\x07\x0a\x050.0.4\x20\x08\x01\x12\x03abc\x18\x04", "is a Chakra trace, for replay"),
}


@pytest.mark.parametrize("name", JUNK)
def test_what_is_no_run_is_left_out_of_a_folder_and_named(recorded: Path, name: str) -> None:
    content, cause = JUNK[name]
    (recorded / name).write_bytes(content)
    found = read([recorded])
    np.testing.assert_allclose(found.work_s, MANY_S, rtol=1e-6)
    (note,) = found.notes
    assert note.startswith(f"1 left out: {recorded / name} ") and cause in note
    assert ": give" not in note and ": save" not in note  # nobody asked for it, so it needs no cure
    assert recorded / name not in found.paths
    with pytest.raises(TraceError, match=re.escape(cause)):
        read([recorded / name])


def test_folders_in_a_folder_and_pipes_are_named_and_hidden_files_are_not(recorded: Path) -> None:
    (recorded / "more").mkdir()
    os.mkfifo(recorded / "pipe")
    (recorded / ".DS_Store").write_bytes(b"\0")
    (note,) = read([recorded]).notes
    assert note == (
        f"2 left out: {recorded}/more is a folder, expected a regular file; "
        f"{recorded}/pipe is a pipe, expected a regular file"
    )


def test_a_crowd_of_other_files_is_counted(recorded: Path) -> None:
    for i in range(30):
        (recorded / f"{i}.py").write_text("import this")
    (note,) = read([recorded]).notes
    assert note.startswith("30 left out: ") and note.count("neither") == 8 and note.endswith(" ...")
    assert re.findall(r"(\d+)\.py", note) == list("01234567")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "rank3.json.gz is empty: record the run again"),
        (b'{"traceEvents": [{}', "rank3.json.gz is only half written"),
        (json.dumps(document(run_of(MANY_S[3]))).encode()[:900], "rank3.json.gz is only half written"),
        (b'{"traceEvents": [{}, 3 4' + b" " * 9999, "rank3.json.gz is no JSON near character"),
        (b'{"traceEvents": [{}]}', "no all-to-all in .*rank3.json.gz"),
        (gzip.compress(b"{" * 9999)[:20], "rank3.json.gz is only half written"),
        (b"rank,iteration,compute_s\n", "rank3.json.gz has no lines below its header"),
    ],
)
def test_a_damaged_file_of_a_folder_is_not_left_out(recorded: Path, content: bytes, said: str) -> None:
    """Its rank would be missing, and where the others do not tell how many there were, nobody would know."""
    (recorded / "rank3.json.gz").write_bytes(content)
    with pytest.raises(TraceError, match=said):
        read([recorded])


def test_folders_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    said = (
        f"^no recorded run in {tmp_path}/run: name the CSV of a run, or the traces of all its ranks, or their folder$"
    )
    with pytest.raises(TraceError, match=said):
        read([tmp_path / "run"])
    (tmp_path / "run" / ".hidden").write_text("x")
    with pytest.raises(TraceError, match=said):
        read([tmp_path / "run"])
    (tmp_path / "run" / "sub").mkdir()
    table(tmp_path / "run", lines("worker,step,time_ms"), "a.csv")
    with pytest.raises(TraceError) as fault:
        read([tmp_path / "run"])
    assert str(fault.value).startswith(f"no recorded run in {tmp_path}/run: {tmp_path}/run/a.csv has the columns")
    assert "rename worker to rank, rename step to iteration, rename time_ms to compute_ms; " in str(fault.value)
    assert str(fault.value).endswith("/sub is a folder, expected a regular file: name it as well")


def test_folders_that_cannot_be_read(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.symlink("nowhere", recorded / "link")
    with pytest.raises(TraceError, match="cannot read .*run/link: No such file or directory"):
        read([recorded])

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(TraceError, match=f"^cannot read {recorded}: Permission denied$"):
        read([recorded])


def test_the_command_with_a_folder(recorded: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (recorded / os.fsdecode(b"n\xfftes.txt")).write_text("hello")
    size = sum(path.stat().st_size for path in recorded.glob("rank*"))
    assert main(["diagnose", str(recorded), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == 12
    page = tmp_path / "page.html"
    assert main(["diagnose", str(recorded), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("12 ranks, 3 iterations (torch traces)\n")
    assert f"\nread {size / 1e6:.1f} MB in " in shown
    assert "\nnote: 1 left out: " in shown and "n\\udcfftes.txt" in shown.replace("\n", "")
    assert "<title>diagnose rank0.json.gz, rank1.json.gz, " in page.read_text()


def test_a_name_that_is_no_utf_8_can_be_drawn(tmp_path: Path) -> None:
    path = table(tmp_path, lines(), os.fsdecode(b"\xff.csv"))
    assert main(["diagnose", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert "<title>diagnose ?.csv</title>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_nothing_is_written_into_a_folder_that_is_read(
    recorded: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    before = {path: path.read_bytes() for path in recorded.iterdir()}
    for name in ("rank3.json.gz", "new"):
        assert main(["diagnose", str(recorded), option, str(recorded / name)]) == 2
        said = f"cannot write {recorded / name}: it or its folder is named already: name another file\n"
        assert capsys.readouterr().err == said
    assert {path: path.read_bytes() for path in recorded.iterdir()} == before


# --- separators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "point", "said"),
    [
        (";", ",", "separated by ';', decimals with a comma"),
        (";", ".", "separated by ';'"),
        ("\t", ",", "separated by tabs, decimals with a comma"),
        ("\t", ".", "separated by tabs"),
        ("|", ".", "separated by '|'"),
        (" | ", ".", "separated by '|'"),
        ("  ", ".", "separated by white space"),
        (" \t", ".", "separated by tabs"),
        (", ", ".", ""),
    ],
)
@pytest.mark.parametrize("dressed", ["", "BOM", "Windows", "quoted"])
def test_other_separators(tmp_path: Path, mark: str, point: str, said: str, dressed: str) -> None:
    rows = [row.split(",") for row in lines(TIMED, ROWS).splitlines()]
    quote = '"' if dressed == "quoted" else ""
    whole = "\n".join(mark.join(f"{quote}{each.replace('.', point)}{quote}" for each in row) for row in rows) + "\n"
    whole = whole.replace("\n", "\r\n") if dressed == "Windows" else whole
    path = tmp_path / "run.csv"
    path.write_bytes((("\ufeff" if dressed == "BOM" else "") + whole).encode())
    found = read([path])
    np.testing.assert_array_equal(found.work_s, [[0.25, 1.5], [2.5, 1]])
    assert found.total_s == 8.5
    assert found.notes == ((said,) if said else ())


def test_exports_of_spreadsheets(tmp_path: Path) -> None:
    """Columns without a name at the end, and tables with a border."""
    rows = "\n".join(f"{row};;" for row in lines(TIMED, ROWS).replace(",", ";").replace(".", ",").splitlines())
    np.testing.assert_array_equal(read([table(tmp_path, rows)]).work_s, [[0.25, 1.5], [2.5, 1]])
    rows = "\n".join(f"| {row.replace(',', ' | ')} |" for row in lines(TIMED, ROWS).splitlines())
    np.testing.assert_array_equal(read([table(tmp_path, rows)]).work_s, [[0.25, 1.5], [2.5, 1]])


@pytest.mark.parametrize(
    ("columns", "more"),
    [
        (f"{TIMED},a;b;c;d;e;f;g", ",1;2;3;4;5;6;7"),
        (f'{TIMED},"x;rank;iteration;compute_s;exchange_s;y"', ",1;2;3"),
        (f"{TIMED},host name of the machine that it ran on", ",a b c d e f"),
        (f"{TIMED},a|b|c|d|e|f|g", ",|||||"),
        (f"{TIMED},notes\t\t\t\t\t\t", ",\t\t\t\t"),
        (f"{TIMED},when", ",2024-01-01 00:00:00"),
    ],
)
def test_what_commas_separate_is_never_read_otherwise(tmp_path: Path, columns: str, more: str) -> None:
    found = read([table(tmp_path, lines(columns, ROWS.replace("\n", f"{more}\n")))])
    np.testing.assert_array_equal(found.work_s, [[0.25, 1.5], [2.5, 1]])
    assert found.total_s == 8.5 and not found.notes


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ("rank;step;seconds\n0;0;1\n", "has the columns rank, step, seconds and lacks iteration, compute_s: rename st"),
        ("worker\tstep\ttime_ms\n0\t0\t1\n", "rename worker to rank, rename step to iteration, rename time_ms to comp"),
        ("rank;iteration;compute_s\n0;0;1.234,5\n", "line 2: compute_s is 1.234,5, must be a number of seconds"),
        ("rank;iteration;compute_s\n0;0;1,234.5\n", "line 2: compute_s is 1,234.5, must be a number of seconds"),
        ("rank|iteration|compute_s\n0|0|0,5\n", "line 2: compute_s is 0,5, must be a number of seconds"),
        ("rank iteration compute_s\n0 0 0,5\n", "line 2: compute_s is 0,5, must be a number of seconds"),
        ('rank,iteration,compute_s\n0,0,"0,5"\n', "line 2: compute_s is 0,5, must be a number of seconds"),
        ("rank;iteration;compute_s\n0;0;1;5\n", "line 2: more fields than the header has"),
        ("# what happened on Monday\n", "neither CSV nor a trace, it begins with '# what happened on Monday'"),
    ],
)  # fmt: skip
def test_faults_of_other_separators(tmp_path: Path, whole: str, said: str) -> None:
    with pytest.raises(TraceError, match=re.escape(said)):
        read([table(tmp_path, whole)])


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "size_s"), [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)])
def test_times_in_other_units(tmp_path: Path, unit: str, size_s: float) -> None:
    found = read([table(tmp_path, lines(f"rank,iteration,compute_{unit},exchange_s", ROWS))])
    np.testing.assert_allclose(found.work_s, np.array([[0.25, 1.5], [2.5, 1]]) * size_s, rtol=1e-12)
    assert found.total_s == pytest.approx(max(1.75 * size_s + 0.625, 3.5 * size_s + 5))
    assert found.notes == (f"compute_{unit} converted to seconds",)
    found = read([table(tmp_path, lines(f"rank;iteration;exchange_{unit};compute_s", ROWS.replace(",", ";")))])
    np.testing.assert_array_equal(found.work_s, [[0.5, 0.125], [1, 4]])
    assert found.notes == ("separated by ';'", f"exchange_{unit} converted to seconds")


def test_records_in_nanoseconds(tmp_path: Path) -> None:
    columns = ",".join(RECORD_COLUMNS).replace("_s,", "_ns,").removesuffix("_s") + "_ns"
    rows = "".join(f"{r},{i},0,64,{10**18 + i * 10**9 + r * 10**6},{10**18 + i * 10**9 + 5 * 10**8}\n"
                   for r in (0, 1) for i in range(3))  # fmt: skip
    found = read([table(tmp_path, lines(columns, rows))])
    np.testing.assert_allclose(found.work_s, [[0.5, 0.5], [0.501, 0.501]], atol=1e-6)
    assert found.notes == ("entered_ns converted to seconds", "returned_ns converted to seconds")


def test_seconds_win_where_a_time_is_there_twice(tmp_path: Path) -> None:
    found = read([table(tmp_path, lines("rank,iteration,compute_ms,compute_s", "0,0,7,0.25\n1,0,7,0.5\n"))])
    np.testing.assert_array_equal(found.work_s, [[0.25], [0.5]])
    assert found.notes == ("no exchange_s in the file: the exchange counts as nothing",)


def test_a_fault_is_told_in_the_unit_of_the_file(tmp_path: Path) -> None:
    for value in ("-2.0", "1e+16", "fast"):
        said = f"line 3: compute_ms is {re.escape(value)}, must be a number of milliseconds from 0 to 1e\\+15"
        with pytest.raises(TraceError, match=said):
            read([table(tmp_path, lines("rank,iteration,compute_ms", f"0,0,1e15\n1,0,{value}\n"))])


def test_files_of_a_run_may_be_in_different_units(tmp_path: Path) -> None:
    a = table(tmp_path, lines("rank,iteration,compute_ms", "0,0,250\n"), "a")
    b = table(tmp_path, lines("rank;iteration;compute_s", "1;0;0,5\n"), "b")
    np.testing.assert_array_equal(read([a, b]).work_s, [[0.25], [0.5]])


def test_the_documentation_shows_one_run_twice(tmp_path: Path) -> None:
    said = (ROOT / "docs" / "diagnose.md").read_text()
    here = re.search(r"```\n(rank,iteration,compute_s,exchange_s\n.*?)```", said, re.DOTALL)
    there = re.search(r"<!-- european -->\n```\n(.*?)```", said, re.DOTALL)
    assert here and there
    ours, european = read([table(tmp_path, here[1], "a")]), read([table(tmp_path, there[1], "b")])
    np.testing.assert_allclose(european.work_s, ours.work_s, rtol=1e-12)
    assert european.total_s == pytest.approx(ours.total_s)
    assert len(european.notes) == 3 and not ours.notes


@pytest.mark.parametrize(("median_s", "doubted"), [(LONG_S * 0.99, False), (LONG_S, True), (12_300, True)])
def test_times_that_are_too_long_for_seconds_are_doubted_and_kept(
    tmp_path: Path, median_s: float, doubted: bool
) -> None:
    rows = "".join(f"{r},{i},{median_s},1\n" for r in (0, 1) for i in range(3))
    found = read([table(tmp_path, lines(TIMED, rows))])
    assert (found.work_s == median_s).all()
    said = (
        f"compute_s has a median of {median_s:,.0f} seconds an iteration: if these are milliseconds, rename the column "
    )
    assert found.notes == ((f"{said}compute_ms, and if they are microseconds, compute_us",) if doubted else ())


def test_doubt_names_the_column_as_it_is(tmp_path: Path) -> None:
    rows = "".join(f"{r},{i},{2e6 * LONG_S}\n" for r in (0, 1) for i in range(3))
    *_, note = read([table(tmp_path, lines("rank,iteration,compute_us", rows))]).notes
    assert note.startswith("compute_us has a median of 120 seconds an iteration: ")


# --- traces for replay -----------------------------------------------------------------------------------------------

OBSERVED = """
import sys, torch
observer = torch.profiler.ExecutionTraceObserver()
observer.register_callback(sys.argv[1])
observer.start()
(torch.ones(3) + 1).sum()
observer.stop()
observer.unregister_callback()
"""


def test_what_torch_observes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rank0.et.json"
    subprocess.run([sys.executable, "-c", OBSERVED, str(path)], cwd=ROOT, check=True, capture_output=True)
    assert "chakra" in path.read_text()
    with pytest.raises(TraceError, match="rank0.et.json is a Chakra trace, for replay, which does not tell"):
        read([path])


SCHEMA = '"schema": "1.0.2-chakra.0.0.4", "pid": 788625, "time": "2024-03-21 18:54:23", "start_ts": 350785410'
COMMS = {"comms": "all_to_allv", "in_msg_size": 4, "out_msg_size": 4, "in_split": [2, 2], "startTime_ns": 5}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (f'{{\n  {SCHEMA},\n  "nodes": [{{"id": 2, "attrs": []}}]}}'.encode(), "Chakra"),
        (b'{"schema": "1.0.1", "pid": 5, "nodes": []}', "Chakra"),
        (gzip.compress(f"{{{SCHEMA}}}".encode()), "Chakra"),
        (f"{{{SCHEMA}".encode() + b" " * 200_000, "Chakra"),  # told before it is read
        (bytes.fromhex("5e12100a06736368656d61ea0105312e302e3112090a0370696468a6ff06"), "Chakra"),  # metadata: schema
        (b"\x07\x0a\x050.0.4\x20\x08\x01\x12\x03abc\x18\x04", "Chakra"),  # metadata: version
        (b"\x20\n\x1d\n\x06schema\xea\x01\x121.0.2-chakra.0.0.4", "Chakra"),  # lengths that look like white space
        (json.dumps([{"markers": ["fwd"], **COMMS}]).encode(), "PARAM"),
        (json.dumps([COMMS, {"compute": "gemm"}], indent=2).encode(), "PARAM"),
        (json.dumps([{"compute": "gemm", "mm_dim": 5}]).encode(), "PARAM"),
    ],
)
def test_traces_for_replay_are_named(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "x").write_bytes(content)
    said = (
        f"x is a {kind} trace, for replay, which does not tell how long ranks worked and waited: record with torch.prof"
    )
    with pytest.raises(TraceError, match=said):
        read([tmp_path / "x"])


def test_traces_of_the_profiler_are_none_for_replay(tmp_path: Path) -> None:
    """Bare arrays, whose events may have arguments of any name; and what only resembles the others is read on."""
    events = [event("aten::mm", -5, 1, args={"comms": 1, "compute": 2}), *run_of(WORK_S[0])]
    np.testing.assert_allclose(read(traces(tmp_path, events, run_of(WORK_S[1]))).work_s, WORK_S, rtol=1e-6)
    whole = [{"schema": 1, **document(run_of(WORK_S[r]), r)} for r in (0, 1)]
    np.testing.assert_allclose(read(traces(tmp_path, *whole)).work_s, WORK_S, rtol=1e-6)
    for other in ({"schema": "x", "pid": 1}, {"nodes": []}, [{"name": "x"}]):
        (path,) = traces(tmp_path, other)
        with pytest.raises(TraceError, match="JSON without traceEvents|no all-to-all"):
            read([path])


def test_a_trace_that_is_damaged_after_its_first_event_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As told by whether a value was found, however much is parsed at a time."""
    for chunk in (1, 1 << 13):
        monkeypatch.setattr(chrome, "CHUNK", chunk)
        (tmp_path / "rank0").write_text('{"traceEvents": [{"ph": "M"}, {]}')
        with pytest.raises(TraceError, match="^.*rank0 is no JSON near character"):
            read([tmp_path])
        (tmp_path / "rank0").write_text('{"other": [}')
        with pytest.raises(TraceError, match="no recorded run in .*rank0 is no JSON near character"):
            read([tmp_path])
