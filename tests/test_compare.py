"""How contenders are compared: in which order and for how long, in which loop, on which clock."""

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mpi4py import MPI

from blslib.collective.clock import Clock
from blslib.collective.exchange import Arrival
from blslib.lab.compare import contest
from blslib.lab.compare.contenders import floor, raw
from blslib.lab.compare.contest import JUDGED, Contender, contenders, interleaved, lag_known
from blslib.lab.compare.loop import PERIOD, Loop
from blslib.lab.compare.run import Run, gathered, start
from blslib.lab.experiments import timeline
from blslib.theory.maxplus import ahead
from tests.conftest import punctual, within

ALONE: Any = SimpleNamespace(bcast=lambda each: each)
"""All that ``interleaved`` asks of a communicator."""

effort = partial(SimpleNamespace, budget_s=0.0, seed=1)
"""And of a configuration."""


def orders(items: Sequence[Any], repeats: int, seed: int = 1) -> list[list[Any]]:
    """In which order each repeat measured them."""
    seen: list[Any] = []
    found = interleaved(ALONE, items, lambda item: seen.append(item) or len(seen), effort(repeats=repeats, seed=seed))
    assert list(found) == list(items)
    assert sorted(itertools.chain.from_iterable(found.values())) == list(range(1, len(seen) + 1))
    return [seen[at : at + len(items)] for at in range(0, len(seen), len(items))]


def test_every_repeat_has_all_of_them_in_an_order_of_its_own() -> None:
    items = ["floor", "mpi", "bls", "window"]
    found = orders(items, 20)
    assert len(found) == 20
    assert all(sorted(each) == sorted(items) for each in found)
    assert len(set(map(tuple, found))) > 10
    assert found[0] != found[1]
    assert orders(items, 20) == found
    assert orders(items, 20, seed=2) != found


def test_nobody_keeps_a_predecessor() -> None:
    items = ["floor", "mpi", "bls", "window"]
    before: dict[str, set[str]] = {item: set() for item in items}
    for first, second in itertools.pairwise(itertools.chain.from_iterable(orders(items, 15))):
        before[second].add(first)
    assert all(before[item] >= set(items) - {item} for item in items)


def lasting(
    monkeypatch: pytest.MonkeyPatch, each_s: float, known: Callable[[dict[str, list[int]]], bool], **how: Any
) -> int:
    """How many repeats of two items, of so many seconds each, there are."""
    now_s = [100.0]
    monkeypatch.setattr(contest, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def once(item: str) -> int:
        now_s[0] += each_s
        return 0

    found = interleaved(ALONE, ["a", "b"], once, effort(**how), known)
    assert len(found["a"]) == len(found["b"])
    return len(found["a"])


def test_it_goes_on_until_it_is_known_or_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    never, at_12 = lambda _: False, lambda results: len(results["a"]) >= 12
    assert lasting(monkeypatch, 1.0, at_12, repeats=7, budget_s=1000.0) == 12
    assert lasting(monkeypatch, 1.0, lambda _: True, repeats=7, budget_s=1000.0) == 7  # known at once, yet not before
    assert lasting(monkeypatch, 1.0, never, repeats=7, budget_s=40.0) == 20
    assert lasting(monkeypatch, 1.0, never, repeats=7) == 7  # no budget: exactly so many
    assert lasting(monkeypatch, 100.0, never, repeats=7, budget_s=40.0) == 7
    for each_s in (0.3, 0.7, 1.1, 3.0):
        repeats = lasting(monkeypatch, each_s, never, repeats=2, budget_s=40.0)
        assert 40.0 - 2 * each_s <= 2 * each_s * repeats <= 40.0 + 1e-9


def test_the_first_rank_decides() -> None:
    """Whatever the other ranks' clocks say, and what they think that they know."""
    told = iter([False, False, True])
    comm: Any = SimpleNamespace(bcast=lambda _: next(told))
    assert interleaved(comm, ["a"], lambda _: 0, effort(repeats=1)) == {"a": [0, 0, 0]}


def made(effect: float, count: int, spread: float) -> dict[Contender, list[float]]:
    """Times with an effect of lag that varies from repeat to repeat; the machine's pace does so far more."""
    rng = np.random.default_rng(3)
    pace, noise = np.exp(rng.normal(0, 0.5, count)), np.exp(rng.normal(0, spread, count))
    return {Contender("bls", 0): list(effect * pace * noise), Contender("bls", JUDGED): list(pace)}


def test_whether_it_is_known_depends_on_the_width_alone() -> None:
    known = lag_known(float)
    counts = range(7, 60)
    for spread in (0.02, 0.05, 0.08):
        answers = [[known(made(effect, count, spread)) for count in counts] for effect in (0.5, 1.0, 1.03, 2.0)]
        assert all(each == answers[0] for each in answers)
        # A loss is as well known as the gain that mirrors it.
        swapped = [
            dict(zip(reversed(list(made(1, n, spread))), made(1, n, spread).values(), strict=True)) for n in counts
        ]
        assert [known(each) for each in swapped] == answers[0]
    assert known(made(1.3, 7, 0.001)) and not known(made(1.3, 7, 0.2))
    halves = {item: [SimpleNamespace(s=each) for each in times] for item, times in made(1.3, 7, 0.2).items()}
    assert not lag_known(lambda each: each.s)(halves)


def test_without_the_pair_there_is_nothing_to_know() -> None:
    known = lag_known(float)
    assert known({Contender("mpi", 0): [1.0, 9.0]})
    assert known({Contender("bls", 0): [1.0, 9.0], Contender("bls", 16): [3.0, 1.0]})


def test_contenders_at_their_bounds() -> None:
    items = [Contender("mpi", 0), Contender("bls", 0), Contender("bls", 4)]
    assert contenders(("mpi", "bls"), (0, 4)) == items
    assert contenders(("mpi", "bls", "mpi"), (0, 4, 0)) == items
    with pytest.raises(
        ValueError,
        match="no 'smoke' in .*contenders: choose from bls, bls-in-place, bls-sleeps, floor, gloo, .*torch, window",
    ):
        contenders(("mpi", "smoke"), (0,))


class Rank:
    """A communicator of which there is one rank, as far as a loop can tell."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def allreduce(self, value: Any, op: object = None) -> Any:
        return value

    def Barrier(self) -> None:  # noqa: N802
        pass


Wrong = Callable[[int, list[np.ndarray]], list[np.ndarray]]


class Fabric:
    """An exchange of rank 0 that brings what the others' loops fill, ``bound`` calls late, and not always right."""

    def __init__(self, items: int, size: int = 4, bound: int = 0, wrong: Wrong = lambda _, blocks: blocks) -> None:
        self.loops = [Loop(Rank(rank, size), [items] * size, [items] * size) for rank in range(size)]
        self.bound, self.wrong, self._posted = bound, wrong, 0

    def sent(self, iteration: int, sender: int, receiver: int) -> np.ndarray:
        self.loops[sender].fill(iteration)
        return self.loops[sender].blocks[receiver].copy()

    def _arrival(self, i: int) -> Arrival:
        return Arrival(i, self.wrong(i, [self.sent(i, sender, 0) for sender in range(len(self.loops))]))

    def post(self, blocks: Sequence[np.ndarray]) -> list[Arrival]:
        self._posted += 1
        return [self._arrival(self._posted - 1 - self.bound)] if self._posted > self.bound else []

    def drain(self) -> list[Arrival]:
        return [self._arrival(i) for i in range(max(0, self._posted - self.bound), self._posted)]

    def run(self, calls: int) -> None:
        self._posted = 0
        self.loops[0].run(self, calls)
        self.loops[0].check(calls)


@pytest.mark.parametrize("items", [1, 64, 4096])
@pytest.mark.parametrize("bound", [0, 3])
def test_the_timed_loop_finds_nothing_wrong_where_nothing_is(items: int, bound: int) -> None:
    Fabric(items, bound=bound).run(2 * PERIOD + 3)


LATE = [pytest.param(late, id=f"{late} late") for late in (1, 2, 3, 5, 9, 14)]


@pytest.mark.parametrize("items", [1, 64, 4096, pytest.param(1 << 20, id="4 MiB")])
@pytest.mark.parametrize("late", LATE)
def test_contents_of_an_earlier_iteration_are_found(items: int, late: int) -> None:
    fabric = Fabric(items, size=2)
    fabric.wrong = lambda i, blocks: [
        fabric.sent(i - late, sender, 0) if i >= late else blocks[sender] for sender in (0, 1)
    ]
    calls = late + 2 if items > 4096 else PERIOD + late
    with pytest.raises(RuntimeError, match=rf"rank 0: {2 * (calls - late)} wrong blocks, {calls} of {calls} arrivals"):
        fabric.run(calls)


@pytest.mark.parametrize("items", [1, 4096])
def test_what_another_should_have_is_found(items: int) -> None:
    """From the wrong source, for the wrong destination, or the way back."""
    fabric = Fabric(items)
    for count, wrong in (
        (4, lambda _, blocks: [*blocks[1:], blocks[0]]),
        (2, lambda _, blocks: [blocks[1], blocks[0], *blocks[2:]]),
        (4, lambda i, _: [fabric.sent(i, sender, 1) for sender in range(4)]),
        (3, lambda i, _: [fabric.sent(i, 0, receiver) for receiver in range(4)]),  # its block for itself is right
    ):
        fabric.wrong = wrong
        with pytest.raises(RuntimeError, match=f"rank 0: {count * PERIOD} wrong blocks, {PERIOD} of {PERIOD} arrivals"):
            fabric.run(PERIOD)


def test_arrivals_that_are_missing_or_too_many_are_found() -> None:
    fabric = Fabric(16)
    fabric.drain = lambda: [fabric._arrival(9)]
    with pytest.raises(RuntimeError, match="rank 0: 0 wrong blocks, 10 of 9 arrivals"):
        fabric.run(9)
    lost = Fabric(16, bound=2)
    lost.drain = list
    with pytest.raises(RuntimeError, match="rank 0: 0 wrong blocks, 7 of 9 arrivals"):
        lost.run(9)
    twice = Fabric(16)
    twice.post, once = lambda blocks: once(blocks) * 2, twice.post
    with pytest.raises(RuntimeError, match="18 of 9 arrivals"):
        twice.run(9)
    short = Fabric(16, wrong=lambda _, blocks: [block[:-1] for block in blocks])
    with pytest.raises(RuntimeError, match="36 wrong blocks, 9 of 9 arrivals"):
        short.run(9)


@pytest.mark.parametrize("items", [1, 7, 4096, pytest.param(1 << 20, id="4 MiB")])
def test_every_item_of_every_block_is_read(items: int) -> None:
    """One item that is off by one is found, wherever it stands and whatever the block holds."""
    calls = PERIOD if items <= 4096 else 17  # all contents that there are
    for off in (1.0, -1.0, np.nan, np.inf):
        places = np.random.default_rng(1).permuted([0, items - 1, *np.linspace(0, items - 1, calls - 2)]).astype(int)

        def poison(i: int, blocks: list[np.ndarray]) -> list[np.ndarray]:
            for block in blocks:
                block[places[i]] += off  # noqa: B023
            return blocks

        with pytest.raises(RuntimeError, match=f"rank 0: {2 * calls} wrong blocks, {calls} of {calls} arrivals"):
            Fabric(items, size=2, wrong=poison).run(calls)


@pytest.mark.parametrize("counts", [[1, 1], [8, 8], [3, 0], [0, 0], [1 << 20, 5]])
def test_every_block_is_filled_before_it_is_posted(counts: list[int]) -> None:
    loop = Loop(Rank(1, 2), counts, counts)  # type: ignore[arg-type]
    seen: list[list[float]] = []

    class Posting:
        def post(self, blocks: Sequence[np.ndarray]) -> list[Arrival]:
            assert [len(block) for block in blocks] == counts
            assert all(np.shares_memory(block, loop.sent) for block in blocks if len(block))
            assert all((block == block[:1]).all() for block in blocks), "all items are the same, and none is old"
            seen.append([float(block[0]) for block in blocks if len(block)])
            loop.sent[:] = np.nan
            return []

        def drain(self) -> list[Arrival]:
            return []

    before: list[int] = []
    loop.run(Posting(), 9, before.append)
    assert before == list(range(9))
    assert len(seen) == 9 and not np.isnan(seen).any()
    assert all(one != two for first, second in itertools.pairwise(seen) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["floor", "raw"])
@pytest.mark.parametrize("items", [1, 4096, pytest.param(1 << 20, id="4 MiB")])
def test_a_loop_without_an_exchange_and_one_of_bare_mpi(name: str, items: int) -> None:
    module = {"floor": floor, "raw": raw}[name]
    loop = Loop(MPI.COMM_SELF, [items], [items])
    with module.build(MPI.COMM_SELF, 0, send_counts=[items], recv_counts=[items], slot_bytes=4 * items) as exchange:
        assert loop.time_us(exchange, 65) > 0
        assert 20 <= loop.calls(exchange) <= 1500
        loop.run(exchange, 65)
        loop.check(65)
        with pytest.raises(RuntimeError, match="0 wrong blocks, 65 of 66 arrivals"):
            loop.check(66)


def test_what_comes_before_each_post_is_timed_with_it_and_every_rank_has_as_many_turns() -> None:
    class Posting:
        bound = 0
        own = True  # what arrives is what was sent

        def post(self, blocks: Sequence[np.ndarray]) -> list[Arrival]:
            return [Arrival(0, list(blocks))]

        def drain(self) -> list[Arrival]:
            return []

    loop, before = Loop(Rank(0, 3), [1] * 3, [1] * 3), []  # type: ignore[arg-type]
    assert loop.time_us(Posting(), 9, lambda i: before.append(i) or time.sleep(1e-3)) >= 1000
    assert before == list(range(9))
    assert loop.calls(Posting(), lambda _: time.sleep(2e-3)) == 21
    assert loop.calls(Posting()) in range(21, 1501, 3)


def test_the_floor_reads_a_ranks_own_blocks() -> None:
    """What it reads is what it has sent, on whichever rank; nothing else may be right in its place."""
    loop = Loop(Rank(2, 3), [5, 6, 7], [9, 9, 9])  # type: ignore[arg-type]
    idle = floor.build(SimpleNamespace(rank=2, size=3), 0)  # type: ignore[arg-type]
    loop.run(idle, PERIOD + 2)
    loop.check(PERIOD + 2)
    idle.own = False
    loop.run(idle, 4)
    with pytest.raises(RuntimeError, match="rank 2: 12 wrong blocks, 4 of 4 arrivals"):
        loop.check(4)


def test_lag_and_work_of_a_run() -> None:
    # Rank 0 returns from calls at 1, 2, 3; rank 1 enters at 0, 2.5, 2.9, and collects for 0.2 s before the last.
    run = Run(
        started_s=np.array([0.0, 0.0]),
        entered_s=np.array([[0.5, 1.5, 2.5], [0.0, 2.5, 2.9]]),
        returned_s=np.array([[1.0, 2.0, 3.0], [1.0, 2.6, 3.0]]),
        collected_s=np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.0]]),
        drained_s=np.array([[3.0, 3.1], [3.0, 3.2]]),
        ended_s=np.array([3.5, 3.2]),
    )
    assert (run.calls, run.lag, run.measured_s) == (3, 1, 3.5)
    assert ahead(run.entered_s, run.returned_s).tolist() == [[0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(run.work_s, [[0.5, 0.5, 0.5], [0.0, 1.5, 0.1]])
    # By hand, synchronous: 0.5, then 2.0, then 2.5, then 0.4 after the drain on rank 0.
    assert run.predicted_s(0) == pytest.approx(2.9)
    row = run.measures(4, run)
    assert row == {
        "measured_s": 3.5,
        "predicted_s": run.predicted_s(4),
        "foreseen_s": run.predicted_s(4),
        "limit_s": pytest.approx(1.6),
        "useful_s": pytest.approx(1.55),
        "lag": 1,
    }


def test_who_waits_for_whom() -> None:
    """Three ranks and calls by hand; at the second call ranks 1 and 2 come last at the same instant."""
    entered_s = np.array([[0.0, 4.0, 9.0], [1.0, 6.0, 7.0], [3.0, 6.0, 8.0]])
    done_s = np.array([[9.5, 9.5], [10.0, 10.0], [8.5, 8.5]])  # rank 1 is last in the drain, where nobody waits for it
    run = Run(np.zeros(3), entered_s, entered_s, np.zeros((3, 4)), done_s, done_s[:, 1])
    whom, waits_s = run.waits(0)
    assert whom.tolist() == [2, 1, 0, 0]
    assert waits_s.tolist() == [[3, 2, 0, 0], [2, 0, 2, 0], [0, 0, 1, 0.5]]
    whom, waits_s = run.waits(1)  # the second call needs the first of everybody, the third the second
    assert whom.tolist() == [-1, 2, 1, 0]
    assert waits_s.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.5]]
    entered_s, drained_s = np.array([[1.0, 2.0, 3.0], [1.0, 9.0, 10.0]]), np.array([[9.0, 10.0], [10.0, 10.0]])
    late = Run(np.zeros(2), entered_s, entered_s, np.zeros((2, 4)), drained_s, drained_s[:, 1])
    for bound, waits_of_rank_0_s in {0: [0, 7, 7, 1], 1: [0, 0, 6, 1], 2: [0, 0, 0, 1], 5: [0, 0, 0, 1]}.items():
        whom, waits_s = late.waits(bound)
        assert waits_s.tolist() == [waits_of_rank_0_s, [0, 0, 0, 0]]
        assert whom[-1] == 1 and whom[: min(bound, 3)].tolist() == [-1] * min(bound, 3)


def test_rows_of_a_timeline_say_who_waits_for_whom() -> None:
    """One rank waits for itself alone, which takes no time."""
    config = timeline.Config((0, 1), "none", work_s=1e-3, iterations=3)
    table = pd.DataFrame(timeline.run(MPI.COMM_SELF, config))
    assert set(table["law"]) == {"none"} and (table["waits_s"] == 0).all()
    needs = table[table["phase"] == "waiting"].groupby("bound")["waits_for"].agg(list)
    assert needs.to_dict() == {0: [0, 0, 0, 0], 1: [-1, 0, 0, 0]}


class Sleeping:
    """An exchange of one rank, all of whose calls take ``NAP_S``."""

    rank, size, bound = 0, 1, 0

    def post(self, blocks: object) -> list[Arrival]:
        time.sleep(NAP_S)
        return []

    def collect(self, through: int | None = None) -> list[Arrival]:
        time.sleep(NAP_S)
        return [Arrival(0, [])] if through is None else []

    def drain(self) -> list[Arrival]:
        time.sleep(NAP_S)
        return []


NAP_S = 0.02


@punctual
def test_what_collect_takes_is_no_work() -> None:
    """In every call of the exchange time is waiting, and outside of them it is work."""
    clock = Clock(Sleeping())
    started_s = start(MPI.COMM_SELF)
    for _ in range(3):
        clock.post([])
        assert clock.collect() == [Arrival(0, [])] and clock.collect(0) == []
    clock.drain()
    run = gathered(MPI.COMM_SELF, clock, started_s)
    assert (run.collected_s[0, 0], run.collected_s.shape) == (0, (1, 4))
    assert (run.collected_s[0, 1:] >= 2 * NAP_S).all()
    assert run.measured_s >= 10 * NAP_S
    assert run.work_s.shape == (1, 3)
    within(NAP_S, float(run.work_s.max()), run)
    within(NAP_S, run.predicted_s(0), run)


def test_a_run_that_does_not_drain_ends_where_it_ends() -> None:
    clock = Clock(Sleeping())
    started_s = start(MPI.COMM_SELF)
    clock.post([])
    time.sleep(NAP_S)
    run = gathered(MPI.COMM_SELF, clock, started_s)
    assert (run.drained_s == run.ended_s).all()
    assert run.predicted_s(0) >= NAP_S  # the work after the last call counts
    assert run.predicted_s(0) <= run.measured_s
