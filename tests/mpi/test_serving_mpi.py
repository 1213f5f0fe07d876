"""Serving on real ranks: all batches are scored alike, no sooner than the model says, and polling is what helps."""

import pytest

from blslib.lab.experiments import serving

SMALL = {"batch_size": 32, "max_rows": 500, "repeats": 1, "mean_delay_s": 1e-3}


pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_contender_serves_every_batch(comm):
    config = serving.ServingConfig(rate_per_s=300.0, bounds=(0, 2), iterations=20, idle=("polls", "sleeps"), **SMALL)
    rows = serving.run(comm, config)
    assert [(row["contender"], row["bound"], row["idle"]) for row in rows] == [
        (contender, bound, idle)
        for contender, bound in (("mpi", 0), ("bls", 0), ("bls", 2))
        for idle in ("polls", "sleeps")
    ]
    for row in rows:
        assert row["identical_scores"] is True
        assert row["lag"] <= row["bound"]
        assert 0 < row["latency_p50_s"] <= row["latency_p95_s"] <= row["latency_p99_s"]
        assert 0 < row["predicted_p50_s"] <= row["predicted_p99_s"]
        assert 0 < row["batches_per_s"] <= 20 / serving.arrivals(300.0, 20, config.seed)[-1]
    assert rows[0]["gains_p99"] == "1.000000"


def test_an_idle_rank_that_polls_does_not_wait_for_the_next_batch(comm):
    if comm.size == 1:
        pytest.skip("one rank waits for nobody")
    # The last rank is late: it has what others wait for. Batches are rare: a busy machine is done before the next, too.
    late = {"law": "permanent", "rate_per_s": 6.0, "iterations": 8}
    config = serving.ServingConfig(names=("bls",), bounds=(8,), idle=("polls", "sleeps"), **late, **SMALL)
    polls, sleeps = serving.run(comm, config)
    assert polls["latency_p50_s"] < sleeps["latency_p50_s"] / 1.5
