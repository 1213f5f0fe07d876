"""The pure core under a scheduler of our own: any interleaving, stores that become visible late, slots that bite."""

import random
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blslib.collective.protocol import BoundedLag, Steps, slots
from blslib.collective.reference import BoundedLagReference


class Fault(AssertionError):
    """The protocol broke its contract."""


class World:
    """P ranks over one memory. Stores become visible in any order, but all of them before their rank's fence."""

    def __init__(self, size: int, bound: int, seed: int, core: Callable[..., BoundedLag] = BoundedLag) -> None:
        self.size, self.bound, self.rng = size, bound, random.Random(seed)
        self.spec = BoundedLagReference(size, bound)
        self.cells: dict[tuple[int, int, int], tuple[int, bytes]] = {}  # (receiver, slot, source): iteration, block
        self.counters = [[0] * size for _ in range(size)]  # by receiver, source
        self.done = [0] * size  # iterations that a rank was handed and, having called again, is done with
        self.pending: list[list[Callable[[], None]]] = [[] for _ in range(size)]
        self.memories = [RankMemory(self, rank) for rank in range(size)]
        self.cores = [core(bound, memory) for memory in self.memories]
        self.moved = True

    def commit(self, rank: int, which: int) -> None:
        self.pending[rank].pop(which)()
        self.moved = True

    def blocks(self, iteration: int, rank: int) -> list[memoryview]:
        return [
            memoryview(bytes([iteration % 256, rank, peer]) * ((iteration + peer) % 3)) for peer in range(self.size)
        ]

    def program(self, rank: int, iterations: int) -> Iterator[int]:
        """One rank: post, sometimes collect, hold what it was handed until the next call, drain."""
        core, spec = self.cores[rank], self.spec
        for i in range(iterations):
            if self.rng.random() < 0.2:
                self.done[rank] = core.delivered
                through = self.rng.randrange(-1, i)
                yield from core.wait(through + 1)
                self.check(rank, through + 1)
                yield 0
            self.done[rank] = core.delivered
            spec.enter(rank, self.blocks(i, rank))
            yield from core.post(self.blocks(i, rank))
            if not spec.may_return(rank):
                raise Fault(f"rank {rank} returned from {i} when {spec.entered} were entered")
            self.check(rank, spec.due(rank))
            yield 0
        self.done[rank] = core.delivered
        yield from core.wait(iterations)
        self.check(rank, iterations)
        if core.delivered != iterations:
            raise Fault(f"rank {rank} was handed {core.delivered} of {iterations}")

    def check(self, rank: int, due: int) -> None:
        core = self.cores[rank]
        first = core.delivered
        arrivals = core.deliver()
        if core.delivered < due:
            raise Fault(f"rank {rank} was handed {core.delivered}, {due} were due")
        if core.delivered > self.spec.complete():
            raise Fault(f"rank {rank} was handed {core.delivered} of {self.spec.complete()} that are complete")
        expected = self.spec.take(rank, core.delivered - 1)
        if [(a.iteration, [b.tobytes() for b in a.blocks]) for a in arrivals] != [
            (i, [bytes(b) for b in blocks]) for i, blocks in expected
        ]:
            raise Fault(f"rank {rank} was handed wrong blocks after iteration {first}")

    def run(self, iterations: int) -> None:
        programs = dict(enumerate(self.program(rank, iterations) for rank in range(self.size)))
        looked: set[int] = set()  # ranks that wait, and have looked since anything changed
        weights = self.draw_weights()
        while programs:
            if self.rng.random() < 0.03:
                weights = self.draw_weights()
            buffers = [self.size + rank for rank in range(self.size) if self.pending[rank]]
            actors = [rank for rank in programs if rank not in looked] + buffers
            if not actors:
                raise Fault(f"deadlock: {sorted(programs)} wait after {self.spec.entered} calls")
            (actor,) = self.rng.choices(actors, [weights[a] for a in actors])
            self.moved = False
            if actor >= self.size:
                self.commit(actor - self.size, self.rng.randrange(len(self.pending[actor - self.size])))
            else:
                try:
                    if next(programs[actor]):
                        looked.add(actor)
                except StopIteration:
                    del programs[actor]
            if self.moved:
                looked.clear()

    def draw_weights(self) -> list[float]:
        """Very uneven: some ranks race, others and their stores crawl."""
        return [10 ** self.rng.uniform(-4, 0) for _ in range(2 * self.size)]


class RankMemory:
    """The memory as one rank reaches it; a ``protocol.Memory``."""

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank = world, rank

    def enter(self, iteration: int) -> bool:
        refused = self.world.rng.random() < 0.1
        self.world.moved |= refused
        return not refused

    def write(self, peer: int, slot: int, block: memoryview) -> None:
        cell, new = (peer, slot, self.rank), (self.world.cores[self.rank].posted - 1, bytes(block))

        def store() -> None:
            old = self.world.cells.get(cell)
            if old is not None and old[0] >= self.world.done[peer]:
                raise Fault(
                    f"rank {self.rank} overwrites iteration {old[0]} with {new[0]} at rank {peer}, which needs it"
                )
            self.world.cells[cell] = new

        self.world.pending[self.rank].append(store)

    def publish(self, peer: int, count: int) -> None:
        row = self.world.counters[peer]

        def store() -> None:
            row[self.rank] = max(row[self.rank], count)  # stores to one place keep their order

        self.world.pending[self.rank].append(store)

    def fence(self) -> None:
        while self.world.pending[self.rank]:
            self.world.commit(self.rank, 0)

    def arrived(self) -> int:
        return min(self.world.counters[self.rank])

    def read(self, slot: int) -> list[np.ndarray]:
        cells = [self.world.cells.get((self.rank, slot, source)) for source in range(self.world.size)]
        if None in cells:
            raise Fault(f"rank {self.rank} reads slot {slot} before it was written")
        return [np.frombuffer(cell[1], np.uint8) for cell in cells if cell is not None]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 14), st.integers(0, 2**32))
def test_the_contract_holds_in_any_order(size, bound, iterations, seed):
    World(size, bound, seed).run(iterations)


@pytest.mark.parametrize("bound", range(4))
def test_two_bound_plus_one_slots(bound):
    assert slots(bound) == 2 * (bound + 1) == BoundedLag(bound, RankMemory(World(1, bound, 0), 0)).slots


class OneSlotFewer(BoundedLag):
    def __init__(self, bound, memory):
        super().__init__(bound, memory)
        self.slots -= 1


class WaitsForOneLess(BoundedLag):
    def wait(self, count: int) -> Steps:
        yield from super().wait(count - 1 if count == self.posted - self.bound else count)


class WaitsForOneMore(BoundedLag):
    def wait(self, count: int) -> Steps:
        yield from super().wait(count + 1)


class PublishesFirst(BoundedLag):
    def post(self, blocks) -> Steps:
        count = self.posted + 1
        for peer in range(len(blocks)):
            self.memory.publish(peer, count)
            yield 0
        yield from super().post(blocks)


class NeverFences(BoundedLag):
    def __init__(self, bound, memory):
        memory.fence = lambda: None
        super().__init__(bound, memory)


def faults(core: type[BoundedLag], bound: int) -> Iterator[str]:
    for seed in range(300):
        try:
            World(2 + seed % 2, bound, seed, core).run(4 * bound + 6)
        except Fault as fault:
            yield str(fault)


@pytest.mark.parametrize("bound", range(4))
@pytest.mark.parametrize(
    ("core", "text"),
    [
        (OneSlotFewer, "overwrites iteration"),
        (WaitsForOneLess, "returned from"),
        (WaitsForOneMore, "deadlock"),
        (PublishesFirst, "before it was written|wrong blocks|that are complete"),
        (NeverFences, "before it was written|wrong blocks"),
    ],
)
def test_the_checker_finds_every_mutant(core, text, bound):
    assert any(re.search(text, fault) for fault in faults(core, bound))
