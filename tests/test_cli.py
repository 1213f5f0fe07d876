"""The command line as its users meet it: interrupted, on a full disk, in wrong hands."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

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
