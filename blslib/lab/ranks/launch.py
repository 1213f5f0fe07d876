"""Starting ranks: MPI's environment and launcher in one place, and no process left behind, however we end.

The ways to end are four: the command finishes, its deadline passes, an exception or Ctrl-C reaches us, or we are killed
without a chance to act. For the last one a ``Guard`` waits in a process of its own.
"""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from blslib.collective.available import available_bytes
from blslib.signals import undisturbed

_ROOT = Path(__file__).resolve().parents[3]

RANK_BYTES = 64 << 20
"""Memory of a rank with numpy and MPI, before it has done anything."""

_SETTINGS = {
    # One thread per rank: ranks already outnumber the cores of a small machine.
    "OMP_NUM_THREADS": "1",
    # MPICH: give the core away while waiting, stay on this host, start ranks by fork.
    "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "true",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "1",
    "MPIR_CVAR_CH3_INTERFACE_HOSTNAME": "127.0.0.1",
    "UCX_TLS": "tcp,sm,self",
    # For networks that register memory UCX notes all that is unmapped; here nobody asks, and its list only grows.
    "UCX_MEM_EVENTS": "no",
    "FI_PROVIDER": "tcp",
    "HYDRA_LAUNCHER": "fork",
    # Open MPI: the same, and leave to run as root and with many ranks. Variables, as MPICH knows no such flags.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "true",
    "OMPI_MCA_mpi_yield_when_idle": "true",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_osc": "^ucx",  # it says that it cannot be used, once per rank
    "OMPI_MCA_plm_ssh_agent": "false",
}


def mpi_environment() -> dict[str, str]:
    """The settings that ranks run under, by variable name: what the user exported, else our default.

    They change latency, so experiments record them. Source: what mpi4py sets for its own tests on small machines.
    """
    settings = {name: os.environ.get(name, value) for name, value in _SETTINGS.items()}
    # UCX listens where others can reach it, and asks nobody who they are.
    network = os.environ.get("UCX_NET_DEVICES", "lo" if settings["HYDRA_LAUNCHER"] == "fork" else "")
    return settings | ({"UCX_NET_DEVICES": network} if network else {})


def rank_environment() -> dict[str, str]:
    """The whole environment of a rank: ours, the MPI settings, and a path on which it finds the same ``blslib``."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, **mpi_environment(), "PYTHONPATH": path}


def mpiexec() -> str:
    """Path of the MPI launcher: this environment's own, else the first on PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    own = Path(sys.prefix) / "bin" / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise FileNotFoundError(f"no mpiexec in {own.parent} nor on PATH: run ./reproduce.sh setup, or install mpich")
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that is dead and only not yet collected by its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def survivors(processes: Iterable[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """Those that still run after ``grace_s`` seconds; none, and sooner, if all have ended."""
    left, deadline_s = list(processes), time.monotonic() + grace_s
    while (left := [each for each in left if is_alive(each)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return left


def end_trees(processes: Iterable[psutil.Process], grace_s: float = 3.0) -> None:
    """End processes and everything they started: SIGTERM, up to ``grace_s`` seconds, then SIGKILL."""
    everyone: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            everyone |= {each.pid: each for each in [process, *process.children(recursive=True)]}
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for each in everyone.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                end(each)
        if not survivors(everyone.values(), grace_s):
            return


class Guard:
    """A small process which ends what we started when we are gone, even by SIGKILL.

    It reads process ids from a pipe of which we hold the only writing end; the pipe closes when we do, and not before.
    """

    def __init__(self, folder: str = "") -> None:
        """Start it; ``folder``, if given, is removed at the end."""
        command = [sys.executable, "-P", __file__, folder]
        how: dict[str, Any] = {"stdin": subprocess.PIPE, "text": True, "start_new_session": True}
        self._process = subprocess.Popen(command, env=rank_environment(), **how)
        self._started: list[psutil.Popen] = []

    def start(self, command: Sequence[str], **how: Any) -> psutil.Popen:
        """Start a program which ends, with all that it has started by then, when the guard is closed or we are gone.

        Args:
            command: program and arguments.
            how: as of ``subprocess.Popen``.
        """
        assert self._process.stdin is not None
        with undisturbed():
            process = psutil.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **how)
            self._started.append(process)
            self._process.stdin.write(f"{process.pid}\n")
            self._process.stdin.flush()
        return process

    def close(self) -> None:
        """End whatever still runs of what was started, and the guard itself."""
        with undisturbed():
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            for process in self._started:
                if process.returncode is None:  # until we have asked for it, nobody else can be given its number
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)  # what a program that died itself left in its group
                    process.wait()


def _stand_guard(folder: str) -> None:
    watched: list[psutil.Process] = []
    for line in sys.stdin:
        # A Process remembers when it was started, so a process id that was given out again is not mistaken for it.
        with contextlib.suppress(psutil.NoSuchProcess):
            watched.append(psutil.Process(int(line)))
    end_trees([process for process in watched if is_alive(process)])
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def run_guarded(
    command: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    capture: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, or end it and all that it started.

    Args:
        command: program and arguments.
        timeout_s: seconds after which it is ended.
        env: its whole environment; by default ours.
        cwd: its working directory; by default ours.
        capture: collect what it prints (both streams together, in ``stdout``) rather than let it through.

    Returns:
        The return code and, with ``capture``, the output. A non-zero code is the caller's to judge.

    Raises:
        TimeoutError: the deadline passed; carries the end of the output.
    """
    # A file and not a pipe: a pipe would stay open, and we would wait, for as long as any grandchild holds it.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT} if capture else {}
        with contextlib.closing(Guard()) as guard:  # which ends what still runs, however we leave
            process = guard.start(command, env=env, cwd=cwd, **streams)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(timeout_s)
            late = process.returncode is None
        output.seek(0)
        printed = output.read()
    if late:
        raise TimeoutError(f"no end after {timeout_s:g} s: {' '.join(command)}\n{printed[-4000:]}".rstrip())
    return subprocess.CompletedProcess(command, process.returncode, printed if capture else None)


def free_bytes() -> int:
    """Memory that a program can have here: below its control groups' limits as well, where the system tells them."""
    known = available_bytes()
    return psutil.virtual_memory().available if known is None else known


def check_room(ranks: int) -> None:
    """Refuse more ranks than this host has memory for, before the kernel ends what it likes.

    Raises:
        RuntimeError: there is no room, and they would all be here.
    """
    needed, free = ranks * RANK_BYTES, free_bytes()
    if needed > free and mpi_environment()["HYDRA_LAUNCHER"] == "fork":
        raise RuntimeError(f"{ranks} ranks need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free: ask for fewer")


def run_ranks(
    ranks: int,
    arguments: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    capture: bool = True,
    launcher: Sequence[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``mpiexec -n ranks python *arguments`` as ``run_guarded`` does.

    Args:
        ranks: processes to start.
        arguments: what follows ``python``, such as ``["-m", "package.module", "--option"]``.
        timeout_s: seconds after which the ranks are ended.
        env: variables added to ``rank_environment()``; they win.
        cwd, capture: as in ``run_guarded``.
        launcher: ``mpiexec`` with options of its own, or in another place; by default ``[mpiexec()]``.
    """
    # The launcher's own stop comes after ours: it serves should everything else here have failed.
    environment = {**rank_environment(), "MPIEXEC_TIMEOUT": str(math.ceil(timeout_s) + 15), **(env or {})}
    if capture:
        environment.setdefault("NO_COLOR", "1")  # Open MPI's ranks take what we collect for a terminal
    command = [*(launcher or [mpiexec()]), "-n", str(ranks), sys.executable, *arguments]
    return run_guarded(command, timeout_s=timeout_s, env=environment, cwd=cwd, capture=capture)


if __name__ == "__main__":
    _stand_guard(sys.argv[1])
