"""Where ranks that we start can be reached."""

import json
import sys

import pytest
from mpi4py import MPI

from blslib.lab.ranks.launch import mpi_environment, run_ranks
from tests.conftest import LONG_S

LISTENING = """
import json, sys
import numpy as np, psutil
from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.mpi import MPI

comm, found = MPI.COMM_WORLD, []
with BoundedLagAlltoallv(comm, bound=1, slot_bytes=64, channel="messages") as exchange:
    for _ in range(5):
        exchange.post([np.zeros(4000, np.float32)] * comm.size)
    exchange.drain()
    # The launcher's own port is handed down to the ranks.
    launcher = {each.laddr.port for parent in psutil.Process().parents()[:2] for each in parent.net_connections("inet")}
    here = [each for each in psutil.Process().net_connections("inet") if each.laddr.port not in launcher]
    found = comm.gather([each.laddr.ip for each in here])
if comm.rank == 0:
    print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux" or MPI.get_vendor()[0] != "MPICH", reason="it is UCX that listens")
def test_ranks_of_one_host_listen_on_loopback_alone() -> None:
    done = run_ranks(2, ["-c", LISTENING], timeout_s=LONG_S)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert len(found) == 2 and all(found), "they listen nowhere: then there is nothing to see"
    assert {address for each in found for address in each} == {"127.0.0.1"}


def test_only_ranks_of_one_host_are_kept_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UCX_NET_DEVICES", "HYDRA_LAUNCHER"):
        monkeypatch.delenv(name, raising=False)
    assert mpi_environment()["UCX_NET_DEVICES"] == "lo"
    monkeypatch.setenv("HYDRA_LAUNCHER", "ssh")  # to other hosts, as docs/cluster.md has it
    assert "UCX_NET_DEVICES" not in mpi_environment()
    monkeypatch.setenv("UCX_NET_DEVICES", "eth7")
    assert mpi_environment()["UCX_NET_DEVICES"] == "eth7"
    monkeypatch.delenv("HYDRA_LAUNCHER")
    assert mpi_environment()["UCX_NET_DEVICES"] == "eth7"
