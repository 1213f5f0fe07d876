"""What the collective promises, as a program: all P ranks in one process, no memory shared, nobody to wait for.

Tests hold the real exchanges against this. It is meant to be read, not to be fast.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def alltoallv(sent: Sequence[Sequence[T]]) -> list[list[T]]:
    """What each rank receives: ``sent[s][r]``, the block from rank s to rank r, becomes ``received[r][s]``.

    Raises:
        ValueError: a rank does not send one block to each rank.
    """
    for rank, blocks in enumerate(sent):
        if len(blocks) != len(sent):
            raise ValueError(f"rank {rank} sends {len(blocks)} blocks, expected one for each of {len(sent)} ranks")
    return [list(column) for column in zip(*sent, strict=True)]


class BoundedLagReference:
    """P ranks of a bounded-lag alltoallv, and when each of their calls may return with what.

    Attributes:
        entered: calls of ``post`` entered, by rank.
        delivered: iterations handed out, by rank.
    """

    def __init__(self, size: int, bound: int) -> None:
        self.size, self.bound = size, bound
        self.entered = [0] * size
        self.delivered = [0] * size
        self._sent: dict[tuple[int, int], Sequence] = {}

    def enter(self, rank: int, blocks: Sequence) -> None:
        """``rank`` enters its next call of ``post`` with one block for each rank."""
        self._sent[self.entered[rank], rank] = list(blocks)
        self.entered[rank] += 1

    def may_return(self, rank: int) -> bool:
        """Whether the call that ``rank`` is in may return: all ranks have entered the one ``bound`` iterations ago."""
        return self.complete() >= self.due(rank)

    def due(self, rank: int) -> int:
        """How many iterations are delivered, at the latest, when the call that ``rank`` is in returns."""
        return max(0, self.entered[rank] - self.bound)

    def complete(self) -> int:
        """How many iterations all ranks have entered: what may be delivered at the earliest."""
        return min(self.entered)

    def take(self, rank: int, through: int) -> list[tuple[int, list]]:
        """Deliver to ``rank`` everything up to iteration ``through``: each iteration once and in order, P blocks.

        Raises:
            ValueError: not every rank has entered that iteration.
        """
        if through >= self.complete():
            raise ValueError(f"iteration {through} is not complete: {self.complete()} iterations are")
        first, self.delivered[rank] = self.delivered[rank], max(self.delivered[rank], through + 1)
        return [
            (i, alltoallv([self._sent[i, source] for source in range(self.size)])[rank])
            for i in range(first, self.delivered[rank])
        ]
