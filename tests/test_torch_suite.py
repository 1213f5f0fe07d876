"""The backend ``"bls"`` under torch's own tests, which come in its wheel, and as users start it.

Run under ``mpiexec``, this file is the program of one rank.
"""

import importlib.util
import json
import os
import re
import sys
import types
import unittest
from pathlib import Path

import pytest

from blslib.lab.ranks.launch import run_ranks
from tests.conftest import LONG_S, ROOT

NOT_OURS = r"(?!.*(_cuda|_nccl|_timeout|_profiler))"
SUITE = {
    # The suite asks for a backend's name and leaves out what it knows that one to lack. Of the two whose names it knows
    # for the CPU, "mpi" has all-to-all, and "gloo" the rest.
    "mpi": r"test_(all_to_all|all_reduce(?!_coal)|reduce|broadcast(?!_obj)|all_gather(?!_coal|_obj)|gather(?!_obj)|"
    r"scatter(?!_obj)|barrier|send_recv|isend)" + NOT_OURS,
    "gloo": r"test_barrier_timeout_(full_)?group|"
    r"test_(all_reduce_coalesced|all_gather_coalesced|(all_gather|scatter)_object)" + NOT_OURS,
}
ALL_TO_ALL = 12


def conform(name: str, folder: str) -> None:
    """What each rank runs: the chosen tests of torch's suite, in the same order everywhere."""
    os.environ |= {"BACKEND": name, "TEMP_DIR": folder}
    if importlib.util.find_spec("expecttest") is None:  # imported by the suite, for tests other than these
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)  # type: ignore[assignment]
    import torch.distributed as dist

    from blslib.collective.torch.autoload import NAME

    dist.init_process_group(NAME)
    os.environ["WORLD_SIZE"] = str(dist.get_world_size())
    from torch.testing._internal.common_utils import TestCase
    from torch.testing._internal.distributed.distributed_test import DistributedTest

    os.environ["BACKEND"] = "mpi"  # asked again by each test: only of "mpi" does the suite try groups of few ranks

    class Suite(TestCase, DistributedTest._DistTestBase):
        rank, world_size = dist.get_rank(), dist.get_world_size()

    tests = sorted(test for test in dir(Suite) if re.match(SUITE[name], test))
    result = unittest.TextTestRunner(failfast=True).run(unittest.TestSuite(map(Suite, tests)))
    skipped = {each._testMethodName: why for each, why in result.skipped}
    failed = [text for _, text in result.failures + result.errors]
    verdict = {"run": [test for test in tests if test not in skipped], "skipped": skipped, "failed": failed}
    Path(folder, f"verdict-{dist.get_rank()}.json").write_text(json.dumps(verdict))
    if failed:
        os._exit(1)  # the others may be waiting for this rank
    dist.destroy_process_group()


@pytest.mark.parametrize(("name", "ranks"), [("mpi", 3), ("mpi", 4), ("gloo", 3)])
def test_torchs_own_tests(name: str, ranks: int, tmp_path: Path) -> None:
    (tmp_path / "barrier").mkdir()
    here = {"PYTHONPATH": str(ROOT)}
    done = run_ranks(ranks, [__file__, name, str(tmp_path)], timeout_s=5 * LONG_S, env=here, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-8000:]
    for rank in range(ranks):
        verdict = json.loads((tmp_path / f"verdict-{rank}.json").read_text())
        assert verdict["run"] and not verdict["failed"]
        assert not verdict["skipped"]
        if name == "mpi":
            assert sum("all_to_all" in test for test in verdict["run"]) == ALL_TO_ALL
            for kind in ("all_reduce", "broadcast", "all_gather", "barrier", "reduce", "scatter", "send_recv"):
                assert any(kind in test for test in verdict["run"]), kind
        else:
            assert sum("barrier_timeout" in test for test in verdict["run"]) == 2


def program(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(text)
    return str(path)


A_RANK_FAILS = """
import torch, torch.distributed as dist
from blslib.collective.torch import BLSOptions
dist.init_process_group("bls", pg_options=BLSOptions(bound=1))
out, data = torch.zeros(6), torch.ones(6)
dist.all_to_all_single(out, data)
if dist.get_rank() == 1:
    raise KeyError("no such table")
try:
    for _ in range(4):
        dist.all_to_all_single(out, data)
except RuntimeError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


def test_a_rank_that_dies_is_named_by_the_others(tmp_path: Path) -> None:
    done = run_ranks(3, [program(tmp_path, A_RANK_FAILS)], timeout_s=LONG_S)
    assert done.stdout.count("PeerError: rank 1 failed after posting 1 iterations: KeyError: 'no such table'") == 2


FORGETS_TO_DESTROY = """
import torch, torch.distributed as dist
from blslib.collective.torch import BLSOptions
dist.init_process_group("bls", pg_options=BLSOptions(bound=2))
out = torch.zeros(4)
work = dist.all_to_all_single(out, torch.ones(4), async_op=True)
"""


def test_a_program_may_end_without_destroying(tmp_path: Path) -> None:
    done = run_ranks(2, [program(tmp_path, FORGETS_TO_DESTROY)], timeout_s=LONG_S)
    assert (done.returncode, done.stdout) == (0, "")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch, torch.distributed as dist
import blslib.collective.torch

for backend in ("gloo", "bls"):
    dist.init_process_group(backend)
    group = dist.new_group(backend=backend)
    total = torch.ones(1)
    dist.all_reduce(total, group=group)
    assert total.item() == dist.get_world_size()
    if backend == "gloo":
        dist.destroy_process_group()
dist.barrier()
found = [path.name for path in Path(os.environ["TMPDIR"]).glob("bls-*")]
os.write(1, f"files: {found}\\n".encode())
dist.barrier()
if sys.argv[1] == "exit":
    os._exit(3)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["exit", "kill"])
def test_ranks_that_are_killed_leave_no_file(way: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    env = {"TMPDIR": str(tmp_path / "tmp")}
    done = run_ranks(2, [program(tmp_path, KILLED), way], timeout_s=LONG_S, env=env)
    assert done.returncode != 0
    assert done.stdout.count("files: []") == 2, done.stdout
    assert not list((tmp_path / "tmp").glob("bls-*"))


INTERRUPTED = """
import os, random, signal, sys, threading, time, warnings
from datetime import timedelta
import torch
from mpi4py import MPI
from blslib.collective.torch import BLSGroup, BLSOptions

world = MPI.COMM_WORLD
rank, size = world.rank, world.size
warnings.simplefilter("ignore", RuntimeWarning)
counts = {"right": 0, "failed": 0, "interrupts": 0}


def interrupt(delay_s):
    time.sleep(delay_s)
    os.kill(os.getpid(), signal.SIGINT)


def call(group, i, tried, known, made, gathered):
    tried.append(i + 1.0)
    room = torch.zeros(2 * size)[::2] if i % 2 else torch.zeros(size)
    work = group.all_to_all_single(room, torch.full((size,), i + 1.0), [], [])
    if work.iteration >= 0:
        known[work.iteration] = i + 1.0
    made.append((room, work))
    if i % 3 == 0:
        made[-1 - i % 2][1].wait()
    if size == 1:
        room = torch.zeros(1)
        gathered.append((room, group.all_gather_single(room, torch.full((1,), i + 1.0)), [i + 1.0]))
        if i % 5:
            gathered[-1][1].wait()


def life(number):
    # One interrupt at a random moment, which the program takes for the end of one call and no more.
    group = BLSGroup(world.Dup(), BLSOptions(bound=number % 3), timedelta(seconds=60))
    tried, known, made, gathered = [], {}, [], []
    thread = threading.Thread(target=interrupt, args=(random.Random(number).uniform(0, 4e-3),))
    calls = iter(range(50))
    if size > 1:  # an interrupt while others wait for the first is another matter
        call(group, next(calls), tried, known, made, gathered)
        world.Barrier()
    while True:
        try:
            if rank == 0 and thread.ident is None:
                thread.start()
            for i in calls:
                try:
                    call(group, i, tried, known, made, gathered)
                except RuntimeError:
                    pass
            if rank == 0:
                thread.join()
            break
        except KeyboardInterrupt:
            counts["interrupts"] += 1
    filled = []
    for room, work, *wanted in made + gathered:
        try:
            assert work.wait() is True
            filled.append((room, work, *wanted))
            counts["right"] += 1
        except RuntimeError:
            counts["failed"] += 1
    group.shutdown()
    known, tried = world.allgather(known), world.allgather(tried)
    for room, work, *wanted in filled:
        if wanted:
            assert room.tolist() == wanted[0]
            continue
        for source, value in enumerate(room.tolist()):
            # What the call sent that was interrupted, its program does not know the number of.
            assert value == known[source].get(work.iteration, value), (number, work.iteration, room.tolist())
            assert value in tried[source]


for number in range(int(sys.argv[1])):
    life(number)
if rank == 0:
    print(counts, flush=True)
world.Barrier()
os._exit(0)  # MPI would wait for what was given up
"""


@pytest.mark.parametrize(("ranks", "lives"), [(1, 400), (2, 150)])
def test_an_interrupt_that_is_caught_leaves_right_outputs_or_errors(ranks: int, lives: int, tmp_path: Path) -> None:
    done = run_ranks(ranks, [program(tmp_path, INTERRUPTED), str(lives)], timeout_s=3 * LONG_S)
    assert done.returncode == 0, done.stdout[-4000:]
    found = re.search(r"\{'right': (\d+), 'failed': (\d+), 'interrupts': (\d+)\}", done.stdout)
    assert found, done.stdout
    right, failed, interrupts = map(int, found.groups())
    assert right > 100 and failed > 10 and interrupts > lives / 2


FORKS = """
import atexit, multiprocessing, os, warnings
import torch, torch.distributed as dist
from torch.utils.data import DataLoader
from blslib.collective.torch import BLSOptions

dist.init_process_group("bls", pg_options=BLSOptions(bound=2))
warnings.simplefilter("error", RuntimeWarning)
group, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
data = torch.full((size,), 100.0)


def post(fill):
    output = torch.zeros(size)
    return output, dist.all_to_all_single(output, torch.full((size,), float(fill)), async_op=True), fill


def said(call):
    try:
        call()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def misuse(pipe, under_way):
    calls = {
        "all_to_all_single": lambda: dist.all_to_all_single(data.clone(), data),
        "async": lambda: post(100)[1].wait(),
        "wait": lambda: [work.wait() for _, work, _ in under_way],
        "all_reduce": lambda: dist.all_reduce(data),
        "broadcast": lambda: dist.broadcast(data, 0),
        "all_gather": lambda: dist.all_gather([data.clone() for _ in range(size)], data),
        "barrier": dist.barrier,
        "send": lambda: dist.send(data, (rank + 1) % size),
        "recv": lambda: dist.recv(data, (rank + 1) % size),
        "new_group": lambda: dist.new_group(backend="bls"),
        "alltoall": lambda: dist.all_to_all(list(data.split(1)), list(data.split(1))),
    }
    for name, call in calls.items():
        pipe.send((name, said(call)))
    dist.destroy_process_group()
    pipe.send(("init_process_group", said(lambda: dist.init_process_group("bls"))))
    group.shutdown()
    group.abort()
    atexit._run_exitfuncs()
    pipe.send(None)


class Items:
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return int("forked" in said(lambda: dist.all_to_all_single(data.clone(), data)))


def fork(under_way):
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=misuse, args=(there, under_way))
    child.start()
    there.close()
    answers = iter(here.recv, None)
    os.write(1, "".join(f"{name} {words}\\n" for name, words in answers).encode())
    child.join()


fork([])  # before anything is built
assert list(DataLoader(Items(), num_workers=2, batch_size=None)) == [1] * 8
made = [post(0)]
made[0][1].wait()
fork([post(1)] if rank == 0 else [])
made += [] if rank == 0 else [post(1)]
made += [post(i) for i in range(2, 40)]
assert list(DataLoader(Items(), num_workers=2, batch_size=None)) == [1] * 8
for output, work, fill in made:
    assert work.wait()
    assert output.tolist() == [fill] * size, (fill, output)
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == size
dist.destroy_process_group()
os.write(1, b"ended well\\n")
"""


def test_a_forked_child_is_refused_in_words_and_harms_nobody(tmp_path: Path) -> None:
    done = run_ranks(2, [program(tmp_path, FORKS)], timeout_s=LONG_S)
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count("ended well") == 2, done.stdout[-4000:]
    for name in ("all_to_all_single", "alltoall", "async", "all_reduce", "broadcast", "all_gather", "barrier"):
        assert done.stdout.count(f"{name} ExchangeError: this process was forked ") == 4, done.stdout
    for name in ("send", "recv", "new_group", "init_process_group"):
        assert done.stdout.count(f"{name} ExchangeError: this process was forked ") == 4, done.stdout
    assert done.stdout.count("wait ExchangeError: this process was forked ") == 1


def test_the_example_scores_the_same_over_every_backend_at_every_depth() -> None:
    small = ["--batches", "12", "--batch-size", "30", "--rows", "500"]
    digests = set()
    for backend, bound in (("gloo", 0), ("gloo", 3), ("gloo", 20), ("bls", 0), ("bls", 3)):  # 20: more than batches
        arguments = ["examples/dlrm_torch.py", *small, "--backend", backend, "--bound", str(bound)]
        done = run_ranks(3, arguments, timeout_s=LONG_S, cwd=ROOT)
        assert done.returncode == 0, done.stdout
        assert f"{backend} bound {bound}: " in done.stdout and "batches/s" in done.stdout
        digests.add(done.stdout.split()[-1])
    assert len(digests) == 1


TORCHREC = "examples/torchrec_pipeline.py"
SMALL = ["--batches", "12", "--batch-size", "8", "--tables", "2", "--rows", "50"]


@pytest.mark.skipif(importlib.util.find_spec("torchrec") is not None, reason="TorchRec is installed")
def test_the_example_of_torchrec_says_in_a_line_what_is_missing() -> None:
    done = run_ranks(2, [TORCHREC], timeout_s=LONG_S, cwd=ROOT)
    assert done.returncode != 0
    assert done.stdout.count("\n") == 1, done.stdout
    assert "needs TorchRec, and there is no torchrec: pip install --no-deps torchrec==" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="TorchRec is not installed: see docs/torch.md")
def test_torchrec_has_the_same_outputs_over_every_backend_at_every_depth_in_every_sharding() -> None:
    cases = [("table", *case) for case in (("gloo", 0), ("gloo", 2), ("bls", 0), ("bls", 2))]
    cases += [(sharding, *case) for sharding in ("row", "column") for case in (("gloo", 0), ("bls", 3))]
    digests = set()
    for sharding, backend, depth in cases:
        how = ["--sharding", sharding, "--backend", backend, "--batches-in-flight", str(depth)]
        done = run_ranks(2, [TORCHREC, *SMALL, *how], timeout_s=3 * LONG_S, cwd=ROOT)
        assert done.returncode == 0, done.stdout
        said = done.stdout.splitlines()[-1]
        if backend == "bls":
            calls = 3 if sharding == "row" else 4
            assert f"(a bound of {depth * calls} calls, {calls} calls a batch)" in said
        digests.add(said.split()[-1])
    assert len(digests) == 1


if __name__ == "__main__":
    conform(*sys.argv[1:])
