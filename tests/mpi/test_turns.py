"""Who may call an exchange, and when: threads, forked children, Ctrl-C at any moment."""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import blslib.collective
from blslib.collective.alltoallv import BoundedLagAlltoallv
from blslib.collective.clock import Clock
from blslib.collective.errors import ExchangeError, PeerError
from tests.mpi.test_alltoallv import TIMEOUT_S, Checked, build

__all__ = ["build"]  # a fixture

FORKED = "^this process was forked from the rank that built the exchange, which is that rank's alone"


def one(value: int, size: int) -> list[np.ndarray]:
    return [np.full(1, value, np.float32)] * size


def composed_one(exchange: BoundedLagAlltoallv, value: int) -> tuple[np.ndarray, ...]:
    """The same, composed in place."""
    composed = exchange.compose([1] * exchange.size)
    for each in composed:
        each[:] = value
    return composed


def in_child(act: Callable[[], None]) -> None:
    """Act in a forked child; a failure there is one here."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException as error:
            os.write(2, f"in the child: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("leave", ["close", "with", "error"])
def test_a_forked_child_harms_nobody(comm, build, leave):
    """Whatever a child tries, its parent's iterations stay right, and the end of the child is not that of the job."""
    with build(2) as exchange:
        run = Checked(exchange)

        def meddle() -> None:
            composes = lambda: exchange.compose([1] * comm.size)  # noqa: E731
            for call in (lambda: exchange.post(one(7, comm.size)), composes, exchange.collect, exchange.drain):
                with pytest.raises(ExchangeError, match=FORKED):
                    call()
            files = len(os.listdir("/proc/self/fd"))
            if leave == "close":
                exchange.close()
            elif leave == "with":
                with exchange:
                    pass
            else:
                with pytest.raises(ZeroDivisionError), exchange:
                    1 / 0  # noqa: B018
            assert len(os.listdir("/proc/self/fd")) < files
            with pytest.raises(ExchangeError, match="^exchange is closed$"):
                exchange.post(one(7, comm.size))
            with pytest.raises(ExchangeError, match=FORKED):
                BoundedLagAlltoallv(comm, bound=0, slot_bytes=64)

        for _ in range(20):
            run.post()
        in_child(meddle)
        for _ in range(40):
            run.post()
        run.drain()


@pytest.mark.parametrize("open_there", [False, True])
def test_a_child_may_drop_an_exchange(comm, build, open_there):
    """As the workers of a pool do at their end: nothing is said, and nobody is told."""
    held = [build(1)]
    if not open_there:
        held[0].close()
    noises: list[object] = []

    def drop() -> None:
        sys.unraisablehook = noises.append
        held.clear()
        gc.collect()
        assert not noises

    in_child(drop)
    if open_there:
        held[0].post(one(0, comm.size))
        held[0].close()


def test_a_child_forked_while_a_thread_is_in_a_call(comm, build):
    """What a thread of the parent was doing does not go on in the child, and keeps it from nothing there."""
    waits, forked = threading.Event(), threading.Event()

    def wait(attempt: int) -> None:
        waits.set()
        assert forked.wait(TIMEOUT_S)

    with build(0, waiting=wait) as exchange:
        if comm.rank:
            worker = threading.Thread(target=lambda: exchange.post(one(1, comm.size)))
            worker.start()
            assert waits.wait(TIMEOUT_S)

            def meddle() -> None:
                with pytest.raises(ExchangeError, match=FORKED):
                    exchange.post(one(7, comm.size))
                exchange.close()

            in_child(meddle)
            forked.set()
        comm.Barrier()
        if comm.rank == 0:
            forked.set()
            exchange.post(one(1, comm.size))
        else:
            worker.join()


def test_two_threads_hammer_an_exchange(comm, build):
    """Every accepted call is one iteration, and noted; every refused one is neither."""
    accepted: list[int] = []
    refused = 0
    calls_each = 150

    def hammer() -> None:
        nonlocal refused
        for _ in range(calls_each):
            while True:
                try:
                    exchange.post(one(0, comm.size))
                    break
                except RuntimeError as error:
                    assert "another call on this exchange is under way" in str(error)  # noqa: PT017
                    refused += 1
                    time.sleep(1e-5)
            accepted.append(1)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Clock(build(1)) as exchange:
            threads = [threading.Thread(target=hammer) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            exchange.drain()
    finally:
        sys.setswitchinterval(interval_s)
    assert len(accepted) == 2 * calls_each
    assert [call.kind for call in exchange.calls] == ["post"] * 2 * calls_each + ["drain"]


def test_leaving_with_an_error_ends_a_thread_in_a_call(comm, build):
    """The error that leaves the block is the one that is seen, not that a thread was still at work."""
    ended: list[str] = []

    def work() -> None:
        try:
            while True:
                exchange.post(one(0, comm.size))
        except (ExchangeError, RuntimeError) as error:  # the second if its call meets the one that leaves the block
            ended.append(str(error))

    with pytest.raises(ZeroDivisionError), build(1) as exchange:  # noqa: PT012
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.02)
        1 / 0  # noqa: B018
    thread.join()
    assert len(ended) == 1
    assert "failed" in ended[0] or "under way" in ended[0] or ended[0] == "exchange is closed"


class Mute(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("no caf\udce9.csv"), r"FileNotFoundError: no caf\?\.csv"),
        (Mute(), "Mute, whose text cannot be had"),
    ],
    ids=["surrogate", "mute"],
)
def test_an_error_of_any_text_is_told(comm, build, error, told):
    """File names may hold what no encoding takes."""
    raised = pytest.raises(type(error)) if comm.rank == 0 else pytest.raises(PeerError, match=told)
    with raised, build(1) as exchange:
        if comm.rank == 0:
            raise error
        while True:
            exchange.post(one(0, comm.size))


class Interrupts:
    """Ctrl-C at a random moment, but only inside of the package's own code: what happens outside is not its doing."""

    def __init__(self, longest_s: float, seed: int, kind: type[BaseException] = KeyboardInterrupt) -> None:
        self.kind = kind
        self.longest_s, self.rng = longest_s, np.random.default_rng(seed)
        self.over = False
        self.folder = str(Path(blslib.collective.__file__).parent)

    def __enter__(self) -> "Interrupts":
        self.before = signal.signal(signal.SIGALRM, self._interrupt)
        self.arm()
        return self

    def arm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(1e-6, self.longest_s))

    def _interrupt(self, number: int, frame: object) -> None:
        if not self.over and frame.f_code.co_filename.startswith(self.folder):  # type: ignore[attr-defined]
            raise self.kind
        if not self.over:
            self.arm()

    def __exit__(self, *_: object) -> None:
        self.over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


@pytest.mark.parametrize("channel", ["ring", "messages"])
def test_ctrl_c_at_any_moment_leaves_nothing_taken(comm, channel):
    """Two hundred times: the block ends in KeyboardInterrupt, and files and memory are given back.

    Python may find Ctrl-C when it has entered ``__exit__`` and done nothing there; then they go with the exchange.
    """
    alone = comm.Split(comm.rank)
    BoundedLagAlltoallv(alone, bound=1, slot_bytes=64).close()
    gc.collect()
    gc.freeze()  # what torch has loaded since the tests began need not be looked through two hundred times
    files, closed = len(os.listdir("/proc/self/fd")), 0
    for seed in range(200):
        exchange = BoundedLagAlltoallv(alone, bound=1, slot_bytes=64, channel=channel)
        with pytest.raises(KeyboardInterrupt), Interrupts(4e-4, seed), exchange:  # noqa: PT012
            while True:
                exchange.post(one(seed, 1))
                exchange.post(composed_one(exchange, seed))
        closed += exchange._over == "exchange is closed"
        del exchange
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == files
    assert closed > 180
    assert "/bls-" not in Path("/proc/self/maps").read_text()
    alone.Free()


def test_an_exchange_that_is_dropped_is_given_back_and_told(comm, build):
    files = len(os.listdir("/proc/self/fd"))
    exchange = build(1)
    if comm.rank == comm.size - 1:
        del exchange
        gc.collect()
    else:
        with pytest.raises(PeerError, match="the exchange was dropped without being closed"):  # noqa: PT012
            while True:
                exchange.post(one(0, comm.size))
        exchange.close()
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError])
def test_a_ctrl_c_that_is_caught_loses_and_shifts_nothing(comm, kind):
    """A call that was interrupted has not begun, and can be made again; or the exchange has failed, and says so.

    The same for what a program's own signal handler raises.
    """
    alone = comm.Split(comm.rank)
    ended = 0
    for seed in range(100):
        exchange = BoundedLagAlltoallv(alone, bound=1, slot_bytes=64)
        expected = value = 0
        try:
            with Interrupts(4e-4, seed, kind) as interrupts:
                while value < 60:
                    try:
                        arrivals = exchange.post(composed_one(exchange, value) if value % 2 else one(value, 1))
                    except kind:
                        interrupts.arm()
                        continue  # the same again
                    value += 1
                    for arrival in arrivals:
                        assert (arrival.iteration, arrival.blocks[0].tolist()) == (expected, [expected])
                        expected += 1
        except ExchangeError as error:
            ended += str(error).startswith(f"exchange has failed, only close is legal now: {kind.__name__}")
        exchange.close()
    assert 10 < ended < 100
    alone.Free()


def test_a_signal_handler_cannot_call_into_a_call(comm):
    """Its thread is in a call already: refused like any other thread's."""
    alone = comm.Split(comm.rank)
    texts: list[str] = []

    def handle(number: int, frame: object) -> None:
        try:
            exchange.post(one(0, 1))
        except RuntimeError as error:
            texts.append(str(error))

    def wait(attempt: int) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handle)
    try:
        with BoundedLagAlltoallv(alone, bound=0, slot_bytes=64, waiting=wait) as exchange:
            exchange._memory.arrived, real = (lambda: 0 if not texts else real()), exchange._memory.arrived
            (arrival,) = exchange.post(one(5, 1))
            assert arrival.blocks[0].tolist() == [5]
            assert len(texts) == 1
            assert texts[0].startswith("another call on this exchange is under way")
    finally:
        signal.signal(signal.SIGUSR2, before)
    alone.Free()
