"""Memory that the ranks of one host share, and that nobody has to clean up.

Every rank makes a file in shared memory. The others of its host open and map it, and then its name is removed: from
there on the memory goes when the last one lets go of it, however a process ends, and views of it are valid for as long
as they are kept. The file's lock is held by its rank until that ends, so the others can tell the late from the dead.
"""

import fcntl
import mmap
import os
import secrets
import tempfile
from contextlib import suppress

from blslib.collective.mpi import MPI

SHARED_DIR = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()

_APART_BYTES = 1 << 40
"""From one block beside the mapped part to the next. The file is sparse: it holds what was written and no more."""


class Segment:
    """One rank's memory, as this process sees it.

    Attributes:
        memory: its first ``nbytes`` bytes, shared.
    """

    def __init__(self, path: str, nbytes: int, own: bool) -> None:
        """Make the file if it is this rank's ``own``, else open that of another; raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if own else 0), 0o600)
        try:
            if own:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                if hasattr(os, "posix_fallocate"):  # without it a full file system would be a crash at the first store
                    os.posix_fallocate(self._descriptor, 0, nbytes)
                else:
                    os.ftruncate(self._descriptor, nbytes)
            self.memory = memoryview(mmap.mmap(self._descriptor, nbytes))
        except BaseException:
            self.close()
            raise

    def write_beside(self, index: int, block: memoryview) -> None:
        """Write a block beside the mapped part; raises OSError where there is no room."""
        start, done = (index + 1) * _APART_BYTES, 0
        while done < len(block):
            done += os.pwrite(self._descriptor, block[done:], start + done)

    def map_beside(self, index: int, size: int) -> mmap.mmap:
        """Map a block beside the mapped part, for as long as views of it are kept; raises OSError."""
        return mmap.mmap(self._descriptor, size, offset=(index + 1) * _APART_BYTES)

    def ended(self) -> bool:
        """Whether the rank whose memory this is has ended, or lets go of it."""
        with suppress(BlockingIOError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        return False

    def close(self) -> None:
        """Close the file; what is mapped stays until nobody looks at it."""
        os.close(self._descriptor)


def share(comm: MPI.Intracomm, ranks: list[int], nbytes: int) -> dict[int, Segment]:
    """Make this rank's segment, and map those of all ``ranks``, the ranks of ``comm`` on this host. Collective.

    Raises:
        MemoryError: on every rank, if any has no memory for them.
    """
    segments: dict[int, Segment] = {}

    def attach(rank: int) -> str:
        try:
            segments[rank] = Segment(f"{path}-{rank}", nbytes, own=rank == comm.rank)
        except OSError as error:
            return (
                f"rank {comm.rank} cannot map {nbytes} bytes of rank {rank} in {SHARED_DIR}: {error.strerror}; give "
                "more memory, or channel='messages' where ranks of one host do not share this folder"
            )
        return ""

    path = os.path.join(SHARED_DIR, f"bls-{comm.bcast(secrets.token_hex(6))}")
    try:
        trouble = max(comm.allgather(attach(comm.rank)))
        if not trouble:
            trouble = max(comm.allgather(max((attach(rank) for rank in ranks if rank != comm.rank), default="")))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(f"{path}-{comm.rank}")
    if trouble:
        for segment in segments.values():
            segment.close()
        raise MemoryError(trouble)
    return segments
