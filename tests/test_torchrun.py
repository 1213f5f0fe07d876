"""The backend "bls" where torch starts the ranks: no MPI, no import, and torchrun's own ways to end and begin again."""

import importlib
import os
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.building import Building
from blslib.collective.errors import PeerError
from blslib.collective.store import StoreComm
from blslib.lab.ranks.launch import rank_environment, run_guarded
from tests.conftest import LONG_S, ROOT

WORKS = """
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

assert not [name for name in sys.modules if name.startswith("blslib.collective.torch.p") or name == "mpi4py.MPI"]
dist.init_process_group("bls")
rank, size = dist.get_rank(), dist.get_world_size()


def exchange(count, depth, group=None):
    '''All-to-alls of blocks that say who sent them to whom, and when; some have no items.'''
    me, all_ranks = dist.get_rank(group), dist.get_world_size(group)
    under_way = deque()
    for i in range(30):
        sizes = [count * ((i + s + r) % 2) for s in range(all_ranks) for r in range(all_ranks)]
        out = [sizes[me * all_ranks + r] for r in range(all_ranks)]
        into = [sizes[s * all_ranks + me] for s in range(all_ranks)]
        sent = torch.cat([torch.full((n,), float(100 * i + 10 * me + r)) for r, n in enumerate(out)])
        expected = torch.cat([torch.full((n,), float(100 * i + 10 * s + me)) for s, n in enumerate(into)])
        output = torch.empty(sum(into))
        work = dist.all_to_all_single(output, sent, into, out, group=group, async_op=True)
        under_way.append((work, output, expected))
        if len(under_way) > depth:
            work, output, expected = under_way.popleft()
            work.wait()
            assert torch.equal(output, expected)
    for work, output, expected in under_way:
        work.wait()
        assert torch.equal(output, expected)


def wait(store):
    with suppress(RuntimeError):
        store.wait(["never"], timedelta(seconds=1))


exchange(5, 2)
exchange(50_000, 2)  # slots grow, which all ranks have to agree upon
half = dist.new_group(list(range(0, size, 2)), backend="bls")
if rank % 2 == 0:
    exchange(7, 2, half)
total = torch.ones(3) * rank
dist.all_reduce(total)
assert total.tolist() == [sum(range(size))] * 3
dist.barrier()
dist.destroy_process_group()
for life in range(3):  # in the store that the ones before have written to
    dist.init_process_group("bls")
    waits = threading.Thread(target=wait, args=[dist.distributed_c10d._get_default_store()])
    waits.start()  # has torch's own connection to it for so long
    began_s = time.monotonic()
    exchange(5 + life, 2)
    assert time.monotonic() - began_s < 30
    again = dist.new_group(list(range(size)), backend="bls", use_local_synchronization=True)
    exchange(4, 1, again)
    waits.join()
    dist.barrier()
    dist.destroy_process_group()
assert "mpi4py.MPI" not in sys.modules
print(f"rank {rank} is done", flush=True)
"""

DIES = """
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun ends those that are left
dist.init_process_group("bls")
out = torch.empty(dist.get_world_size())
for i in range(100):
    if (dist.get_rank(), i) == (1, 20):
        print(f"killed {time.time()}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.all_to_all_single(out, torch.ones(len(out)))
    except RuntimeError as error:
        print(f"heard {time.time()} {type(error).__name__}: {error}", flush=True)
        sys.exit(1)
"""

TWO_LIVES = """
import os

import torch
import torch.distributed as dist

dist.init_process_group("bls")
rank, life = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
out = torch.empty(dist.get_world_size())
for i in range(50):
    dist.all_to_all_single(out, torch.full((len(out),), 100.0 * life + i))
    assert out.tolist() == [100.0 * life + i] * len(out)
    if (rank, life, i) == (1, 0, 25):
        raise KeyError("no such table")
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == len(out)
dist.destroy_process_group()
print(f"rank {rank} is done in life {life}", flush=True)
"""

SEVERAL_HOSTS = """
import os
import platform

import torch.distributed as dist

platform.node = lambda: "host" + os.environ["RANK"]
try:
    dist.init_process_group("bls")
except RuntimeError as error:
    os.write(1, f"{error}\\n".encode())  # in one piece: both ranks say it at once
    raise SystemExit(1)
"""

FORKS = """
import multiprocessing
import os

import torch
import torch.distributed as dist

from blslib.collective.torch import BLSOptions


def one(rank):
    dist.init_process_group("bls", "tcp://127.0.0.1:" + PORT, rank=rank, world_size=2, pg_options=BLSOptions(bound=1))
    out = torch.empty(2)
    for i in range(20):
        dist.all_to_all_single(out, torch.full((2,), float(10 * rank + i)))
        assert out.tolist() == [i, 10 + i]
    dist.destroy_process_group()


if __name__ == "__main__":
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        PORT = str(free.getsockname()[1])
    dist.init_process_group("bls", "tcp://127.0.0.1:0", rank=0, world_size=1)  # is a rank, but no longer when it forks
    dist.all_to_all_single(torch.empty(1), torch.ones(1))
    dist.destroy_process_group()
    children = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    print([child.exitcode for child in children])
"""


@pytest.fixture
def without_mpi(tmp_path: Path) -> dict[str, str]:
    """The environment of programs that find no MPI, and find us as installed packages are found."""
    (tmp_path / "mpi4py.py").write_text("raise ImportError('there is no MPI in this test')\n")
    about = tmp_path / "blslib-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: blslib\nVersion: 0\n")
    told = (ROOT / "pyproject.toml").read_text().split('[project.entry-points."torch.backends"]\n')[1]
    name, where = told.splitlines()[0].replace('"', "").split(" = ")
    (about / "entry_points.txt").write_text(f"[torch.backends]\n{name} = {where}\n")
    environment = rank_environment()
    return environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}", "BLS_BOUND": "2"}


def torchrun(folder: Path, text: str, ranks: int, environment: dict[str, str], *options: str) -> tuple[int, str]:
    """Its return code, and all that was said."""
    path = folder / "program.py"
    path.write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    done = run_guarded([*command, str(path)], timeout_s=3 * LONG_S, env=environment, cwd=folder)
    return done.returncode, done.stdout


def left() -> set[str]:
    """What exchanges have in shared memory by a name."""
    return {path.name for path in Path("/dev/shm").glob("bls-*")}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_torchrun_exchange_without_mpi_or_any_import(
    ranks: int, tmp_path: Path, without_mpi: dict[str, str]
) -> None:
    before = left()
    code, said = torchrun(tmp_path, WORKS, ranks, without_mpi)
    assert code == 0, said[-4000:]
    assert all(f"rank {rank} is done" in said for rank in range(ranks))
    assert left() <= before


@pytest.mark.parametrize("backend", ["bls", "gloo"])
def test_the_time_of_a_call_is_told(backend: str, tmp_path: Path, without_mpi: dict[str, str]) -> None:
    example = str(ROOT / "examples" / "call_time.py")
    few = ["--backend", backend, "--bound", "2", "--calls", "60", "--runs", "1", "--bytes", "64"]
    text = f"import runpy, sys\nsys.argv[1:] = {few}\nrunpy.run_path({example!r}, run_name='__main__')\n"
    code, said = torchrun(tmp_path, text, 2, without_mpi)
    assert code == 0, said[-4000:]
    assert f"{backend}, bound 2, 2 ranks by torchrun, blocks of 64 bytes: " in said
    done = subprocess.run([sys.executable, example, "--bytes", "3"], capture_output=True, text=True, env=without_mpi)
    assert done.returncode == 2 and "--bytes is a multiple of 4" in done.stderr


def test_a_killed_rank_is_named_soon(tmp_path: Path, without_mpi: dict[str, str]) -> None:
    code, said = torchrun(tmp_path, DIES, 3, without_mpi)
    [killed] = [float(line.split()[1]) for line in said.splitlines() if line.startswith("killed")]
    heard = [line.split(maxsplit=2) for line in said.splitlines() if line.startswith("heard")]
    assert code and len(heard) == 2, said[-4000:]
    for _, at, words in heard:
        assert words.startswith("PeerError: ") and "rank 1 is gone: its process ended without a word" in words, words
        assert float(at) - killed < 5


def test_a_second_life_knows_nothing_of_the_first(tmp_path: Path, without_mpi: dict[str, str]) -> None:
    before = left()
    code, said = torchrun(tmp_path, TWO_LIVES, 2, without_mpi, "--max-restarts=1")
    assert code == 0, said[-4000:]
    assert "KeyError: 'no such table'" in said
    assert all(f"rank {rank} is done in life 1" in said for rank in range(2))
    assert left() <= before


def test_several_hosts_are_told_to_take_mpi(tmp_path: Path, without_mpi: dict[str, str]) -> None:
    code, said = torchrun(tmp_path, SEVERAL_HOSTS, 2, without_mpi)
    assert code != 0, said
    assert "on several hosts, between which it takes MPI: start the program with mpiexec -f HOSTS -n 2 python" in said


def test_children_may_be_ranks_of_a_parent_that_is_none(tmp_path: Path, without_mpi: dict[str, str]) -> None:
    (tmp_path / "program.py").write_text(FORKS)
    done = run_guarded([sys.executable, "program.py"], timeout_s=2 * LONG_S, env=without_mpi, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[0, 0]"), done.stdout[-4000:]


def test_torch_loads_next_to_nothing_of_ours(without_mpi: dict[str, str]) -> None:
    code = "import sys, torch\nprint(torch.distributed.is_backend_available('bls'))\n"
    code += "print(sorted(name for name in sys.modules if name.split('.')[0] in ('blslib', 'mpi4py', 'pandas')))"
    how = {"capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-c", code], env=without_mpi, **how)
    ours = ["blslib", "blslib.collective", "blslib.collective.torch", "blslib.collective.torch.autoload"]
    assert done.stdout == f"True\n{ours}\n"
    plain = without_mpi | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    code += "\nimport blslib.collective.torch\nprint(torch.distributed.is_backend_available('bls'))"
    done = subprocess.run([sys.executable, "-c", code], env=plain, **how)
    assert done.stdout.split() == ["False", "[]", "True"]


def test_nothing_of_ours_fails_an_import_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from blslib.collective.torch import autoload

    monkeypatch.setitem(sys.modules, "torch.distributed", None)  # as where it was built without
    with pytest.raises(ImportError):
        importlib.import_module("torch.distributed")
    autoload.register()


def test_a_program_under_mpiexec_may_start_ranks_of_torch(tmp_path: Path, without_mpi: dict[str, str]) -> None:
    (tmp_path / "program.py").write_text(FORKS)
    environment = without_mpi | {"BLS_MPI": "0", "PMI_RANK": "0", "PMI_SIZE": "1"}
    done = run_guarded([sys.executable, "program.py"], timeout_s=2 * LONG_S, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[0, 0]"), done.stdout[-4000:]


class Words(dict):
    """A store, as far as exchanges are built over it; gone when it is told so."""

    gone = False

    def set(self, key: str, value: str) -> None:
        self._look()
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        self._look()
        return self[key]

    def check(self, keys: list[str]) -> bool:
        self._look()
        return all(key in self for key in keys)

    def _look(self) -> None:
        if self.gone:
            raise RuntimeError("Broken pipe\nframe #0: c10d")


def test_ranks_that_make_different_calls_are_told() -> None:
    ranks = [StoreComm(words := Words(), 0, 2), StoreComm(words, 1, 2)]
    found = [np.zeros(2, int) for _ in ranks]
    both = [comm.Iallgather(np.array([7 + comm.rank]), found[comm.rank]) for comm in ranks]
    assert both[0].Test() and both[1].Test() and [each.tolist() for each in found] == [[7, 8]] * 2
    barrier, gather = ranks[0].Ibarrier(), ranks[1].Iallgather(np.array([3]), found[1])
    for request in (barrier, gather):
        with pytest.raises(PeerError, match=r"ranks make different calls on this group, .* \[\[\[\]\], \[\[3\]\]\]"):
            request.Test()


@pytest.mark.parametrize("word", ["__import__('os').abort()", "[1, 2", "1 if True else 2", "\0"])
def test_a_word_is_text_and_numbers_and_nothing_else(word: str) -> None:
    comm = StoreComm(words := Words(), 0, 2)
    words.set("0/1", word)
    with pytest.raises(PeerError, match="the store where ranks meet is gone, with torchrun or the rank that had it: "):
        comm.found(0, 1)


def test_a_store_that_is_gone_ends_one_exchange_and_no_other() -> None:
    words = Words()
    building = StoreComm.building(StoreComm(words, 0, 2), 5.0, time.monotonic() + 5)
    building.start()
    words.gone = True
    with pytest.raises(PeerError, match="gone, with torchrun or the rank that had it: Broken pipe$") as told:
        building.gather("here")
    building.give_up(told.value)
    assert not Building._abandoned
    with BoundedLagAlltoallv(StoreComm(Words(), 0, 1), bound=1, slot_bytes=64) as exchange:
        arrivals = exchange.post([np.ones(3, np.float32)]) + exchange.drain()
    assert [(each.iteration, each.blocks[0].tolist()) for each in arrivals] == [(0, [1.0, 1.0, 1.0])]


def test_a_channel_may_be_any_text() -> None:
    class Channel(StrEnum):
        RING = "ring"

    for channel in (Channel.RING, np.str_("ring"), "messages"):  # the last without a message to send
        BoundedLagAlltoallv(StoreComm(Words(), 0, 1), bound=0, slot_bytes=64, channel=channel).close()


def test_looking_at_modules_starts_no_mpi() -> None:
    code = "import copy, inspect, sys\nfrom blslib.collective import mpi\n"
    code += "assert not hasattr(mpi.MPI, '__wrapped__')\ninspect.getmembers(mpi)\nprint('mpi4py' in sys.modules)\n"
    code += "print(mpi.MPI.COMM_SELF.size, mpi.MPI.Exception.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1", "Exception"]


@pytest.mark.parametrize(
    ("variables", "mpi"),
    [
        ({}, False),
        ({"PMI_RANK": "0"}, True),
        ({"OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"PMI_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, False),
        ({"PMIX_RANK": "0", "BLS_MPI": "0"}, False),
    ],
)
def test_who_has_started_this_process(variables: dict[str, str], mpi: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from blslib.collective.torch import autoload

    for name in ("BLS_MPI", "TORCHELASTIC_RUN_ID", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert autoload.under_mpi() is mpi


def test_without_a_fence_there_is_no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    from blslib.collective import store
    from blslib.collective.errors import ExchangeError

    monkeypatch.setattr(store.platform, "machine", lambda: "riscv64")
    with pytest.raises(ExchangeError, match="no fence is known without MPI on riscv64: install an MPI, and start the"):
        store.fence()
