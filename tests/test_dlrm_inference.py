"""Sharding and the inference loop, over exchanges made for the test: in threads, and in lockstep with late delivery."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise, permutations
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blslib.collective.exchange import Arrival
from blslib.dlrm import inference, sharding
from blslib.dlrm.config import ModelConfig
from blslib.dlrm.inference import Inference, Scored
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import (
    ShardedTables,
    initial_weights,
    largest_block_bytes,
    moves,
    own_rows,
    recv_counts,
    row_starts,
    send_counts,
)
from blslib.placement.shards import Placement, PlacementError, Shard, contiguous
from blslib.placement.shards import whole as placed
from blslib.workloads.batch import Batch
from blslib.workloads.synthetic import Synthetic
from tests.test_dlrm_model import weights

SMALL = ModelConfig(rows=(7, 3, 11, 5, 1), dim=4, bottom=(6, 8, 4), top=(9, 1))


def make_batch(config: ModelConfig, size: int, seed: int = 0) -> Batch:
    """Bags of 0 to 3 ids, in one table always empty."""
    return next(iter(Synthetic(config.rows, size, (1.5, 0.5, 3, 2, 0), dense_features=6, seed=seed)))


@st.composite
def placements(draw: st.DrawFn, split_rows: bool) -> Placement:
    """Of the small tables over one to five ranks: whole, cut into column strips, row blocks or both, and replicated."""

    def cuts(size: int) -> list[range]:
        inner = draw(st.sets(st.integers(1, size - 1), max_size=3)) if size > 1 else set()
        return [range(*ends) for ends in pairwise([0, *sorted(inner), size])]

    ranks = draw(st.integers(1, 5))
    shards = []
    for table, (rows, dim) in enumerate(SMALL.shapes):
        for columns in cuts(dim):
            every = draw(st.integers(1, min(3, rows))) if split_rows else 1
            blocks = cuts(rows) if split_rows and every == 1 else [range(k, rows, every) for k in range(every)]
            owners = [draw(st.sampled_from([None, *range(ranks)])) for _ in blocks]
            shards += [Shard(table, block, columns, rank) for block, rank in zip(blocks, owners, strict=True)]
    return Placement(tuple(draw(st.permutations(shards))), ranks)


@torch.inference_mode()
def in_one(config: ModelConfig, batch: Batch, ranks: int) -> np.ndarray:
    """Scores of one process that holds all, in groups of as many samples as ranks score: the products' shapes count."""
    one = DLRM(config, seed=4)
    [pooled] = one.tables.lookup(batch)
    parts = [own_rows(batch.size, rank, ranks) for rank in range(ranks)]
    pooled = pooled.reshape(batch.size, config.tables * config.dim)
    return np.concatenate([one.score(one.bottom(batch.dense[part]), [pooled[part].reshape(-1)]) for part in parts])


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

    def compose(self, counts) -> list[np.ndarray]:
        return [np.full(count, np.nan, np.float32) for count in counts]

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


def in_lockstep(
    config, placement, batches, pick: Callable[[int], int] = lambda n: n, cut: bool = False
) -> list[list[Scored]]:
    """All ranks in one thread, one after the other; nobody waits, arrivals are as late as ``pick`` makes them.

    With ``cut`` each rank is given the ids of its own rows alone.
    """
    wire = Wire(placement.ranks)
    loops = [
        Inference(DLRM(config, seed=4, placement=placement, rank=rank), Loopback(wire, rank, None, pick))
        for rank in range(placement.ranks)
    ]
    scored: list[list[Scored]] = [[] for _ in loops]
    for batch in batches:
        for rank, (mine, loop) in enumerate(zip(scored, loops, strict=True)):
            mine += loop.step(batch.only(placement.parts(rank), config.rows) if cut else batch)
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


PLACEMENTS = [contiguous(SMALL.shapes, ranks) for ranks in range(1, 8)] + [
    placed(SMALL.shapes, (2, 0, 1, 0, 2), 3),
    placed(SMALL.shapes, (1, 1, 1, 1, 1), 2),
    placed(SMALL.shapes, (3, 0, 3, None, 0), 4),
    placed(SMALL.shapes, (None,) * 5, 2),
]


def owners(placement: Placement) -> str:
    return f"{placement.ranks} ranks {[shard.rank for shard in placement.shards]}"


@pytest.mark.parametrize("placement", PLACEMENTS, ids=owners)
@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_any_placement_scores_like_one_process(placement, interaction):
    config = replace(SMALL, interaction=interaction)
    batches = [make_batch(config, size, seed=size) for size in (12, 7, 3, 12, 13)]
    scored = in_lockstep(config, placement, batches)
    one = DLRM(config, seed=4)
    for iteration, batch in enumerate(batches):
        np.testing.assert_allclose(whole(scored, iteration), one(batch), rtol=1e-5, atol=1e-6)
        assert whole(scored, iteration).tobytes() == in_one(config, batch, placement.ranks).tobytes()
        for rank, mine in enumerate(scored):
            rows = own_rows(batch.size, rank, placement.ranks)
            assert len(mine[iteration].scores) == rows.stop - rows.start


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_scores_are_the_same_to_the_bit_for_every_bound(ranks):
    batches = [make_batch(SMALL, size, seed=size) for size in (10, 10, 9, 17, 10, 4)]
    placement = contiguous(SMALL.shapes, ranks)
    synchronous = in_threads(SMALL, placement, batches, bound=0)
    for bound in (1, 2, 5, 50):
        late = in_threads(SMALL, placement, batches, bound)
        for iteration in range(len(batches)):
            assert whole(late, iteration).tobytes() == whole(synchronous, iteration).tobytes()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), split_rows=st.booleans())
def test_late_delivery_changes_no_bit_whatever_the_shards(data, seed, split_rows):
    rng, placement = np.random.default_rng(seed), data.draw(placements(split_rows))
    batches = [make_batch(SMALL, size, seed=index) for index, size in enumerate((8, 8, 3, 11, 8))]
    prompt = in_lockstep(SMALL, placement, batches)
    late = in_lockstep(SMALL, placement, batches, pick=lambda n: int(rng.integers(0, n + 1)), cut=True)
    for iteration, batch in enumerate(batches):
        scores, expected = whole(prompt, iteration), in_one(SMALL, batch, placement.ranks)
        assert whole(late, iteration).tobytes() == scores.tobytes()
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        assert split_rows or scores.tobytes() == expected.tobytes()


@pytest.mark.parametrize("owners", list(permutations([0, 1, 2])) + list(permutations([None, 0, 2])))
@pytest.mark.parametrize("cut", [(range(1), range(1, 2), range(2, 3)), [range(k, 3, 3) for k in range(3)]])
def test_row_blocks_are_added_in_their_order_whoever_holds_them(owners, cut):
    config = replace(SMALL, rows=(3, 2), interaction="cat")
    shards = [Shard(0, rows, range(4), rank) for rows, rank in zip(cut, owners, strict=True)]
    placement = Placement((*shards, Shard(1, range(2), range(4), 1)), 3)
    table = torch.tensor([[1e8], [1.0], [-1e8]]).expand(3, 4)  # 0 in this order alone, 1 in others
    models = [DLRM(config, seed=4, placement=placement, rank=rank) for rank in range(3)]
    ids = np.array([0, 1, 2] * 3)
    batch = Batch(np.zeros((3, 6), np.float32), (ids, ids[:0]), (np.array([0, 3, 6, 9]), np.zeros(4, np.int64)))
    for model in models:
        for shard, weight in model.tables.weights.items():
            if shard.table == 0:
                weight.copy_(table[list(shard.rows)])
    sent = [model.tables.lookup(batch) for model in models]
    for rank, model in enumerate(models):
        vectors = model.interact(model.home(batch), [blocks[rank] for blocks in sent])
        assert vectors[0, 4:8].tolist() == [0.0] * 4  # the least: (1e8 + 1) - 1e8 in float32


@settings(max_examples=60)
@given(data=st.data(), dim=st.integers(1, 5), rows=st.integers(1, 40), chunk=st.sampled_from([1, 17, 1 << 16]))
def test_a_shard_is_made_with_the_weights_of_its_table(data, dim, rows, chunk):
    config = ModelConfig(rows=(9, rows), dim=dim, bottom=(6, dim), top=(1,))
    stops = data.draw(st.tuples(st.integers(0, rows - 1), st.integers(1, 40), st.integers(1, 5)))
    part = range(stops[0], min(rows, stops[0] + stops[1]), stops[2])
    left = data.draw(st.integers(0, dim - 1))
    columns = range(left, data.draw(st.integers(left + 1, dim)))
    bound = np.float32(np.sqrt(1 / rows))
    table = sharding.stream(3, 0, 1).random((rows, dim), dtype=np.float32) * (2 * bound) - bound
    with mock.patch.object(sharding, "_CHUNK", chunk):
        weights = initial_weights(config, Shard(1, part, columns, 0), seed=3)
    assert weights.is_contiguous()
    assert np.array_equal(weights.numpy(), table[list(part)][:, list(columns)])


def test_a_row_block_is_made_without_its_table():
    config = replace(SMALL, rows=(10**12,), dim=4)
    weights = initial_weights(config, Shard(0, range(10**12 - 5, 10**12), range(4), 0), seed=3)
    before = initial_weights(config, Shard(0, range(10**12 - 9, 10**12 - 3), range(4), 0), seed=3)
    assert torch.equal(weights[:2], before[4:])


KINDS = {
    "row block": [Shard(0, range(3), range(4), 0), Shard(0, range(3, 7), range(4), 1)],
    "every second row": [Shard(0, range(k, 7, 2), range(4), k) for k in range(2)],
    "column strip": [Shard(0, range(7), range(1), 0), Shard(0, range(7), range(1, 4), 1)],
    "replicated": [Shard(0, range(7), range(4), None)],
    "two of three blocks": [Shard(0, range(a, b), range(4), r) for a, b, r in ((0, 2, 1), (2, 4, 0), (4, 7, 1))],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [7, 8, -1, 10**9])
@pytest.mark.parametrize("cut", [False, True])
def test_an_id_outside_its_table_is_named_whatever_the_shard(kind, wrong, cut):
    rest = [Shard(t, range(SMALL.rows[t]), range(4), 0) for t in range(1, 5)]
    placement = Placement((*KINDS[kind], *rest), 2)
    batch = make_batch(SMALL, 6)
    spoilt = batch.ids[0].copy()
    spoilt[-1 if kind == "replicated" else len(spoilt) // 2] = wrong
    batch = replace(batch, ids=(spoilt, *batch.ids[1:]))
    told = 0
    for rank in range(2):
        try:
            here = batch.only(placement.parts(rank), SMALL.rows) if cut else batch
            model = DLRM(SMALL, seed=0, placement=placement, rank=rank)
            model.tables.lookup(here), model.home(here)
        except ValueError as error:
            told += "table 0 has rows 0 to 6, the batch asks for" in str(error)
    assert told == (1 if kind == "replicated" else 2)  # a replica is looked up by the rank that scores the sample


def test_weights_are_the_same_for_every_number_of_ranks():
    everything = weights(DLRM(SMALL, seed=9))
    for ranks in range(1, 8):
        seen = set()
        for rank in range(ranks):
            part = weights(DLRM(SMALL, seed=9, placement=contiguous(SMALL.shapes, ranks), rank=rank))
            assert all(torch.equal(weight, everything[name]) for name, weight in part.items())
            seen |= part.keys()
        assert seen == everything.keys()


def test_a_rank_makes_its_own_tables_only():
    huge = replace(SMALL, rows=(10**12, 3, 11, 5, 10**12))
    part = DLRM(huge, seed=0, placement=placed(huge.shapes, (0, 1, 1, 1, 0), 2), rank=1)
    assert [shard.table for shard in part.tables.weights] == [1, 2, 3]
    part = DLRM(SMALL, seed=0, placement=placed(SMALL.shapes, (0, 1, 1, 1, 0), 2), rank=1)
    with pytest.raises(ValueError, match="rank 1 holds 3 of 5 shards"):
        part(make_batch(SMALL, 4))


@settings(max_examples=20)
@given(placement=placements(split_rows=True))
def test_a_rank_makes_the_rows_and_columns_of_its_shards(placement):
    everything = weights(DLRM(SMALL, seed=1))
    for rank in range(placement.ranks):
        part = DLRM(SMALL, seed=1, placement=placement, rank=rank)
        assert set(part.tables.weights) == {*placement.of_rank[rank], *placement.replicated}
        for shard, weight in part.tables.weights.items():
            table = everything[f"emb_l.{shard.table}.weight"]
            assert torch.equal(weight, table[list(shard.rows)][:, list(shard.columns)])


def test_lookup_writes_where_it_is_told():
    tables = ShardedTables(SMALL, placed(SMALL.shapes, (0, 1, 0, 1, 0), 2), 0, seed=4)
    batch = make_batch(SMALL, 7, seed=1)
    room = [np.full(4 * 3 * 4, np.nan, np.float32), np.full(3 * 3 * 4, np.nan, np.float32)]
    assert tables.lookup(batch, room) is room
    both = np.concatenate(room).reshape(7, 3, 4)
    for sample in range(7):
        for column, table in enumerate((0, 2, 4)):
            bag = batch.ids[table][batch.offsets[table][sample] : batch.offsets[table][sample + 1]]
            expected = tables.weights[tables.placement.shards[table]].numpy()[bag].sum(axis=0)
            np.testing.assert_allclose(both[sample, column], expected, rtol=1e-5, atol=1e-7)
    fresh = tables.lookup(batch)
    assert [block.dtype for block in fresh] == [np.float32] * 2
    assert all(map(np.array_equal, fresh, room))
    assert all(map(np.array_equal, tables.lookup(make_batch(SMALL, 7, seed=2)), fresh)) is False
    with pytest.raises(ValueError, match="reshape"):
        tables.lookup(batch, room[::-1])
    with pytest.raises(ValueError, match="zip"):
        tables.lookup(batch, room[:1])


def test_lookup_inside_and_outside_inference_mode():
    tables = ShardedTables(SMALL, contiguous(SMALL.shapes, 1), 0, seed=4)
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
    shapes = [(9, 4)] * 26
    counts = {ranks: [len(own) for own in contiguous(shapes, ranks).of_rank] for ranks in (2, 4, 8)}
    assert counts == {2: [13, 13], 4: [7, 7, 6, 6], 8: [4, 4, 3, 3, 3, 3, 3, 3]}
    assert contiguous(shapes[:2], 3).widths == (4, 4, 0)
    # One slice for each source, and the dense vectors from home.
    expected = [
        (0, s, slice(0, 4 * n), slice(a, a + 4 * n)) for s, (n, a) in enumerate([(7, 4), (7, 32), (6, 60), (6, 84)])
    ]
    assert list(moves(contiguous(shapes, 4), 4)) == [*expected, (0, 4, slice(0, 4), slice(0, 4))]
    with pytest.raises(
        PlacementError, match="table 4 of 1 rows and 4 columns must be held whole and once, got nothing"
    ):
        DLRM(SMALL, seed=0, placement=contiguous(SMALL.shapes[:4], 2))
    with pytest.raises(ValueError, match="rank 2 is outside the placement, which has ranks 0 to 1"):
        DLRM(SMALL, seed=0, placement=contiguous(SMALL.shapes, 2), rank=2)


@settings(max_examples=20)
@given(placement=placements(split_rows=True))
def test_counts_say_what_is_sent(placement):
    sent = [ShardedTables(SMALL, placement, rank, 0).lookup(make_batch(SMALL, 11)) for rank in range(placement.ranks)]
    for rank in range(placement.ranks):
        counts = recv_counts(placement, rank, 11)
        assert counts.dtype == np.int64
        assert counts.tolist() == [blocks[rank].size for blocks in sent]
        assert send_counts(placement, rank, 11).tolist() == [block.size for block in sent[rank]]
    assert largest_block_bytes(placement, 11) == max(block.nbytes for blocks in sent for block in blocks)


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
    model = DLRM(SMALL, seed=0, placement=contiguous(SMALL.shapes, 2), rank=1)
    with pytest.raises(ValueError, match="model is rank 1 of 2, exchange is rank 0 of 2"):
        Inference(model, Loopback(Wire(2), 0, 0))
    used = Loopback(Wire(1), 0, 5, pick=lambda n: 0)
    whole_model = DLRM(SMALL, seed=0)
    Inference(whole_model, used).step(make_batch(SMALL, 5))
    late = Inference(whole_model, used)
    late.step(make_batch(SMALL, 5))
    with pytest.raises(RuntimeError, match="iteration 1 arrived, which this loop did not post"):
        late.finish()
    with pytest.raises(ValueError, match=r"block of rank 0 has 20 values, 2 samples of 20 columns make 40"):
        whole_model.interact(torch.zeros(2, 4), [np.zeros(20, np.float32)])
