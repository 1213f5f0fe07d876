"""The inference loop on real ranks: every contender gives the same scores to the bit, close to those of one process."""

import random
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from mpi4py import MPI

from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.baselines import IalltoallvWindow, MpiAlltoallv
from blslib.collective.exchange import Exchange
from blslib.dlrm.config import ModelConfig
from blslib.dlrm.inference import Inference, Scored
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import largest_block_bytes, own_rows, recv_counts, send_counts
from blslib.placement.shards import Placement, Shard, contiguous, whole
from blslib.workloads.batch import Batch
from blslib.workloads.synthetic import Synthetic

CONFIG = ModelConfig(rows=(400, 30, 1000, 7, 90, 1), dim=16, bottom=(13, 32, 16), top=(64, 32, 1))
BATCHES = 20


pytestmark = pytest.mark.usefixtures("one_thread")


def make_batches(size: int) -> list[Batch]:
    return list(Synthetic(CONFIG.rows, size, (2.5, 0.3, 4, 1, 3, 2), seed=1, iterations=BATCHES))


def placements(ranks: int) -> dict[str, Placement]:
    uneven = np.random.default_rng(ranks).integers(0, ranks, CONFIG.tables).tolist()
    return {
        "contiguous": contiguous(CONFIG.shapes, ranks),
        "uneven": whole(CONFIG.shapes, uneven, ranks),
        "all on one": whole(CONFIG.shapes, [ranks - 1] * CONFIG.tables, ranks),
        "every kind": mixed(ranks),
    }


def mixed(ranks: int) -> Placement:
    """Row blocks against the order of ranks, a strip, every n-th row, replicas; the first of many ranks has no more."""
    (rows, dim), last = CONFIG.shapes[2], ranks - 1
    shards = [Shard(0, range(400), range(5), last), Shard(0, range(400), range(5, dim), None)]
    shards += [Shard(1, range(30), range(dim), None)]
    shards += [Shard(2, range(a, b), range(dim), r) for a, b, r in ((0, 10, last), (10, 600, None), (600, rows, 0))]
    shards += [Shard(3, range(k, 7, 3), range(dim), (last + k) % ranks) for k in range(3)]
    shards += [Shard(t, range(CONFIG.rows[t]), range(dim), last) for t in (4, 5)]
    return Placement(tuple(shards), ranks)


def contenders(comm: MPI.Intracomm, placement: Placement, size: int) -> dict[str, Callable[[], Exchange]]:
    known = {
        "recv_counts": recv_counts(placement, comm.rank, size).tolist(),
        "send_counts": send_counts(placement, comm.rank, size).tolist(),
    }
    ring = {
        "slot_bytes": largest_block_bytes(placement, size),
        "recv_counts": known["recv_counts"],
        "timeout_s": 60.0,
    }
    return {
        "mpi": partial(MpiAlltoallv, comm, **known),
        "window 3": partial(IalltoallvWindow, comm, bound=3, **known),
        **{f"bls {bound}": partial(BoundedLagAlltoallv, comm, bound=bound, **ring) for bound in (0, 1, 4, 32)},
        "bls 2, small slots": partial(BoundedLagAlltoallv, comm, bound=2, **{**ring, "slot_bytes": 64}),
        "bls 2, messages": partial(BoundedLagAlltoallv, comm, bound=2, channel="messages", **ring),
    }


@pytest.mark.parametrize("size", [32, 30])
@pytest.mark.parametrize("which", list(placements(1)))
def test_every_contender_gives_the_same_scores(comm, size, which):
    placement = placements(comm.size)[which]
    model = DLRM(CONFIG, seed=5, placement=placement, rank=comm.rank)
    batches = [batch.only(placement.parts(comm.rank), CONFIG.rows) for batch in make_batches(size)]
    expected: list[Scored] = []
    nap = random.Random(comm.rank)
    for name, build in contenders(comm, placement, size).items():
        with build() as exchange:
            loop = Inference(model, exchange, before_post=lambda _: time.sleep(nap.choice((0, 0, 0.002))))
            scored = list(loop.run(batches))
        assert [one.iteration for one in scored] == list(range(BATCHES)), name
        expected = expected or scored
        for one, first in zip(scored, expected, strict=True):
            assert one.scores.tobytes() == first.scores.tobytes(), (name, one.iteration)
    one_process = DLRM(CONFIG, seed=5)
    mine = own_rows(size, comm.rank, comm.size)
    for scored_batch, batch in zip(expected, make_batches(size), strict=True):
        np.testing.assert_allclose(scored_batch.scores, one_process(batch)[mine], rtol=1e-5, atol=1e-6)


def test_the_others_go_on_while_one_is_away(comm):
    if comm.size == 1:
        pytest.skip("one rank has no others")
    away_s, bound = 0.2, 4
    placement = contiguous(CONFIG.shapes, comm.size)
    model = DLRM(CONFIG, seed=5, placement=placement, rank=comm.rank)
    slot_bytes = largest_block_bytes(placement, 32)
    batches = make_batches(32)[: bound + 1]
    back_s = 0.0

    def away(iteration: int) -> None:
        """Rank 0 has not begun when the others have made as many steps as the bound lets them."""
        nonlocal back_s
        if iteration == (bound if comm.rank else 0):
            comm.Barrier()
            if comm.rank == 0:
                time.sleep(away_s)
                back_s = time.monotonic()

    with BoundedLagAlltoallv(comm, bound=bound, slot_bytes=slot_bytes) as exchange:
        loop = Inference(model, exchange, before_post=away)
        for batch in batches:
            loop.step(batch)
        returned_s = time.monotonic()
        loop.finish()
    assert returned_s >= comm.bcast(back_s)  # one host, one clock
