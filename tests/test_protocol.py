"""The pure core under random schedules, where there are too many to try them all; ``test_explore`` tries them all."""

import random
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blslib.collective.protocol import BoundedLag, slots
from tests.explore import COMPOSE, Fault, Script, Space, Transcript
from tests.mutants import MUTANTS


def with_collects(iterations: int, rng: random.Random) -> Script:
    """Posts and the last drain, now and then composed; and waits in between for some of what was posted, or nothing."""
    script: list[int | None] = []
    for i in range(iterations):
        if rng.random() < 0.2:
            script.append(rng.randrange(i + 1))
        if rng.random() < 0.3:
            script.append(COMPOSE)
        script.append(None)
    return [*script, iterations]


def walk(size: int, bound: int, iterations: int, seed: int, core: type[BoundedLag] = BoundedLag) -> None:
    """One schedule, very uneven: some ranks race, others and their stores crawl."""
    rng = random.Random(seed)
    space = Space(size, bound, [with_collects(iterations, rng) for _ in range(size)], core)
    state, weights = space.start, list[float]()
    while moves := list(space.moves(state)):
        if not weights or rng.random() < 0.03:
            weights = [10 ** rng.uniform(-4, 0) for _ in range(2 * size)]
        (((rank, which), move),) = rng.choices(moves, [weights[r + size * (which < 0)] for (r, which), _ in moves])
        state = space.after(state, (rank, which), move)
    ends = [each.points[number] for each, number in zip(space.ranks, state[:-1], strict=True)]
    assert [(end.taken, end.call) for end in ends] == [(iterations, len(each.script)) for each in space.ranks]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 20), st.integers(0, 2**32))
def test_the_contract_holds_in_any_order(size, bound, iterations, seed):
    walk(size, bound, iterations, seed)


@pytest.mark.parametrize("bound", range(4))
def test_two_bound_plus_one_slots(bound):
    memory = Transcript(Space(1, bound, []).layout, 0, (), 0)
    assert slots(bound) == 2 * (bound + 1) == BoundedLag(bound, memory).slots


def faults(core: type[BoundedLag], bound: int) -> Iterator[str]:
    for seed in range(300):
        try:
            walk(2 + seed % 3, bound, 3 * bound + 4, seed, core)
        except Fault as fault:
            yield str(fault)


@pytest.mark.parametrize("bound", [3, 5])
@pytest.mark.parametrize(("core", "text"), MUTANTS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_chance_finds_every_mistake_too(core, text, bound):
    assert any(re.search(text, fault) for fault in faults(core, bound))
