"""The torch backend keeps torch's contract, and lags no further than its bound."""

import os
import re
import resource
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from blslib.collective.errors import BlockError, ExchangeError, LateError, PeerError
from blslib.collective.layout import Layout
from blslib.collective.torch import BLSGroup, BLSOptions
from blslib.collective.torch.exchange import TorchAlltoallv
from blslib.collective.torch.work import RefusedError
from tests.conftest import until

AWAY_S = 0.2

# The names that torch 2.13 replaces are the only ones that earlier versions know.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.distributed.*is deprecated:FutureWarning")


@pytest.fixture
def start(comm) -> Iterator[Callable[..., dist.ProcessGroup]]:
    """Starts the default group; destroys it at the end. ``comm`` keeps the ranks of a test apart from the next."""

    def begin(name: str = "bls", timeout_s: float = 60, **options: int) -> dist.ProcessGroup:
        dist.init_process_group(name, timeout=timedelta(seconds=timeout_s), pg_options=BLSOptions(**options))
        return dist.group.WORLD

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


def exchange(size: int, fill: float, **options) -> tuple[torch.Tensor, dist.Work]:
    """Start an all-to-all of two floats a pair."""
    output = torch.full((2 * size,), -1.0)
    return output, dist.all_to_all_single(output, torch.full((2 * size,), float(fill)), async_op=True, **options)


def expected(size: int, fill: Callable[[int], float]) -> list[float]:
    return [float(fill(source)) for source in range(size) for _ in range(2)]


@pytest.mark.parametrize("name", ["bls", "cpu:bls"])
def test_ranks_come_from_mpi(comm, start, name):
    start(name)
    assert (dist.get_rank(), dist.get_world_size()) == (comm.rank, comm.size)
    assert dist.get_backend() == name
    assert dist.group.WORLD.name() == "bls"
    assert torch.ops.c10d is not None and dist.group.WORLD.group_name
    output, work = exchange(comm.size, comm.rank)
    assert work.wait() is True
    assert output.tolist() == expected(comm.size, lambda source: source)


def test_gloo_meets_through_mpi_as_well(comm):
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    assert total.item() == comm.size


def test_ranks_of_several_hosts_meet_at_a_port(comm, start, monkeypatch):
    monkeypatch.setattr(MPI, "Get_processor_name", lambda: "localhost" if comm.rank == 0 else "elsewhere")
    start()
    assert exchange(comm.size, 1)[1].wait()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files where Linux lists them")
@pytest.mark.parametrize("name", ["gloo", "bls"])
def test_a_process_may_begin_and_end_as_often_as_it_likes(comm, start, name):
    opened = []
    for _ in range(6):
        comm.Barrier()
        start(name)
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == comm.size
        dist.destroy_process_group()
        opened.append(len(os.listdir("/proc/self/fd")))
    assert max(opened[1:]) <= opened[0]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
def test_uneven_splits(comm, start, kind):
    """Every rank draws the same examples."""
    start()
    groups = [dist.new_group(backend="bls", pg_options=BLSOptions(bound=k, slot_bytes=64)) for k in (0, 1, 3)]
    size = comm.size
    rows = st.lists(st.lists(st.integers(0, 5), min_size=size, max_size=size), min_size=size, max_size=size)

    @settings(derandomize=True, database=None, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(groups), rows, st.sampled_from([(), (1,), (2, 3), (0,)]), st.booleans(), st.booleans())
    def check(group, rows, shape, async_op, as_list):
        made = [
            torch.arange(7 * s, 7 * s + sum(row)).to(kind).view(-1, *(1 for _ in shape)) for s, row in enumerate(rows)
        ]
        made = [tensor.expand(-1, *shape).contiguous() for tensor in made]
        pieces = [list(tensor.split(row)) for tensor, row in zip(made, rows, strict=True)]
        arriving = [sent[comm.rank] for sent in pieces]
        out_splits = [rows[source][comm.rank] for source in range(comm.size)]
        output = torch.zeros(sum(out_splits), *shape, dtype=kind)
        if as_list:
            outputs = list(output.split(out_splits))
            work = dist.all_to_all(outputs, pieces[comm.rank], group=group, async_op=async_op)
        else:
            work = dist.all_to_all_single(
                output, made[comm.rank], out_splits, rows[comm.rank], group=group, async_op=async_op
            )
        if async_op:
            work.wait()
        assert torch.equal(output, torch.cat(arriving))

    check()


def test_any_memory(comm, start):
    """Strided, lazily conjugated or negated, aliased, made in inference mode, wanting gradients."""
    start(bound=1)
    size, rank = comm.size, comm.rank
    whole = torch.arange(4.0 * size * size).reshape(2 * size, 2 * size) + rank
    wanted = torch.cat([(whole - rank + s)[2 * rank : 2 * rank + 2] for s in range(size)])
    strided = torch.zeros(2 * size, 2 * size).t()
    dist.all_to_all_single(strided, whole.t().contiguous().t())
    assert torch.equal(strided, wanted)

    complex_ = torch.complex(whole, -whole)
    output = torch.zeros_like(complex_)
    dist.all_to_all_single(output, complex_)
    assert torch.equal(output, torch.complex(wanted, -wanted))
    negated = complex_.conj().imag
    assert negated.is_neg()
    real = torch.zeros(2 * size, 2 * size)
    dist.all_to_all_single(real, negated)
    assert torch.equal(real, wanted)
    lazy = torch.zeros_like(complex_).conj()
    dist.all_to_all_single(lazy.imag, whole)
    assert torch.equal(lazy.imag, wanted)

    work = dist.all_to_all_single(whole, whole, async_op=True)
    work.wait()
    assert torch.equal(whole, wanted)

    with torch.inference_mode():
        made, room = torch.full((2 * size,), float(rank)), torch.zeros(4 * size)[::2]
        work = dist.all_to_all_single(room, made, async_op=True)
    work.wait()
    assert room.tolist() == expected(size, lambda source: source)

    parameter = torch.nn.Parameter(torch.full((size,), float(rank)))
    output = torch.zeros(size)
    dist.all_to_all_single(output, parameter)
    assert output.tolist() == list(range(size))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("bound", [0, 1, 3])
def test_at_most_bound_are_under_way(comm, start, bound):
    """Rank 0 stays away until the others have made ``bound`` calls without it, and their next one waits for it."""
    start(bound=bound)
    exchange(comm.size, 0)[1].wait()
    made = []

    def call(i: int) -> None:
        made.append(exchange(comm.size, 10 * i + comm.rank))
        assert sum(not work.is_completed() for _, work in made) <= bound

    entered_s = 0.0
    if comm.rank > 0:
        for i in range(bound):
            call(i)
    comm.Barrier()
    if comm.rank == 0:
        time.sleep(AWAY_S)
        entered_s = time.monotonic()
    for i in range(len(made), bound + 1):
        call(i)
    returned_s = time.monotonic()
    assert returned_s >= comm.bcast(entered_s)  # one host, one clock
    for i, (output, work) in reversed(list(enumerate(made))):
        work.wait()
        assert output.tolist() == expected(comm.size, lambda source, i=i: 10 * i + source)
        assert work.iteration == i + 1


@pytest.mark.ranks(2)
def test_a_synchronous_call_is_synchronous_at_any_bound(comm, start):
    start(bound=4)
    exchange(comm.size, 0)[1].wait()
    pending = exchange(comm.size, 1)
    if comm.rank == 0:
        time.sleep(AWAY_S)
    entered_s = time.monotonic()
    output = torch.zeros(comm.size)
    dist.all_to_all_single(output, torch.full((comm.size,), float(comm.rank)))
    returned_s = time.monotonic()
    assert returned_s >= comm.bcast(entered_s)  # one host, one clock
    assert output.tolist() == list(range(comm.size))
    assert pending[1].is_completed() and pending[0].tolist() == expected(comm.size, lambda _: 1)


@pytest.mark.ranks(2)
def test_asking_makes_progress(comm, start):
    start(bound=2)
    exchange(comm.size, 0)[1].wait()
    if comm.rank == 0:
        comm.Barrier()
        output, work = exchange(comm.size, 5)
    else:
        output, work = exchange(comm.size, 5)
        assert not work.is_completed() and not work.is_success()
        comm.Barrier()
    assert until(work.is_completed)
    assert output.tolist() == expected(comm.size, lambda _: 5)
    assert work.is_success() and work.exception() is None
    assert work.get_future().value()[0] is output is work.result()[0]


def test_a_forgotten_work_still_fills_its_output(comm, start):
    start(bound=2)
    output = exchange(comm.size, 1)[0]
    exchange(comm.size, 2)[1].wait()
    assert output.tolist() == expected(comm.size, lambda _: 1)


def test_groups_do_not_mix(comm, start):
    """The default group, one of all ranks and one of some, with other bounds, in turn."""
    start(bound=1)
    some = list(range(comm.size))[1:] or [0]
    everybody = dist.new_group(backend="bls", pg_options=BLSOptions(bound=3))
    part = dist.new_group(some, backend="bls", pg_options=BLSOptions(bound=2))
    made = []
    for i in range(12):
        made.append((i, comm.size, range(comm.size), exchange(comm.size, i + comm.rank)))
        made.append((-i, comm.size, range(comm.size), exchange(comm.size, comm.rank - i, group=everybody)))
        if comm.rank in some:
            made.append((7 * i, len(some), some, exchange(len(some), 7 * i + comm.rank, group=part)))
    for start_at, size, members, (output, work) in made[::-1]:
        work.wait()
        assert output.tolist() == expected(size, lambda s, at=start_at, ranks=members: at + ranks[s])
    if comm.rank in some:
        assert [dist.get_rank(part), dist.get_world_size(part)] == [some.index(comm.rank), len(some)]
        dist.destroy_process_group(part)
    exchange(comm.size, 0)[1].wait()


def test_destroying_a_group_finishes_what_is_under_way(comm, start):
    group = start(bound=4)
    time.sleep(0.01 * comm.rank)
    made = [exchange(comm.size, i + comm.rank) for i in range(3)]
    dist.destroy_process_group()
    for i, (output, work) in enumerate(made):
        assert work.wait()
        assert output.tolist() == expected(comm.size, lambda source, i=i: i + source)
    for late in (group.barrier, lambda: group.all_to_all_single(output, output, [], [])):
        with pytest.raises(ExchangeError, match="the group is destroyed"):
            late().wait()


@pytest.mark.parametrize("bound", [0, 2])
def test_a_second_thread_corrupts_nothing(comm, start, bound):
    """Two threads post, look and wait as they like. Refused calls are made again; every output is that of its
    iteration, whichever thread took it in."""
    start(bound=bound)
    refused: list[str] = []
    sent: dict[int, float] = {}
    made: list[tuple[torch.Tensor, dist.Work]] = []

    def insist(call: Callable[[], object]) -> object:
        while True:
            try:
                return call()
            except RuntimeError as error:
                refused.append(str(error))

    def hammer(thread: int) -> None:
        for i in range(150):
            fill = 10_000 * comm.rank + 1000 * thread + i
            output, work = insist(lambda fill=fill: exchange(comm.size, fill))
            sent[work.iteration] = fill
            made.append((output, work))
            some = made[(7 * i) // 2 % len(made)][1]
            if i % 3 == 0:
                insist(some.wait)
            some.is_completed()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    everybody = comm.allgather(sent)
    assert sorted(sent) == list(range(300)) and len(made) == 300
    for output, work in made:
        assert work.wait()
        assert output.tolist() == expected(comm.size, lambda source, i=work.iteration: everybody[source][i])
    assert all("another call on this group is under way" in words for words in refused)


@pytest.mark.ranks(2)
def test_a_call_during_that_of_another_thread_is_refused(comm, start):
    """Nothing is sent, and the outputs that follow are those of their iterations."""
    group = start(bound=0)
    exchange(comm.size, 0)[1].wait()
    comm.Barrier()
    if comm.rank == 0:
        thread = threading.Thread(target=exchange, args=(comm.size, 1))
        thread.start()
        assert until(group._calling.locked)
        with pytest.raises(RuntimeError, match="another call on this group is under way"):
            exchange(comm.size, 7)
        comm.Barrier()
        thread.join()
    else:
        comm.Barrier()
        exchange(comm.size, 1)
    for i in range(2, 5):
        output, work = exchange(comm.size, i)
        assert work.wait() and work.iteration == i
        assert output.tolist() == expected(comm.size, lambda _, i=i: i)


def test_threads_share_what_gloo_does(comm, start):
    """Two threads that wait for the same works, and look at them."""
    start()
    for _ in range(30):
        found = [torch.zeros(comm.size) for _ in range(4)]
        works = [dist.all_gather_into_tensor(each, torch.ones(1), async_op=True) for each in found]

        def look(works: list[dist.Work] = works) -> None:
            assert all(work.wait() for work in works if not work.is_completed())

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for work, each in zip(works, found, strict=True):
            assert work.wait() and each.tolist() == [1.0] * comm.size
        for thread in threads:
            thread.join()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.ranks(2)
@pytest.mark.parametrize("given", ["group", "call", "wait"])
def test_a_deadline_is_an_error_of_wait(comm, start, given):
    deadline_s = 1.0 if given == "group" else 0.3  # a group's own counts while it is built as well
    start(timeout_s=deadline_s if given == "group" else 60, bound=0 if given == "call" else 2)
    comm.Barrier()
    exchange(comm.size, 0)[1].wait()
    comm.Barrier()
    if comm.rank:
        if given == "call":
            options = torch._C._distributed_c10d.AllToAllOptions()
            options.timeout = timedelta(seconds=deadline_s)
            output, data = torch.zeros(comm.size), torch.zeros(comm.size)
            work = dist.group.WORLD.all_to_all_single(output, data, [], [], options)
        else:
            work = exchange(comm.size, 1)[1]
        words = (
            f"posted 2 and waited {deadline_s:g} s for .*rank 0 \\(posted 1, 1 behind\\)|rank . failed after posting 2"
        )
        with pytest.raises(LateError, match=words) as caught:
            work.wait(timedelta(seconds=deadline_s if given == "wait" else 0))
        assert isinstance(caught.value, TimeoutError)
        assert re.search(GLOO_SAYS, str(caught.value)) and "timed out" in str(caught.value)
        assert work.is_completed() and not work.is_success() and work.exception() is caught.value
        with pytest.raises(LateError):
            exchange(comm.size, 2)[1].wait()
    comm.Barrier()
    with pytest.warns(RuntimeWarning, match=f"ended with an error: .*waited {deadline_s:g} s"):
        dist.destroy_process_group()


@pytest.mark.ranks(2)
def test_a_rank_that_destroys_early_is_named(comm, start):
    start(bound=1)
    exchange(comm.size, 0)[1].wait()
    comm.Barrier()  # a failure of later iterations is news for whoever still waits for this one
    if comm.rank == 0:
        with pytest.warns(RuntimeWarning, match="closed after 1 iterations"):
            dist.destroy_process_group()
    else:
        works = [exchange(comm.size, 1)[1] for _ in range(3)]
        with pytest.raises(PeerError, match="rank 0 closed after 1 iterations, rank . waits for iteration"):
            works[-1].wait()
        with pytest.warns(RuntimeWarning, match="closed after 1 iterations"):
            dist.destroy_process_group()


@pytest.mark.ranks(2)
def test_an_abort_reaches_the_others(comm, start):
    group = start(bound=1)
    exchange(comm.size, 0)[1].wait()
    work = exchange(comm.size, 1)[1] if comm.rank else None
    comm.Barrier()
    if work is None:
        group.abort()
        with pytest.raises(ExchangeError, match="the group was aborted"):
            exchange(comm.size, 1)[1].wait()
        dist.destroy_process_group()
    else:
        with pytest.raises(PeerError, match="rank 0 failed after posting 1 iterations: the group was aborted"):
            work.wait()
        with pytest.warns(RuntimeWarning, match="the group was aborted"):
            dist.destroy_process_group()


@pytest.mark.ranks(2)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files, as which Linux has rings")
def test_no_room_for_a_large_block_comes_out_of_wait(comm, start):
    start(slot_bytes=64)
    exchange(comm.size, 0)[1].wait()
    few, many = [1] * comm.size, [1] * (comm.size - 1) + [1 << 20]
    sent, received = (many if comm.rank == 0 else few), ([1 << 20, *few[1:]] if comm.rank == comm.size - 1 else few)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    comm.Barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        work = dist.all_to_all_single(torch.empty(sum(received)), torch.ones(sum(sent)), received, sent, async_op=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    words = "no room in .* for a block of 4194304 bytes from rank 0"
    with pytest.raises(PeerError if comm.rank else MemoryError, match=words):
        work.wait()
    with pytest.warns(RuntimeWarning, match=words):
        dist.destroy_process_group()


@pytest.mark.ranks(2)
def test_sizes_that_do_not_match_name_the_pair(comm, start):
    start()
    size = comm.size
    data = torch.zeros(size + (comm.rank == 1))
    splits = [1 + (to == 0 and comm.rank == 1) for to in range(size)]
    output = torch.zeros(size)
    work = dist.all_to_all_single(output, data, None, splits, async_op=True)
    if comm.rank == 0:
        with pytest.raises(BlockError, match="rank 1 -> rank 0 sent 8 bytes in iteration 0, rank 0 expected 4"):
            work.wait()
    else:
        work.wait()
    assert exchange(size, 3)[1].wait()


def test_wrong_arguments(comm, start):
    start()
    size = comm.size
    output, data = torch.zeros(size), torch.zeros(size)
    with pytest.raises(ValueError, match=f"input_split_sizes are {size} numbers >= 0 that add up to the {size} rows"):
        dist.all_to_all_single(output, data, None, [2] * size)
    with pytest.raises(ValueError, match=f"output_split_sizes are {size} numbers"):
        dist.all_to_all_single(output, data, [1] * (size + 1), None)
    if size > 1:
        with pytest.raises(ValueError, match=f"input has {size + 1} rows, which {size} ranks cannot share equally"):
            dist.all_to_all_single(output, torch.zeros(size + 1))
    with pytest.raises(ValueError, match=f"expected {size}, got {size} outputs and {size + 1} inputs"):
        dist.group.WORLD.alltoall([data] * size, [data] * (size + 1))
    exchange(size, 0)[1].wait()


def refusals(group: dist.ProcessGroup, size: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Words, and the call that has them as its answer."""
    data = torch.zeros(size)
    elsewhere, sparse = torch.zeros(size, device="meta"), torch.eye(size).to_sparse()
    yield "input_split_sizes are", lambda: dist.all_to_all_single(data, data, None, [2] * size)
    yield f"expected {size}, got", lambda: group.alltoall([data] * size, [data] * (size + 1))
    yield "tensor has layout torch.sparse_coo, 'bls' moves dense", lambda: dist.all_to_all_single(data, sparse)
    for call in (dist.all_to_all_single, dist.all_gather_into_tensor):
        yield "tensor is on device meta, 'bls' moves cpu tensors", lambda call=call: call(elsewhere, data)
    apart, negated = torch.zeros(2 * size)[::2], torch.zeros(size, dtype=torch.complex64).conj().imag
    gathered = [torch.zeros(size) for _ in range(size)]
    for call in (dist.all_reduce, group.allreduce, partial(dist.broadcast, src=0), partial(dist.reduce, dst=0)):
        yield "tensor is on device meta", lambda call=call: call(elsewhere)
        yield "gloo would take its memory for its values: call .* contiguous", lambda call=call: call(negated)
        if size > 1:  # else the one number is in one piece
            yield "gloo would take its memory for its values", lambda call=call: call(apart)
    yield "gloo would take its memory for its values", lambda: dist.all_gather(gathered, negated)


def gloo_refuses(group: dist.ProcessGroup, size: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """The same, of what gloo says by itself."""
    data, whole = torch.zeros(size), torch.zeros(size, dtype=torch.int64)
    yield "Cannot use ReduceOp.PREMUL_SUM with Gloo", lambda: dist.all_reduce(data, dist._make_nccl_premul_sum(2.0))
    yield "can't be cast to the desired output type", lambda: dist.all_reduce(whole, dist.ReduceOp.AVG)
    for call in (dist.all_reduce, partial(dist.broadcast, src=0)):
        yield "Invalid scalar type", lambda call=call: call(whole.to(torch.int16))
    yield "non-integral dtype", lambda: dist.all_reduce(data, dist.ReduceOp.BAND)
    yield "invalid root rank", lambda: group.broadcast(data, size)
    yield "no tensor arguments", lambda: group.allreduce([])
    past, boxed = torch.ops.c10d, group.boxed()  # which would go past the exchange
    for call in (
        lambda: past.alltoall_base_(torch.zeros(size), data, boxed, [], [], False, -1),
        lambda: past.alltoall_(list(torch.zeros(size).split(1)), list(data.split(1)), boxed, False, -1),
    ):
        yield "No backend type associated with device type cpu", call


def test_sparse_tensors_are_refused_as_input_and_as_output(comm, start):
    start()
    dense, sparse = torch.zeros(2 * comm.size), torch.zeros(2 * comm.size).to_sparse()
    for output, sent in ((dense, sparse), (sparse, dense)):
        with pytest.raises(RefusedError, match=r"tensor has layout torch.sparse_coo, 'bls' moves dense tensors"):
            dist.all_to_all_single(output, sent)
    dist.all_to_all_single(dense, torch.ones(2 * comm.size))
    assert dense.tolist() == [1.0] * (2 * comm.size)


def test_a_refusal_is_of_both_kinds_and_sends_nothing(comm, start):
    """Programs try what a backend can do under ``except RuntimeError``, others under ``except ValueError``."""
    group = start(bound=1)
    for words, call in refusals(group, comm.size):
        for kind in (RuntimeError, ValueError):
            with pytest.raises(kind, match=words):
                call()
    for words, call in gloo_refuses(group, comm.size):
        with pytest.raises(RuntimeError, match=words):
            call().wait()
    assert group._posted == 0
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == comm.size
    output, work = exchange(comm.size, comm.rank)
    assert work.wait() and output.tolist() == expected(comm.size, lambda source: source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dist.destroy_process_group()


def test_a_work_that_fails_does_not_break_the_end(comm, start):
    """Torch cannot write to one number as if there were several."""
    start(bound=1)
    one = torch.zeros(1).expand(2 * comm.size)
    with pytest.raises(RuntimeError, match="written-to tensor refers to a single memory location"):
        dist.all_to_all_single(one, torch.ones(2 * comm.size), async_op=True).wait()
    output, work = exchange(comm.size, 3)
    assert work.wait() and output.tolist() == expected(comm.size, lambda _: 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dist.destroy_process_group()


def test_a_probe_of_what_the_ranks_cannot_share_is_refused_as_by_gloo(comm, start):
    """The reference DLRM asks so whether there is an all-to-all, and scatters if not."""
    start()
    few = torch.arange(comm.size // 2 or 1, dtype=torch.int64)  # in halves, as many as ranks
    if comm.size % 2 == 0:
        dist.all_to_all_single(found := torch.empty_like(few), few)
        mine = few.view(torch.int32)[comm.rank].item()
        assert found.view(torch.int32).tolist() == [mine] * comm.size
    data = torch.zeros(4)
    if 4 % comm.size:
        with pytest.raises(RuntimeError, match="4 rows, which 3 ranks cannot share equally"):
            dist.all_to_all_single(data, data)
    else:
        dist.all_to_all_single(data, data)


def test_options(comm, monkeypatch):
    timeout = timedelta(seconds=20)
    monkeypatch.setenv("BLS_BOUND", "3")
    monkeypatch.setenv("BLS_SLOT_BYTES", "128")
    for options, bound in ((None, 3), (BLSOptions(bound=0), 0)):
        group = BLSGroup(comm.Dup(), options, timeout)
        output = torch.zeros(comm.size)
        group.all_to_all_single(output, torch.ones(comm.size), [], []).wait()
        assert (group.bound, group._exchange.bound, group._exchange.slot_bytes) == (bound, bound, 128)
        group.shutdown()
        group.shutdown()
    monkeypatch.setenv("BLS_BOUND", "many")
    with pytest.raises(ValueError, match="BLS_BOUND is a whole number, got 'many'"):
        BLSGroup(comm, None, timeout)
    with pytest.raises(TypeError, match="pg_options of a 'bls' group are BLSOptions, got dict"):
        BLSGroup(comm, {"bound": 1}, timeout)


@pytest.mark.ranks(2)
def test_a_bound_counts_batches_of_several_calls(comm, start):
    """A rank that is two batches of three calls ahead of another waits for nobody, and in the next call does."""
    group = start(bound=2, calls_per_batch=3)
    assert (group.bound, group.calls_per_batch, group.calls) == (2, 3, 0)
    exchange(comm.size, 0)[1].wait()
    assert (group.calls, group._exchange.bound) == (1, 6)
    comm.Barrier()
    if comm.rank:
        comm.Recv(np.empty(1), 0)  # until when this rank posts nothing
    works = [exchange(comm.size, i)[1] for i in range(6)]
    if comm.rank == 0:
        assert group.calls == 7 and not works[0].is_completed()
        for rank in range(1, comm.size):
            comm.Send(np.zeros(1), rank)
    works.append(exchange(comm.size, 6)[1])
    assert works[0].is_completed()
    assert all(work.wait() for work in works)
    dist.all_reduce(torch.ones(1))  # no all-to-all
    assert group.calls == 8


@pytest.mark.ranks(2)
def test_batches_of_another_number_of_calls_are_refused(comm, start):
    start(bound=1, calls_per_batch=2 + comm.rank)
    with pytest.raises(RefusedError, match="bound"):
        exchange(comm.size, 0)


def test_slots_grow_with_batches_of_several_calls(comm, start):
    group = start(bound=1, calls_per_batch=3)
    for i in range(30):
        data = torch.full((comm.size, 2 if i < 5 else 5000), float(i))
        output = torch.empty_like(data)
        assert dist.all_to_all_single(output, data, async_op=True).wait() and (output == i).all()
    assert group._exchange.slot_bytes >= 20_000 and group._exchange.bound == 3


@pytest.mark.parametrize("calls", [0, -1])
def test_a_batch_has_a_call(calls):
    with pytest.raises(ValueError, match=f"calls_per_batch must be >= 1, the all-to-alls of a batch, got {calls}"):
        BLSOptions(bound=2, calls_per_batch=calls)


def test_an_interface_that_is_not_there_is_told_with_the_cure(comm, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    words = f"gloo has not connected rank {comm.rank} to the others over nosuch0: let GLOO_SOCKET_IFNAME name one"
    with pytest.raises(ExchangeError, match=words):
        BLSGroup(comm, None, timedelta(seconds=20))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls loopback what Linux does")
def test_one_rank_may_have_its_interface_named(comm, start, monkeypatch):
    if comm.rank == 0:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    start()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == comm.size


@pytest.mark.ranks(2)
def test_a_rank_that_does_not_come_to_make_the_group(comm):
    own, options = comm.Dup(), {"bound": 1} if comm.rank == 0 else None
    with pytest.raises(
        LateError if comm.rank else TypeError, match=r"the rendezvous timed out after 0\.3 s|pg_options"
    ):
        BLSGroup(own, options, timedelta(seconds=0.3))
    comm.Barrier()
    if comm.rank == 0:
        own.Iallgather(np.zeros(1, np.int64), np.zeros(comm.size, np.int64)).Wait()  # MPI is still about it elsewhere
    own.Free()


def test_slots_fit_the_first_call_of_the_largest_rank(comm, start):
    group = start()
    rows = 1 + 999 * (comm.rank == comm.size - 1)
    out_splits = [1 + 999 * (source == comm.size - 1) for source in range(comm.size)]
    output, data = torch.zeros(sum(out_splits), 4), torch.ones(rows * comm.size, 4)
    dist.all_to_all_single(output, data, out_splits, [rows] * comm.size)
    assert group._exchange.slot_bytes >= 16000
    large, data = torch.zeros(comm.size, 20_000), torch.full((comm.size, 20_000), float(comm.rank))
    dist.all_to_all_single(large, data)  # larger than a slot
    assert large.mean(1).tolist() == list(range(comm.size))


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_slots_grow_with_the_blocks(comm, start, bound):
    """After a probe, and once more: agreed by all, at a point where nothing is out. Ranks come at different times, and
    the largest block goes from the last rank to itself."""
    group = start(bound=bound)
    size, last = comm.size, comm.size - 1
    under_way: deque[tuple[int, torch.Tensor, dist.Work, list[int]]] = deque()

    def take(count: int) -> None:
        while len(under_way) > count:
            i, output, work, splits = under_way.popleft()
            assert work.wait() and work.iteration == i
            for source, piece in enumerate(output.split(splits)):
                assert (piece == 1000 * source + i).all()

    made: list[object] = []
    for i, rows in enumerate([1] + [3000] * (2 * bound + 10) + [20_000] * 40 + [10] * 20):
        if i % (size + 1) == comm.rank:
            time.sleep(0.002)
        own = rows if comm.rank == last else 1
        splits = [1] * last + [own]
        data = torch.full((last + own,), float(1000 * comm.rank + i))
        output = torch.zeros(last + own)
        under_way.append((i, output, dist.all_to_all_single(output, data, splits, splits, async_op=True), splits))
        take(bound)
        if not made or made[-1] is not group._exchange:
            made.append(group._exchange)
    take(0)
    assert [exchange.slot_bytes for exchange in made] == [4096, 15_040, 100_032]
    assert i == 70 + 2 * bound


@pytest.mark.parametrize("options", [{}, {"slot_bytes": 64}])
def test_slots_stay_where_blocks_do_or_their_size_was_given(comm, start, options):
    group = start(bound=1, **options)
    exchange(comm.size, 0)[1].wait()
    built = group._exchange
    for i in range(30):
        output, work = exchange(comm.size, i)
        if options:
            dist.all_to_all_single(torch.zeros(comm.size, 2000), torch.zeros(comm.size, 2000))
        assert work.wait() and output.tolist() == expected(comm.size, lambda _, i=i: i)
    assert group._exchange is built


def test_slots_stay_where_there_is_no_room_for_larger_ones(comm, start, monkeypatch):
    group = start(bound=1)
    exchange(comm.size, 0)[1].wait()

    def build(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(group, "_build", build)
    for i in range(20):
        output = torch.zeros(comm.size, 5000)
        dist.all_to_all_single(output, torch.full((comm.size, 5000), float(i + comm.rank)))
        assert output.mean(1).tolist() == [i + source for source in range(comm.size)]


@pytest.mark.parametrize("bound", [0, 1, 4])
@pytest.mark.parametrize("form", [tuple, list])
def test_gloo_is_a_baseline_at_any_bound(comm, bound, form):
    """Blocks may be used again at once, results hold until the next call, and up to ``bound`` works are under way."""
    ranks = range(comm.size)
    counts = {
        "send_counts": [1 + comm.rank + to for to in ranks],
        "recv_counts": [1 + source + comm.rank for source in ranks],
    }
    whole, held, expected = np.zeros(sum(counts["send_counts"]), np.float32), [], 0
    blocks = form(np.split(whole, np.cumsum(counts["send_counts"])[:-1]))
    with TorchAlltoallv(comm, backend="gloo", bound=bound, slot_bytes=4, **counts) as exchange:
        for i in range(20):
            whole[:] = 100 * i + comm.rank
            if i % (comm.size + 1) == comm.rank:
                time.sleep(0.002)
            for arrival in held:
                assert arrival.iteration == expected
                for source, block in enumerate(arrival.blocks):
                    assert block.tolist() == [100 * expected + source] * counts["recv_counts"][source]
                expected += 1
            held = exchange.post(blocks)
            whole[:] = -1
            assert expected + len(held) >= i + 1 - bound
        expected += len(held)
        assert [arrival.iteration for arrival in exchange.drain()] == list(range(expected, 20))


@pytest.mark.parametrize("bound", [0, 3])
@pytest.mark.parametrize("backend", ["gloo", "bls"])
def test_what_experiments_report_as_memory_is_what_is_allocated(comm, backend, bound):
    size = comm.size
    counts = {"send_counts": [2000] * size, "recv_counts": [2000] * size}
    with TorchAlltoallv(comm, backend=backend, bound=bound, slot_bytes=8000, **counts) as exchange:
        buffers = 8000 * size * (bound + 1 + (bound + 1 if backend == "gloo" else 1))
        allocated = buffers + (0 if backend == "gloo" else Layout(size, bound, 8000).segment_bytes)
        assert exchange.memory_bytes == allocated
        blocks = [np.full(2000, comm.rank, np.float32)] * size
        made = [arrival for _ in range(9) for arrival in exchange.post(blocks)]
        assert exchange.memory_bytes == allocated
    assert all((block == source).all() for arrival in made[-1:] for source, block in enumerate(arrival.blocks))


# --- what is not all-to-all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bfloat16, torch.bool])
def test_reductions(comm, start, kind):
    start()
    size, rank, ranks = comm.size, comm.rank, torch.arange(comm.size)
    every = torch.stack([((ranks + 1) * (i + 1) % 5) for i in range(3)]).to(kind)  # [item, rank]
    for op, oracle in (
        (dist.ReduceOp.SUM, every.sum(1)),
        (dist.ReduceOp.MAX, every.to(torch.float64).amax(1)),
        (dist.ReduceOp.PRODUCT, every.prod(1)),
    ):
        tensor = every[:, rank].clone()
        dist.all_reduce(tensor, op)
        assert torch.equal(tensor, oracle.to(kind)), op
        tensor = every[:, rank].clone()
        dist.reduce(tensor, size - 1, op)
        assert rank < size - 1 or torch.equal(tensor, oracle.to(kind))  # elsewhere gloo leaves parts of it
    pieces = [every[:, rank].clone() if to == 0 else torch.zeros(3, dtype=kind) for to in range(size)]
    piece, flat = torch.ones(3, dtype=kind), torch.ones(3, dtype=kind)
    dist.reduce_scatter(piece, pieces)
    dist.reduce_scatter_tensor(flat, torch.cat(pieces))
    wanted = every.sum(1).to(kind) if rank == 0 else torch.zeros(3, dtype=kind)
    assert torch.equal(piece, wanted) and torch.equal(flat, wanted)
    if kind.is_floating_point:
        tensor = every[:, rank].clone()
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
        assert torch.allclose(tensor, (every.sum(1) / size).to(kind), rtol=1e-2)


def test_gathers_and_scatters(comm, start):
    start()
    size, rank, last = comm.size, comm.rank, comm.size - 1
    mine = torch.full((2, 3), rank).t()
    found = [torch.zeros(3, 2, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(found, mine)
    assert [each.unique().tolist() for each in found] == [[r] for r in range(size)]
    uneven = [torch.zeros(r + 1) for r in range(size)]
    dist.all_gather(uneven, torch.full((rank + 1,), float(rank)))
    assert [each.tolist() for each in uneven] == [[float(r)] * (r + 1) for r in range(size)]
    flat = torch.zeros(2 * size)
    dist.all_gather_into_tensor(flat, torch.full((2,), float(rank)))
    assert flat[1::2].tolist() == list(range(size))

    found = [torch.zeros(3, 2, dtype=torch.int64) for _ in range(size)] if rank == last else None
    dist.gather(mine, found, dst=last)
    assert found is None or [each.unique().tolist() for each in found] == [[r] for r in range(size)]
    piece = torch.zeros(2)
    dist.scatter(piece, [torch.full((2,), float(r)) for r in range(size)] if rank == last else None, src=last)
    assert piece.tolist() == [rank, rank]
    news = torch.full((2,), float(rank))
    work = dist.broadcast(news, last, async_op=True)
    work.wait()
    assert news.tolist() == [last, last]


def test_objects(comm, start):
    start()
    size, rank = comm.size, comm.rank
    found = [None] * size
    dist.all_gather_object(found, {"rank": rank, "text": "x" * rank})
    assert found == [{"rank": r, "text": "x" * r} for r in range(size)]
    said = [rank, "a"] if rank == 0 else [None, None]
    dist.broadcast_object_list(said, 0)
    assert said == [0, "a"]
    got = [None]
    dist.scatter_object_list(got, [f"for {r}" for r in range(size)] if rank == 0 else None, 0)
    assert got == [f"for {rank}"]


@pytest.mark.ranks(2)
def test_messages(comm, start):
    start()
    size, rank = comm.size, comm.rank
    ahead, behind = (rank + 1) % size, (rank - 1) % size
    work = dist.isend(torch.full((2,), float(rank)), ahead, tag=3)
    got = torch.zeros(2)
    dist.recv(got, behind, tag=3)
    work.wait()
    assert got.tolist() == [behind, behind]
    if rank == 0:
        senders = set()
        for _ in range(size - 1):
            senders.add(dist.recv(got))
            assert got[0].item() in senders
        assert senders == set(range(1, size))
    else:
        dist.send(torch.full((2,), float(rank)), 0)
    dist.barrier()
    with pytest.raises(RuntimeError, match=GLOO_SAYS):
        dist.irecv(got, ahead, tag=9).wait(timedelta(seconds=0.1))


@pytest.mark.ranks(2)
def test_a_barrier_waits_for_all(comm, start):
    start()
    if comm.rank == 0:
        time.sleep(AWAY_S)
    entered_s = time.monotonic()
    dist.barrier()
    returned_s = time.monotonic()
    assert returned_s >= comm.bcast(entered_s)  # one host, one clock
    if comm.rank:
        work = dist.barrier(async_op=True)
        assert not work.is_completed()
        comm.Barrier()
        work.wait()
    else:
        comm.Barrier()
        dist.barrier()


def forms(group: dist.ProcessGroup, size: int, rank: int) -> Iterator[tuple[str, Callable[[], object], object]]:
    """Every form that torch has for a call, without options; what it fills; and what with."""
    last, total, long = size - 1, sum(range(size)), timedelta(seconds=60)
    largest, ranks = dist.ReduceOp.MAX, [[float(r)] for r in range(size)]

    def mine() -> torch.Tensor:
        return torch.full((1,), float(rank))

    def room() -> list[torch.Tensor]:
        return [torch.zeros(1) for _ in range(size)]

    for call, wanted in (
        (lambda t: group.allreduce([t]), total),
        (lambda t: group.allreduce(t), total),
        (lambda t: group.allreduce([t], largest), last),
        (lambda t: group.allreduce([t], op=largest, timeout=long), last),
        (lambda t: group.allreduce(t, largest, long), last),
        (lambda t: group.allreduce_coalesced([t]), total),
        (lambda t: group.broadcast([t]), 0),
        (lambda t: group.broadcast(t, last), last),
        (lambda t: group.broadcast(t, root=last, timeout=long), last),
        (lambda t: group.reduce([t]), total if rank == 0 else None),  # at others, parts of it
        (lambda t: group.reduce(t, last), total if rank == last else None),
        (lambda t: group.reduce(t, root=last, op=largest), last if rank == last else None),
        (lambda t: group.reduce_scatter(t, [mine() for _ in range(size)]), total),
        (lambda t: group.reduce_scatter(t, [mine() for _ in range(size)], largest), last),
        (lambda t: group.reduce_scatter([t], [[mine() for _ in range(size)]]), total),
        (lambda t: group.reduce_scatter_single(t, mine().repeat(size)), total),
        (lambda t: group.reduce_scatter_tensor_coalesced([t], [mine().repeat(size)]), total),
        (lambda t: group.scatter([t], [[torch.ones(1)] * size] if rank == 0 else []), 1),
        (lambda t: group.scatter(t, [torch.ones(1)] * size if rank == last else [], last), 1),
    ):
        tensor = mine()
        filled, values = (torch.zeros(0), []) if wanted is None else (tensor, [float(wanted)])
        yield filled, lambda call=call, tensor=tensor: call(tensor), values
    there = [[0.0]] * size
    for call, wanted in (
        (lambda room: group.allgather([room], [mine()]), ranks),
        (lambda room: group.allgather(room, mine()), ranks),
        (lambda room: group.allgather(room, mine(), timeout=long), ranks),
        (lambda room: group.gather([room] if rank == 0 else [], [mine()]), ranks if rank == 0 else there),
        (lambda room: group.gather(room if rank == last else [], mine(), last), ranks if rank == last else there),
    ):
        pieces = room()
        yield pieces, lambda call=call, pieces=pieces: call(pieces), wanted
    for call in (
        lambda flat: group.all_gather_single(flat, mine()),
        lambda flat: group.all_gather_single_coalesced([flat], [mine()]),
        lambda flat: group.allgather_into_tensor_coalesced([flat], [mine()]),
        lambda flat: group.all_to_all_single(flat, mine().repeat(size), [], []),
        lambda flat: group.all_to_all_single(flat, mine().repeat(size), [], [], long),
        lambda flat: group.alltoall_base(flat, mine().repeat(size), [], [], timeout=long),
        lambda flat: group.alltoall(list(flat.split(1)), [mine()] * size),
        lambda flat: group.alltoall(list(flat.split(1)), [mine()] * size, timeout=long),
    ):
        flat = torch.zeros(size)
        yield flat, lambda call=call, flat=flat: call(flat), [each for (each,) in ranks]
    for call in (group.barrier, partial(group.barrier, timeout=long)):
        yield torch.zeros(0), call, []


def test_every_form_of_a_call_works_without_options(comm, start):
    """Among them the overloads of C++ that take one tensor, and in place of options what is in them."""
    group = start()
    for filled, call, wanted in forms(group, comm.size, comm.rank):
        assert call().wait()
        values = filled.tolist() if isinstance(filled, torch.Tensor) else [each.tolist() for each in filled]
        assert values == wanted


GLOO_SAYS = " (Timed out|timed out|closed|timeout)|reset"
"""In the error of a deadline."""


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("call", "breaks"),
    [
        (lambda group, timeout: group.barrier(timeout=timeout).wait(), True),
        (lambda group, timeout: group.allreduce(torch.zeros(1), timeout=timeout).wait(), True),
        (lambda group, timeout: [group.set_timeout(timeout), group.allreduce(torch.zeros(1)).wait()], True),
        (lambda group, timeout: group.allreduce(torch.zeros(1)).wait(timeout), False),
    ],
)
def test_the_timeout_in_place_of_options_counts(comm, start, call, breaks):
    """The end of a call's own is that of its connections, which others hear of; what is of a wait, ends that alone."""
    group = start()
    short, long = timedelta(seconds=0.1), timedelta(seconds=2)
    if comm.rank == 0:
        with pytest.raises(RuntimeError, match=GLOO_SAYS):
            call(group, short)
    comm.Barrier()
    if comm.rank:
        with pytest.raises(RuntimeError, match=GLOO_SAYS) if breaks else nullcontext():
            call(group, long)
    group.set_timeout(timedelta(seconds=60))
    output, work = exchange(comm.size, 4)  # whose way is another
    assert work.wait() and output.tolist() == expected(comm.size, lambda _: 4)


def test_functional_collectives(comm, start):
    group = start(bound=2)
    size, rank = comm.size, comm.rank
    mine = torch.full((2,), float(rank))
    total = sum(range(size))
    assert functional.all_reduce(mine, "sum", group).tolist() == [total] * 2
    assert functional.broadcast(mine, size - 1, group).tolist() == [size - 1] * 2
    assert functional.all_gather_tensor(mine, 0, group).tolist() == expected(size, lambda source: source)
    assert functional.reduce_scatter_tensor(mine.repeat(size), "sum", 0, group).tolist() == [total] * 2
    moved = functional.all_to_all_single(mine.repeat(size), None, None, group)
    assert moved.tolist() == expected(size, lambda source: source)


def test_ddp_trains(comm, start):
    """The reference DLRM wraps its MLPs in it."""
    start()
    torch.manual_seed(comm.rank)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    weights = [torch.zeros(1, 3) for _ in range(comm.size)]
    dist.all_gather(weights, model.module.weight.data)
    assert all(torch.equal(each, weights[0]) for each in weights)
    model(torch.full((2, 3), float(comm.rank))).sum().backward()
    assert model.module.weight.grad.tolist() == [[pytest.approx(2 * np.mean(range(comm.size)))] * 3]
