"""The baselines keep the same contract as the bounded-lag exchange, with MPI's own collectives."""

import random
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from blslib.collective.baselines import IalltoallvWindow, MpiAlltoallv
from blslib.collective.errors import ExchangeError, LateError
from blslib.collective.exchange import Exchange

N = 20
TIMEOUT_S = 60.0
EXCHANGES = {
    "mpi": MpiAlltoallv,
    "window 0": lambda comm, **known: IalltoallvWindow(comm, bound=0, timeout_s=TIMEOUT_S, **known),
    "window 1": lambda comm, **known: IalltoallvWindow(comm, bound=1, timeout_s=TIMEOUT_S, **known),
    "window 4": lambda comm, **known: IalltoallvWindow(comm, bound=4, timeout_s=TIMEOUT_S, **known),
}
FORMS = {
    "apart": lambda blocks: [b.copy() for b in blocks],
    "one buffer": lambda blocks: np.split(np.concatenate(blocks), np.cumsum([len(b) for b in blocks])[:-1]),
    "strided": lambda blocks: [np.repeat(b, 2)[::2] for b in blocks],
    "tensors": lambda blocks: [torch.from_numpy(b.copy()) for b in blocks],
    "bytes": lambda blocks: [b.tobytes() for b in blocks],
}


def counts(source: int, to: int, size: int) -> int:
    """Unequal, some zero, rank 0 sends nothing where there are others."""
    return 0 if source == 0 and size > 1 else (3 * source + 5 * to) % 7


def block(iteration: int, source: int, to: int, size: int) -> np.ndarray:
    return np.full(counts(source, to, size), 100 * iteration + 10 * source + to, np.int32)


def known(comm) -> dict:
    ranks = range(comm.size)
    return {
        "send_counts": [counts(comm.rank, to, comm.size) for to in ranks],
        "recv_counts": [counts(source, comm.rank, comm.size) for source in ranks],
        "dtype": np.int32,
    }


@pytest.fixture(params=EXCHANGES)
def build(request, comm) -> Callable[..., Exchange]:
    return lambda **options: EXCHANGES[request.param](comm, **(options or known(comm)))


@pytest.mark.parametrize("form", FORMS)
def test_delivers_in_order_and_in_time(comm, build, form):
    nap, seen, held = random.Random(comm.rank), 0, []
    ranks = range(comm.size)

    def check(arrivals: list) -> None:
        nonlocal seen
        for iteration, blocks in arrivals:
            assert iteration == seen
            sent = [block(iteration, source, comm.rank, comm.size) for source in ranks]
            assert [b.tolist() for b in blocks] == [b.tolist() for b in sent]
            assert all(b.dtype == np.int32 and b.ndim == 1 for b in blocks)
            seen += 1

    with build() as exchange:
        assert exchange.drain() == exchange.collect() == []
        for i in range(N):
            blocks = FORMS[form]([block(i, comm.rank, to, comm.size) for to in ranks])
            time.sleep(nap.choice((0, 0, 0.002)))
            check(held)  # right before the next call: still what it was
            held = exchange.post(blocks)
            for one in blocks:
                if not isinstance(one, bytes):
                    one[:] = -1  # the caller may use its memory again
            assert seen + len(held) >= i + 1 - exchange.bound
        check(held)
        check(exchange.collect(N - 2))
        check(exchange.drain())
        with pytest.raises(ValueError, match=f"iteration {N} was not posted yet: the next one is {N}"):
            exchange.collect(N)
    assert seen == N


@pytest.mark.parametrize("order", ["as composed", "a list of them", "turned round"])
def test_composed_blocks_arrive_like_others(comm, build, order):
    seen, options = 0, {"send_counts": [2] * comm.size, "recv_counts": [2] * comm.size, "dtype": np.int32}
    turn = 1 if order == "turned round" else 0
    with build(**options) as exchange:
        with pytest.raises(ValueError, match="this exchange sends .* items in every iteration, got"):
            exchange.compose([3] * comm.size)
        for i in range(12):
            composed = exchange.compose([2] * comm.size)
            for to, each in enumerate(composed):
                each[:] = 10 * comm.rank + to, i
            blocks = composed if order == "as composed" else [*composed[turn:], *composed[:turn]]
            for iteration, found in exchange.post(blocks) + (exchange.drain() if i == 11 else []):
                to = (comm.rank + turn) % comm.size
                assert [b.tolist() for b in found] == [[10 * source + to, iteration] for source in range(comm.size)]
                seen += 1
    assert seen == 12
    with pytest.raises(ExchangeError, match="exchange is closed"):
        exchange.compose([2] * comm.size)


@pytest.mark.ranks(2)
def test_a_window_hands_nothing_out_that_mpi_still_sends_from(comm):
    counts = [1000] * comm.size
    exchange = IalltoallvWindow(comm, bound=1, timeout_s=2, send_counts=counts, recv_counts=counts)
    blocks = [np.zeros(1000, np.float32)] * comm.size
    if comm.rank == 0:  # by itself
        exchange.post(blocks)
        with pytest.raises(LateError):
            exchange.post(blocks)
        with pytest.raises(ExchangeError, match="iteration 0 is late: collect it before posting another"):
            exchange.compose(counts)
    comm.Barrier()
    if comm.rank:
        exchange.post(blocks)
        exchange.post(blocks)
    exchange.drain()
    assert len(exchange.compose(np.array(counts))) == comm.size
    exchange.close()


def test_a_tuple_posted_again_sends_its_new_contents(comm, build):
    options = {"send_counts": [2] * comm.size, "recv_counts": [2] * comm.size, "dtype": np.int32}
    whole = np.zeros((comm.size, 2), np.int32)
    for mine in (tuple(whole), tuple(np.zeros(2, np.int32) for _ in range(comm.size))):
        with build(**options) as exchange:
            for i in range(8):
                for one in mine:
                    one[:] = 10 * i + comm.rank
                for arrival in exchange.post(mine):
                    assert [b.tolist() for b in arrival.blocks] == [
                        [10 * arrival.iteration + s] * 2 for s in range(comm.size)
                    ]
            exchange.drain()


def test_what_was_handed_out_can_be_posted(comm, build):
    options = {"send_counts": [2] * comm.size, "recv_counts": [2] * comm.size, "dtype": np.int32}
    with build(**options) as exchange:
        blocks = [np.array([comm.rank, to], np.int32) for to in range(comm.size)]
        for i in range(6):
            *_, (_, blocks) = exchange.post(blocks) or exchange.collect(i)
            pairs = [[comm.rank, r] if i % 2 else [r, comm.rank] for r in range(comm.size)]
            assert [b.tolist() for b in blocks] == pairs


def test_equal_counts(comm):
    for pack in (False, True):
        sizes = {"send_counts": [3] * comm.size, "recv_counts": [3] * comm.size}
        with MpiAlltoallv(comm, equal=True, **sizes) as exchange:
            for i in range(3):
                whole = np.full((comm.size, 3), 10 * i + comm.rank, np.float32)
                ((iteration, blocks),) = exchange.post([b.copy() for b in whole] if pack else list(whole))
                assert iteration == i
                assert [b.tolist() for b in blocks] == [[10 * i + source] * 3 for source in range(comm.size)]
    with pytest.raises(ValueError, match="equal=True needs equal counts"):
        MpiAlltoallv(comm, equal=True, send_counts=[1] * comm.size, recv_counts=[2] * comm.size)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("bound", [1, 3])
def test_the_window_lets_nobody_run_further_than_its_bound(comm, bound):
    sizes = {"send_counts": [1] * comm.size, "recv_counts": [1] * comm.size}
    mine = [np.zeros(1, np.float32)] * comm.size
    with IalltoallvWindow(comm, bound=bound, timeout_s=TIMEOUT_S, **sizes) as exchange:
        if comm.rank:
            for _ in range(bound):
                exchange.post(mine)
        comm.Barrier()  # the others have made so many calls without rank 0, and their next one waits for it
        entered_s = 0.0
        if comm.rank == 0:
            time.sleep(0.2)
            entered_s = time.monotonic()
            for _ in range(bound):
                exchange.post(mine)
        exchange.post(mine)
        returned_s = time.monotonic()
        assert returned_s >= comm.bcast(entered_s)  # one host, one clock
        exchange.drain()


@pytest.mark.ranks(2)
def test_the_window_has_a_deadline(comm):
    sizes = {"send_counts": [1] * comm.size, "recv_counts": [1] * comm.size}
    exchange = IalltoallvWindow(comm, bound=0, timeout_s=0.2 if comm.rank else TIMEOUT_S, **sizes)
    if comm.rank:
        with pytest.raises(LateError, match="iteration 0 timed out after 0.2 s: a rank did not take part"):
            exchange.post([np.zeros(1, np.float32)] * comm.size)
        comm.Barrier()
    else:
        comm.Barrier()
        exchange.post([np.zeros(1, np.float32)] * comm.size)  # now all have come
    comm.Barrier()
    assert [a.iteration for a in exchange.drain()] == ([] if comm.rank == 0 else [0])
    exchange.close()


def test_wrong_blocks(comm, build):
    sizes = {"send_counts": [2] * comm.size, "recv_counts": [2] * comm.size, "dtype": np.float32}
    with build(**sizes) as exchange:
        with pytest.raises(ValueError, match=f"rank {comm.rank} -> rank 0: block has 12 bytes, send_counts says 8"):
            exchange.post([np.zeros(3, np.float32)] * comm.size)
        with pytest.raises(ValueError, match="has dtype float64, the exchange was built for float32"):
            exchange.post([np.zeros(2)] * comm.size)
        exchange.post([np.zeros(2, np.float32)] * comm.size)
        exchange.drain()
    with pytest.raises(ExchangeError, match="^exchange is closed$"):
        exchange.post([np.zeros(2, np.float32)] * comm.size)
    exchange.close()


def test_memory_is_what_is_allocated(comm, build):
    counts = [50_000 + 10_000 * rank for rank in range(comm.size)]
    tracemalloc.start()
    try:
        exchange = build(send_counts=counts, recv_counts=counts)
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    exchange.close()
    assert allocated == pytest.approx(exchange.memory_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"comm": None}, TypeError, "comm is an intra-communicator of mpi4py, got NoneType"),
        ({"comm": 1}, TypeError, "comm is an intra-communicator of mpi4py, got int"),
        ({"bound": True}, ValueError, "bound is a whole number of iterations >= 0, got True"),
        ({"bound": 1.0}, ValueError, "bound is a whole number of iterations >= 0, got 1.0"),
        ({"bound": None}, ValueError, "bound is a whole number of iterations >= 0, got None"),
        ({"recv_counts": 2**63}, ValueError, r"recv_counts is one whole number >= 0 per rank .*, got 9223372036"),
        ({"recv_counts": [2**63]}, ValueError, r"recv_counts is one .*, of less than 2\*\*63 bytes in all, got \[9223"),
        ({"recv_counts": [2**62]}, ValueError, r"recv_counts is one .*, of less than 2\*\*63 bytes in all, got \[4611"),
        ({"send_counts": [2**64]}, ValueError, r"send_counts is one whole number >= 0 per rank .*, got \[1844"),
        ({"send_counts": [0.5]}, ValueError, r"send_counts is one whole number >= 0 per rank .*, got \[0.5"),
        ({"send_counts": [True]}, ValueError, r"send_counts is one whole number >= 0 per rank .*, got \[True"),
        ({"send_counts": ["1"]}, ValueError, r"send_counts is one whole number >= 0 per rank .*, got \['1'"),
        ({"recv_counts": [[1], 2]}, ValueError, r"recv_counts is one whole number >= 0 per rank .*, got \[\[1\], 2"),
        ({"recv_counts": None}, ValueError, r"recv_counts is one whole number >= 0 per rank .*, got None"),
        ({"dtype": object}, ValueError, "dtype object has no bytes to send: choose one of fixed size"),
    ],
)
def test_wrong_arguments_are_told_in_words(comm, wrong, kind, said):
    sizes = {"send_counts": [1] * comm.size, "recv_counts": [1] * comm.size}
    wrong = {name: value * comm.size if isinstance(value, list) else value for name, value in wrong.items()}
    given = {"comm": comm} | sizes | wrong
    with pytest.raises(kind, match=said):
        IalltoallvWindow(**({"bound": 1} | given))
    if "bound" not in wrong:
        for equal in (False, True):
            with pytest.raises(kind, match=said):
                MpiAlltoallv(**given, equal=equal)


def test_wrong_counts(comm, build):
    for send, receive, name in (
        ([1], [1] * comm.size, "send_counts"),
        ([1] * comm.size, [-1] * comm.size, "recv_counts"),
    ):
        if len(send) != comm.size or min(receive) < 0:
            with pytest.raises(ValueError, match=f"{name} is one whole number >= 0 per rank"):
                build(send_counts=send, recv_counts=receive)
    with pytest.raises(ValueError, match="bound is a whole number of iterations >= 0, got -1"):
        IalltoallvWindow(comm, bound=-1, send_counts=[1] * comm.size, recv_counts=[1] * comm.size)


def test_the_windows_are_left_in_order(comm):
    """Two exchanges at once, closed with iterations outstanding: close finishes them."""
    sizes = {"send_counts": [4] * comm.size, "recv_counts": [4] * comm.size}
    with IalltoallvWindow(comm, bound=3, timeout_s=TIMEOUT_S, **sizes) as a, MpiAlltoallv(comm, **sizes) as b:
        for i in range(5):
            a.post([np.full(4, i, np.float32)] * comm.size)
            ((_, blocks),) = b.post([np.full(4, -i, np.float32)] * comm.size)
            assert all((one == -i).all() for one in blocks)
