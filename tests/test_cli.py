"""The command line as its users meet it: interrupted, on a full disk, in wrong hands."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mpi4py import MPI

from blslib.lab import cli
from blslib.lab.compare.contest import Contender, exchanges
from tests.conftest import LONG_S, ROOT, alive, until
from tests.test_setup import RUN_CSV

BLSLIB = [sys.executable, "-m", "blslib"]
BENCH = ["bench", "alltoallv", "--ranks", "2", "--quick"]
SIGNALS = [signal.SIGINT, signal.SIGTERM]

# Runs the command, and sends the process a signal when it imports its n-th module.
INTERRUPTED = """
import os, runpy, sys
number, left = int(sys.argv[1]), int(sys.argv[2])
del sys.argv[1:3]
def hook(event, arguments):
    global left
    if event == "import" and "blslib.lab" in sys.modules:
        left -= 1
        if not left:
            os.kill(os.getpid(), number)
sys.addaudithook(hook)
runpy.run_module("blslib", run_name="__main__", alter_sys=True)
"""


def environment(folder: Path) -> dict[str, str]:
    """A folder of its own for all that is temporary."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}


def heeding() -> None:
    """In the child: whoever runs the tests in the background may have it ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("arguments", [BENCH, ["diagnose", "run.csv", "--html", "page.html"]], ids=lambda a: a[0])
def test_interrupted_while_importing(tmp_path: Path, arguments: list[str], number: signal.Signals) -> None:
    (tmp_path / "run.csv").write_text(RUN_CSV)
    draws = random.Random(number)
    for _ in range(5):
        moment = draws.randrange(1, 250)
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, str(int(number)), str(moment), *arguments],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=LONG_S,
            preexec_fn=heeding,
        )
        assert (done.returncode, done.stderr) == (128 + number, "interrupted\n"), f"at import {moment}"
        assert [path.name for path in tmp_path.iterdir()] == ["run.csv"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("turn", range(3))
def test_an_interrupted_bench_leaves_nothing(tmp_path: Path, number: signal.Signals, turn: int) -> None:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heeding}
    process = subprocess.Popen([*BLSLIB, *BENCH], cwd=ROOT, env=environment(tmp_path), **options)
    assert process.stdout is not None and process.stdout.readline().startswith("bench alltoallv")
    time.sleep(random.uniform(0, 2))
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = process.communicate(timeout=LONG_S)
    assert (process.returncode, said) == (128 + number, "interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert until(lambda: not alive(started)), alive(started)


def run(*arguments: str, cwd: Path, **streams: object) -> subprocess.CompletedProcess[str]:
    wanted = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
    options = {"cwd": cwd, "env": environment(cwd), "text": True, "timeout": LONG_S}
    return subprocess.run([*BLSLIB, *arguments], **options, **wanted)


def test_output_that_goes_nowhere(tmp_path: Path) -> None:
    """A full disk is told; a pipe that nobody reads any more, or a stream that was closed before, is not."""
    (tmp_path / "run.csv").write_text(RUN_CSV)
    with open("/dev/full", "w") as full:
        done = run("diagnose", "run.csv", "--json", "out.json", cwd=tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (1, "cannot print: No space left on device: send the output elsewhere\n")
    assert (tmp_path / "out.json").exists()
    reading, writing = os.pipe()
    os.close(reading)
    done = run("diagnose", "run.csv", cwd=tmp_path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    for closed, code in (("1", 0), ("2", 0)):
        shell = f'exec "$@" {closed}>&-'
        command = ["sh", "-c", shell, "sh", *BLSLIB, "diagnose", "run.csv"]
        done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, timeout=LONG_S)
        assert (done.returncode, done.stderr) == (code, b"")


def test_bars_on_a_terminal_that_knows_ascii_alone(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text(RUN_CSV)
    ascii_only = environment(tmp_path) | {"PYTHONIOENCODING": "ascii"}
    command = [*BLSLIB, "diagnose", "run.csv"]
    done = subprocess.run(command, cwd=tmp_path, env=ascii_only, capture_output=True, text=True, timeout=LONG_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dynamic imbalance" in done.stdout


@pytest.mark.parametrize("place", [".", "run.csv/x", "/proc/x"])
def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "run.csv").write_text(RUN_CSV)
    for arguments in (["diagnose", "run.csv", "--html", place], [*BENCH, "--json", place]):
        done = run(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"cannot write {place}: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_that_nobody_reads_can_be_left(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "run.csv").write_text(RUN_CSV)
    os.mkfifo(tmp_path / "pipe")
    command = [*BLSLIB, "diagnose", "run.csv", "--json", "pipe"]
    how = {"cwd": tmp_path, "env": environment(tmp_path), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **how) as process:
        waits = Path(f"/proc/{process.pid}/wchan")
        assert until(lambda: "wait_for_partner" in waits.read_text() or process.poll() is not None)
        process.send_signal(number)
        _, said = process.communicate(timeout=LONG_S)
    assert (process.returncode, said) == (128 + number, "interrupted\n")


@pytest.mark.parametrize("options", [["--json", "run.csv"], ["--html", "./run.csv"], ["--json", "x", "--html", "x"]])
def test_what_is_read_is_not_written_over(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "run.csv").write_text(RUN_CSV)
    done = run("diagnose", "run.csv", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"cannot write {Path(options[-1])}: it or its folder is named already: name another file\n"
    assert (tmp_path / "run.csv").read_text() == RUN_CSV


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks", "1000000"], "1000000 ranks need 62500.0 GiB, "),
        (["--ranks", "2", "--bytes", str(1 << 38)], "Unable to allocate "),
        (["--ranks", "2", "--bytes", "4096", "--bounds", "50000000"], "2 ranks on one host need "),
    ],
)
def test_more_than_this_machine_has_is_refused_in_words(tmp_path: Path, options: list[str], said: str) -> None:
    done = run("bench", "alltoallv", "--quick", *options, cwd=tmp_path)
    assert done.returncode == 1
    first, *others = done.stderr.splitlines()
    assert first.startswith(said)
    assert others in ([], ["the ranks of bench alltoallv ended with code 1, see above"])


def test_a_window_that_does_not_fit_is_refused_before_it_is_touched() -> None:
    """Nothing is taken until it is written to, so nobody else would notice in time."""
    touched: list[Any] = []
    eighth = [psutil.virtual_memory().available // 8 // 4]
    with pytest.raises(MemoryError, match=r"the exchanges of a host need .* GiB, .* are free: ask for smaller blocks"):
        with exchanges(MPI.COMM_SELF, [Contender("window", 10)], eighth, eighth, 4, touched.append):
            pass
    assert not touched


def test_without_a_launcher_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["bench", "alltoallv"]) == 1
    shown = capsys.readouterr()
    assert not shown.out and shown.err.startswith("no mpiexec in ") and shown.err.count("\n") == 1
    bare = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [*BLSLIB, *BENCH, "--bytes", "64", "--bounds", "0", "--repeats", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=LONG_S)
    assert (done.returncode, done.stderr) == (0, "")


def test_nowhere_for_what_is_temporary(tmp_path: Path) -> None:
    code = f"import runpy, tempfile\ntempfile._candidate_tempdir_list = lambda: [{str(tmp_path / 'none')!r}]\n"
    code += "runpy.run_module('blslib', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *BENCH]
    options = {"env": environment(tmp_path), "timeout": LONG_S}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **options)
    assert done.returncode == 1
    assert done.stderr.startswith("cannot go on: ") and "No usable temporary directory found" in done.stderr
    assert done.stderr.count("\n") == 1
