"""Sharding and the inference loop, over exchanges made for the test: in threads, and in lockstep with late delivery."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blslib.collective.exchange import Arrival
from blslib.dlrm import inference
from blslib.dlrm.config import ModelConfig
from blslib.dlrm.inference import Inference, Scored
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import (
    Placement,
    ShardedTables,
    contiguous,
    largest_block_bytes,
    own_rows,
    recv_counts,
    row_starts,
    send_counts,
)
from blslib.workloads.batch import Batch
from blslib.workloads.synthetic import Synthetic

SMALL = ModelConfig(rows=(7, 3, 11, 5, 1), dim=4, bottom=(6, 8, 4), top=(9, 1), name="small")


def make_batch(config: ModelConfig, size: int, seed: int = 0) -> Batch:
    """Bags of 0 to 3 ids, in one table always empty."""
    return next(iter(Synthetic(config.rows, size, (1.5, 0.5, 3, 2, 0), dense_features=6, seed=seed)))


class Wire:
    """What P loopback exchanges share: copies of the blocks, by (iteration, source)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent: dict[tuple[int, int], list[np.ndarray]] = {}
        self.changed = threading.Condition()

    def complete(self, iteration: int) -> bool:
        return all((iteration, source) in self.sent for source in range(self.size))


class Loopback:
    """An exchange in memory which poisons what it handed out as soon as the contract allows.

    Args:
        bound: ``post`` waits for iteration i - bound (needs a thread per rank); None never waits.
        pick: how many of n complete iterations to hand out where none has to be.
    """

    def __init__(self, wire: Wire, rank: int, bound: int | None, pick: Callable[[int], int] = lambda n: n) -> None:
        self.wire, self.rank, self.size, self.pick = wire, rank, wire.size, pick
        self.bound = 10**9 if bound is None else bound
        self.posted = self.delivered = 0
        self.handed: list[np.ndarray] = []

    def post(self, blocks) -> list[Arrival]:
        with self.wire.changed:
            self.wire.sent[self.posted, self.rank] = [np.array(block) for block in blocks]
            self.wire.changed.notify_all()
        self.posted += 1
        return self.collect(self.posted - 1 - self.bound)

    def collect(self, through: int | None = None) -> list[Arrival]:
        for block in self.handed:
            block.fill(np.nan)
        needed = max(self.delivered, -1 if through is None else through + 1)
        with self.wire.changed:
            assert self.wire.changed.wait_for(lambda: all(map(self.wire.complete, range(needed))), timeout=60)
            there = needed
            while there < self.posted and self.wire.complete(there):
                there += 1
        end = needed + self.pick(there - needed)
        arrivals = [
            Arrival(i, [self.wire.sent[i, source][self.rank].copy() for source in range(self.size)])
            for i in range(self.delivered, end)
        ]
        self.handed = [block for arrival in arrivals for block in arrival.blocks]
        self.delivered = end
        return arrivals

    def drain(self) -> list[Arrival]:
        return self.collect(self.posted - 1)

    def close(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()


def in_lockstep(config, placement, batches, pick: Callable[[int], int] = lambda n: n) -> list[list[Scored]]:
    """All ranks in one thread, one after the other; nobody waits, arrivals are as late as ``pick`` makes them."""
    wire = Wire(placement.ranks)
    loops = [
        Inference(DLRM(config, seed=4, placement=placement, rank=rank), Loopback(wire, rank, None, pick))
        for rank in range(placement.ranks)
    ]
    scored: list[list[Scored]] = [[] for _ in loops]
    for batch in batches:
        for mine, loop in zip(scored, loops, strict=True):
            mine += loop.step(batch)
    for mine, loop in zip(scored, loops, strict=True):
        mine += loop.finish()
    return scored


def in_threads(config, placement, batches, bound: int) -> list[list[Scored]]:
    """One thread per rank, which waits as the bound says."""
    wire = Wire(placement.ranks)

    def work(rank: int) -> list[Scored]:
        model = DLRM(config, seed=4, placement=placement, rank=rank)
        return list(Inference(model, Loopback(wire, rank, bound)).run(batches))

    with ThreadPoolExecutor(placement.ranks) as pool:
        return list(pool.map(work, range(placement.ranks)))


def whole(scored: list[list[Scored]], iteration: int) -> np.ndarray:
    """The scores of a batch from all ranks."""
    parts = [mine[iteration] for mine in scored]
    assert [part.iteration for part in parts] == [iteration] * len(parts)
    return np.concatenate([part.scores for part in parts])


PLACEMENTS = [contiguous(SMALL.tables, ranks) for ranks in range(1, 8)] + [
    Placement((2, 0, 1, 0, 2), 3),
    Placement((1, 1, 1, 1, 1), 2),
    Placement((3, 0, 3, 3, 0), 4),
]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: f"{p.ranks} ranks {p.owners}")
@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_any_placement_scores_like_one_process(placement, interaction):
    config = replace(SMALL, interaction=interaction)
    batches = [make_batch(config, size, seed=size) for size in (12, 7, 3, 12, 13)]
    scored = in_lockstep(config, placement, batches)
    one = DLRM(config, seed=4)
    for iteration, batch in enumerate(batches):
        np.testing.assert_allclose(whole(scored, iteration), one(batch), rtol=1e-5, atol=1e-6)
        for rank, mine in enumerate(scored):
            rows = own_rows(batch.size, rank, placement.ranks)
            assert len(mine[iteration].scores) == rows.stop - rows.start


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_scores_are_the_same_to_the_bit_for_every_bound(ranks):
    batches = [make_batch(SMALL, size, seed=size) for size in (10, 10, 9, 17, 10, 4)]
    placement = contiguous(SMALL.tables, ranks)
    synchronous = in_threads(SMALL, placement, batches, bound=0)
    for bound in (1, 2, 5, 50):
        late = in_threads(SMALL, placement, batches, bound)
        for iteration in range(len(batches)):
            assert whole(late, iteration).tobytes() == whole(synchronous, iteration).tobytes()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), owners=st.tuples(*[st.integers(0, 2)] * SMALL.tables))
def test_late_delivery_changes_no_bit(seed, owners):
    rng = np.random.default_rng(seed)
    batches = [make_batch(SMALL, 8, seed=index) for index in range(7)]
    prompt = in_lockstep(SMALL, Placement(owners, 3), batches)
    late = in_lockstep(SMALL, Placement(owners, 3), batches, pick=lambda n: int(rng.integers(0, n + 1)))
    for iteration in range(len(batches)):
        assert whole(late, iteration).tobytes() == whole(prompt, iteration).tobytes()


def test_weights_are_the_same_for_every_number_of_ranks():
    everything = DLRM(SMALL, seed=9).reference_state_dict()
    for ranks in range(1, 8):
        seen = set()
        for rank in range(ranks):
            part = DLRM(SMALL, seed=9, placement=contiguous(SMALL.tables, ranks), rank=rank).reference_state_dict()
            assert all(torch.equal(weight, everything[name]) for name, weight in part.items())
            seen |= part.keys()
        assert seen == everything.keys()


def test_a_rank_makes_and_loads_its_own_tables_only():
    huge = replace(SMALL, rows=(10**12, 3, 11, 5, 10**12))
    part = DLRM(huge, seed=0, placement=Placement((0, 1, 1, 1, 0), 2), rank=1)
    assert list(part.tables.weights) == [1, 2, 3]
    state = DLRM(SMALL, seed=1).reference_state_dict()
    part = DLRM(SMALL, seed=0, placement=Placement((0, 1, 1, 1, 0), 2), rank=1)
    part.load_reference_state_dict(state)
    assert torch.equal(part.tables.weights[2], state["emb_l.2.weight"])
    with pytest.raises(ValueError, match=r"state misses emb_l\.4\.weight"):
        part.load_reference_state_dict({name: state[name] for name in state if name != "emb_l.4.weight"})
    with pytest.raises(ValueError, match="rank 1 holds 3 of 5 tables"):
        part(make_batch(SMALL, 4))


def test_lookup_writes_one_buffer_and_returns_the_same_tuple():
    tables = ShardedTables(SMALL, Placement((0, 1, 0, 1, 0), 2), 0, seed=4)
    batch, other = make_batch(SMALL, 7, seed=1), make_batch(SMALL, 7, seed=2)
    blocks = tables.lookup(batch)
    first = np.concatenate(blocks)
    assert [block.shape for block in blocks] == [(4 * 3 * 4,), (3 * 3 * 4,)]
    assert blocks[0].dtype == np.float32
    assert all(block.flags.c_contiguous for block in blocks)
    address = blocks[0].__array_interface__["data"][0]
    assert blocks[1].__array_interface__["data"][0] == address + blocks[0].nbytes
    for sample in range(7):
        for column, table in enumerate((0, 2, 4)):
            bag = batch.ids[table][batch.offsets[table][sample] : batch.offsets[table][sample + 1]]
            expected = tables.weights[table].numpy()[bag].sum(axis=0)
            np.testing.assert_allclose(first.reshape(7, 3, 4)[sample, column], expected, rtol=1e-5, atol=1e-7)
    assert tables.lookup(other) is blocks
    assert not np.array_equal(np.concatenate(blocks), first)
    assert tables.lookup(make_batch(SMALL, 3)) is not blocks
    assert tables.lookup(batch) is blocks
    assert np.array_equal(np.concatenate(blocks), first)
    tables.lookup(make_batch(SMALL, 20))  # a larger buffer
    assert np.array_equal(np.concatenate(tables.lookup(batch)), first)


def test_lookup_inside_and_outside_inference_mode():
    tables = ShardedTables(SMALL, contiguous(5, 1), 0, seed=4)
    with torch.inference_mode():
        inside = tables.lookup(make_batch(SMALL, 6))[0].copy()
    assert np.array_equal(tables.lookup(make_batch(SMALL, 6))[0], inside)


@given(size=st.integers(0, 100), ranks=st.integers(1, 12))
def test_rows_are_split_as_evenly_as_can_be(size, ranks):
    parts = np.diff(row_starts(size, ranks))
    assert parts.sum() == size
    assert len(parts) == ranks
    assert list(parts) == [size // ranks + (rank < size % ranks) for rank in range(ranks)]


def test_contiguous_is_the_split_of_the_reference():
    counts = {ranks: [len(own) for own in contiguous(26, ranks).tables] for ranks in (2, 4, 8)}
    assert counts == {2: [13, 13], 4: [7, 7, 6, 6], 8: [4, 4, 3, 3, 3, 3, 3, 3]}
    assert contiguous(26, 4).columns[1] == slice(7, 14)
    assert contiguous(2, 3).tables == ((0,), (1,), ())
    with pytest.raises(ValueError, match="table 1 is placed on rank 3, there are ranks 0 to 2"):
        Placement((0, 3), 3)
    with pytest.raises(ValueError, match="placement is of 4 tables, the model has 5"):
        DLRM(SMALL, seed=0, placement=contiguous(4, 2))
    with pytest.raises(ValueError, match="rank 2 is outside the placement, which has ranks 0 to 1"):
        DLRM(SMALL, seed=0, placement=contiguous(5, 2), rank=2)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: f"{p.ranks} ranks {p.owners}")
def test_counts_say_what_is_sent(placement):
    sent = [ShardedTables(SMALL, placement, rank, 0).lookup(make_batch(SMALL, 11)) for rank in range(placement.ranks)]
    starts = row_starts(11, placement.ranks)
    for rank in range(placement.ranks):
        counts = recv_counts(placement, starts[rank + 1] - starts[rank], SMALL.dim)
        assert counts.dtype == np.int64
        assert counts.tolist() == [blocks[rank].size for blocks in sent]
        assert send_counts(placement, rank, 11, SMALL.dim).tolist() == [block.size for block in sent[rank]]
    assert largest_block_bytes(placement, 11, SMALL.dim) == max(block.nbytes for blocks in sent for block in blocks)


def test_a_delay_counts_as_own_work_and_makes_responses_longer(monkeypatch):
    now_s, seen = 100.0, []
    monkeypatch.setattr(inference, "perf_counter", lambda: now_s)  # time passes in delays, and nowhere else

    def delay(iteration: int) -> None:
        nonlocal now_s
        seen.append(iteration)
        assert torch.is_inference_mode_enabled()
        now_s += 0.25 if iteration == 2 else 0.0

    loop = Inference(DLRM(SMALL, seed=0), Loopback(Wire(1), 0, 1, pick=lambda n: 0), before_post=delay)
    batches = [make_batch(SMALL, 5, seed=index) for index in range(4)]
    assert loop.finish() == []
    scored = list(loop.run(batches))
    assert seen == [0, 1, 2, 3]
    assert [s.iteration for s in scored] == [0, 1, 2, 3]
    assert [s.response_s for s in scored] == [0, 0.25, 0.25, 0]  # 1 is scored after the post of 2, at this bound
    assert not torch.is_inference_mode_enabled()


def test_a_loop_goes_on_after_finish():
    loop = Inference(DLRM(SMALL, seed=0), Loopback(Wire(1), 0, 3, pick=lambda n: 0))
    batches = [make_batch(SMALL, 5, seed=index) for index in range(3)]
    again = [*loop.run(batches), *loop.run(batches)]
    assert [scored.iteration for scored in again] == list(range(6))
    for first, second in zip(again[:3], again[3:], strict=True):
        assert first.scores.tobytes() == second.scores.tobytes()


def test_what_does_not_fit_the_exchange_is_refused():
    model = DLRM(SMALL, seed=0, placement=contiguous(5, 2), rank=1)
    with pytest.raises(ValueError, match="model is rank 1 of 2, exchange is rank 0 of 2"):
        Inference(model, Loopback(Wire(2), 0, 0))
    used = Loopback(Wire(1), 0, 5, pick=lambda n: 0)
    whole_model = DLRM(SMALL, seed=0)
    Inference(whole_model, used).step(make_batch(SMALL, 5))
    late = Inference(whole_model, used)
    late.step(make_batch(SMALL, 5))
    with pytest.raises(RuntimeError, match="iteration 1 arrived, which this loop did not post"):
        late.finish()
    with pytest.raises(ValueError, match=r"block of rank 0 has 20 values, 2 samples of 5 tables .* make 40"):
        whole_model.interact(torch.zeros(2, 4), [np.zeros(20, np.float32)])
