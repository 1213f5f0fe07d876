"""Several hosts on one machine: what a cluster does to a program, without a cluster.

Each host is a set of Linux namespaces: a network of its own, a host name, a ``/dev/shm`` that no other host sees. Their
interface ``net`` carries MPI over real TCP, and may be slowed down or cut; the launcher has a network of its own, as on
many clusters, so that it keeps its hold on ranks whose network is gone. Needs Linux, iproute2, util-linux and root. A
process of each host holds its namespaces and ends when ours does, so nothing stays behind.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from blslib.lab.ranks.launch import mpiexec, run_ranks

LAUNCHER_ADDRESS = "10.77.2.254"
_NEEDED = ("ip", "tc", "unshare", "nsenter", "mount", "hostname")
# MPI looks the network's devices up in /sys, which shows those of whoever mounted it.
_HOLD = (
    'hostname "$0" && mount -t tmpfs tmpfs /dev/shm && mount -t sysfs sysfs /sys && ip link set lo up && '
    "echo ready && exec cat"
)
_ENTER = """#!/bin/sh
# In the place of ssh: MPI's launcher calls it with options, a host, and a command to run there.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
exec nsenter --target "$(cat "$(dirname "$0")/$host")" --net --uts --mount sh -c "$*"
"""


def why_not() -> str:
    """Why hosts cannot be made here; empty if they can."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"hosts need Linux with the programs {', '.join(_NEEDED)}; not found: {', '.join(missing)}"
    done = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"hosts need leave to make namespaces (root): {done.stderr.strip()}" if done.returncode else ""


class Hosts(ExitStack):
    """Hosts ``host0``, ``host1``, ... and a launcher's place, from which ranks are started on them.

    A context manager:

        with Hosts(2) as hosts:
            done = hosts.run([2, 2], ["program.py"], timeout_s=60)

    Attributes:
        names: of the hosts.
    """

    def __init__(self, count: int) -> None:
        """Make ``count`` hosts.

        Raises:
            RuntimeError: they cannot be made here; says why.
        """
        super().__init__()
        if reason := why_not():
            raise RuntimeError(reason)
        self.names = [f"host{n}" for n in range(count)]
        self._holders: dict[str, subprocess.Popen[str]] = {}
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="bls-hosts-")))
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        enter = self._folder / "enter"
        enter.write_text(_ENTER)
        enter.chmod(0o755)
        for name in ["launcher", *self.names]:
            command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", _HOLD, name]
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._holders[name] = holder
            self.callback(holder.communicate)
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                raise RuntimeError(f"{name} could not be made: its holder ended with code {holder.wait()}, see above")
            (self._folder / name).write_text(str(holder.pid))
        for network, kind in ((1, "net"), (2, "ctl")):
            self._on("launcher", "ip", "link", "add", kind, "type", "bridge")
            self._on("launcher", "ip", "link", "set", kind, "up")
            for n, name in enumerate(self.names, 1):
                plug, pid = f"{kind}{n}", str(self._holders[name].pid)
                self._on("launcher", "ip", "link", "add", plug, "type", "veth", "peer", "name", kind, "netns", pid)
                self._on("launcher", "ip", "link", "set", plug, "master", kind, "up")
                self._on(name, "ip", "addr", "add", f"10.77.{network}.{n}/24", "dev", kind)
                self._on(name, "ip", "link", "set", kind, "up")
        self._on("launcher", "ip", "addr", "add", f"{LAUNCHER_ADDRESS}/24", "dev", "ctl")

    def inside(self, name: str) -> list[str]:
        """What stands before a command to run it in the network of one host, or of the ``launcher``."""
        return ["nsenter", "--target", str(self._holders[name].pid), "--net", "--uts"]

    def _on(self, name: str, *command: str) -> None:
        done = subprocess.run([*self.inside(name), *command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {' '.join(command)}: {done.stderr.strip()}")

    def link(self, host: int, up: bool) -> None:
        """Plug the network cable of one host in or out. What was under way waits in TCP for a while."""
        self._on("launcher", "ip", "link", "set", f"net{host + 1}", "up" if up else "down")

    def run(
        self,
        ranks: Sequence[int],
        arguments: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python *arguments`` on so many ranks of each host, in order; else as ``launch.run_ranks`` (MPICH).

        Raises:
            TimeoutError: they did not end in time.
        """
        env = {**self.environment, **(env or {})}
        return run_ranks(sum(ranks), arguments, timeout_s=timeout_s, env=env, launcher=self.launcher(ranks), **options)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that bring MPICH's launcher to the hosts, and their messages to ``net``.

        The ranks of one host share memory through MPI; what UCX may use is for the others, and that is TCP alone.
        """
        how = {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": str(self._folder / "enter")}
        return {**how, "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "net", "FI_TCP_IFACE": "net"}

    def launcher(self, ranks: Sequence[int]) -> list[str]:
        """The command that starts so many ranks on each host; what is left to say is ``-n`` and the program."""
        with tempfile.NamedTemporaryFile("w", dir=self._folder, prefix="hosts-", delete=False) as hostfile:
            hostfile.writelines(f"{name}:{n}\n" for name, n in zip(self.names, ranks, strict=True))
        return [*self.inside("launcher"), mpiexec(), "-f", hostfile.name, "-localhost", LAUNCHER_ADDRESS]
