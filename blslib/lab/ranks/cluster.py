"""Live MPI ranks for a notebook: ipyparallel engines under one ``mpiexec``, borrowed from the driver or our own.

``reproduce.sh`` starts a cluster and lends it to every notebook through an environment variable, ``BLS_CLUSTER_FILE``.
A notebook that is opened by hand finds no such variable and starts a cluster of its own; either way the cells read

    ranks = engines(4)
    ranks.run(function, argument)    # a list, one result per rank
    ranks.close()
"""

import atexit
import contextlib
import logging
import os
import re
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Self

import ipyparallel
from IPython import get_ipython
from traitlets.config import Config

from blslib.lab.ranks.launch import Guard, mpiexec, rank_environment
from blslib.lab.ranks.progress import Bar

CLUSTER_VARIABLE = "BLS_CLUSTER_FILE"
"""Environment variable with the path of the connection file of a cluster to borrow."""

START_TIMEOUT_S = 50.0
"""Seconds within which all engines must have reported; a message follows within the minute."""

STRANDED_S = 15.0
"""Seconds that ranks may go on after another one failed, before they are interrupted: they may wait for it for ever."""


class RankError(RuntimeError):
    """A function failed on some ranks, or their engines died. The message says where, why, and shows one traceback."""


def engines(n: int = 4) -> "Engines":
    """Connect to n live MPI ranks: those of the driver if there are n of them, else new ones, which is announced.

    Raises:
        RuntimeError: they did not come up; says why (launcher, ranks, cores, log) within a minute.
        FileNotFoundError: there is no mpiexec.
    """
    return Engines(n, os.environ.get(CLUSTER_VARIABLE) or None)


class Engines:
    """n engines whose ids are their MPI ranks; a context manager.

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
        self.size = n
        self.folder = ""
        self._stuck: set[int] = set()
        self._client: ipyparallel.Client | None = None
        self._cluster: ipyparallel.Cluster | None = None
        self._open = contextlib.ExitStack()
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
        try:
            with Bar(label or function.__name__) as bar:
                self._wait(pending, bar)
        except KeyboardInterrupt:
            self._interrupt()
            raise
        pending.display_outputs()
        results = pending.get(return_exceptions=True)
        failed = {rank: result for rank, result in enumerate(results) if isinstance(result, Exception)}
        if failed:
            raise RankError(self._explain(failed)) from None
        return list(results)

    def close(self) -> None:
        """Disconnect, and end the cluster if it is our own. May be called twice."""
        atexit.unregister(self.close)
        self._client = self._cluster = None
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        launcher = mpiexec()
        self._stuck = set()
        print(f"starting {self.size} MPI rank{'s' * (self.size > 1)}", flush=True)
        self.folder = tempfile.mkdtemp(prefix="bls-")  # private: a profile at home may hold a dead cluster's files
        # Registered before anything is started, so that an interrupt in the middle of it leaves nothing behind.
        atexit.register(self.close)
        try:
            self._adopt(self._launch(launcher))
        except BaseException:
            self.close()
            raise

    def _launch(self, launcher: str) -> ipyparallel.Client:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        guard = self._open.enter_context(contextlib.closing(Guard(self.folder)))
        settings = Config()
        settings.MPILauncher.mpi_cmd = [launcher]
        settings.BaseLauncher.environment = rank_environment() | {"IPYTHONDIR": self.folder}
        settings.ControllerLauncher.controller_args = settings.EngineLauncher.engine_args = ["--log-level=ERROR"]
        settings.ControllerLauncher.connection_info_timeout = START_TIMEOUT_S / 2
        log = logging.getLogger("blslib.cluster")
        log.setLevel(logging.CRITICAL)  # its news of a failure is told below, with the cause
        profile = {"profile_dir": f"{self.folder}/profile", "load_profile": False}
        cluster = ipyparallel.Cluster(engines="mpi", config=settings, parent=None, log=log, **profile)
        self._cluster = cluster
        self._open.enter_context(contextlib.suppress(Exception))  # what fails to end below, the guard ends next
        self._open.callback(cluster.stop_cluster_sync)
        try:
            cluster.start_controller_sync()
            guard.watch(cluster.controller.pid)
            cluster.start_engines_sync(self.size)
            guard.watch(cluster.engine_set.pid)
            client = cluster.connect_client_sync(timeout=max(1.0, deadline_s - time.monotonic()))
        except Exception as error:
            raise RuntimeError(self._diagnose(launcher, f"{type(error).__name__}: {error}")) from error
        self.connection_file = cluster.controller.connection_files["client"]
        while len(client.ids) < self.size:
            ended = not cluster.engine_set.process.is_running()
            if ended or time.monotonic() > deadline_s:
                cause = "mpiexec ended" if ended else f"{len(client.ids)} came up within {START_TIMEOUT_S:g} s"
                client.close()
                raise RuntimeError(self._diagnose(launcher, cause))
            time.sleep(0.1)
        return client

    def _adopt(self, client: ipyparallel.Client) -> None:
        self._client = self._open.enter_context(client)
        self.view = client[list(range(self.size))]
        self.view.block = True
        if get_ipython() is not None:
            self.view.activate()
        ranks = self.view.apply(_rank)
        if ranks != list(range(self.size)):
            raise RuntimeError(f"engines 0 to {self.size - 1} are the MPI ranks {ranks}: restart the cluster")

    def _diagnose(self, launcher: str, cause: str) -> str:
        head = f"the cluster did not come up ({cause}): {launcher} -n {self.size} on {os.cpu_count()} cores"
        return f"{head}; end of its log:\n{self._log_tail()}"

    def _log_tail(self, lines: int = 20) -> str:
        """What controller and engines said last. Asked of ipyparallel, which removes the logs of those that ended."""
        assert self._cluster is not None
        said = {"controller": self._cluster.controller, "mpiexec": self._cluster.engine_set}
        return "\n".join(
            f"[{name}] {line}" for name, one in said.items() if one for line in one.get_output().splitlines()[-lines:]
        )

    def _revive(self) -> None:
        if self._client is None:
            raise RuntimeError("these ranks were given back: call engines() for new ones")
        lost = sorted(self._stuck | (set(range(self.size)) - set(self._client.ids)))
        if lost and not self.owned:
            raise RankError(f"the borrowed cluster lost {_listed(lost)}: its owner must start a new one")
        if lost:
            print(f"the cluster lost {_listed(lost)}", end=": ")
            self.close()
            self._start()

    def _wait(self, pending: ipyparallel.AsyncResult, bar: Bar) -> None:
        assert self._client is not None
        news = [self._client.metadata[message] for message in pending.msg_ids]
        stranded_s = None
        while not pending.wait(0.1):
            bar.update([each["data"] or {} for each in news])
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
                raise RankError(
                    f"{self._explain(causes)}\n{_listed(sorted(self._stuck))} cannot be interrupted, it seems inside "
                    f"an MPI call: {self._cure()}"
                )

    def _interrupt(self) -> None:
        """Send the ranks that are at work what Ctrl-C sends, so that none of them computes or waits for nobody."""
        if self._client is not None and self._client.ids:
            with contextlib.suppress(Exception):
                self._client.send_signal(signal.SIGINT, block=False)

    def _cure(self) -> str:
        return "the next call starts a new cluster" if self.owned else "the cluster's owner must start a new one"

    def _explain(self, failed: dict[int, Any]) -> str:
        """One line for each different error, then the traceback of the first that is not an echo of another's."""
        dead = [rank for rank, error in failed.items() if error.args[0] == "EngineError"]
        if dead:
            return f"{_listed(dead)} died: {self._cure()}\n{self._log_tail()}".rstrip()
        alike = defaultdict(list)
        for rank, error in failed.items():
            alike[": ".join(map(str, error.args))].append(rank)
        lines = [f"{_listed(ranks)}: {text}" for text, ranks in alike.items()]
        first = next((rank for rank, error in failed.items() if error.args[0] != "KeyboardInterrupt"), min(failed))
        trace = re.sub(r"\x1b\[[0-9;]*m", "", failed[first].traceback or "").rstrip()
        head = f"failed on {len(failed)} of {self.size} ranks"
        return "\n".join([head, *lines, f"traceback of rank {first}:", trace])


def experiment(
    ranks: Engines, run: Callable[..., list[dict[str, Any]]], config: Any, *, size: int | None = None
) -> list[dict[str, Any]]:
    """Call ``run(comm, config)`` on the first ``size`` ranks, or on all, and return rank 0's rows."""
    return ranks.run(_experiment, run, config, size or ranks.size, label=run.__module__.rpartition(".")[2])[0]


def _experiment(run: Callable[..., list[dict[str, Any]]], config: Any, size: int) -> list[dict[str, Any]]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Split(int(MPI.COMM_WORLD.rank < size))
    rows = run(comm, config) if MPI.COMM_WORLD.rank < size else []
    comm.Free()
    return rows if MPI.COMM_WORLD.rank == 0 else []


def _listed(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _rank() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank()
