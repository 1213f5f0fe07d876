"""Files of recorded runs, read as a stream: packed or not, with a progress bar."""

import gzip
import io
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUFFER = 1 << 16
LATEST_S = 1e12
"""Thirty thousand years: whatever is longer is damaged, and sums of what is not are numbers."""

_REPLAY = re.compile(  # JSON of PyTorch's ExecutionTraceObserver; Chakra's protobuf, which begins with a version; PARAM
    r'(?s)(?P<Chakra>\{\s*"schema"\s*:\s*"\d[^"]*"\s*,\s*"pid"|.{0,8}[\5-\x08](?:\d+\.\d+\.\d|schema))'
    r'|(?P<PARAM>\[\s*\{[^{}]*"(?:comms|compute)"\s*:)'
)
"""How the traces begin that are made for replaying a run."""


class TraceError(ValueError):
    """A recorded run that cannot be diagnosed: the text says what is missing, in which file, and the cure."""


class OtherFile(TraceError):
    """What is no record of a run at all: beside the files of one in a folder it is left out, and told."""


def listed(paths: Iterable[str | Path]) -> Iterator[tuple[Path, bool]]:
    """Every path, and whether it was named itself: in place of a folder comes what lies in it and is not hidden.

    That is in the order of the names, with the numbers in them as such: ``rank2`` before ``rank10``.

    Raises:
        OSError: a folder cannot be read.
    """
    for path in map(Path, paths):
        found = [each for each in path.iterdir() if each.name[0] != "."] if os.path.isdir(path) else [path]
        found.sort(key=lambda each: re.sub("[0-9]+", lambda digits: digits[0].zfill(255), each.name))
        yield from ((each, each == path) for each in found)


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
        OtherFile: it is no regular file, as a pipe may never end, or a trace of another kind.
        TraceError: it is damaged, or ends in mid-packing.
        OSError: it cannot be read.
    """
    import tqdm

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kinds = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
            kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
            cure = "name it as well" if kind == "a folder" else "save what it gives to a file, and name that"
            raise OtherFile(f"{path} is {kind}, expected a regular file: {cure}")
        about = {"desc": path.name, "total": found.st_size, "unit": "B", "unit_scale": True}
        with tqdm.tqdm(**about, leave=False, disable=not sys.stderr.isatty()) as bar, _Shown(path, bar) as raw:
            buffer = io.BufferedReader(raw, BUFFER)
            if buffer.peek()[:2] == b"\x1f\x8b":
                buffer = io.BufferedReader(gzip.GzipFile(fileobj=buffer), BUFFER)  # type: ignore[arg-type]
            head = buffer.peek().decode("utf-8-sig", errors="replace").lstrip()
            if replay := _REPLAY.match(head):
                told = "for replay, which does not tell how long ranks worked and waited: record with torch.profiler"
                raise OtherFile(f"{path} is a {replay.lastgroup} trace, {told}")
            yield head, io.TextIOWrapper(buffer, encoding="utf-8-sig", errors="replace")
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path} is damaged ({error}): copy it again") from None
    except EOFError:
        raise half_written(path, "the packed data have no end") from None


def half_written(path: Path, found: str) -> TraceError:
    """The error for a file whose end is missing."""
    return TraceError(f"{path} is only half written ({found}): wait until its rank has ended, or record the run again")
