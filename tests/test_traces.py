"""Readers of recorded runs: every form, every fault named, and large files in little memory."""

import gzip
import json
import os
import re
import resource
import signal
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blslib.collective.baselines import MpiAlltoallv
from blslib.collective.clock import Clock
from blslib.collective.mpi import MPI
from blslib.diagnosis import chrome
from blslib.diagnosis.traces import RECORD_COLUMNS, TraceError, read, save
from blslib.lab.ranks.launch import run_ranks
from tests.conftest import LONG_S, punctual, within

WORK_S = np.array([[0.010, 0.002, 0.003], [0.004, 0.020, 0.005]])

Event = dict[str, Any]


def event(name: str, start_ms: float, ms: float, *, tid: int = 1, cat: str = "cpu_op", **more: Any) -> Event:
    return {"ph": "X", "cat": cat, "name": name, "pid": 7, "tid": tid, "ts": 1e3 * start_ms, "dur": 1e3 * ms, **more}


def gloo(start_ms: float, ms: float) -> Iterator[Event]:
    """One call as torch 2.13 records it: handed over by the caller's thread, done on another one a little later."""
    yield event("c10d::alltoall_base_", start_ms, 0.1)
    yield event("gloo:all_to_all", start_ms + 0.2, ms - 0.2, tid=2, cat="user_annotation")


def run_of(work_s: np.ndarray, call: Callable[[float, float], Iterator[Event]] = gloo, clock_ms: float = 0) -> list:
    """The events of one rank of a synchronous run whose exchange takes 1 ms; work is on the thread of the calls."""
    events = list(call(clock_ms, 1))
    for seconds in work_s:
        events += [event("aten::embedding_bag", clock_ms + 1, 1000 * seconds)]
        clock_ms += 1 + 1000 * seconds
        events += call(clock_ms, 1)
    return events


def document(events: list[Event], rank: int = 0, world: int = 2) -> dict[str, Any]:
    info = {"backend": "gloo", "rank": rank, "world_size": world}
    return {"schemaVersion": 1, "distributedInfo": info, "traceEvents": events, "traceName": "x"}


def traces(folder: Path, *documents: Any) -> list[Path]:
    paths = [folder / f"trace-{i}" for i in range(len(documents))]
    for path, each in zip(paths, documents, strict=True):
        path.write_text(json.dumps(each, indent=1))
    return paths


def table(folder: Path, text: str, name: str = "run") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def lines(columns: str = "rank,iteration,compute_s", rows: str = "0,0,1\n0,1,2\n1,0,3\n1,1,4\n") -> str:
    return f"{columns}\n{rows}"


# --- the forms -------------------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path) -> None:
    found = read([table(tmp_path, lines("rank, iteration, exchange_s, compute_s, host",
                                        "1,4,.5,3,a,\n0,4,.5,1,b\n0,5,.25,2,b,\n1,5,.25,4,a\n"))])  # fmt: skip
    np.testing.assert_array_equal(found.work_s, [[1, 2], [3, 4]])
    assert found.total_s == 7.75
    assert not found.notes


def test_csv_without_the_exchange_in_a_file_per_rank(tmp_path: Path) -> None:
    header = "\ufeffrank,iteration,compute_s\n"
    packed = tmp_path / "b"
    packed.write_bytes(gzip.compress(f"{header}1,0,3\n1,1,4\n".encode()))
    found = read([packed, table(tmp_path, f"{header}0,0,1\n0,1,2\n", "a")])
    np.testing.assert_array_equal(found.work_s, [[1, 2], [3, 4]])
    assert found.total_s is None
    assert found.notes == ("no exchange_s in the file: the exchange counts as nothing",)


def test_calls_of_a_batch_are_told_by_the_profiler_s_steps(tmp_path: Path) -> None:
    """Nine calls, three in each step, and a step without any, as the profiler writes when it stops."""
    calls = run_of(np.full(8, 0.004))
    starts_ms = [each["ts"] / 1000 for each in calls if each["name"].startswith("c10d")]
    steps = [event(f"ProfilerStep#{n}", at - 0.5, 14, cat="user_annotation") for n, at in enumerate(starts_ms[::3])]
    steps.append(event("ProfilerStep#3", starts_ms[-1] + 10, 1, cat="user_annotation"))
    on_gpu = [each | {"cat": "gpu_user_annotation", "dur": 1.0} for each in steps]
    for events, per_batch in ((calls, 1), (calls + steps, 3), (steps + calls + on_gpu, 3)):
        found = read(traces(tmp_path, *(document(events, rank) for rank in (0, 1))))
        assert (found.work_s.shape, found.calls_per_batch) == ((2, 8), per_batch)


def test_csv_with_names_that_are_nearly_right(tmp_path: Path) -> None:
    found = read([table(tmp_path, lines('"rank","iteration",compute_s,comm_us', "0,0,1,4\n1,0,3,2\n"))])
    assert found.notes == (
        "no exchange_s in the file (rename comm_us to exchange_us?): the exchange counts as nothing",
    )


NAP = """
import os, sys, time

slept_s = []

def nap(seconds):
    started_s = time.perf_counter()
    time.sleep(seconds)
    slept_s.append(time.perf_counter() - started_s)

def tell(rank):
    os.write(1, f"rank {rank} slept {slept_s}\\n".encode())  # in one piece, whatever others print
"""

RECORDED = f"""{NAP}
import numpy as np
from mpi4py import MPI
from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.clock import Clock
from blslib.diagnosis.traces import save
comm = MPI.COMM_WORLD
with Clock(BoundedLagAlltoallv(comm, bound=1, slot_bytes=100)) as exchange:
    for i in range(6):
        nap(0.02 if i % 2 == comm.rank else 0.005)
        exchange.post([np.zeros(5, np.float32)] * comm.size)
    exchange.drain()
save(sys.argv[1], comm, exchange)
tell(comm.rank)
"""


def test_records_are_saved_and_read(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(RECORDED)
    run = tmp_path / "run"
    done = run_ranks(2, [str(script), str(run)], timeout_s=LONG_S)
    assert done.returncode == 0, done.stdout
    found = read([run])
    assert (found.bound, found.slot_bytes) == (1, 128)
    assert_work_is_what_was_slept(found.work_s, done.stdout)
    assert found.total_s is not None
    assert found.total_s >= found.work_s.sum(axis=1).max() - 1e-9


def assert_work_is_what_was_slept(work_s: np.ndarray, printed: str) -> None:
    """The work between two calls is the sleep between them; on a busy machine a call may start some time after it."""
    by_rank = {int(rank): json.loads(slept) for rank, slept in re.findall(r"rank (\d+) slept (\[.*?\])", printed)}
    slept_s = np.array([by_rank[rank] for rank in (0, 1)])[:, 1:]  # work begins with the end of the first call
    assert work_s.shape == slept_s.shape
    assert (work_s >= slept_s - 1e-3).all()  # torch's clock is not this one
    assert np.median(work_s - slept_s) < 5e-3


def test_a_baseline_has_no_slots_and_is_saved(tmp_path: Path) -> None:
    clock = Clock(MpiAlltoallv(MPI.COMM_SELF, send_counts=[2], recv_counts=[2]))
    for _ in range(3):
        clock.post([np.zeros(2, np.float32)])
    clock.close()
    save(tmp_path / "run.csv", MPI.COMM_SELF, clock)
    table = (tmp_path / "run.csv").read_text()
    other = "".join(f"1{line[1:]}\n" for line in table.splitlines()[1:])
    (tmp_path / "run.csv").write_text(table + other)
    trace = read([tmp_path / "run.csv"])
    assert (trace.work_s.shape, trace.slot_bytes) == ((2, 2), None)


def test_nothing_recorded_is_not_saved(tmp_path: Path) -> None:
    comm: Any = SimpleNamespace(rank=0, allgather=lambda mine: [[(0, 0, 64, 0.0, 1.0)], mine])
    with pytest.raises(ValueError, match="rank 1 noted no post: give the clock through which it posts"):
        save(tmp_path / "run", comm, SimpleNamespace(calls=[]))
    assert not (tmp_path / "run").exists()


def nested(start_ms: float, ms: float) -> Iterator[Event]:
    """Everything on one thread, one event inside the other, as with a backend that blocks."""
    yield event("c10d::alltoall_", start_ms, ms)
    yield event("record_param_comms", start_ms + 0.1, ms - 0.2, args={"Collective name": "all_to_allv"})
    yield event("mpi:all_to_all", start_ms + 0.2, ms - 0.3, cat="user_annotation")


def kernel(start_ms: float, ms: float) -> Iterator[Event]:
    """NCCL: launched long before, done by the device, where the annotation is repeated."""
    yield event("c10d::alltoall_base_", start_ms - 0.5, 0.1)
    yield event("record_param_comms", start_ms - 0.5, 0.05, args={"Collective name": "all_to_all"})
    yield event("nccl:all_to_all", start_ms - 0.5, 0.1, cat="user_annotation")
    yield event("nccl:all_to_all", start_ms, ms, tid=3, cat="gpu_user_annotation")
    yield event("ncclDevKernel_SendRecv(ncclDevKernelArgs)", start_ms, ms, tid=3, cat="kernel")
    yield event("ncclDevKernel_AllReduce", start_ms + ms, 0.1, tid=3, cat="kernel")


def parameters(start_ms: float, ms: float) -> Iterator[Event]:
    yield event("record_param_comms", start_ms, ms, args={"Collective name": "all_to_all"})
    yield event("record_param_comms", start_ms, ms, args={"Collective name": "allreduce"})


def by_hand(start_ms: float, ms: float) -> Iterator[Event]:
    """Annotated by the user, around mpi4py."""
    yield event("MPI_Alltoallv", start_ms, ms, cat="user_annotation")
    yield event("torch/distributed/x.py(1): all_to_all_single", start_ms - 1, ms + 2, cat="python_function")


@pytest.mark.parametrize("call", [gloo, nested, kernel, parameters, by_hand])
def test_every_spelling_of_a_call_counts_once(tmp_path: Path, call: Any) -> None:
    """Clocks of ranks differ by hours; only durations count."""
    documents = [document(run_of(WORK_S[r], call, clock_ms=r * 1e7), rank=r) for r in (1, 0)]
    found = read(traces(tmp_path, *documents))
    np.testing.assert_allclose(found.work_s, WORK_S, rtol=1e-6)
    assert found.total_s == pytest.approx((WORK_S + 0.001).sum(axis=1).max(), rel=1e-6)
    others = {kernel: "ncclDevKernel_AllReduce", parameters: "allreduce"}
    assert found.meeting == others.get(call, "")
    assert found.meets is not None and found.meets.tolist() == [call in others] * 3
    assert len(found.notes) == (call in others)


PROFILED = f"""{NAP}
os.environ["KINETO_LOG_LEVEL"] = "9"
import torch
import torch.distributed as dist
import blslib.collective.torch
dist.init_process_group("gloo")
rank, sent = dist.get_rank(), torch.ones(64)
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
    started_s = time.perf_counter()
    for i in range(9):
        nap(0.03 if i % 2 == rank else 0.01)
        work = dist.all_to_all_single(torch.empty(64), sent, async_op=sys.argv[2] == "async")
        if work:
            work.wait()
    os.write(1, f"took {{time.perf_counter() - started_s}}\\n".encode())
tell(rank)
profiler.export_chrome_trace(f"{{sys.argv[1]}}/{{rank}}.json.gz")
dist.destroy_process_group()
from mpi4py import MPI
MPI.Finalize()
os._exit(0)  # on its ordinary way out torch now and then aborts over a thread of its own
"""


@pytest.mark.parametrize("how", ["sync", "async"])
def test_what_torch_writes_today(tmp_path: Path, how: str) -> None:
    """A real trace of real ranks: sleeps alternate between 10 and 30 ms, and the shorter one waits for the other."""
    script, folder = tmp_path / "program.py", tmp_path / "traces"
    script.write_text(PROFILED)
    folder.mkdir()
    done = run_ranks(2, [str(script), str(folder), how], timeout_s=LONG_S)
    assert done.returncode == 0, done.stdout
    found = read(sorted(folder.iterdir(), reverse=True))
    assert_work_is_what_was_slept(found.work_s, done.stdout)
    longest_s = max(map(float, re.findall(r"took (\S+)", done.stdout)))
    assert found.total_s is not None
    assert found.work_s.max(axis=0).sum() <= found.total_s <= longest_s
    assert not found.notes


def test_work_beneath_an_asynchronous_call_is_work(tmp_path: Path) -> None:
    """The exchange takes 9 ms; its caller computes for the first 3 of them and waits for the rest."""

    def rank(beneath_ms: float) -> list[Event]:
        events: list[Event] = []
        for start_ms in (0, 20, 40):
            events += [*gloo(start_ms, 9), event("aten::mm", start_ms + 0.1, beneath_ms)]
            events += [event("aten::relu", start_ms + 0.2, 0.1), event("c10d::wait_tensor", start_ms + 4, 5)]
            events += [event("All2All", start_ms - 1, 9.9), event("aten::mm", start_ms + 8.9999, 2)]
        return events

    found = read(traces(tmp_path, document(rank(3.0), 0), document(rank(15.0), 1)))
    np.testing.assert_allclose(found.work_s, [[0.014, 0.014], [0.0199, 0.0199]], rtol=1e-4)


def test_calls_that_are_out_at_the_same_time(tmp_path: Path) -> None:
    """A window of two: a call is entered before the last one has ended, and only operators tell of work."""
    events = [each for start_ms in (0, 5, 10) for each in gloo(start_ms, 9)]
    found = read(traces(tmp_path, document([*events, event("aten::mm", 5.1, 2)], 0), document(events, 1)))
    np.testing.assert_allclose(found.work_s, [[0, 0.002], [0, 0]], atol=1e-9)


def test_an_exchange_without_its_call_stands_for_itself(tmp_path: Path) -> None:
    """Where profiling began between a call and its exchange, the two kinds of event cannot be paired."""
    found = read(traces(tmp_path, *(document(run_of(WORK_S[r])[1:], r) for r in (0, 1))))
    np.testing.assert_allclose(found.work_s, WORK_S + 0.0002, rtol=1e-6)


def test_a_wait_that_is_named_after_its_call_is_no_call(tmp_path: Path) -> None:
    """As TorchRec annotates them, one in the other, outside of the call."""
    waits = [
        event(f"## {name}Awaitable wait() ##", start_ms, 1, cat="user_annotation")
        for name, start_ms in (("KJTAllToAllSplits", 3), ("SplitsAllToAll", 3.1), ("KJTAllToAllTensors", 5))
    ]
    found = read(traces(tmp_path, *(document([*run_of(WORK_S[r]), *waits], r) for r in (0, 1))))
    np.testing.assert_allclose(found.work_s, WORK_S, rtol=1e-6)


def test_other_collectives_are_told(tmp_path: Path) -> None:
    found = read(
        traces(tmp_path, *(document([*run_of(WORK_S[r]), event("c10d::allreduce_", 2, 1)], r) for r in (0, 1)))
    )
    assert found.notes == ("2 other collectives lie between the calls: what they waited for counts as work",)
    assert found.meeting == "c10d::allreduce_"
    assert found.meets is not None and found.meets.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("more", "meeting", "met"),
    [
        (event("c10d::broadcast_", 2, 1), "", False),  # the root may be ahead of the others
        (event("c10d::barrier", 2, 1), "c10d::barrier", True),
        (event("gloo:all_reduce", 2, 1, tid=2, cat="user_annotation"), "gloo:all_reduce", True),
        (event("MPI_Allgather", 2, 1, cat="user_annotation"), "MPI_Allgather", True),
        (event("c10d::_reduce_scatter_base_", 2, 1), "c10d::_reduce_scatter_base_", True),
        (event("x.py(1): all_reduce", 2, 1, cat="python_function"), "", False),
        (event("c10d::barrier", -5, 1), "", False),  # before the loop
        (event("c10d::barrier", 99, 1), "", False),  # after it
    ],
)
def test_where_all_ranks_meet_besides(tmp_path: Path, more: Event, meeting: str, met: bool) -> None:
    both = read(traces(tmp_path, *(document([*run_of(WORK_S[r]), more], r) for r in (0, 1))))
    assert both.meeting == meeting
    assert both.meets is not None and both.meets.tolist() == [met, False, False]
    one = read(traces(tmp_path, document([*run_of(WORK_S[0]), more], 0), document(run_of(WORK_S[1]), 1)))
    assert one.meets is not None and not one.meets.any() and not one.meeting


def test_ranks_without_a_name_go_by_order(tmp_path: Path) -> None:
    """Chrome's other form, a bare array, has no place for a rank."""
    found = read(traces(tmp_path, *(run_of(WORK_S[r]) for r in (1, 0))))
    np.testing.assert_allclose(found.work_s, WORK_S[::-1], rtol=1e-6)
    assert found.notes == ("no trace says its rank: numbered in the order given, in a folder by name, 2 before 10",)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("separators", [(",", ":"), (" ,\n", " : ")])
def test_any_layout_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, separators: Any) -> None:
    """Keys in any order, numbers and strings cut anywhere, events that are none, packed or not."""
    monkeypatch.setattr(chrome, "CHUNK", chunk)
    paths = []
    for rank in (0, 1):
        events = [*run_of(WORK_S[rank]), {"ph": "M", "name": 'all_to_all \u20ac "}]{['}, 3, None]
        whole = {"a": [{}], "n": 12.5e-3, "traceEvents": events, "deep": {"traceEvents": []}, **document([], rank)}
        whole["traceEvents"] = events
        paths.append(tmp_path / f"{rank}")
        text = json.dumps(whole, separators=separators, ensure_ascii=rank == 0)
        paths[rank].write_bytes(gzip.compress(text.encode()) if rank else text.encode())
    np.testing.assert_allclose(read(paths).work_s, WORK_S, rtol=1e-6)


# --- the faults ------------------------------------------------------------------------------------------------------

TABLES = {
    "": "is empty: record the run again",
    " \n\n": "is empty: record the run again",
    "rank,iteration,compute_s\n": "has no lines below its header",
    "hello\nworld": "is neither CSV nor a trace, it begins with 'hello': give a CSV with rank,iteration,compute_s",
    lines("rank,step,seconds"): "has the columns rank, step, seconds and lacks iteration, compute_s: "
    "rename step to iteration, rename seconds to compute_s",
    lines("Rank,global_step,compute_s"): "lacks rank, iteration: rename Rank to rank, rename global_step to iteration",
    lines(
        "worker,iterations,time_ms"
    ): "rename worker to rank, rename iterations to iteration, rename time_ms to compute_ms$",
    lines(
        "pid,iter,wait_s"
    ): "lacks rank, iteration, compute_s: rename pid to rank, rename iter to iteration, add compute_s",
    lines("0,0,1e-3"): "lacks rank, iteration, compute_s: add rank, add iteration, add compute_s",
    lines(
        "x," * 50
    ): r"has the columns (x, ){11}x \.\.\. and lacks rank, iteration, compute_s: add rank, add iteration",
    lines().encode("utf-16").decode("latin1"): "is no text in UTF-8: save it as that, or unpack it",
    lines("rank,iteration,entered_s,end_ms"): "and lacks bound, slot_bytes, returned_s: "
    "add bound, add slot_bytes, rename end_ms to returned_ms$",
    lines(rows="0,0,1\n0,1,\n"): r"run, line 3: compute_s is nan, must be a number of seconds from 0 to 1e\+12",
    lines(rows="0,0,0,25\n0,1,0,5\n"): "line 2: more fields than the header has: name all, write decimals with a point",
    lines(rows="0,0,2\n0,1,2,5\n"): r"run is no CSV of 3 columns \(.* Expected 3 fields in line 3, saw 4\): mend it",
    "rank iteration compute_s\n0 0 0 1.5\n1 1 0 2.5\n": "line 2: more fields than the header has: name all",
    lines(rows="0,0,1,,6,7\n0,1,2\n"): "run, line 2: more fields than the header has",
    lines(rows="0,0,1\n0,1,-2\n"): "run, line 3: compute_s is -2, must be a number of seconds",
    lines(rows="0,0,1\n0,1,inf\n"): "run, line 3: compute_s is inf, must be a number of seconds",
    lines(rows="0,0,1\n0,1,1e308\n"): r"run, line 3: compute_s is 1e\+308, must be a number of seconds",
    lines(rows="0,0,1\n0,1,fast\n"): "run, line 3: compute_s is fast, must be a number of seconds",
    lines(rows="0,0,1\n0,1," + "a" * 100_000): "run, line 3: compute_s is a{40}, must be a number of seconds",
    lines(rows="0,0,1\n0.5,1,1\n"): r"run, line 3: rank is 0.5, must be a whole number from 0 to 2\^53",
    lines(rows="0,0,1\n1e300,1,1\n"): r"run, line 3: rank is 1e\+300, must be a whole number",
    lines(rows=f"0,0,1\n{2**63},1,1\n"): f"run, line 3: rank is {2**63}, must be a whole number",
    lines(rows="0,0,1\n0,-1,1\n"): "run, line 3: iteration is -1, must be a whole number",
    lines(rows="False,0,1\nTrue,0,1\n"): "run, line 2: rank is False, must be a whole number",
    lines(rows="0,0,1\n1,True,1\n"): "run, line 3: iteration is True, must be a whole number",
    lines(columns="rank,iteration,rank,compute_s"): "run has the column rank 2 times: leave one",
    lines(rows='"0,0,1\n1,0,1\n'): r"run is no CSV of 3 columns \(.*EOF inside string.*\): mend it",
    lines(
        rows="0,0,1\n1,0,1\n3,0,1\n"
    ): r"1 of 4 ranks missing \(2\) in .*run: give the files of all ranks, or say --sampled",
    lines(rows="0,0,1\n0,1,1\n"): "only one rank in .*run: imbalance is between ranks, give the files of all of them",
    lines(rows="0,0,1\n1,0,1\n1,0,2\n"): "run: rank 1 has iteration 0 twice: give every call of every rank once",
    lines(rows="0,0,1\n0,1,1\n1,0,1\n"): "run: rank 1 lacks iteration 1: record the same ones on every",
    lines(rows="0,0,1\n0,1,1\n1,1,1\n1,2,1\n"): "run: rank 0 lacks iteration 2: record the same ones on every",
    lines(rows="0,0,1\n0,2,1\n1,0,1\n1,2,1\n"): "run: no rank has iteration 1: record every call",
}


@pytest.mark.parametrize("text", TABLES)
def test_faults_of_csv(tmp_path: Path, text: str) -> None:
    path = table(tmp_path, text)
    if "\0" in text:
        path.write_bytes(text.encode("latin1"))
    with pytest.raises(TraceError, match=TABLES[text]):
        read([path])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("0,0,0,64,1,2\n1,0,0,64,1,2\n", "one call a rank in .*run: work is what lies between two"),
        ("0,0,0,64,1,2\n0,1,0,64,1,4\n1,0,0,64,1,2\n1,1,0,64,3,4\n", "clock of rank 0 goes back before or in call 1"),
        ("0,0,0,64,1,2\n0,1,0,64,3,4\n1,0,0,64,1,2\n1,1,2,64,3,4\n", "2 values of bound: give the records"),
        ("0,0,1.5,64,1,2\n", r"run, line 2: bound is 1.5, must be a whole number from 0 to 2\^53"),
        ("0,0,True,64,1,2\n", "run, line 2: bound is True, must be a whole number"),
        ("0,0,1,0.5,1,2\n", "run, line 2: slot_bytes is 0.5, must be a whole number"),
        ("0,0,1,64,1,2e12\n", r"run, line 2: returned_s is 2000000000000.0, must be a number of seconds"),
    ],
)
def test_faults_of_records(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read([table(tmp_path, lines(",".join(RECORD_COLUMNS), rows))])


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    csv, other = table(tmp_path, lines(), "csv"), table(tmp_path, lines("rank,iteration,compute_s,exchange_s",
                                                                        "2,0,1,1\n"), "other")  # fmt: skip
    trace = traces(tmp_path, document(run_of(WORK_S[0])))
    with pytest.raises(TraceError, match="csv is CSV and .*trace-0 is JSON: give the files of one run in one form"):
        read([csv, *trace])
    with pytest.raises(TraceError, match="other has rank, iteration, compute_s, exchange_s: give them the same"):
        read([csv, other])
    with pytest.raises(TraceError, match="cannot read .*nowhere: No such file or directory"):
        read([tmp_path / "nowhere"])
    with pytest.raises(TraceError, match="csv is CSV and .*trace-0 is JSON: give the files of one run in one form"):
        read([tmp_path])
    with pytest.raises(TraceError, match="no recorded run in no files: name the CSV of a run, or"):
        read([])


def of_ranks(*ranks: int, world: int = 4) -> list[Any]:
    return [document(run_of(WORK_S[0]), rank, world) for rank in ranks]


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (of_ranks(0, 1, 3), r"1 of 4 ranks missing \(2\) in .*trace-0, .*: give the files of all ranks"),
        (of_ranks(1, world=1), r"1 of 1 ranks missing \(0\)"),
        (of_ranks(0, 1, 2, world=2), "rank 2 of a run with 2 ranks"),
        (of_ranks(0, 1, 1), "trace-2: rank 1 has iteration 0 twice: give every call of every rank once"),
        ([*of_ranks(0), run_of(WORK_S[1])], "trace-1 does not say its rank, others do: record it again after init"),
        ([*of_ranks(0), *of_ranks(1, world=2)], "different numbers of ranks, 4 in .*trace-0 and 2 in .*trace-1"),
        ([run_of(WORK_S[0])], "only one rank in .*trace-0"),
        ([document([event("aten::mm", 0, 1)], 0, 2), document([], 1, 2)], "no all-to-all in .*trace-0: profile"),
        ([document(list(gloo(0, 1)), 0), document(list(gloo(0, 1)), 1)], "one all-to-all call in .*trace-0"),
        ([document(run_of(WORK_S[0]), 0), document(run_of(WORK_S[1][:1]), 1)],
         "trace-1: rank 1 lacks iteration 1: record the same ones on every rank, from one barrier to another"),
        ([document([event("c10d::alltoall_", 0, -1)])], r"trace-0: damaged event \{'cat': .*: record the run again"),
        ([document([event("aten::mm", 0, 1) | {"ts": "now"}])], "trace-0: damaged event"),
        ([document([event("aten::mm", 0, 1) | {"ts": 10**400}])], "trace-0: damaged event"),
        (of_ranks(0, 1.5), "trace-1: rank is 1.5, must be a whole number >= 0: record the run again"),  # type: ignore[arg-type]
        (of_ranks(0, True), "trace-1: rank is True, must be a whole number >= 0"),
        (of_ranks(0, 1, world=-2), "trace-0: world_size is -2, must be a whole number >= 0"),
        ([{"name": "no trace"}], "trace-0 is JSON without traceEvents: give what torch.profiler's export_chrome"),
    ],
)  # fmt: skip
def test_faults_of_traces(tmp_path: Path, documents: list[Any], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read(traces(tmp_path, *documents))


def test_sampled_ranks_and_iterations(tmp_path: Path) -> None:
    """Without the word it is refused, with a sentence that names it; with it, what is there is renumbered, and said."""
    rows = "".join(f"{r},{i},{r + i}\n" for i in (70, 10, 40) for r in (9, 3))
    path = table(tmp_path, lines(rows=rows))
    with pytest.raises(TraceError, match=r"8 of 10 ranks missing \(0, 1, 2, 4, 5, 6, 7, 8\) .* or say --sampled$"):
        read([path])
    found = read([path], sampled=True)
    np.testing.assert_array_equal(found.work_s, [[13, 43, 73], [19, 49, 79]])
    assert (found.recorded, found.world) == ((3, 9), 10)
    ranks, iterations, _ = found.notes
    assert ranks.startswith("2 of at least 10 ranks were recorded: 3, 9 count as 0 to 1. Split and advice are of these")
    assert iterations.startswith(
        "3 of the iterations 10 to 70 were recorded, and count as 0 to 2: work that stays large"
    )
    whole = read([table(tmp_path, lines())], sampled=True)
    assert (whole.recorded, whole.world, len(whole.notes)) == ((), 0, 1)
    with pytest.raises(TraceError, match="no rank has iteration 11: record every call, or say --sampled"):
        read([table(tmp_path, lines(rows=rows.replace("9,", "0,").replace("3,", "1,")))])
    for rows in ("0,0,1\n2,0,1\n2,1,1\n", "0,0,1\n0,1,1\n2,1,1\n2,2,1\n", "0,0,1\n2,0,1\n2,0,1\n", "5,0,1\n5,1,1\n"):
        with pytest.raises(TraceError, match=r"lacks iteration [12]|iteration 0 twice|only one rank"):
            read([table(tmp_path, lines(rows=rows))], sampled=True)


def test_sampled_records_and_traces(tmp_path: Path) -> None:
    def recorded(*iterations: int) -> list[Path]:
        rows = [f"{r},{i},0,64,{2 * i + r / 10},{2 * i + 1.5}" for r in (0, 7) for i in iterations]
        return [table(tmp_path, lines(",".join(RECORD_COLUMNS), "\n".join(rows)))]

    assert read(recorded(4, 5, 6), sampled=True).world == 8
    with pytest.raises(TraceError, match="no rank has iteration 6: record every call, work lies between two in a row"):
        read(recorded(4, 5, 7), sampled=True)
    found = read(traces(tmp_path, *of_ranks(6, 1, world=9)), sampled=True)
    assert (found.recorded, found.world) == ((1, 6), 9)
    assert found.notes[0].startswith("2 of 9 ranks were recorded: 1, 6 count as 0 to 1.")
    with pytest.raises(TraceError, match="rank 6 of a run with 4 ranks"):
        read(traces(tmp_path, *of_ranks(6, 1)), sampled=True)


def test_whole_numbers_may_be_written_as_others(tmp_path: Path) -> None:
    recorded = [f"{r}.0,{i}e0,1.0,64.0,{i},{i + 0.5}" for r in (0, 1) for i in (0, 1, 2)]
    found = read([table(tmp_path, lines(",".join(RECORD_COLUMNS), "\n".join(recorded)))])
    assert (found.bound, found.slot_bytes, found.work_s.shape) == (1, 64, (2, 2))
    both = traces(tmp_path, *(document(run_of(WORK_S[r]), float(r), 2.0) for r in (0, 1)))  # type: ignore[arg-type]
    np.testing.assert_allclose(read(both).work_s, WORK_S, rtol=1e-6)


@pytest.mark.parametrize("kind", ["fifo", "open pipe", "socket", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """Nobody may ever write into a pipe; to wait for that is to hang."""
    path, words = tmp_path / "run", "a pipe"
    with ExitStack() as opened:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "open pipe":  # as the shell's <(...) gives it
            path = Path(f"/dev/fd/{opened.enter_context(open(os.pipe()[0], 'rb')).fileno()}")
        elif kind == "socket":
            opened.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
            words = "a socket"
        else:
            path, words = Path("/dev/zero"), "a device"
        with pytest.raises(
            TraceError, match=f"{path} is {words}, expected a regular file: save what it gives to a file"
        ):
            read([path])


def test_half_written_and_damaged(tmp_path: Path) -> None:
    """A trace may end anywhere; it is damaged where something stands that cannot stand there."""
    text = json.dumps(document(run_of(WORK_S[0])), indent=1).encode()
    path = tmp_path / "trace"
    for size in [1, 2, 12, 60, *range(200, len(text) - 1, 37), len(text) - 1]:
        path.write_bytes(text[:size])
        with pytest.raises(
            TraceError, match=r"trace is only half written \([\d,]+ characters and no end\): wait until"
        ):
            read([path])
    packed = gzip.compress(text)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TraceError, match=r"half written \(the packed data have no end\)"):
        read([path])
    path.write_bytes(packed[:2] + b"x" * 30)
    with pytest.raises(TraceError, match="is damaged .*: copy it again"):
        read([path])
    path.write_bytes(packed[:100] + b"xxxx" + packed[104:])
    with pytest.raises(TraceError, match="is damaged .*: copy it again"):
        read([path])
    place = text.index(b'"dur"', len(text) // 2)
    path.write_bytes(text[:place] + b"!" + text[place:])
    with pytest.raises(TraceError, match=f"is no JSON near character {len(text) + 1:,}: record the run again"):
        read([path])
    path.write_text('{"a": [' + "[" * 5000)
    with pytest.raises(TraceError, match="is no JSON near character 5,007"):
        read([path])
    path.write_text('{"a" 1}')
    with pytest.raises(TraceError, match="is no JSON near character 7"):
        read([path])


@pytest.mark.parametrize("form", ["CSV", "JSON"])
def test_ctrl_c_while_reading_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The parser of CSV takes it for one."""
    path = table(tmp_path, lines() * 10_000 if form == "CSV" else json.dumps(run_of(np.ones(1000))))
    calls = iter(range(9))
    monkeypatch.setattr("tqdm.tqdm.update", lambda *_: next(calls) and signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        read([path])


def test_what_never_ends_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small packed file may hold gigabytes; an event of that size is none."""
    monkeypatch.setattr(chrome, "LARGEST_VALUE", 1 << 18)
    for begin, more in (('[{"x": "', "y"), ("[[", "1,"), ("[", '[{"a": ')):
        with gzip.open(tmp_path / "run", "wt", 1) as file:
            file.write(begin + more * (1 << 22))
        tracemalloc.start()
        with pytest.raises(TraceError, match="is no JSON near character"):
            read([tmp_path / "run"])
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()


def test_a_packed_csv_without_its_end(tmp_path: Path) -> None:
    packed = gzip.compress(lines(rows="".join(f"{r},{i},{i % 7}\n" for r in (0, 1) for i in range(200_000))).encode())
    (tmp_path / "run").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TraceError, match=r"run is only half written \(the packed data have no end\)"):
        read([tmp_path / "run"])


# --- size ------------------------------------------------------------------------------------------------------------


def large(folder: Path, megabytes: float) -> list[Path]:
    """Traces of two ranks as large as asked, about 400 bytes an event, as torch writes them."""
    filler = {
        "External id": 5,
        "Input Dims": [[512, 128], [], []],
        "Input type": ["float", "ScalarList"],
        "x": "y" * 99,
    }
    paths = [folder / f"large-{rank}" for rank in (0, 1)]
    for rank, path in enumerate(paths):
        head, tail = json.dumps(document([], rank)).split("[]", 1)
        with path.open("w") as file:
            file.write(head + "[{}")
            start_ms = 0.0
            while file.tell() < 1e6 * megabytes:
                lookups = (event("aten::embedding_bag", start_ms + 1 + j, 1 + rank, args=filler) for j in range(50))
                for each in (*gloo(start_ms, 1), *lookups):
                    file.write(",\n" + json.dumps(each, indent=2))
                start_ms += 51 + rank
            file.write(f"]{tail}")
    return paths


@punctual
def test_large_traces_need_little_memory_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to the promised rate, 100 MB in 15 s, at a smaller size; memory is a few chunks, whatever the size."""
    paths = large(tmp_path, 2.5)
    started_s = time.process_time()
    found = read(paths)
    took_s = time.process_time() - started_s
    np.testing.assert_allclose(found.work_s, np.broadcast_to([[0.050], [0.051]], found.work_s.shape), rtol=1e-6)
    monkeypatch.setattr(chrome, "CHUNK", 1 << 16)
    tracemalloc.start()
    try:
        read(paths)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5e6
    within(15 * 5 / 100, took_s)


@pytest.mark.long
def test_a_hundred_megabytes_in_fifteen_seconds(tmp_path: Path) -> None:
    paths = large(tmp_path, 100)
    before_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.perf_counter()
    read(paths)
    assert time.perf_counter() - started_s < 30  # two of them
    assert 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_bytes < 100e6
