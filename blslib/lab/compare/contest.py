"""A comparison: contenders at their bounds, interleaved in one run until the answer is known well enough."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from blslib.collective.mpi import MPI
from blslib.lab import found
from blslib.lab.compare import contenders as folder
from blslib.lab.compare.intervals import JUDGED, interval
from blslib.lab.options import Row
from blslib.lab.ranks.progress import report

Item = TypeVar("Item")
Result = TypeVar("Result")

NARROW = 0.02
"""Half the width of the lag effect's interval, as a share of the effect, at which that is known well enough."""


class Contender(NamedTuple):
    """An exchange to be measured: the name of a file in ``contenders``, and a bound."""

    name: str
    bound: int


def contenders(names: Sequence[str], bounds: Sequence[int]) -> list[Contender]:
    """Each named contender at each bound, the synchronous ones at 0; nothing twice.

    Raises:
        ValueError: there is no such contender.
    """
    bounded = {name: found.load(folder, name).BOUNDED for name in names}
    every = [Contender(name, bound) for name in names for bound in (bounds if bounded[name] else [0])]
    return list(dict.fromkeys(every))


@contextmanager
def exchanges(
    comm: "MPI.Intracomm",
    items: Sequence[Contender],
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    slot_bytes: int,
    warm_up: Callable[[Any], object],
) -> Iterator[dict[Contender, Any]]:
    """The exchange of every contender, closed in the end. Collective.

    Args:
        comm: all ranks of the comparison.
        items: those to build.
        send_counts, recv_counts: P numbers of float32 items to each rank, and from each.
        slot_bytes: of the largest block of any rank.
        warm_up: is called with each exchange and uses it, so that no run pays for touching memory the first time.

    Raises:
        MemoryError: on every rank, if a host has no room for all of them.
    """
    from blslib.lab.ranks.launch import free_bytes  # here, since whoever asks for help needs no psutil

    free, sizes = free_bytes(), {"send_counts": send_counts, "recv_counts": recv_counts, "slot_bytes": slot_bytes}
    with ExitStack() as stack:
        made: dict[Contender, Any] = {}
        for item in items:
            made[item] = stack.enter_context(found.load(folder, item.name).build(comm, item.bound, **sizes))
        _check_room(comm, sum(exchange.memory_bytes for exchange in made.values()), free)
        for exchange in made.values():
            warm_up(exchange)
        yield made


def _check_room(comm: "MPI.Intracomm", mine: int, free: int) -> None:
    """Before all of it is touched, as the kernel gives more memory away than there is."""
    node: Any = comm.Split_type(MPI.COMM_TYPE_SHARED)
    needed, free = node.allreduce(mine), node.bcast(free)
    node.Free()
    if short := [each for each in comm.allgather((needed, free)) if each[0] > each[1]]:
        needed, free = short[0]
        cure = "ask for smaller blocks, lower bounds or fewer ranks"
        raise MemoryError(f"the exchanges of a host need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free: {cure}")


def interleaved(
    comm: "MPI.Intracomm",
    items: Sequence[Item],
    once: Callable[[Item], Result],
    config: Any,
    known: Callable[[dict[Item, list[Result]]], bool] = lambda _: True,
) -> dict[Item, list[Result]]:
    """What ``once`` returns for each item in each repeat, in an order drawn anew for every repeat. Collective.

    Args:
        comm: of the ranks that measure.
        items: what to measure.
        once: measures one of them.
        config: of an experiment, with ``repeats``, at least so many; ``budget_s``, seconds for all repeats together, if
            it takes more of them until it is ``known``; and ``seed``, of the orders.
        known: whether what was found is enough. It must not ask what the answer is, only how sure that is.
    """
    rng, started_s, done = np.random.default_rng(config.seed), time.perf_counter(), 0
    results: dict[Item, list[Result]] = {item: [] for item in items}
    while True:
        for at, place in enumerate(rng.permutation(len(items)).tolist()):
            report(done * len(items) + at, max(config.repeats, done + 1) * len(items))
            results[items[place]].append(once(items[place]))
        done += 1
        spent_s = time.perf_counter() - started_s
        enough = done >= config.repeats and (spent_s * (1 + 1 / done) > config.budget_s or known(results))
        if comm.bcast(enough):  # the first rank's clock decides
            return results


def rows(
    results: dict[Contender, list[Result]], setting: Row, measured: Callable[[Contender, int, Result], Row]
) -> list[Row]:
    """A row for each contender, bound and repeat.

    Args:
        results: of ``interleaved``.
        setting: what was run besides, the same for all.
        measured: what stands right of ``repeat``, from a contender, a repeat, and its result.
    """
    return [
        {"contender": item.name, "bound": item.bound, **setting, "repeat": repeat, **measured(item, repeat, each)}
        for item, found in results.items()
        for repeat, each in enumerate(found)
    ]


def lag_known(time: Callable[[Any], float]) -> Callable[[dict[Contender, list[Any]]], bool]:
    """For ``interleaved``: whether the effect of lag is known to within ``NARROW``.

    That is bounded lag's time at bound 0 over that at ``JUDGED``; where one is not measured there is nothing to know.
    """

    def known(results: dict[Contender, list[Any]]) -> bool:
        pair = [results.get(Contender("bls", bound)) for bound in (0, JUDGED)]
        without, with_lag = ([time(each) for each in runs or ()] for runs in pair)
        if not without or not with_lag:
            return True
        effect = interval(np.log(np.divide(without, with_lag)))  # gain and loss are as wide as each other
        return (effect.high - effect.low) / 2 <= NARROW

    return known
