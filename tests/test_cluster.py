"""Live ranks: they answer, say why when they do not, and are gone when their owner is, however it went."""

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from blslib.lab import controls
from blslib.lab.experiments import dlrm, serving, timeline
from blslib.lab.ranks import cluster, progress
from blslib.lab.ranks.cluster import CLUSTER_VARIABLE, Engines, GoneError, RankError, engines, experiment
from blslib.lab.ranks.launch import Guard, end_trees, mpi_environment, mpiexec, run_guarded, run_ranks
from blslib.lab.ranks.progress import report
from blslib.theory.delays import delays
from tests.conftest import LONG_S, ROOT, alive, punctual, until, within

RANKS = 3

# Nothing of this module can be imported on an engine by name: functions that are sent there bring their imports.


def rank_plus(x: int) -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank() + x


def fail_on_one() -> None:
    import time

    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()  # all are at work when one fails
    if MPI.COMM_WORLD.Get_rank() == 1:
        raise ValueError("only here")
    while True:
        time.sleep(0.01)


def process_id() -> int:
    import os

    return os.getpid()


def work(steps: int) -> None:
    import time

    from blslib.lab.ranks.progress import report

    for step in range(steps):
        report(step, steps)
        time.sleep(0.3)


def environment() -> dict[str, str]:
    import os

    return dict(os.environ)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Engines]:
    with Engines(RANKS) as started:
        yield started


@pytest.fixture(autouse=True)
def no_cluster_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CLUSTER_VARIABLE, raising=False)


def test_results_come_in_the_order_of_ranks(ranks: Engines) -> None:
    assert ranks.run(rank_plus, 10) == [10, 11, 12]
    assert ranks.view.apply(rank_plus, 0) == [0, 1, 2]


def test_engines_run_under_our_settings(ranks: Engines) -> None:
    for found in ranks.run(environment):
        assert found["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
        assert found["MPIR_CVAR_POLLS_BEFORE_YIELD"] == mpi_environment()["MPIR_CVAR_POLLS_BEFORE_YIELD"]
        assert found["IPYTHONDIR"] == ranks.folder


def test_a_failure_on_one_rank_frees_the_others(ranks: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "STRANDED_S", 1.0)
    with pytest.raises(RankError) as caught:
        ranks.run(fail_on_one)
    text = str(caught.value)
    assert "failed on 3 of 3 ranks\nranks 0, 2: KeyboardInterrupt" in text
    assert text.count("only here") == 3  # the line, the source line and the error of one traceback
    assert "\x1b" not in text
    assert ranks.run(rank_plus, 0) == [0, 1, 2]


def test_long_work_shows_a_bar(
    ranks: Engines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IPP_NONINTERACTIVE", raising=False)
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 1.0)
    ranks.run(work, 8, label="counting")
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert re.search("[2-7]/8", shown)
    assert "100%" in shown.split("\r")[-1], "the last report is made before the last step"
    monkeypatch.setattr(progress, "SHOW_AFTER_S", LONG_S)
    ranks.run(work, 1, label="counting")
    assert capsys.readouterr().err == ""


def test_a_bar_is_named_after_its_case() -> None:
    class Asked:
        size = 4

        def run(self, *_: object, label: str) -> list[str]:
            return [label]

    def label_of(config: object, size: int | None = None) -> object:
        return experiment(Asked(), timeline.run, config, size=size)  # type: ignore[arg-type]

    assert label_of(timeline.Config(law="rotating")) == "timeline rotating on 4 ranks"
    assert label_of(dlrm.Config("wandering"), 2) == "timeline wandering on 2 ranks"
    assert label_of(dlrm.Config("balanced", "rotating")) == "timeline balanced rotating on 4 ranks"
    assert label_of(serving.Config(rate_per_s=40)) == "timeline balanced bernoulli 40/s on 4 ranks"


@pytest.mark.parametrize("law", [law for _, law in controls.LAWS])
def test_a_delay_is_as_long_as_its_control_says(law: str) -> None:
    """On a single rank, of those whom the law hits; of exponential delays on average."""
    drawn_s = delays(law, 4, 1000, controls.mean_s(law, 88e-3, 4), 1)
    if law == "exponential":
        assert drawn_s.mean() == pytest.approx(88e-3, rel=0.05)
    else:
        assert drawn_s[drawn_s > 0] == pytest.approx(88e-3)


def test_controls_call_with_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once by themselves, then whenever one is moved; where nobody is there to move them, once, without a widget."""
    asked: list[tuple[int, str]] = []

    def draw(bound: int, law: str) -> None:
        asked.append((bound, law))

    def made() -> object:
        return controls.panel(draw, bound=controls.slider("bound", 2, 0, 8), law=controls.menu("law", controls.LAWS))

    panel = made()
    slider, menu, _ = panel.children
    assert (slider.description, menu.description) == ("bound", "law")
    slider.value, menu.value = 5, "permanent"
    assert asked == [(2, "rotating"), (5, "rotating"), (5, "permanent")]
    monkeypatch.setenv("IPP_NONINTERACTIVE", "1")
    assert made() is None and asked[-1] == (2, "rotating") and len(asked) == 4


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GoneError("rank 1 died: the next call starts a new cluster\n[mpiexec] BAD TERMINATION"), "rank 1 died: the "),
        (ValueError("no such law"), "no such law\n"),
        (KeyboardInterrupt(), "interrupted: move a control to go on\n"),
    ],
)
def test_what_goes_wrong_is_one_sentence(error: BaseException, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(bound: int) -> None:
        raise error

    panel = controls.panel(draw, bound=controls.slider("bound", 2, 0, 8))
    capsys.readouterr()  # it draws once by itself
    panel.f(bound=3)
    told = capsys.readouterr().out
    assert told.startswith(said) and told.count("\n") == 1


def test_under_the_driver_the_bar_goes_to_its_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    monkeypatch.setenv("IPP_NONINTERACTIVE", "1")
    monkeypatch.delenv(progress.TERMINAL_VARIABLE, raising=False)
    with progress.Bar("unseen") as bar:
        bar.update([{"done": 1, "of": 4}])
    ours, theirs = os.openpty()
    monkeypatch.setenv(progress.TERMINAL_VARIABLE, os.ttyname(theirs))
    with progress.Bar("seen") as bar:
        bar.update([{"done": 3, "of": 4}, {}, {"done": 2, "of": 4}])
    shown = ""
    while "2/4" not in shown and select.select([ours], [], [], LONG_S)[0]:
        shown += os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert "seen" in shown
    assert "2/4" in shown, "the slowest rank counts"
    assert capfd.readouterr() == ("", "")


def test_report_does_nothing_elsewhere() -> None:
    report(1, 2)


def test_borrowed_ranks_stay_up(ranks: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLUSTER_VARIABLE, ranks.connection_file)
    with engines(RANKS) as borrowed:
        assert not borrowed.owned
        assert borrowed.run(rank_plus, 1) == [1, 2, 3]
    assert ranks.run(rank_plus, 1) == [1, 2, 3]
    with pytest.raises(RuntimeError, match="were given back"):
        borrowed.run(rank_plus, 1)


def test_a_cluster_of_another_size_is_not_borrowed(
    ranks: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CLUSTER_VARIABLE, ranks.connection_file)
    with engines(1) as alone:
        assert alone.owned
        assert alone.run(rank_plus, 0) == [0]
    assert "the cluster at hand has 3 ranks and not 1: starting 1 MPI rank\n" in capsys.readouterr().out


def test_ranks_that_do_not_answer_are_not_waited_for(ranks: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    busy = ranks.view.apply_async(time.sleep, 3)
    with pytest.raises(RuntimeError, match=r"should tell their MPI ranks, got no answer within 0\.5 s: start new ones"):
        Engines(RANKS, ranks.connection_file)
    assert not busy.ready()
    busy.get()


def test_a_stale_connection_file_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CLUSTER_VARIABLE, str(tmp_path / "gone.json"))
    with pytest.raises(RuntimeError, match=r"no cluster answers at .*gone\.json.*unset BLS_CLUSTER_FILE"):
        engines(RANKS)


def test_a_cell_that_is_run_again_finds_its_ranks() -> None:
    with engines(1) as own:
        assert engines(1) is own
    with engines(1) as another:
        assert another is not own
        assert another.run(rank_plus, 0) == [0]


def test_a_killed_controller_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    """It is what would tell of a death, and its own is told by nobody; nor does it end those that it started."""
    before = set(psutil.Process().children(recursive=True))
    with Engines(1) as own:
        first = set(psutil.Process().children(recursive=True)) - before
        ours = first & set(psutil.Process().children())  # and not one of its own children, which have its name
        controller = next(each for each in ours if "ipyparallel.controller" in " ".join(each.cmdline()))
        killer = threading.Timer(0.5, controller.kill)
        killer.start()
        with pytest.raises(GoneError, match=r"^rank 0 died: the next call starts a new cluster"):
            own.run(work, 1000)
        killer.join()
        assert own.run(rank_plus, 0) == [0]
        assert "the cluster lost rank 0: starting 1 MPI rank\n" in capsys.readouterr().out
        assert not alive(list(first))


@punctual
def test_an_engine_killed_in_mid_cell(capsys: pytest.CaptureFixture[str]) -> None:
    """What runs is ended with a message, nothing of the cluster is left, and the next call has a new one."""
    before = set(psutil.Process().children(recursive=True))  # of the cluster that other tests share
    with engines(2) as own:
        first = list(set(psutil.Process().children(recursive=True)) - before)
        victim = own.run(process_id)[1]
        killed_s = 0.0

        def kill() -> None:
            nonlocal killed_s
            killed_s = time.monotonic()
            os.kill(victim, signal.SIGKILL)

        killer = threading.Timer(0.5, kill)
        killer.start()
        with pytest.raises(RankError, match=r"rank.* 1 died: the next call starts a new cluster"):
            own.run(work, 1000)
        raised_s = time.monotonic()
        killer.join()
        assert own.run(rank_plus, 0) == [0, 1]
        assert "the cluster lost" in capsys.readouterr().out
        assert not alive(first)
        folder = Path(own.folder)
        assert folder.exists()
    assert not folder.exists()
    within(15, raised_s - killed_s)


@punctual
def test_a_cluster_that_does_not_come_up_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "mpiexec"
    broken.write_text("#!/bin/sh\necho not enough slots for $2 ranks\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(cluster, "mpiexec", lambda: str(broken))
    before = set(psutil.Process().children(recursive=True))
    started_s = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        engines(2)
    raised_s = time.monotonic()
    text = str(caught.value)
    assert "the cluster did not come up (mpiexec ended)" in text
    assert f"{broken} -n 2 on {os.cpu_count()} cores" in text
    assert "not enough slots for 2 ranks" in text
    assert not alive(list(set(psutil.Process().children(recursive=True)) - before))
    within(60, raised_s - started_s)


def test_engines_do_not_outlive_a_killed_owner() -> None:
    code = "from blslib.lab.ranks.cluster import engines\nranks = engines(2)\n"
    code += "print('up', ranks.folder, flush=True)\ninput()"
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        folder = next(line for line in owner.stdout if line.startswith("up")).split()[1]
        started = psutil.Process(owner.pid).children(recursive=True)
        assert sum("ipyparallel.engine" in command for command in alive(started)) >= 2
        owner.kill()
    assert until(lambda: not alive(started)), alive(started)
    assert not Path(folder).exists()


START = """
import sys
from blslib.lab.ranks.cluster import engines
try:
    engines(4)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""


MOMENTS = [("ipyparallel.controller", 1), ("mpiexec", 1), ("Nanny watching", 4)]
"""How far ranks may have come when an interrupt meets them: words of ``traces_of``, and how often they are there."""


def traces_of(owner: psutil.Process) -> list[str]:
    """Command lines of what it has started, and what these have written into their logs."""
    commands = alive(owner.children(recursive=True))
    folders = [Path(command.split()[-1]) for command in commands if "launch.py" in command]
    logs = [path.read_text() for folder in folders for path in folder.rglob("*.log")]
    return commands + [line for log in logs for line in log.splitlines()]


@punctual
@pytest.mark.parametrize(("trace", "count"), MOMENTS)
def test_an_interrupt_while_ranks_start_leaves_nothing(trace: str, count: int) -> None:
    """However far they have come by then."""
    owner = subprocess.Popen(
        [sys.executable, "-c", START], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None and owner.stdin is not None
        assert owner.stdout.readline() == "starting 4 MPI ranks\n"
        running = psutil.Process(owner.pid).children
        assert until(lambda: sum(trace in line for line in traces_of(psutil.Process(owner.pid))) >= count)
        started = running(recursive=True)
        folder = Path(next(command for command in alive(started) if "launch.py" in command).split()[-1])
        assert folder.name.startswith("bls-") and folder.exists()
        pressed_s = time.monotonic()
        owner.send_signal(signal.SIGINT)
        said = owner.stdout.readline()
        usable_s = time.monotonic()
        left = alive([*started, *running(recursive=True)])
        owner.stdin.close()
    assert said == "interrupted\n"
    assert not left
    assert not folder.exists()
    within(3, usable_s - pressed_s)


def test_an_interrupt_while_ranks_work_lets_the_next_call_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank inside MPI hears nothing of it: it is told, and makes room for new ranks; the one in Python comes free."""

    def uneven(folder: str) -> None:
        import pathlib
        import time

        from mpi4py import MPI

        pathlib.Path(folder, str(MPI.COMM_WORLD.rank)).touch()
        while MPI.COMM_WORLD.rank == 0:
            time.sleep(0.01)
        MPI.COMM_WORLD.Barrier()

    def rank() -> int:
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank

    def press() -> None:
        if until(lambda: len(list(tmp_path.iterdir())) == 2):
            os.kill(os.getpid(), signal.SIGINT)

    with Engines(2) as ranks:
        ctrl_c = threading.Thread(target=press)
        ctrl_c.start()
        with pytest.raises(KeyboardInterrupt):
            ranks.run(uneven, str(tmp_path))
        ctrl_c.join()
        assert ranks.run(rank) == [0, 1]
    said = capsys.readouterr().out
    assert "\nrank 1 cannot be interrupted, it seems inside an MPI call: the next call starts a new cluster\n" in said
    assert said.count("starting 2 MPI ranks") == 2


def test_defaults_do_not_override_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIR_CVAR_POLLS_BEFORE_YIELD", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert mpi_environment()["MPIR_CVAR_POLLS_BEFORE_YIELD"] == "7"
    assert mpi_environment()["OMP_NUM_THREADS"] == "1"


def test_no_mpiexec_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no mpiexec in .* nor on PATH: run \./reproduce\.sh setup"):
        mpiexec()


def test_ranks_print_and_return_their_code() -> None:
    code = "from mpi4py import MPI; import os; os.write(1, b'<rank %d>' % MPI.COMM_WORLD.rank); raise SystemExit(5)"
    done = run_ranks(2, ["-c", code], timeout_s=LONG_S)
    assert done.returncode == 5
    assert "<rank 0>" in done.stdout
    assert "<rank 1>" in done.stdout


def test_late_ranks_are_ended_and_shown() -> None:
    code = "import os, time; os.write(1, b'<pid %d>' % os.getpid()); time.sleep(600)"
    said: list[str] = []
    for timeout_s in (2, 10, 50):  # until both ranks are up, and have said so, before their time is over
        with pytest.raises(TimeoutError, match=f"no end after {timeout_s} s") as caught:
            run_ranks(2, ["-c", code], timeout_s=timeout_s)
        said = re.findall(r"<pid (\d+)>", str(caught.value))
        assert not [pid for pid in map(int, said) if psutil.pid_exists(pid) and alive([psutil.Process(pid)])]
        if len(said) == 2:
            break
    assert len(said) == 2


def test_an_interrupt_ends_what_was_started(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    up = tmp_path / "up"

    def press() -> None:
        if until(up.exists):
            os.kill(os.getpid(), signal.SIGINT)

    ctrl_c = threading.Thread(target=press)
    ctrl_c.start()
    code = f"import pathlib, time; pathlib.Path({str(up)!r}).touch(); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run_guarded([sys.executable, "-c", code], timeout_s=2 * LONG_S)
    ctrl_c.join()
    assert not alive(list(set(psutil.Process().children(recursive=True)) - before))


# A child that starts another, as mpiexec does: both have to go.
PARENT = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"


def test_a_guard_ends_what_it_watches_and_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    with closing(Guard(str(folder))) as guard:
        parent = guard.start([sys.executable, "-c", PARENT])
        started = psutil.Process(parent.pid)
        assert until(started.children)
        tree = [started, *started.children()]
    assert not alive(tree)
    assert parent.returncode == -signal.SIGTERM
    assert not folder.exists()


def test_the_dead_are_not_waited_for() -> None:
    """A process that has ended stays in the kernel's table until its parent, here this one, has asked for its code."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    started_s = time.monotonic()
    end_trees([psutil.Process(parent.pid)], grace_s=LONG_S)
    assert time.monotonic() - started_s < LONG_S
    parent.wait(LONG_S)
