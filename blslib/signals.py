"""Ctrl-C and SIGTERM: who answers them, and what they must not cut in two."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def answering(answer: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let ``answer`` handle the signals that end us, those that are ignored apart.

    Does nothing outside of the main thread, as no signal is handled there.
    """
    ours = ENDING if threading.current_thread() is threading.main_thread() else ()
    before = {number: old for number in ours if (old := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, answer)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that would end us wait until the block is done: between a thing that is made and its being known to
    whoever clears it away, none must fall."""
    came: list[int] = []
    try:
        with answering(lambda number, _: came.append(number)):
            yield
    finally:
        for number in came[:1]:
            signal.raise_signal(number)
