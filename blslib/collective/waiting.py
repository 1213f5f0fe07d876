"""How a rank waits: the only place of the collective that gives up the processor.

A wait is a Python loop that looks, calls a policy, and looks again, so that Ctrl-C and deadlines work. The policy
decides what happens between two looks.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from blslib.collective.errors import LateError

YIELDS = 1000
"""Looks before the first sleep. A yield costs about half a microsecond where nobody else wants the core."""

FIRST_SLEEP_S = 20e-6
LONGEST_SLEEP_S = 100e-6

Policy = Callable[[int], None]
"""Called with 1, 2, 3, ... within one wait."""


def yield_then_sleep(attempt: int) -> None:
    """Yield the core at once, then back off to short sleeps.

    With more ranks than cores the rank that is waited for may need this very core: yielding first is several times
    faster than spinning or sleeping first. Sleeps keep a long wait from heating a core that others could use.
    """
    if attempt <= YIELDS:
        os.sched_yield()
    else:
        time.sleep(min(FIRST_SLEEP_S * (attempt - YIELDS), LONGEST_SLEEP_S))


def complete(request: Any, what: str, timeout_s: float, policy: Policy = yield_then_sleep) -> None:
    """Poll a request, MPI's or a store's, to its end, so that no wait is spent in C.

    Raises:
        LateError: it was not complete within ``timeout_s`` seconds; ``what`` says what was waited for.
    """
    attempt = 0
    deadline_s = time.monotonic() + timeout_s
    while not request.Test():
        attempt += 1
        policy(attempt)
        if time.monotonic() > deadline_s:
            raise LateError(f"{what} timed out after {timeout_s:g} s: a rank did not take part")
