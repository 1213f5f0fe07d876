"""What every exchange offers, bounded-lag or baseline, so that a program takes it as an argument."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

Block = Any
"""What one rank sends to one other: a numpy array, a torch CPU tensor, or anything with the buffer protocol."""


class Arrival(NamedTuple):
    """The complete set of blocks of one iteration.

    Attributes:
        iteration: counted from 0, the same number on every rank.
        blocks: P one-dimensional arrays, one per source rank: views that stay valid until the next call on the
            exchange. Reshape them, and do not set their shape or dtype: the same objects come again.
    """

    iteration: int
    blocks: list[np.ndarray]


bare = tuple.__new__
"""Makes an ``Arrival`` without the Python function that its class calls, which costs 0.1 us."""


class Exchange(Protocol):
    """An all-to-all exchange that may deliver late, but never out of order and never wrong.

    Attributes:
        rank, size: this process and the number of processes (P).
        bound: whole iterations that the slowest rank may lag before the fastest one blocks; 0 is synchronous.
    """

    rank: int
    size: int
    bound: int

    def compose(self, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Room for the next iteration's P blocks, which need no copy if this very tuple is posted; of so many items."""

    def post(self, blocks: Sequence[Block]) -> list[Arrival]:
        """Hand over P blocks, one per destination; return what is there: at least all up to ``bound`` calls ago."""

    def collect(self, through: int | None = None) -> list[Arrival]:
        """Wait for everything up to iteration ``through``; without it, return whatever is complete and do not wait."""

    def drain(self) -> list[Arrival]:
        """Wait for all that was posted."""

    def close(self) -> None:
        """Give everything back. Collective unless a failure came before."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None: ...
