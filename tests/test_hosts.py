"""Two and three hosts out of network namespaces, real TCP between them: what one machine cannot show otherwise.

Run as a program, this file is the ranks.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from blslib.lab.ranks import hosts
from blslib.lab.ranks.launch import rank_environment, run_guarded
from tests.conftest import LONG_S, ROOT, TooSlow, punctual, until, within
from tests.test_failures import news

if reason := hosts.why_not() or ("" if MPI.get_vendor()[0] == "MPICH" else "hosts are reached by MPICH's launcher"):
    pytest.skip(reason, allow_module_level=True)

LIMIT_S = 3 * LONG_S
MBIT_PER_S = 200.0


# --- what the ranks do -----------------------------------------------------------------------------------------------


def sent_bytes() -> int:
    """What has left this host over the network."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("net:"))
    return int(line.split()[9])


def places(comm: Any) -> dict[str, Any]:
    """Where this rank is, whom it shares memory with, and what one message to another host sends over the network."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    before = sent_bytes()
    comm.Barrier()
    # Named source: MPICH 5.0 has been seen to hang where a receive from any source meets shared memory and TCP.
    to, source = (comm.rank + 2) % comm.size, (comm.rank - 2) % comm.size
    comm.Sendrecv(np.zeros(1 << 20, np.uint8), to, recvbuf=np.empty(1 << 20, np.uint8), source=source)
    comm.Barrier()
    shared = sorted(path.name for path in Path("/dev/shm").iterdir())
    return {"host": socket.gethostname(), "node": node.size, "sent": sent_bytes() - before, "shared": shared}


def delivers(comm: Any) -> dict[str, Any]:
    """Blocks of all sizes, compared with MPI_Alltoallv, over every channel there is between hosts."""
    from blslib.collective.alltoallv import BoundedLagAlltoallv

    checked = 0
    for channel in ("auto", "messages"):
        for bound in (0, 1, 4):
            sizes = np.random.default_rng(bound).integers(0, 400, (60, comm.size, comm.size))
            sizes[::7, 0] = 0
            sizes[::11] *= 300  # larger than their slot, and than what MPI sends at once
            with BoundedLagAlltoallv(comm, bound=bound, slot_bytes=1024, dtype=np.int32, channel=channel) as exchange:
                sent, got = [], []
                for i, row in enumerate(sizes[:, comm.rank]):
                    sent.append([np.arange(n, dtype=np.int32) + 1000 * i + comm.rank for n in row])
                    got += [(i, [b.copy() for b in blocks]) for i, blocks in exchange.post(sent[-1])]
                got += [(i, [b.copy() for b in blocks]) for i, blocks in exchange.drain()]
            assert [i for i, _ in got] == list(range(60))
            for i, blocks in got:
                into = np.empty(sizes[i, :, comm.rank].sum(), np.int32)
                out = [np.concatenate(sent[i]), sizes[i, comm.rank], MPI.INT32_T]
                comm.Alltoallv(out, [into, sizes[i, :, comm.rank], MPI.INT32_T])
                assert np.array_equal(np.concatenate(blocks), into), (channel, bound, i)
                checked += 1
    with pytest.raises(ValueError, match="channel 'ring' needs all"):
        BoundedLagAlltoallv(comm, bound=0, slot_bytes=64, channel="ring")
    return {"checked": checked}


def sends_much(comm: Any) -> dict[str, Any]:
    """Large blocks through a thin network."""
    from blslib.collective.alltoallv import BoundedLagAlltoallv

    block = np.full(1 << 16, comm.rank, np.float32)
    with BoundedLagAlltoallv(comm, bound=1, slot_bytes=block.nbytes) as exchange:
        comm.Barrier()
        started_s, before, seen = time.perf_counter(), sent_bytes(), []
        for _ in range(10):
            seen += [[b[-1] for b in blocks] for _, blocks in exchange.post([block] * comm.size)]
        seen += [[b[-1] for b in blocks] for _, blocks in exchange.drain()]
        comm.Barrier()
        took_s = time.perf_counter() - started_s
    assert seen == [list(range(comm.size))] * 10
    return {"took_s": took_s, "sent": sent_bytes() - before}


def is_cut_off(comm: Any, folder: Path, timeout_s: float) -> dict[str, Any]:
    """The link of one host goes down in mid-run, after a sign from here; it comes back, or it does not."""
    from blslib.collective.alltoallv import BoundedLagAlltoallv

    exchange = BoundedLagAlltoallv(comm, bound=2, slot_bytes=1024, timeout_s=LONG_S)
    seen, failure, started_s = 0, None, 0.0
    try:
        for i in range(200):
            if i == 50:
                (folder / f"{comm.rank}.ready").write_text("")
                assert until((folder / "cut").exists)
                exchange.timeout_s = timeout_s
            started_s = time.monotonic()
            arrivals = exchange.post([np.full(8, i, np.float32)] * comm.size) + (exchange.drain() if i == 199 else [])
            for iteration, blocks in arrivals:
                assert iteration == seen and all((b == seen).all() for b in blocks)
                seen += 1
        exchange.close()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    return {"seen": seen, "failure": failure, "waited_s": time.monotonic() - started_s}


def torch_groups(comm: Any) -> dict[str, Any]:
    """What torch's group does over the exchange, and over gloo, whose interface the environment names."""
    import torch
    import torch.distributed as dist

    import blslib.collective.torch  # noqa: F401 (registers it)

    dist.init_process_group("bls", init_method="tcp://10.77.1.1:29511", rank=comm.rank, world_size=comm.size)
    total, blocks = torch.ones(3), torch.zeros(comm.size)
    dist.all_reduce(total)
    dist.all_to_all_single(blocks, torch.full((comm.size,), float(comm.rank)))
    dist.barrier()
    dist.destroy_process_group()
    return {"total": total.tolist(), "blocks": blocks.tolist()}


def engines_are_borrowed(folder: Path, *launcher: str) -> None:
    """A notebook's engines on two hosts, as docs/cluster.md sets them up: a cluster from outside, borrowed."""
    from ipyparallel import Cluster
    from traitlets.config import Config

    from blslib.lab.ranks.cluster import Engines

    settings = Config()
    settings.MPILauncher.mpi_cmd = list(launcher)
    address = {"controller_ip": hosts.LAUNCHER_ADDRESS, "controller_location": hosts.LAUNCHER_ADDRESS}
    cluster = Cluster(
        engines="mpi",
        n=4,
        profile_dir=str(folder / "profile"),
        load_profile=False,
        config=settings,
        parent=None,
        **address,
    )
    try:
        cluster.start_and_connect_sync().close()
        with Engines(4, cluster.controller.connection_files["client"]) as ranks:
            found = ranks.run(exchange_over_hosts)
    finally:
        cluster.stop_cluster_sync()
    (folder / "found.json").write_text(json.dumps(found))


def exchange_over_hosts() -> tuple[str, list[list[float]]]:
    """Sent to the engines: where they are, and what an exchange among them delivers."""
    import socket

    import numpy as np
    from mpi4py import MPI

    from blslib.collective.alltoallv import BoundedLagAlltoallv

    comm, got = MPI.COMM_WORLD, []
    with BoundedLagAlltoallv(comm, bound=2, slot_bytes=64) as exchange:
        for i in range(5):
            arrivals = exchange.post([np.full(3, i + 10 * comm.rank, np.float32)] * comm.size)
            got += [[float(block[0]) for block in arrival.blocks] for arrival in arrivals]
        got += [[float(block[0]) for block in arrival.blocks] for arrival in exchange.drain()]
    return socket.gethostname(), got


def main(name: str, folder: str, *numbers: str) -> None:
    comm, out = MPI.COMM_WORLD, Path(folder)
    found = is_cut_off(comm, out, *map(float, numbers)) if numbers else globals()[name](comm)
    (out / f"{comm.rank}.tmp").write_text(json.dumps(found))
    (out / f"{comm.rank}.tmp").rename(out / f"{comm.rank}.json")
    if found.get("failure"):  # MPI cannot end in order without its network
        while len(list(out.glob("*.json"))) < comm.size:
            time.sleep(0.01)
        comm.Abort(3)


# --- what is expected of them ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[hosts.Hosts]:
    with hosts.Hosts(2) as made:
        yield made


def run(
    made: hosts.Hosts, ranks: list[int], folder: Path, *arguments: str, code: int = 0, env: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    name, *numbers = arguments
    command = ["-m", "tests.test_hosts", name, str(folder), *numbers]
    done = made.run(ranks, command, timeout_s=LIMIT_S, env=env, cwd=ROOT)
    print(done.stdout)
    assert done.returncode == code, done.stdout
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(sum(ranks))]


@pytest.mark.parametrize("count", [2, 3])
def test_they_are_hosts(count: int, tmp_path: Path) -> None:
    with hosts.Hosts(count) as made:
        ranks = run(made, [2] * count, tmp_path, "places")
    assert [rank["host"] for rank in ranks] == [f"host{n // 2}" for n in range(2 * count)]
    assert {rank["node"] for rank in ranks} == {2}
    assert all(2 << 20 <= rank["sent"] < 3 << 20 for rank in ranks), ranks  # both ranks' megabytes, over TCP
    assert not set(ranks[0]["shared"]) & set(ranks[2]["shared"])


@pytest.mark.parametrize("count", [2, 3])
def test_delivers_what_mpi_alltoallv_delivers(count: int, tmp_path: Path) -> None:
    with hosts.Hosts(count) as made:
        assert [rank["checked"] for rank in run(made, [2] * count, tmp_path, "delivers")] == [360] * 2 * count


def test_a_group_of_torch_s_reaches_the_other_host(two: hosts.Hosts, tmp_path: Path) -> None:
    """Gloo over the network that it is told; there is no name service here by which it could find one."""
    found = run(two, [2, 2], tmp_path, "torch_groups", env={"GLOO_SOCKET_IFNAME": "net"})
    assert found == [{"total": [4.0] * 3, "blocks": [0.0, 1.0, 2.0, 3.0]}] * 4


def test_a_thin_network_carries_no_more_than_it_can(tmp_path: Path) -> None:
    bucket = ("root", "tbf", "rate", f"{MBIT_PER_S:g}mbit", "burst", "64kb", "latency", "200ms")
    with hosts.Hosts(2) as made:
        for name in made.names:
            made._on(name, "tc", "qdisc", "replace", "dev", "net", *bucket)
        ranks = run(made, [2, 2], tmp_path, "sends_much")
    for rank in ranks:
        assert rank["sent"] > 10 * 4 * 4 * (1 << 16)  # ten blocks of each of two ranks to each of two others
        assert rank["took_s"] > 0.9 * (rank["sent"] * 8 / (MBIT_PER_S * 1e6) - 0.01)  # but for the bucket


def cut(made: hosts.Hosts, folder: Path, back_after_s: float | None) -> threading.Thread:
    """Takes host 1 off the network when all ranks are ready, and perhaps puts it back."""

    def work() -> None:
        assert until(lambda: len(list(folder.glob("*.ready"))) == 4)
        made.link(1, up=False)
        (folder / "cut").write_text("")
        if back_after_s is not None:
            time.sleep(back_after_s)
            made.link(1, up=True)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@punctual
def test_a_host_cut_off_is_named(two: hosts.Hosts, tmp_path: Path) -> None:
    timeout_s = 1.0
    thread = cut(two, tmp_path, None)
    try:
        ranks = run(two, [2, 2], tmp_path, "is_cut_off", str(timeout_s), code=3)
    finally:
        thread.join()
        two.link(1, up=True)
    for n, rank in enumerate(ranks):
        assert rank["failure"].startswith("LateError: "), rank
        late = ("rank 2 (posted", "rank 3 (posted") if n < 2 else ("rank 0 (posted", "rank 1 (posted")
        assert all(name in rank["failure"] and "behind)" in rank["failure"] for name in late), rank
    for rank in ranks:
        within(timeout_s + 0.5, rank["waited_s"], ranks)
        if rank["waited_s"] < timeout_s - 0.1:  # the deadline of another rank, which began to wait so much earlier
            raise TooSlow("ranks did not begin to wait together", ranks)


def test_a_short_cut_loses_nothing(two: hosts.Hosts, tmp_path: Path) -> None:
    thread = cut(two, tmp_path, 0.5)
    try:
        ranks = run(two, [2, 2], tmp_path, "is_cut_off", str(LONG_S))
    finally:
        thread.join()
    assert [(rank["seen"], rank["failure"]) for rank in ranks] == [(200, None)] * 4


@punctual
def test_failures_travel_over_the_network(two: hosts.Hosts, tmp_path: Path) -> None:
    command = ["-m", "tests.test_failures", "play", "auto", str(tmp_path)]
    done = two.run([2, 2], command, timeout_s=LIMIT_S, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    ranks = [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(4)]
    assert [rank["works"]["kind"] for rank in ranks] == ["NoneType"] * 4
    news("raises", [rank["raises"] for rank in ranks], 2)


def test_a_notebook_s_engines_on_two_hosts(two: hosts.Hosts, tmp_path: Path) -> None:
    launcher = two.launcher([2, 2])
    inside = two.inside("launcher")
    command = [*inside, sys.executable, "-m", "tests.test_hosts", "engines", str(tmp_path), *launcher[len(inside) :]]
    env = {**rank_environment(), **two.environment, "IPYTHONDIR": str(tmp_path)}
    done = run_guarded(command, timeout_s=LIMIT_S, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    delivered = [[i + 10.0 * source for source in range(4)] for i in range(5)]
    assert json.loads((tmp_path / "found.json").read_text()) == [[f"host{rank // 2}", delivered] for rank in range(4)]


def test_the_worked_example_prints_what_the_page_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    program, shown = (
        page.split(f"<!-- {what}: two_hosts.py -->\n```")[1].split("```")[0] for what in ("example", "output")
    )
    script = tmp_path / "two_hosts.py"
    script.write_text(program.removeprefix("python\n"))
    done = run_guarded([sys.executable, str(script)], timeout_s=LIMIT_S, cwd=ROOT)
    assert done.stdout.rstrip() == shown.removeprefix("text\n").rstrip()


def test_what_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="not found: ip, tc, unshare"):
        hosts.Hosts(2)


def test_hosts_leave_nothing_behind(two: hosts.Hosts) -> None:
    made = hosts.Hosts(2)
    folder, holders = made._folder, list(made._holders.values())
    made.close()
    assert not folder.exists()
    assert [holder.returncode for holder in holders] == [0] * 3


if __name__ == "__main__":
    if sys.argv[1] == "engines":
        engines_are_borrowed(Path(sys.argv[2]), *sys.argv[3:])
    else:
        main(*sys.argv[1:])
