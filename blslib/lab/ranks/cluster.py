"""Live MPI ranks for a notebook: ipyparallel engines under one ``mpiexec``, borrowed from the driver or our own.

``reproduce.sh`` starts a cluster and lends it to every notebook through an environment variable, ``BLS_CLUSTER_FILE``.
A notebook that is opened by hand finds no such variable and starts a cluster of its own; either way the cells read

    ranks = engines(4)
    ranks.run(function, argument)    # a list, one result per rank

Ranks of our own stay until the process ends, a notebook's kernel as a rule, or somebody calls ``close``. Idle they cost
memory and next to no time.
"""

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipyparallel
import psutil
from IPython import get_ipython

from blslib.lab.options import Row
from blslib.lab.ranks.launch import Guard, is_alive, mpiexec, rank_environment
from blslib.lab.ranks.progress import Bar

CLUSTER_VARIABLE = "BLS_CLUSTER_FILE"
"""Environment variable with the path of the connection file of a cluster to borrow."""

START_TIMEOUT_S = 50.0
"""Seconds within which all engines must have reported; a message follows within the minute."""

NEWS_S = 2.0
"""Seconds after the launcher's end, or an interrupt, in which it may still be told which rank died, or came free."""

ANSWER_S = 10.0
"""Seconds in which idle engines say who they are."""

_DEAF = "cannot be interrupted, it seems inside an MPI call"

STRANDED_S = 15.0
"""Seconds that ranks may go on after another one failed, before they are interrupted: they may wait for it for ever."""


class RankError(RuntimeError):
    """A function failed on some ranks, or their engines died. The message says where, why, and shows one traceback."""


class GoneError(RankError):
    """The ranks are not there, or not all of them. The first line of the message says so, and what to do."""


_at_hand: dict[int, "Engines"] = {}
"""What ``engines`` returned last, by n: a cell that is run again finds the ranks that it started before."""


def engines(n: int = 4) -> "Engines":
    """Connect to n live MPI ranks: those at hand, else the driver's if there are n, else new ones, which is announced.

    Raises:
        RuntimeError: they did not come up; says why (launcher, ranks, cores, log) within a minute.
        FileNotFoundError: there is no mpiexec.
    """
    if n not in _at_hand or _at_hand[n].closed:
        _at_hand[n] = Engines(n, os.environ.get(CLUSTER_VARIABLE) or None)
    return _at_hand[n]


class Engines(contextlib.ExitStack):
    """n engines whose ids are their MPI ranks; a context manager. ``close`` may be called twice.

    Attributes:
        size: P.
        owned: whether the cluster is our own, and ends with us.
        view: ipyparallel's direct view of all ranks, blocking; for ``%%px`` and whatever ``run`` does not offer.
        folder: a folder of its own that goes when the cluster goes; empty if borrowed.
        connection_file: with what others can borrow this cluster.
    """

    view: ipyparallel.DirectView
    connection_file: str

    def __init__(self, n: int, borrow: str | None = None) -> None:
        """Borrow the cluster of a connection file, if given and of n ranks; else start one."""
        super().__init__()
        self.size = n
        self.folder = ""
        self._stuck: set[int] = set()
        self._client: ipyparallel.Client | None = None
        self._programs: dict[str, psutil.Popen] = {}
        self.owned = borrow is None or not self._borrow(borrow)
        if self.owned:
            self._start()

    def run(self, function: Callable[..., Any], *args: Any, label: str = "") -> list[Any]:
        """Call ``function(*args)`` on every rank, wait for all, and return the P results in the order of ranks.

        What the ranks print is shown, and a progress bar after two seconds, fed by their calls of ``progress.report``.
        A cluster of our own that lost an engine since the last call is started anew first.

        Args:
            function: a function of a module, or of the notebook with its imports inside.
            args: sent to every rank.
            label: of the progress bar; by default the function's name.

        Raises:
            RankError: it failed on some ranks; those left waiting have been interrupted.
        """
        self._revive()
        pending = self.view.apply_async(function, *args)
        assert self._client is not None
        news = [self._client.metadata[message] for message in pending.msg_ids]
        try:
            with Bar(label or function.__name__) as bar:
                self._wait(pending, news, bar)
                pending.display_outputs()
                results = pending.get(return_exceptions=True)
                failed = {rank: result for rank, result in enumerate(results) if isinstance(result, Exception)}
                if failed:
                    raise self._failure(failed) from None
        except KeyboardInterrupt:
            self._interrupt()
            try:
                pending.wait(NEWS_S)
            finally:
                # One inside MPI hears of no interrupt, and whoever is called next would wait for it.
                self._stuck = {rank for rank, each in enumerate(news) if each["status"] is None}
                if self._stuck:
                    print(f"{_listed(sorted(self._stuck))} {_DEAF}: {self._cure()}")
            raise
        return list(results)

    @property
    def closed(self) -> bool:
        """Whether the ranks were given back, or did not come up."""
        return self._client is None

    def __exit__(self, *error: Any) -> bool:
        """Disconnect, and end the cluster if it is our own."""
        atexit.unregister(self.close)
        self._client = None
        return bool(super().__exit__(*error))

    def _borrow(self, connection_file: str) -> bool:
        try:
            client = ipyparallel.Client(connection_file, timeout=10)
        except Exception as error:
            raise RuntimeError(
                f"no cluster answers at {connection_file} ({error}): unset {CLUSTER_VARIABLE} to start a new one"
            ) from error
        if len(client.ids) != self.size:
            print(f"the cluster at hand has {len(client.ids)} ranks and not {self.size}", end=": ")
            client.close()
            return False
        self.connection_file = connection_file
        self._adopt(client)
        return True

    def _start(self) -> None:
        mpiexec()  # without which there is nothing to start
        self._stuck, self._programs = set(), {}
        print(f"starting {self.size} MPI rank{'s' * (self.size > 1)}", flush=True)
        # Registered before anything is started, so that an interrupt in the middle of it leaves nothing behind.
        atexit.register(self.close)
        try:
            self._adopt(self._launch())
        except BaseException:
            self.close()
            raise

    def _launch(self) -> ipyparallel.Client:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        # Private: a profile at home may hold a dead cluster's files.
        self.folder = self.enter_context(tempfile.TemporaryDirectory(prefix="bls-", ignore_cleanup_errors=True))
        guard = self.enter_context(contextlib.closing(Guard(self.folder)))
        written = [f"{self.folder}/profile/security/ipcontroller-{of}.json" for of in ("client", "engine")]
        self._begin(guard, "controller", [sys.executable, "-m", "ipyparallel.controller"])
        self._until(lambda: sum(map(_whole, written)), 2, "connection files", deadline_s)
        engine = [sys.executable, "-m", "ipyparallel.engine", "--mpi"]
        self._begin(guard, "mpiexec", [mpiexec(), "-n", str(self.size), *engine])
        try:
            client = self.enter_context(ipyparallel.Client(written[0], timeout=START_TIMEOUT_S / 2))
        except Exception as error:
            raise RuntimeError(self._diagnose(f"{type(error).__name__}: {error}")) from error
        self._until(lambda: len(client.ids), self.size, "ranks", deadline_s)
        self.connection_file = written[0]
        return client

    def _begin(self, guard: Guard, name: str, command: Sequence[str]) -> None:
        """Start a program that the guard watches; what it says goes to ``name.log``."""
        environment = {"IPYTHONDIR": self.folder, "IPP_PROFILE_DIR": f"{self.folder}/profile"}
        how: dict[str, Any] = {"env": rank_environment() | environment, "stderr": subprocess.STDOUT}
        with Path(self.folder, f"{name}.log").open("wb") as log:
            self._programs[name] = guard.start([*command, "--log-level=ERROR"], stdout=log, **how)

    def _until(self, count: Callable[[], int], wanted: int, things: str, deadline_s: float) -> None:
        while (found := count()) < wanted:
            ended = self._ended()
            if ended or time.monotonic() > deadline_s:
                late = f"{found} of {wanted} {things} came within {START_TIMEOUT_S:g} s"
                raise RuntimeError(self._diagnose(f"{ended[0]} ended" if ended else late))
            time.sleep(0.05)

    def _ended(self) -> list[str]:
        """Those of our own programs that have ended, which takes the ranks with it."""
        return [name for name, process in self._programs.items() if not is_alive(process)]

    def _adopt(self, client: ipyparallel.Client) -> None:
        self._client = self.enter_context(client)
        self.view = client[list(range(self.size))]
        self.view.block = True
        if get_ipython() is not None:
            self.view.activate()
        asked = self.view.apply_async(_rank)
        ranks = asked.get(return_exceptions=True) if asked.wait(ANSWER_S) else f"no answer within {ANSWER_S:g} s"
        if ranks != list(range(self.size)):
            raise RuntimeError(f"engines 0 to {self.size - 1} should tell their MPI ranks, got {ranks}: start new ones")

    def _diagnose(self, cause: str) -> str:
        head = f"the cluster did not come up ({cause}): {mpiexec()} -n {self.size} on {os.cpu_count()} cores"
        return f"{head}; end of its log:\n{self._log_tail()}"

    def _log_tail(self, lines: int = 20) -> str:
        """What our programs said last."""
        said = {name: Path(self.folder, f"{name}.log").read_text(errors="replace") for name in self._programs}
        return "\n".join(f"[{name}] {line}" for name, text in said.items() for line in text.splitlines()[-lines:])

    def _revive(self) -> None:
        if self._client is None:
            raise GoneError("these ranks were given back: call engines() for new ones")
        everyone = set(range(self.size))
        lost = sorted(everyone if self._ended() else self._stuck | (everyone - set(self._client.ids)))
        if lost and not self.owned:
            raise GoneError(f"the borrowed cluster lost {_listed(lost)}: its owner must start a new one")
        if lost:
            print(f"the cluster lost {_listed(lost)}", end=": ")
            self.close()
            self._start()

    def _wait(self, pending: ipyparallel.AsyncResult, news: Sequence[dict[str, Any]], bar: Bar) -> None:
        assert self._client is not None
        stranded_s = None
        while not pending.wait(0.1):
            bar.update([each["data"] or {} for each in news])
            if self._ended() and not pending.wait(NEWS_S):
                raise self._gone(range(self.size))
            failed = [rank for rank, each in enumerate(news) if each["status"] == "error"]
            if not failed:
                continue
            stranded_s = stranded_s or time.monotonic() + STRANDED_S
            if time.monotonic() > stranded_s:
                self._interrupt()
                if pending.wait(5):
                    return
                self._stuck = {rank for rank, each in enumerate(news) if each["status"] is None}
                causes = {rank: self._client.results[pending.msg_ids[rank]] for rank in failed}
                raise RankError(f"{self._failure(causes)}\n{_listed(sorted(self._stuck))} {_DEAF}: {self._cure()}")

    def _interrupt(self) -> None:
        """Send the ranks that are at work what Ctrl-C sends, so that none of them computes or waits for nobody."""
        if self._client is not None and self._client.ids:
            with contextlib.suppress(Exception):
                self._client.send_signal(signal.SIGINT, block=False)

    def _cure(self) -> str:
        return "the next call starts a new cluster" if self.owned else "the cluster's owner must start a new one"

    def _gone(self, ranks: Sequence[int]) -> GoneError:
        return GoneError(f"{_listed(ranks)} died: {self._cure()}\n{self._log_tail()}".rstrip())

    def _failure(self, failed: dict[int, Any]) -> RankError:
        """One line for each different error, then the traceback of the first that is not an echo of another's."""
        dead = [rank for rank, error in failed.items() if error.args[0] == "EngineError"]
        if dead:
            return self._gone(dead)
        alike = defaultdict(list)
        for rank, error in failed.items():
            alike[": ".join(map(str, error.args))].append(rank)
        lines = [f"{_listed(ranks)}: {text}" for text, ranks in alike.items()]
        first = next((rank for rank, error in failed.items() if error.args[0] != "KeyboardInterrupt"), min(failed))
        trace = re.sub(r"\x1b\[[0-9;]*m", "", failed[first].traceback or "").rstrip()
        head = f"failed on {len(failed)} of {self.size} ranks"
        return RankError("\n".join([head, *lines, f"traceback of rank {first}:", trace]))


def experiment(ranks: Engines, run: Callable[..., list[Row]], config: Any, *, size: int | None = None) -> list[Row]:
    """Call ``run(comm, config)`` on the first ``size`` ranks, or on all, and return rank 0's rows.

    The progress bar is named after the experiment and its case: scenario, law and rate, where it has them.
    """
    size = size or ranks.size
    case = [f"{getattr(config, name)}{unit}" for name, unit in _CASE.items() if getattr(config, name, "none") != "none"]
    label = " ".join([run.__module__.rpartition(".")[2], *case, f"on {size} ranks"])
    return ranks.run(_experiment, run, config, size, label=label)[0]


_CASE = {"scenario": "", "law": "", "rate_per_s": "/s"}
"""What tells the configurations of one experiment apart, with its unit."""


def _experiment(run: Callable[..., list[Row]], config: Any, size: int) -> list[Row]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Split(int(MPI.COMM_WORLD.rank < size))
    rows = run(comm, config) if MPI.COMM_WORLD.rank < size else []
    comm.Free()
    return rows if MPI.COMM_WORLD.rank == 0 else []


def _listed(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _whole(file: str) -> bool:
    """Whether a file of JSON is there, with its end."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return bool(json.loads(Path(file).read_text()))
    return False


def _rank() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank()
