"""Memory that the ranks of one host share, and that nobody has to clean up.

Every rank makes a file in shared memory. The others of its host open and map it, and then its name is removed: from
there on the memory goes when the last one lets go of it, however a process ends, and views of it are valid for as long
as they are kept. The file's lock is held by its rank until that ends, so the others can tell the late from the dead.
"""

import errno
import fcntl
import mmap
import os
import platform
import secrets
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from blslib.collective.building import ON_ALL, Building

SHARED_DIR = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()

_APART_BYTES = 1 << 40
"""From one block beside the mapped part to the next. The file is sparse: it holds what was written and no more."""


class Segment:
    """One rank's memory, as this process sees it.

    Attributes:
        memory: its first ``nbytes`` bytes, shared.
    """

    def __init__(self, path: str, own: bool) -> None:
        """Make the file, empty, if it is this rank's ``own``, else open that of another; raises OSError."""
        self._file = open(path, "x+b" if own else "r+b", buffering=0)  # noqa: SIM115 (closed by ``close``)
        if own:
            os.fchmod(self._file.fileno(), 0o600)
            # Opened by itself: a lock belongs to what was opened, and a mapping keeps that open in forked children.
            self._lock = open(path, "rb", buffering=0)  # noqa: SIM115
            _OWN.add(self)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def allocate(self, nbytes: int) -> None:
        """Give the file its memory; raises OSError."""
        if hasattr(os, "posix_fallocate"):  # without it a full file system would be a crash at the first store
            os.posix_fallocate(self._file.fileno(), 0, nbytes)
        else:
            self._file.truncate(nbytes)

    def map(self, nbytes: int) -> None:
        """Set ``memory``; raises OSError."""
        self.memory = memoryview(mmap.mmap(self._file.fileno(), nbytes))

    def write_beside(self, index: int, block: memoryview) -> None:
        """Write a block beside the mapped part; raises OSError where there is no room."""
        start, done = (index + 1) * _APART_BYTES, 0
        while done < len(block):
            done += os.pwrite(self._file.fileno(), block[done:], start + done)

    def map_beside(self, index: int, size: int) -> mmap.mmap:
        """Map a block beside the mapped part, for as long as views of it are kept; raises OSError."""
        return mmap.mmap(self._file.fileno(), size, offset=(index + 1) * _APART_BYTES)

    def ended(self) -> bool:
        """Whether the rank whose memory this is has ended, or lets go of it."""
        with suppress(BlockingIOError):
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        return False

    def unlock(self) -> None:
        """Let go of the lock, if this process has it open."""
        if self in _OWN:
            self._lock.close()

    def close(self) -> None:
        """Close the file; what is mapped stays until nobody looks at it."""
        self.unlock()
        self._file.close()
        self.memory = memoryview(b"")


_OWN: weakref.WeakSet[Segment] = weakref.WeakSet()


def _unlock_in_child() -> None:
    """A forked child may live longer than its rank, and must not make that look alive."""
    for segment in _OWN:
        segment.unlock()


os.register_at_fork(after_in_child=_unlock_in_child)


def whereabouts() -> str:
    """A word that two ranks have in common exactly if ``SHARED_DIR`` is the same folder for both."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        machine = platform.node()
    return f"{machine} {os.stat(SHARED_DIR).st_dev}"


def share(building: Building, ranks: list[int], nbytes: int, segments: dict[int, Segment]) -> None:
    """Make this rank's segment, and map those of all ``ranks``, which share memory with this one. Collective.

    They come into ``segments`` one by one, so that the caller can close them whatever happens.

    Raises:
        MemoryError: on every rank, if any has no memory for them.
        OSError: on every rank, if any may not open as many files.
    """
    me, others = building.rank, [rank for rank in ranks if rank != building.rank]
    path = os.path.join(SHARED_DIR, f"bls-{building.gather(secrets.token_hex(6))[0]}")

    def attach(rank: int) -> None:
        segments[rank] = Segment(f"{path}-{rank}", own=rank == me)

    def all_take(step: Callable[[int], None], ranks: list[int]) -> None:
        trouble = None
        for rank in ranks:
            try:
                step(rank)
            except OSError as error:
                text = f"rank {me} cannot map {nbytes} bytes of rank {rank} in {SHARED_DIR}: {error.strerror}; "
                if files := error.errno in (errno.EMFILE, errno.ENFILE):
                    text += f"let it open more files (ulimit -n), an exchange takes {2 * len(ranks) + 3} here"
                else:
                    text += "give more memory, or channel='messages' where ranks of one host do not share this folder"
                trouble = trouble or ("OSError" if files else "MemoryError", text)
        for found in filter(None, building.gather(trouble)):
            raise ON_ALL[found[0]](found[1])

    try:
        all_take(attach, [me])
        all_take(attach, others)
    finally:  # before there is any memory in them, so that whoever is killed leaves none
        try:  # noqa: SIM105 (Ctrl-C could fall into the call of a context manager, and leave the name)
            os.unlink(f"{path}-{me}")
        except FileNotFoundError:
            pass
    all_take(lambda rank: segments[rank].allocate(nbytes), [me])
    all_take(lambda rank: segments[rank].map(nbytes), [me, *others])
