"""Serving on real ranks: all batches are scored alike, no sooner than the model says, and polling is what helps."""

import pytest

from blslib.lab.experiments import serving

SMALL = {"batch_size": 32, "max_rows": 500, "mean_delay_s": 1e-3}


pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_contender_serves_every_batch(comm):
    few = {"bounds": (0, 2), "iterations": 20, "idle": ("polls", "sleeps"), "repeats": 2}
    rows = serving.run(comm, serving.Config(rate_per_s=300.0, **few, **SMALL))
    servers = [
        (contender, bound, idle)
        for contender, bound in (("mpi", 0), ("bls", 0), ("bls", 2))
        for idle in ("polls", "sleeps")
    ]
    assert [(row["contender"], row["bound"], row["idle"], row["repeat"], row["batch"]) for row in rows] == [
        (*server, repeat, batch) for server in servers for repeat in range(2) for batch in range(20)
    ]
    assert comm.bcast(rows) == rows, "they are the same on every rank"
    for row in rows:
        assert row["identical"] is True
        assert row["predicted_s"] > 0 and row["latency_s"] > 0
    # Not batch by batch: a rank may be stopped between scoring and the end of its step, which the model counts as work.
    lines = serving.pooled(rows).query("bound == 0")
    assert (lines["latency_p50_s"] > lines["predicted_p50_s"] - 1e-3).all()
    assert {(row["rate_per_s"], row["ranks"]) for row in rows} == {(300.0, comm.size)}


def test_an_idle_rank_that_polls_does_not_wait_for_the_next_batch(comm):
    if comm.size == 1:
        pytest.skip("one rank waits for nobody")
    # The last rank is late: it has what others wait for. Batches are rare: a busy machine is done before the next, too.
    late = {"law": "permanent", "rate_per_s": 6.0, "iterations": 8, "repeats": 1}
    config = serving.Config(names=("bls",), bounds=(8,), idle=("polls", "sleeps"), **late, **SMALL)
    found = serving.pooled(serving.run(comm, config)).set_index("idle")["latency_p50_s"]
    assert found["polls"] < found["sleeps"] / 1.5
