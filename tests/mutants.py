"""The protocol with one mistake each. A checker that lets one of them pass proves nothing."""

from collections.abc import Callable
from typing import Any

from blslib.collective.exchange import Arrival
from blslib.collective.protocol import BoundedLag, Steps


def nothing(*_: Any) -> None:
    """In the place of an operation that is left out."""


class OneSlotFewer(BoundedLag):
    def __init__(self, bound, memory):
        super().__init__(bound, memory)
        self.slots -= 1


class WaitsForOneLess(BoundedLag):
    def wait(self, count: int) -> Steps:
        return super().wait(count - 1 if count == self.posted - self.bound else count)


class WaitsForOneMore(BoundedLag):
    def wait(self, count: int) -> Steps:
        return super().wait(count + 1)


class GivesUpWaiting(BoundedLag):
    def wait(self, count: int) -> Steps:
        for need in super().wait(count):
            yield need
            return


class PublishesFirst(BoundedLag):
    def post(self, blocks) -> Steps:
        self.memory.publish(self.posted + 1)
        return super().post(blocks)


class NeverFences(BoundedLag):
    def __init__(self, bound, memory):
        memory.fence = nothing
        super().__init__(bound, memory)


class FencesOnlyAfterWaiting(BoundedLag):
    def post(self, blocks) -> Steps:
        self.memory.fence = self.instead()
        return super().post(blocks)

    def instead(self) -> Callable[[], None]:
        return nothing

    def wait(self, count: int) -> Steps:
        vars(self.memory).pop("fence", None)
        return super().wait(count)


class FencesOnlyStoresBeforePublishing(FencesOnlyAfterWaiting):
    def instead(self) -> Callable[[], None]:
        return self.memory.fence_stores


class FencesOnlyBeforePublishing(BoundedLag):
    def wait(self, count: int) -> Steps:
        self.memory.fence = nothing
        return super().wait(count)


class NeverTellsRankZero(BoundedLag):
    def __init__(self, bound, memory):
        tell = memory.publish

        def to_others(count: int) -> None:
            memory.peers = memory.peers[1:]
            tell(count)

        memory.publish = to_others
        super().__init__(bound, memory)


class SendsTheWrongBlocks(BoundedLag):
    def post(self, blocks) -> Steps:
        return super().post(blocks[::-1])


class HandsOutTwice(BoundedLag):
    def deliver(self) -> list[Arrival]:
        self.delivered = max(0, self.delivered - 1)
        return super().deliver()


class KeepsOneBack(BoundedLag):
    def deliver(self) -> list[Arrival]:
        self.ready = max(self.delivered, self.ready - 1)
        return super().deliver()


class ComposesOneCallTooEarly(BoundedLag):
    """Whose room for an iteration is handed out when the call before it has not been made."""

    def compose(self, blocks) -> Steps:
        super().compose(blocks if not self.posted else [])
        self.posted += 1
        super().compose([block + len(blocks) ** 2 for block in blocks])
        self.posted -= 1
        return ()


class PostsBeforeTheLastStore(BoundedLag):
    """Whose program writes to what it has composed after it has posted it."""

    def compose(self, blocks) -> Steps:
        return ()

    def post(self, blocks) -> Steps:
        self.posted += 1
        self.memory.fence()
        self.memory.publish(self.posted)
        self.memory.in_place = None
        while not self.memory.write((self.posted - 1) % self.slots, blocks):
            yield self.posted
        yield from self.wait(self.posted - self.bound)


COMPOSING = {ComposesOneCallTooEarly: "overwrites iteration", PostsBeforeTheLastStore: "was never written|holds"}
"""Mistakes with blocks that are composed in place, and what the checker says of them."""

MUTANTS = {
    OneSlotFewer: "overwrites iteration",
    WaitsForOneLess: "returned from",
    WaitsForOneMore: "waits although",
    GivesUpWaiting: "after a look that it refused",
    PublishesFirst: "was never written|holds",
    NeverFences: "was never written|no fence behind its look",
    FencesOnlyAfterWaiting: "was never written|holds",
    FencesOnlyStoresBeforePublishing: "overwrites iteration",
    FencesOnlyBeforePublishing: "no fence behind its look",
    NeverTellsRankZero: "deadlock",
    SendsTheWrongBlocks: "holds",
    HandsOutTwice: "was handed iterations",
    KeepsOneBack: "were due",
}
"""Every mistake, and what the checker says of it (a pattern)."""
