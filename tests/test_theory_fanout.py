"""The queues of distributed inference against ``simpy``, which moves every message by itself, and against formulas."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from blslib.theory.fanout import Served, simulate
from tests.conftest import punctual, within


def by_messages(
    arrival_s: np.ndarray, main_s: np.ndarray, shard_s: np.ndarray, latency_s: float, in_flight: int | None = None
) -> Served:
    """The same system as processes and resources; nothing is shared with ``simulate`` but the shape of its answer."""
    requests, nets, shards = shard_s.shape
    world = simpy.Environment()
    main, places = simpy.Resource(world), simpy.Resource(world, in_flight or requests)
    held = [simpy.Resource(world) for _ in range(shards)]
    done_s, embedded_s = np.zeros((2, requests))

    def served_by(server: simpy.Resource, seconds: float) -> Iterator[simpy.Event]:
        with server.request() as turn:
            yield turn
            yield world.timeout(seconds)

    def asked(shard: int, seconds: float) -> Iterator[simpy.Event]:
        yield world.timeout(latency_s)
        yield from served_by(held[shard], seconds)
        yield world.timeout(latency_s)

    def request(r: int) -> Iterator[simpy.Event]:
        yield world.timeout(arrival_s[r])
        with places.request() as place:
            yield place
            for net in range(nets):
                yield from served_by(main, main_s[r, net])
                left_s = world.now
                who = [s for s in range(shards) if not np.isnan(shard_s[r, net, s])]
                yield world.all_of([world.process(asked(s, shard_s[r, net, s])) for s in who])
                embedded_s[r] += world.now - left_s
            yield from served_by(main, main_s[r, nets])
            done_s[r] = world.now

    for r in range(requests):
        world.process(request(r))
    world.run()
    return Served(done_s, embedded_s, main_s.sum(), np.nansum(shard_s, axis=(0, 1)))


def drawn(seed: int, requests: int, nets: int, shards: int, load: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random times; some shards are not asked, and some nets ask nobody.

    No two events come at one instant: ``simpy`` orders those in another way.
    """
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1.0, requests))
    main_s = rng.exponential(load / (nets + 1), (requests, nets + 1))
    shard_s = rng.exponential(load / max(nets, 1), (requests, nets, shards))
    shard_s[rng.random(shard_s.shape) < 0.2] = np.nan
    shard_s[rng.random((requests, nets)) < 0.1] = np.nan
    return arrival_s, main_s, shard_s


def same(ours: Served, theirs: Served) -> None:
    for name, each, other in zip(Served._fields, ours, theirs, strict=True):
        np.testing.assert_allclose(each, other, rtol=0, atol=1e-9, err_msg=name)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5), st.floats(0.1, 3), st.floats(0, 2))
def test_two_nets_are_served_as_by_messages(seed, requests, shards, load, latency_s):
    times = drawn(seed, requests, 2, shards, load)
    same(simulate(*times, latency_s), by_messages(*times, latency_s))


@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 4), st.floats(0, 1))
def test_so_are_any_nets_with_few_requests_in_flight(seed, nets, in_flight, latency_s):
    times = drawn(seed, 25, nets, 3, 1.5)
    same(simulate(*times, latency_s, in_flight=in_flight), by_messages(*times, latency_s, in_flight))


def test_by_hand():
    arrival_s, main_s = np.array([0.0, 1]), np.array([[1.0, 1], [1, 1]])
    shard_s = np.array([[[2, np.nan]], [[1, 5]]])
    served = simulate(arrival_s, main_s, shard_s, 0.5)
    # Request 0: main until 1, shard 0 until 3.5, main from 4.
    # Request 1: main until 2, shard 0 from 3.5, shard 1 from 2.5 until 7.5, main from 8.
    assert served.done_s.tolist() == [5, 9]
    assert served.embedded_s.tolist() == [3, 6]
    assert served.main_busy_s == 4 and served.shard_busy_s.tolist() == [3, 5]


def test_requests_overtake_between_visits():
    """Why events are needed: the second to arrive is the first to go on."""
    shard_s = np.array([[[9.0, np.nan]], [[np.nan, 1.0]]])
    assert simulate(np.zeros(2), np.ones((2, 2)), shard_s, 0.0).done_s.tolist() == [11, 4]


def test_messages_may_take_longer_to_some_shards():
    served = simulate(np.zeros(1), np.zeros((1, 2)), np.array([[[1.0, 2]]]), np.array([3.0, 0.5]))
    assert served.done_s.tolist() == [7]  # not the 3 of the slower shard


def test_who_is_not_asked_costs_no_message():
    nobody, nothing = np.full((1, 1, 2), np.nan), np.zeros((1, 1, 2))
    assert simulate(np.zeros(1), np.ones((1, 2)), nobody, 3.0).done_s.tolist() == [2]
    assert simulate(np.zeros(1), np.ones((1, 2)), nothing, 3.0).done_s.tolist() == [8]
    assert simulate(np.zeros(1), np.ones((1, 2)), np.zeros((1, 1, 0)), 3.0).done_s.tolist() == [2]


def test_serial_load_never_waits():
    """A request's time is then the sum of its parts, and the longest shard alone counts in each fan-out."""
    _, main_s, shard_s = drawn(3, 200, 2, 4, 1.0)
    served = simulate(np.zeros(200), main_s, shard_s, 0.25, in_flight=1)
    asked = ~np.isnan(shard_s).all(axis=2)
    fanned_s = (np.nan_to_num(shard_s).max(axis=2) + 2 * 0.25 * asked).sum(axis=1)
    np.testing.assert_allclose(served.embedded_s, fanned_s)
    np.testing.assert_allclose(np.diff(served.done_s, prepend=0.0), main_s.sum(axis=1) + fanned_s)
    # Where requests come later than the one before has returned, nobody waits under open load either.
    late_s = 100.0 * np.arange(200)
    calm = simulate(late_s, main_s, shard_s, 0.25)
    np.testing.assert_allclose(calm.done_s - late_s, np.diff(served.done_s, prepend=0.0))


@pytest.mark.parametrize("law", ["M/M/1", "M/D/1", "M/G/1"])
@pytest.mark.parametrize("where", ["main", "shard"])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_mean_waits_are_those_of_pollaczek_and_khinchine(law, where, load):
    """lambda E[S^2] / (2 (1 - rho)), a theorem about queues: a check that needs no other simulator."""
    batches, each = 40, 1500
    rng = np.random.default_rng(7)
    arrival_s = np.cumsum(rng.exponential(1 / load, batches * each))
    # Of mean 1, and a second moment of 2, 1, and that of a mixture of two constants, 0.5 * (0.2**2 + 1.8**2).
    service_s, square = {
        "M/M/1": (rng.exponential(1.0, arrival_s.shape), 2.0),
        "M/D/1": (np.ones(arrival_s.shape), 1.0),
        "M/G/1": (rng.choice([0.2, 1.8], arrival_s.shape), 1.64),
    }[law]
    none = np.zeros((arrival_s.size, 1))
    if where == "main":
        served = simulate(arrival_s, service_s[:, None], np.zeros((arrival_s.size, 0, 0)), 0.0)
    else:
        served = simulate(arrival_s, np.hstack([none, none]), service_s[:, None, None], 0.0)
    waits_s = (served.done_s - arrival_s - service_s).reshape(batches, each).mean(axis=1)
    # Means of long batches are nearly independent; 4 standard errors, as there are twelve cases.
    error_s = 4 * waits_s.std(ddof=1) / np.sqrt(batches)
    assert waits_s.mean() == pytest.approx(load * square / (2 * (1 - load)), abs=error_s)
    assert error_s < 0.2 * waits_s.mean()


def test_parallel_batches_of_a_request_are_requests_joined():
    """The main process packs the second half while the shard looks up the first."""
    whole = simulate(np.zeros(1), np.array([[2.0, 2]]), np.array([[[4.0]]]), 1.0)
    halves = simulate(np.zeros(2), np.ones((2, 2)), np.full((2, 1, 1), 2.0), 1.0)
    assert whole.done_s.tolist() == [10]
    assert np.maximum.reduceat(halves.done_s, [0]).tolist() == [8]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arrival_s": np.zeros(3)}, r"shapes must be \(R,\), .* got \[\(3,\), \(2, 2\), \(2, 1, 4\), \(\)\]"),
        ({"main_s": np.zeros((2, 1))}, r"got \[\(2,\), \(2, 1\)"),
        ({"shard_s": np.zeros((2, 4))}, r"\(2, 4\), \(\)\]"),
        ({"latency_s": np.zeros(3)}, r"\(3,\)\]"),
        ({"arrival_s": np.array([1.0, 0])}, "gaps of arrival_s must be finite and 0 or more, got -1.0 to 1.0"),
        ({"main_s": np.array([[0, 1.0], [0, np.nan]])}, "main_s must be finite and 0 or more, got nan"),
        ({"shard_s": np.full((2, 1, 4), -1.0)}, "shard_s must be finite and 0 or more, got -1.0 to -1.0"),
        ({"latency_s": np.inf}, "latency_s must be finite and 0 or more, got inf"),
        ({"in_flight": 0}, "in_flight is a number of requests >= 1, or None for all, got 0"),
    ],
)
def test_faults_are_named(change, words):
    right = {"arrival_s": np.zeros(2), "main_s": np.zeros((2, 2)), "shard_s": np.zeros((2, 1, 4)), "latency_s": 0.0}
    with pytest.raises(ValueError, match=words):
        simulate(**right | change)


@punctual
def test_it_is_fast():
    """20,000 requests with two nets on 64 shards in a second of one core: other programs do not count."""
    times = drawn(1, 20_000, 2, 64, 0.5)
    started_s = time.process_time()
    served = simulate(*times, 1e-3)
    took_s = time.process_time() - started_s
    assert (served.done_s > times[0]).all()
    within(1.0, took_s)
