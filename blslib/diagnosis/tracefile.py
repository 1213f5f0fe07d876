"""Files of recorded runs, read as a stream: packed or not, with a progress bar."""

import gzip
import io
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUFFER = 1 << 16
LATEST_S = 1e12
"""Thirty thousand years: whatever is longer is damaged, and sums of what is not are numbers."""


class TraceError(ValueError):
    """A recorded run that cannot be diagnosed: the text says what is missing, in which file, and the cure."""


class _Shown(io.FileIO):
    """A file that moves a progress bar when it is read."""

    def __init__(self, path: Path, bar: Any) -> None:
        super().__init__(path)
        self._bar = bar

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        self._bar.update(self.tell() - self._bar.n)
        return count


@contextmanager
def opened(path: Path) -> Iterator[tuple[str, io.TextIOWrapper]]:
    """The beginning of a file, without white space before it, and all of its text, which can be read again.

    Raises:
        TraceError: it is no regular file, as a pipe may never end; cannot be read; or ends in mid-packing.
    """
    import tqdm

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kinds = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
            kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
            cure = "name the files in it" if kind == "a folder" else "save what it gives to a file, and name that"
            raise TraceError(f"{path} is {kind}, expected a regular file: {cure}")
        about = {"desc": path.name, "total": found.st_size, "unit": "B", "unit_scale": True}
        with tqdm.tqdm(**about, leave=False, disable=not sys.stderr.isatty()) as bar, _Shown(path, bar) as raw:
            buffer = io.BufferedReader(raw, BUFFER)
            if buffer.peek()[:2] == b"\x1f\x8b":
                buffer = io.BufferedReader(gzip.GzipFile(fileobj=buffer), BUFFER)  # type: ignore[arg-type]
            head = buffer.peek().decode("utf-8-sig", errors="replace").lstrip()
            yield head, io.TextIOWrapper(buffer, encoding="utf-8-sig", errors="replace")
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path} is damaged ({error}): copy it again") from None
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from None
    except EOFError:
        raise half_written(path, "the packed data have no end") from None


def half_written(path: Path, found: str) -> TraceError:
    """The error for a file whose end is missing."""
    return TraceError(f"{path} is only half written ({found}): wait until its rank has ended, or record the run again")
