"""The bounded-lag alltoallv on real ranks: the contract of its methods, on every channel."""

import array
import gc
import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

from blslib.collective import alltoallv, building, ring
from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.baselines import MpiAlltoallv
from blslib.collective.clock import Clock
from blslib.collective.errors import BlockError, ExchangeError, LateError, PeerError
from blslib.collective.exchange import Arrival
from blslib.collective.waiting import yield_then_sleep
from tests.conftest import until
from tests.test_failures import two_hosts

TIMEOUT_S = 60.0
Build = Callable[..., BoundedLagAlltoallv]


@pytest.fixture(params=["auto", "messages", "mixed"])
def build(request, comm, monkeypatch) -> Build:
    """Builds an exchange: shared rings, messages, or two "hosts" with messages between them."""
    if request.param == "mixed":
        monkeypatch.setattr(alltoallv, "same_host", two_hosts)

    def make(bound: int = 1, slot_bytes: int = 256, on: MPI.Intracomm | None = None, **options) -> BoundedLagAlltoallv:
        channel = "messages" if request.param == "messages" else "auto"
        options = {"timeout_s": TIMEOUT_S, "channel": channel, **options}
        return BoundedLagAlltoallv(on or comm, bound=bound, slot_bytes=slot_bytes, **options)

    return make


def block(iteration: int, source: int, to: int, counts: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Random items, of a random number among ``counts``; rank 0 is silent now and then. Any rank can make any block."""
    rng = np.random.default_rng((seed, iteration, source, to))
    count = 0 if source == 0 and iteration % 4 == 1 else int(rng.choice(counts))
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype)


class Checked:
    """Posts ``block``s, spoils its copies at once, and looks at what it was handed only right before its next call."""

    def __init__(self, exchange: BoundedLagAlltoallv, counts=(0, 1, 7, 64, 256), wrap=list, seed=0) -> None:
        self.exchange, self.counts, self.dtype, self.wrap, self.seed = exchange, counts, exchange.dtype, wrap, seed
        self.posted = self.delivered = 0
        self.held: list[Arrival] = []

    def block(self, iteration: int, source: int, to: int) -> np.ndarray:
        return block(iteration, source, to, self.counts, self.dtype, self.seed)

    def release(self) -> None:
        ranks = range(self.exchange.size)
        for arrival in self.held:
            assert arrival.iteration == self.delivered
            received = [self.block(arrival.iteration, source, self.exchange.rank) for source in ranks]
            for source, (got, expected) in enumerate(zip(arrival.blocks, received, strict=True)):
                assert got.dtype == self.dtype
                assert got.ndim == 1
                assert got.tobytes() == expected.tobytes(), (arrival.iteration, source)
                got.view(np.uint8)[:] = 0xEE  # the receiver may write to what it was handed
            self.delivered += 1
        self.held = []

    def post(self) -> None:
        own = [self.block(self.posted, self.exchange.rank, to).copy() for to in range(self.exchange.size)]
        blocks = self.wrap(own)
        self.release()
        self.held = self.exchange.post(blocks)
        for one in own:
            one.view(np.uint8)[:] = 0xDD
        self.posted += 1
        assert self.delivered + len(self.held) >= self.posted - self.exchange.bound

    def drain(self) -> None:
        self.release()
        self.held = self.exchange.drain()
        self.release()
        assert self.delivered == self.posted


@pytest.mark.parametrize("bound", [0, 1, 2, 5])
def test_delivers_what_mpi_alltoallv_delivers(comm, build, bound):
    nap = random.Random(comm.rank)
    with build(bound, slot_bytes=100, dtype=np.uint8) as exchange:  # some blocks are larger
        run = Checked(exchange)
        for _ in range(40):
            time.sleep(nap.choice((0, 0, 0, 0, 0.003)))
            run.post()
        run.drain()
    for i in (0, 1, 7, 39):
        mine = [run.block(i, comm.rank, to) for to in range(comm.size)]
        theirs = [run.block(i, source, comm.rank) for source in range(comm.size)]
        received = np.empty(sum(map(len, theirs)), np.uint8)
        comm.Alltoallv([np.concatenate(mine), list(map(len, mine))], [received, list(map(len, theirs))])
        assert received.tobytes() == b"".join(map(bytes, theirs))


class Composing(Checked):
    """Composes in place now and then: fills the room before it lets go of arrivals, or gives it up again."""

    def post(self) -> None:
        own = [self.block(self.posted, self.exchange.rank, to) for to in range(self.exchange.size)]
        chance = random.Random(f"{self.exchange.rank} {self.posted}").random()
        if chance < 0.2:
            return super().post()
        composed = self.exchange.compose([len(one) for one in own])
        assert [each.dtype for each in composed] == [self.dtype] * len(own)
        if chance < 0.4:  # given up, with something in it
            for each in composed:
                each.view(np.uint8)[:] = 0xCC
            return super().post()
        for each, one in zip(composed, own, strict=True):
            each[:] = one
        self.release()
        self.held = self.exchange.post(composed)
        self.posted += 1
        assert self.delivered + len(self.held) >= self.posted - self.exchange.bound


@pytest.mark.parametrize("bound", [0, 1, 2, 5])
def test_composed_blocks_arrive_like_others(comm, build, bound):
    nap = random.Random(comm.rank)
    with build(bound, slot_bytes=256 * 4) as exchange:
        run = Composing(exchange, counts=(0, 1, 7, 64, 256, 300), seed=2)  # one size is larger than a slot
        for _ in range(60):
            time.sleep(nap.choice((0, 0, 0, 0, 0.003)))
            run.post()
        run.drain()


def test_composed_room_in_another_order_is_copied_first(comm, build):
    with build(0, slot_bytes=64) as exchange:
        for turn in range(6):
            composed = exchange.compose([2] * comm.size)
            for to, each in enumerate(composed):
                each[:] = 100 * comm.rank + to, turn
            shuffled = composed[1:] + composed[:1]  # what rank r gets says r + 1
            found = exchange.post(shuffled)[0].blocks
            to = (comm.rank + 1) % comm.size
            assert [each.tolist() for each in found] == [[100 * source + to, turn] for source in range(comm.size)]


@pytest.mark.parametrize("bound", [0, 1])
def test_composed_blocks_of_an_earlier_iteration_may_be_posted_in_any_order(comm, build, bound):
    """The room that they lie in is then the very slot that is written to."""
    with build(bound, slot_bytes=64) as exchange:
        old = exchange.compose([1] * comm.size)
        for to, each in enumerate(old):
            each[:] = 10 * comm.rank + to
        arrivals = exchange.post(old)
        for _ in range(2 * bound + 1):
            exchange.post([np.full(1, 99, np.float32)] * comm.size)
        exchange.drain()
        arrivals = exchange.post(old[::-1]) + exchange.drain()
        turned = comm.size - 1 - comm.rank
        assert [each.tolist() for each in arrivals[-1].blocks] == [[10 * s + turned] for s in range(comm.size)]


def test_composed_blocks_posted_again_are_sent_again(comm, build):
    with build(1, slot_bytes=64) as exchange:
        composed = exchange.compose([1] * comm.size)
        for each in composed:
            each[:] = comm.rank
        arrivals = [arrival for _ in range(7) for arrival in exchange.post(composed)] + exchange.drain()
        assert all(each.tolist() == [source] for source, each in enumerate(arrivals[-1].blocks))


def test_composing_twice_gives_up_the_first(comm, build):
    with build(1, slot_bytes=64) as exchange:
        for each in exchange.compose([3] * comm.size):
            each[:] = 4
        second = exchange.compose([2] * comm.size)
        for each in second:
            each[:] = 5
        exchange.post(second)
        assert all(each.tolist() == [5, 5] for arrival in exchange.drain() for each in arrival.blocks)


def test_wrong_counts_are_refused_and_the_exchange_goes_on(comm, build):
    with build(0, slot_bytes=64) as exchange:
        bad = ([], [1] * (comm.size + 1), [-1] * comm.size, ["a"] * comm.size, None, np.array(1), {1: 1}, [[1]], (1.5,))
        for counts in (*bad, *bad):  # before the first that are right, and after
            with pytest.raises(ValueError, match=r"counts is one whole number >= 0 per rank \("):
                exchange.compose(counts)
        asked = torch.full((comm.size,), 3)
        assert [len(each) for each in exchange.compose(asked)] == [3] * comm.size
        asked[:] = 5
        assert [len(each) for each in exchange.compose(asked)] == [5] * comm.size
        composed = exchange.compose(np.full(comm.size, 16))
        for each in composed:
            each[:] = comm.rank
        assert [each[15] for each in exchange.post(composed)[0].blocks] == list(range(comm.size))
    with pytest.raises(ExchangeError, match="exchange is closed"):
        exchange.compose([1] * comm.size)


def test_composed_blocks_are_for_reading_once_they_are_posted(comm, build, monkeypatch):
    monkeypatch.setattr(ring, "SEALS", True)  # as with python -X dev
    with build(0, slot_bytes=64) as exchange:
        for _ in range(5):
            composed = exchange.compose([1] * comm.size)
            for each in composed:
                each[:] = 1
            exchange.post(composed)
            with pytest.raises(ValueError, match="read-only"):
                composed[0][:] = 2


@pytest.mark.parametrize("bound", [0, 3])
def test_statistics(comm, build, bound):
    with build(bound, slot_bytes=64) as exchange:
        assert exchange.statistics() == (0, 0, 0, 0.0, (0.0,) * comm.size, (0,) * (bound + 1))
        sizes = [4, 4, 16, 64, 0, 64, 80, 4, 4, 4]
        for i, size in enumerate(sizes):
            time.sleep(0.1 * (comm.rank == comm.size - 1 and i % 2))
            exchange.post([np.zeros(size // 4, np.float32)] * comm.size)
        exchange.drain()
        found = exchange.statistics()
        assert found.calls == sum(found.lags) == len(sizes)
        assert found.sent_bytes == sum(sizes) * comm.size
        assert found.large_blocks == comm.size
        assert sum(found.waited_for_s) <= found.waited_s + 1e-9
        if comm.rank < comm.size - 1:
            assert 0.1 < found.waited_for_s[-1] == max(found.waited_for_s)
            assert str(found).startswith(f"10 calls sent {found.sent_bytes} bytes and waited ")
            assert str(found).endswith(f"s of it for rank {comm.size - 1}")
            assert bound == 0 or found.lags[bound] > 0
        rows = found.rows(comm.rank, "a run")
        assert [row["waits_s"] for row in rows] == list(found.waited_for_s)
    assert exchange.statistics() == found  # also when it is closed


@pytest.mark.ranks(2)
def test_statistics_of_a_wait_that_failed(comm, build):
    exchange = build(0, slot_bytes=64, timeout_s=0.4)
    exchange.post([np.zeros(1, np.float32)] * comm.size)
    comm.Barrier()
    if comm.rank == 0:
        time.sleep(1.2)
    else:
        with pytest.raises(
            LateError, match=r"behind\); so far 2 calls sent .* bytes and waited 0\.\d+ s, .* for rank 0$"
        ):
            exchange.post([np.zeros(1, np.float32)] * comm.size)
        found = exchange.statistics()
        assert (found.calls, found.lags) == (2, (1,))
        assert 0.3 < found.waited_for_s[0] <= found.waited_s + 1e-9
    with pytest.raises(ExchangeError):  # noqa: PT012 (over messages it may hear of it one call later)
        exchange.post([np.zeros(1, np.float32)] * comm.size)
        exchange.post([np.zeros(1, np.float32)] * comm.size)
    exchange.close()


@pytest.mark.parametrize("bound", [0, 3])
def test_blocks_of_every_size(comm, build, bound):
    with build(bound, slot_bytes=64) as exchange:
        run = Checked(exchange, counts=(0, 1, 63, 64, 65, 128, 5000, 300_000), seed=1)
        for _ in range(30):
            run.post()
        run.drain()


def test_thousands_of_tiny_blocks(comm, build):
    rng = np.random.default_rng(3)
    exchange = build(int(rng.integers(0, 9)), slot_bytes=8)
    exchange_2 = build(int(rng.integers(0, 9)), slot_bytes=8)
    mine = tuple(np.zeros(2, np.float32) for _ in range(comm.size))
    seen = 0
    with exchange, exchange_2:
        for i in range(2500):
            for one in mine:
                one[:] = i, comm.rank
            for arrival in exchange.post(mine) + (exchange.drain() if i == 2499 else []):
                assert arrival.iteration == seen
                assert [b.tolist() for b in arrival.blocks] == [[seen, source] for source in range(comm.size)]
                seen += 1
            exchange_2.post(mine)
        assert [a.iteration for a in exchange_2.drain()][-1:] == [2499] * bool(exchange_2.bound)
    assert seen == 2500


@pytest.mark.parametrize("build", ["auto"], indirect=True)
@pytest.mark.parametrize(
    "dtype", ["float64", "int8", "complex64", ">f4", "datetime64[s]", [("id", "<i4"), ("weight", "<f8")]], ids=str
)
def test_dtypes(build, dtype):
    with build(2, slot_bytes=64, dtype=dtype) as exchange:
        run = Checked(exchange, counts=(0, 1, 5, 100))
        for _ in range(8):
            run.post()
        run.drain()


FORMS = {
    "tuple": (np.float32, tuple),
    "tensors": (np.float32, lambda own: [torch.from_numpy(b) for b in own]),
    "tuple of tensors": (np.float32, lambda own: tuple(torch.from_numpy(b) for b in own)),
    "bfloat16": (np.int16, lambda own: [torch.from_numpy(b).view(torch.bfloat16) for b in own]),
    "every second": (np.float32, lambda own: tuple(np.repeat(b, 2)[::2] for b in own)),
    "two-dimensional": (np.float32, lambda own: [b.reshape(1, -1) for b in own]),
    "bytes": (np.float32, lambda own: [b.tobytes() for b in own]),
    "bytearray": (np.float32, lambda own: tuple(bytearray(b.tobytes()) for b in own)),
    "array.array": (np.float32, lambda own: [array.array("f", b.tobytes()) for b in own]),
    "memoryview": (np.float32, lambda own: [memoryview(b) for b in own]),
    "mixed": (np.float32, lambda own: [b if to % 2 else b.tobytes() for to, b in enumerate(own)]),
}


@pytest.mark.parametrize("build", ["auto"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_whatever_holds_bytes(build, form):
    dtype, wrap = FORMS[form]
    with build(1, slot_bytes=64, dtype=dtype) as exchange:
        run = Checked(exchange, counts=(0, 3, 16, 40), wrap=wrap)
        for _ in range(6):
            run.post()
        run.drain()


@pytest.mark.parametrize("build", ["auto"], indirect=True)
def test_inference_tensors(comm, build):
    with build(1) as exchange, torch.inference_mode():
        for i in range(5):
            scores = torch.full((comm.size, 4), float(i)) + comm.rank
            for arrival in exchange.post(list(scores)):
                out = torch.cat([torch.from_numpy(b) for b in arrival.blocks])
                expected = [arrival.iteration + source for source in range(comm.size) for _ in range(4)]
                assert out.tolist() == expected
        exchange.drain()


RETUPLED = {
    "arrays": lambda n: [np.zeros(4, np.int16) for _ in range(n)],
    "strided": lambda n: [np.zeros((4, 2), np.int16)[:, 0] for _ in range(n)],
    "tensors": lambda n: [torch.zeros(4, dtype=torch.int16) for _ in range(n)],
    "strided bfloat16": lambda n: [torch.zeros((4, 2), dtype=torch.int16).view(torch.bfloat16)[:, 0] for _ in range(n)],
}


@pytest.mark.parametrize("build", ["auto"], indirect=True)
@pytest.mark.parametrize("kind", RETUPLED)
def test_a_tuple_posted_again_sends_its_new_contents(comm, build, kind):
    mine = tuple(RETUPLED[kind](comm.size))
    with build(0, dtype=np.int16) as exchange:
        for i in range(6):
            for to, one in enumerate(mine):
                one[:] = value(i, comm.rank, to) if kind != "strided bfloat16" else float(i + 8 * comm.rank + 40 * to)
            ((iteration, blocks),) = exchange.post(mine)
            assert iteration == i
            for source, got in enumerate(blocks):
                if kind == "strided bfloat16":
                    numbers = torch.from_numpy(got.copy()).view(torch.bfloat16).tolist()
                    assert numbers == [i + 8 * source + 40 * comm.rank] * 4
                else:
                    assert got.tolist() == [value(i, source, comm.rank)] * 4


def value(iteration: int, source: int, to: int) -> int:
    return 1000 * iteration + 10 * source + to


@pytest.mark.parametrize("bound", [0, 2])
def test_what_was_handed_out_can_be_posted(comm, build, bound):
    """Every block goes to and fro between two ranks, from slot to slot."""
    with build(bound, slot_bytes=64, dtype=np.int64) as exchange:
        blocks = [np.array([value(0, comm.rank, to)] * 9) for to in range(comm.size)]
        for i in range(20):
            *_, (_, blocks) = exchange.post(blocks) or exchange.collect(i)
            there = [value(0, source, comm.rank) for source in range(comm.size)]
            back = [value(0, comm.rank, source) for source in range(comm.size)]
            assert [b.tolist() for b in blocks] == [[v] * 9 for v in (back if i % 2 else there)]


def test_other_counts_than_promised(comm, build):
    wrong_from, wrong_to, wrong_in = comm.size - 1, 0, 3
    with pytest.raises((BlockError, PeerError)) as raised:  # noqa: PT012
        with build(1, recv_counts=[4] * comm.size, dtype=np.float64) as exchange:
            for i in range(10):
                blocks = [np.zeros(4) for _ in range(comm.size)]
                if (comm.rank, i) == (wrong_from, wrong_in):
                    blocks[wrong_to] = np.zeros(3)
                exchange.post(blocks)
            exchange.drain()
    text = f"rank {wrong_from} -> rank 0 sent 24 bytes in iteration {wrong_in}, rank 0 expected 32"
    assert text in str(raised.value)
    assert type(raised.value) is (BlockError if comm.rank == wrong_to else PeerError)
    assert comm.rank == wrong_to or str(raised.value).startswith("rank 0 failed after posting ")


def test_promised_counts_are_accepted(comm, build):
    counts = [3 * source for source in range(comm.size)]
    with build(2, slot_bytes=64, recv_counts=counts, dtype=np.float64) as exchange:
        for _ in range(9):
            for arrival in exchange.post([np.ones(3 * comm.rank)] * comm.size):
                assert list(map(len, arrival.blocks)) == counts
        exchange.drain()


def test_collect(comm, build):
    mine = [np.full(3, comm.rank, np.float32)] * comm.size
    with build(5) as exchange:
        assert exchange.collect() == []
        assert exchange.drain() == []
        with pytest.raises(ValueError, match="iteration 0 was not posted yet: the next one is 0"):
            exchange.collect(0)
        early = [a.iteration for _ in range(5) for a in exchange.post(mine)]
        got = early + [a.iteration for a in exchange.collect(through=2)]
        assert got[:3] == [0, 1, 2]
        got += [a.iteration for a in exchange.collect(through=1)]
        comm.Barrier()
        # It never waits, and gets there all the same.
        assert until(lambda: got.extend(a.iteration for a in exchange.collect()) or len(got) >= 5)
        assert got == [0, 1, 2, 3, 4]
        assert exchange.drain() == []
        with pytest.raises(ValueError, match="iteration 5 was not posted yet: the next one is 5"):
            exchange.collect(5)
        exchange.post(mine)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("bound", [1, 3])
def test_a_rank_gets_bound_calls_ahead_by_itself(comm, build, bound):
    mine = [np.zeros(1, np.float32)] * comm.size
    with build(bound) as exchange:
        if comm.rank == 0:
            assert [exchange.post(mine) for _ in range(bound)] == [[]] * bound
        comm.Barrier()  # the others have not entered any call
        for _ in range(bound if comm.rank else 0):
            exchange.post(mine)
        exchange.drain()


@pytest.mark.ranks(2)
def test_collect_without_argument_does_not_wait(comm, build):
    with build(3) as exchange:
        if comm.rank == 0:
            exchange.post([np.zeros(1, np.float32)] * comm.size)
            started_s = time.monotonic()
            assert exchange.collect() == []  # the others post when this has returned
            assert time.monotonic() - started_s < TIMEOUT_S / 2
            comm.Barrier()
        else:
            comm.Barrier()
            exchange.post([np.zeros(1, np.float32)] * comm.size)
        exchange.drain()


def test_two_exchanges_take_turns(comm, build):
    with build(3, slot_bytes=64) as a, build(0, slot_bytes=128) as b:
        first, second = Checked(a, seed=1), Checked(b, seed=2)
        for i in range(20):
            for run in (first, second) if (i + comm.rank) % 2 else (second, first):
                run.post()
            if i == 12:
                first.drain()
        second.drain()
        first.drain()


def test_parts_of_a_communicator(comm, build):
    part = comm.Split(comm.rank % 2, -comm.rank)
    with build(1, on=part) as exchange, build(2) as whole:
        assert (exchange.rank, exchange.size) == (part.rank, part.size)
        run, run_2 = Checked(exchange, seed=5), Checked(whole, seed=6)
        for _ in range(10):
            run.post()
            run_2.post()
        run.drain()
        run_2.drain()
    part.Free()


def test_no_rank_leaves_a_call_too_early(comm, build):
    iterations, nap = 25, random.Random(10 + comm.rank)
    for bound in (0, 2):
        with Clock(build(bound)) as exchange:
            for _ in range(iterations):
                time.sleep(nap.choice((0, 0, 0.002, 0.004)))
                exchange.post([np.zeros(4, np.float32)] * comm.size)
            exchange.drain()
        calls = exchange.calls[:iterations]
        entered_s = np.array(comm.allgather([call.entered_s for call in calls]))
        everybody_s = entered_s.max(axis=0)
        for call in calls[bound:]:
            assert call.returned_s >= everybody_s[call.iteration - bound]
        returned_s = np.array(comm.allgather([call.returned_s for call in calls]))
        for r in range(comm.size):
            for s in range(comm.size):
                lag = [(returned_s[r] <= t).sum() - (entered_s[s] <= t).sum() for t in returned_s[r]]
                assert max(lag) <= bound


def test_a_clock_notes_every_call_of_any_exchange(comm, build):
    counts = {"send_counts": [1] * comm.size, "recv_counts": [1] * comm.size}
    block = np.zeros(1, np.float32)
    for exchange in (build(1, slot_bytes=64), MpiAlltoallv(comm, **counts)):
        with Clock(exchange) as clock:
            assert (clock.rank, clock.size, clock.bound) == (comm.rank, comm.size, exchange.bound)
            began_s = time.perf_counter()
            for _ in range(3):
                clock.post([block] * comm.size)
                clock.collect()
            with pytest.raises(ValueError, match="post takes one block per rank"):
                clock.post([block] * (comm.size + 1))
            clock.post([block] * comm.size)
            clock.drain()
            ended_s = time.perf_counter()
        with pytest.raises(ExchangeError, match="^exchange is closed$"):
            exchange.post([block] * comm.size)
        kinds = ["post", "collect"] * 3 + ["post", "drain"]
        assert [(call.kind, call.iteration) for call in clock.calls] == list(
            zip(kinds, [0, 1, 1, 2, 2, 3, 3, 4], strict=True)
        )
        moments_s = [moment_s for call in clock.calls for moment_s in (call.entered_s, call.returned_s)]
        assert [began_s, *moments_s, ended_s] == sorted([began_s, *moments_s, ended_s])


@pytest.mark.parametrize("build", ["auto"], indirect=True)
@pytest.mark.parametrize(("bound", "slot_bytes"), [(0, 64), (3, 1000), (16, 4096)])
def test_memory_is_what_was_promised(comm, build, bound, slot_bytes):
    with build(bound, slot_bytes=slot_bytes) as exchange:
        room = -(-slot_bytes // 64) * 64
        assert exchange.slot_bytes == room
        assert exchange.ring_bytes == comm.size * 2 * (bound + 1) * (room + 64)
        assert exchange.ring_bytes < exchange.memory_bytes <= exchange.ring_bytes + 2 * 4096
    with build(bound, slot_bytes=slot_bytes, channel="messages") as exchange:
        staged = (comm.size - 1) * exchange.ring_bytes // comm.size
        assert staged < exchange.memory_bytes - exchange.ring_bytes <= staged + 2 * 4096


@pytest.mark.parametrize("build", ["auto"], indirect=True)
def test_after_close(comm, build):
    exchange = build()
    exchange.post([np.zeros(2, np.float32)] * comm.size)
    exchange.close()
    exchange.close()
    for call in (lambda: exchange.post([np.zeros(2, np.float32)] * comm.size), exchange.drain, exchange.collect):
        with pytest.raises(ExchangeError, match="^exchange is closed$"):
            call()


@pytest.mark.parametrize("build", ["auto"], indirect=True)
def test_an_error_after_close_is_just_that(comm, build):
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012
        with build() as exchange:
            exchange.post([np.zeros(2, np.float32)] * comm.size)
            exchange.close()
            raise KeyError("mine")


@pytest.mark.parametrize("items", [4, 40, 100_000], ids=["small", "oversize", "rendezvous"])
def test_what_was_never_taken_does_not_reach_the_next_exchange(comm, build, items):
    for again in range(4):
        started_s = time.monotonic()
        with build(2, slot_bytes=64, dtype=np.int32) as exchange:
            for i in range(3):
                exchange.post([np.full(items, 100 * again + 10 * i + comm.rank, np.int32)] * comm.size)
            got = exchange.drain() if again == 3 else []
            for arrival in got:
                firsts = [300 + 10 * arrival.iteration + source for source in range(comm.size)]
                assert [sorted({*b.tolist()}) for b in arrival.blocks] == [[first] for first in firsts]
        assert time.monotonic() - started_s < TIMEOUT_S / 2  # closing waited for no deadline


def mapped() -> list[str]:
    """What this process maps of the shared memory of exchanges; one line of the kernel's per mapping."""
    gc.collect()  # the traceback of an earlier test's error holds its exchange until then
    maps = Path("/proc/self/maps")
    return [line for line in maps.read_text().splitlines() if "/bls-" in line] if maps.exists() else []


def test_no_name_while_open_and_no_memory_after_close(comm, build):
    before = mapped()  # what MPI may still use after earlier failures
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with build(3, slot_bytes=64) as exchange:
        assert all(line.endswith("(deleted)") for line in mapped()), "whoever is killed leaves a file behind"
        for i in range(20):
            exchange.post([np.zeros(50 * (i % 3), np.float32)] * comm.size)
        exchange.drain()
    assert mapped() == before
    assert not descriptors or len(os.listdir("/proc/self/fd")) <= descriptors + 3


@pytest.mark.parametrize("failed", [False, True])
def test_what_was_handed_out_outlives_the_exchange(comm, build, failed):
    """Its contents are promised until the next call, which close is; to look at them later does no harm."""
    before = mapped()
    exchange = build(0, slot_bytes=64, dtype=np.int64)
    (small,) = exchange.post([np.full(2, comm.rank)] * comm.size)
    (large,) = exchange.post([np.full(50_000, comm.rank)] * comm.size)
    comm.Barrier()
    exchange.__exit__(KeyError if failed else None, KeyError("mine") if failed else None, None)
    comm.Barrier()
    for arrival in (small, large):
        assert [block.shape for block in arrival.blocks] == [(2,) if arrival is small else (50_000,)] * comm.size
        for block in arrival.blocks:
            block[:] += 1
    del exchange, small, large, arrival, block
    assert mapped() == before or failed


@pytest.mark.parametrize("build", ["auto"], indirect=True)
def test_no_mapping_outlives_its_block(comm, build):
    """Large blocks of many slots must not add up to a pile of open files."""
    before = len(mapped())
    with build(16, slot_bytes=64) as exchange:
        for _ in range(80):
            exchange.post([np.zeros(50, np.float32)] * comm.size)
        exchange.drain()
        exchange.post([np.zeros(1, np.float32)] * comm.size)
        exchange.drain()
        assert len(mapped()) <= before + 2 * comm.size


def test_many_exchanges_one_after_another(comm, build):
    for i in range(30):
        with build(i % 3, slot_bytes=64) as exchange:
            exchange.post([np.full(1, i, np.float32)] * comm.size)
            assert all(b.tolist() == [i] for a in exchange.drain() for b in a.blocks)


@pytest.mark.parametrize("build", ["auto"], indirect=True)
def test_wrong_blocks_send_nothing(comm, build):
    with build(0, dtype=np.float32) as exchange:
        with pytest.raises(ValueError, match=f"one block per rank: expected {comm.size}, got {comm.size + 1}"):
            exchange.post([np.zeros(1, np.float32)] * (comm.size + 1))
        with pytest.raises(ValueError, match="block for rank 0 has dtype float64, the exchange was built for float32"):
            exchange.post([np.zeros(1)] * comm.size)
        with pytest.raises(TypeError, match="block for rank 0 is a str: expected"):
            exchange.post(["text"] * comm.size)
        with pytest.raises(ValueError, match="block for rank 0 has dtype object, the exchange was built for float32"):
            exchange.post([np.array([None, "x"])] * comm.size)
        with pytest.raises(TypeError, match="post takes a sequence of one block per rank, got NoneType"):
            exchange.post(None)
        run = Checked(exchange, counts=(0, 3))
        run.post()
        run.drain()


@pytest.mark.ranks(2)
def test_two_threads_take_turns(comm, build):
    """While one thread waits in a call, another's is refused and sends nothing; both may use the exchange in turn."""
    refused: list[str] = []
    waits = threading.Event()

    def wait(attempt: int) -> None:
        waits.set()
        yield_then_sleep(attempt)

    def intrude() -> None:
        assert waits.wait(TIMEOUT_S)
        for call in (lambda: exchange.post([np.ones(1, np.float32)] * comm.size), exchange.drain, exchange.close):
            try:
                call()
            except RuntimeError as error:
                refused.append(f"{type(error).__name__}: {error}")
        comm.Barrier()  # now rank 0 comes

    with build(0, waiting=wait) as exchange:
        intruder = threading.Thread(target=intrude if comm.rank else comm.Barrier)
        intruder.start()
        if comm.rank == 0:
            intruder.join()
        (arrival,) = exchange.post([np.zeros(1, np.float32)] * comm.size)
        intruder.join()
        assert all(block.tolist() == [0] for block in arrival.blocks)
        assert len(refused) == (3 if comm.rank else 0)
        assert all(
            text.startswith("RuntimeError: another call on this exchange is under way: it serves one")
            for text in refused
        )
        other = threading.Thread(target=lambda: exchange.post([np.zeros(1, np.float32)] * comm.size))
        other.start()
        other.join()
        assert exchange.drain() == []


@pytest.mark.ranks(2)
def test_an_error_of_mpi_is_told_in_our_words(comm, build):
    exchange = build(0)
    exchange.post([np.zeros(1, np.float32)] * comm.size)
    comm.Barrier()

    def broken() -> int:
        raise MPI.Exception(MPI.ERR_OTHER)

    if comm.rank == 0:
        exchange._memory.arrived = broken
    text = r"MPI cannot go on, a rank among \[.*\] or the way to it may be gone; it says: "
    with pytest.raises(PeerError, match=text):  # noqa: PT012
        exchange.post([np.zeros(1, np.float32)] * comm.size)
        exchange.post([np.zeros(1, np.float32)] * comm.size)
    exchange.close()


class Each:
    """The same number for every rank."""

    def __init__(self, number: int) -> None:
        self.number = number


FAULTS = [
    ({"bound": -1}, "bound is a whole number of iterations >= 0, got -1"),
    ({"bound": 1.5}, "bound is a whole number of iterations >= 0, got 1.5"),
    ({"bound": True}, "bound is a whole number of iterations >= 0, got True"),
    ({"slot_bytes": 0}, "slot_bytes is a whole number >= 1, got 0"),
    ({"slot_bytes": True}, "slot_bytes is a whole number >= 1, got True"),
    ({"dtype": "no such"}, "data type 'no such' not understood"),
    ({"dtype": object}, "dtype object has no bytes to send"),
    ({"dtype": "V0"}, "dtype .* has no bytes to send"),
    ({"timeout_s": -1}, "timeout_s is a time > 0, got -1"),
    ({"timeout_s": "soon"}, "timeout_s is a time > 0, got 'soon'"),
    ({"channel": "pigeon"}, "channel is one of auto, ring, messages, got 'pigeon'"),
    ({"recv_counts": 5}, "recv_counts is one whole number >= 0 per rank .*, got 5"),
    ({"timeout_s": True}, "timeout_s is a time > 0, got True"),
    ({"recv_counts": [-1] * 9}, "recv_counts is one whole number >= 0 per rank"),
    (
        {"recv_counts": Each(2**63)},
        r"recv_counts is one whole number >= 0 per rank \(\d\), of less than 2\*\*63 bytes in all, got ",
    ),
    (
        {"recv_counts": Each(2**61)},
        r"recv_counts is one whole number >= 0 per rank \(\d\), of less than 2\*\*63 bytes in all, got ",
    ),
    (
        {"recv_counts": Each(2**64)},
        r"recv_counts is one whole number >= 0 per rank \(\d\), of less than 2\*\*63 bytes in all, got ",
    ),
    ({"recv_counts": Each(True)}, "recv_counts is one whole number >= 0 per rank"),
]


@pytest.mark.parametrize(("fault", "text"), FAULTS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_a_bad_argument_on_one_rank_raises_on_all(comm, fault, text):
    bad = comm.size - 1
    fault = {name: [value.number] * comm.size if isinstance(value, Each) else value for name, value in fault.items()}
    arguments = {"bound": 1, "slot_bytes": 64, "timeout_s": TIMEOUT_S} | (fault if comm.rank == bad else {})
    with pytest.raises(ValueError, match=f"^rank {bad}: {text}"):
        BoundedLagAlltoallv(comm, **arguments)


@pytest.mark.parametrize(
    ("comm", "got"), [(None, "NoneType"), (MPI.COMM_NULL, "MPI.COMM_NULL"), (MPI.GROUP_EMPTY, "Group"), (3, "int")]
)
def test_no_communicator(comm, got):
    with pytest.raises(TypeError, match=f"^comm is an intra-communicator of mpi4py, got {got}$"):
        BoundedLagAlltoallv(comm, bound=0, slot_bytes=64)


def test_numpys_small_integers_are_whole_numbers(comm, build):
    with build(np.int32(1), slot_bytes=np.int32(4096)) as exchange:
        assert (type(exchange.bound), exchange.bound, exchange.slot_bytes) == (int, 1, 4096)
        Checked(exchange).post()
        exchange.drain()


def test_mpi_may_be_out_of_communicators(comm, monkeypatch):
    """The error is MPI's own, and building works again when MPI does."""
    alone = comm.Split(comm.rank)

    def no_more(_: building.Building) -> None:
        raise MPI.Exception(MPI.ERR_OTHER)

    with monkeypatch.context() as patch:
        patch.setattr(building.Building, "_begin", no_more)
        with pytest.raises(MPI.Exception):
            BoundedLagAlltoallv(alone, bound=1, slot_bytes=64)
    for _ in range(2):
        BoundedLagAlltoallv(alone, bound=1, slot_bytes=64).close()
    alone.Free()


def test_thousands_of_exchanges_that_cannot_be_built(comm):
    """MPI has about two thousand communicators, and is given all of them back."""
    if comm.size != 2:
        pytest.skip("two ranks show it, and soonest")
    for n in range(2500):
        with pytest.raises(ValueError, match=f"^rank 0: bound is a whole number of iterations >= 0, got -{n + 1}$"):
            BoundedLagAlltoallv(comm, bound=-n - 1, slot_bytes=64)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("bound", 1, 2), ("slot_bytes", 64, 128), ("dtype", "float32", "float64"), ("channel", "auto", "messages")],
)
def test_ranks_that_differ_are_named(comm, name, one, other):
    odd = comm.size - 1
    arguments = {"bound": 1, "slot_bytes": 64, "timeout_s": TIMEOUT_S} | {name: other if comm.rank == odd else one}
    with pytest.raises(ValueError, match=f"^ranks differ in {name}: rank 0 has {one}, rank {odd} has {other}$"):
        BoundedLagAlltoallv(comm, **arguments)


@pytest.mark.ranks(2)
def test_a_rank_that_does_not_come(comm):
    """Nobody hangs: neither those who wait for it, nor the one that comes when they have gone."""
    if comm.rank == 0:
        for other in range(1, comm.size):
            comm.recv(source=other)
    with pytest.raises(LateError, match="building the exchange timed out after 0.2 s"):
        BoundedLagAlltoallv(comm, bound=0, slot_bytes=64, timeout_s=0.2)
    if comm.rank:
        comm.send(None, 0)
    comm.Barrier()


@pytest.mark.ranks(2)
def test_a_rank_that_missed_an_attempt_is_back_in_step(comm):
    """As one that was interrupted before it had begun: the others' next attempt is its first."""
    for missed in (1, 3):
        for _ in range(missed):
            if comm.rank:
                with pytest.raises(LateError, match="building the exchange timed out after 0.1 s"):
                    BoundedLagAlltoallv(comm, bound=0, slot_bytes=64, timeout_s=0.1)
        comm.Barrier()
        with BoundedLagAlltoallv(comm, bound=0, slot_bytes=64, timeout_s=TIMEOUT_S) as exchange:
            exchange.post([np.zeros(1, np.float32)] * comm.size)


def test_thousands_of_exchanges_that_failed(comm):
    """What they had of MPI is given back as well, when all ranks have failed."""
    if comm.size != 1:
        pytest.skip("one rank shows it, and soonest")
    alone = comm.Split(comm.rank)
    for _ in range(2200):
        with pytest.raises(ZeroDivisionError), BoundedLagAlltoallv(alone, bound=0, slot_bytes=64):
            1 / 0  # noqa: B018
    alone.Free()


@pytest.mark.ranks(2)
def test_threads_build_at_the_same_time(comm):
    """Each on a communicator of its own, some in vain."""
    comms = [comm.Dup() for _ in range(2)]
    went: list[list[str]] = [[], []]

    def work(n: int) -> None:
        for i in range(40):
            try:
                BoundedLagAlltoallv(comms[n], bound=-1 if (i + n) % 2 else 1, slot_bytes=64).close()
                went[n].append("fine")
            except ValueError as error:
                went[n].append(str(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = "rank 0: bound is a whole number of iterations >= 0, got -1"
    assert went == [["fine", refused] * 20, [refused, "fine"] * 20]
    for each in comms:
        each.Free()


def test_a_tensor_that_was_moved_sends_what_it_holds(comm, build):
    blocks = tuple(torch.zeros(4) for _ in range(comm.size))
    with build(0) as exchange:
        exchange.post(blocks)
        for block in blocks:
            block.data = torch.full((4,), 7.0)
        (arrival,) = exchange.post(blocks)
        assert all(block.tolist() == [7.0] * 4 for block in arrival.blocks)


def test_too_little_shared_memory(comm, build, monkeypatch):
    real = os.statvfs("/")

    class Small:
        f_bavail, f_frsize = (10_000, 1) if comm.rank == comm.size - 1 else (real.f_bavail, real.f_frsize)

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: Small)
        with pytest.raises(MemoryError) as raised:
            build(7, slot_bytes=4096)
    need = re.search(
        r"need (\d+) bytes of shared memory, 10000 are free in /dev/shm: lower slot_bytes \(4096\)", str(raised.value)
    )
    assert need
    assert int(need[1]) % (4096 * 2) == 0
    assert int(need[1]) > comm.size * 16 * 4096
    with build(0, slot_bytes=64) as exchange:  # and all can try again with less
        exchange.post([np.zeros(1, np.float32)] * comm.size)


@pytest.mark.ranks(2)
def test_a_new_exchange_after_a_failure(comm, build):
    for failing in (0, comm.size - 1):
        with pytest.raises(ZeroDivisionError if comm.rank == failing else PeerError):  # noqa: PT012
            with build(1, slot_bytes=64) as exchange:
                for i in range(30):
                    exchange.post([np.full(30, i, np.float32)] * comm.size)
                    if comm.rank == failing and i == 11:
                        1 / 0  # noqa: B018
                exchange.drain()
        with pytest.raises(ExchangeError, match="^exchange is closed$"):
            exchange.collect()
    with build(2, slot_bytes=64) as exchange:
        run = Checked(exchange)
        for _ in range(10):
            run.post()
        run.drain()


@pytest.mark.parametrize("build", ["auto"], indirect=True)
def test_waits_as_it_is_told(comm, build):
    asked: list[int] = []
    news: list[MPI.Request] = []

    def policy(attempt: int) -> None:
        asked.append(attempt)
        if attempt == 4 and late != comm.rank:
            news.append(comm.isend(None, late))
        time.sleep(1e-4)

    with build(0, waiting=policy) as exchange:
        for late in range(comm.size):
            if comm.rank == late:  # until all others wait
                for other in range(comm.size - 1):
                    comm.recv(source=(late + 1 + other) % comm.size)
            exchange.post([np.zeros(1, np.float32)] * comm.size)
        late = MPI.PROC_NULL
    MPI.Request.waitall(news)
    assert comm.size == 1 or (asked[0] == 1 and max(asked) > 3)
    assert all(b == a + 1 or b == 1 for a, b in zip(asked, asked[1:], strict=False))
