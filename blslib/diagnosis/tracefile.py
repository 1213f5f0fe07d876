"""Files of recorded runs, read as a stream: packed or not, with a progress bar, and JSON piece by piece."""

import gzip
import io
import json
import re
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
LARGEST_VALUE = 64 * CHUNK
"""Characters; what has not ended by then is taken for damaged, so that no file is read into memory as a whole."""

LATEST_S = 1e12
"""Thirty thousand years: whatever is longer is damaged, and sums of what is not are numbers."""

NEAR = 16
"""A fault fewer characters than this before the end of what is there may be the end cutting a word in two."""

_SPACE = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()


class TraceError(ValueError):
    """A recorded run that cannot be diagnosed: the text says what is missing, in which file, and the cure."""


class Text(io.TextIOWrapper):
    """Text that can be looked at before it is read, and that moves a progress bar by the bytes of the file."""

    def __init__(self, raw: Any, bar: Any) -> None:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        super().__init__(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8-sig", errors="replace")
        self._raw, self._bar, self._head = raw, bar, ""

    def peek(self) -> str:
        """The beginning of the file, without white space before it."""
        self._head = super().read(CHUNK).lstrip()
        return self._head

    def read(self, size: int | None = -1, /) -> str:
        head, self._head = self._head, ""
        text = head[:size] if head and size and size > 0 else head + super().read(size)
        self._head = head[len(text) :]
        self._bar.update(self._raw.tell() - self._bar.n)
        return text


@contextmanager
def opened(path: Path) -> Iterator[Text]:
    """The text of a file; a bar on a terminal shows how far it is read.

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
        with path.open("rb") as raw:
            about = {"desc": path.name, "total": found.st_size, "unit": "B", "unit_scale": True}
            with tqdm.tqdm(**about, leave=False, disable=not sys.stderr.isatty()) as bar, Text(raw, bar) as text:
                yield text
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path} is damaged ({error}): copy it again") from None
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from None
    except EOFError:
        raise half_written(path, "the packed data have no end") from None


def half_written(path: Path, found: str) -> TraceError:
    """The error for a file whose end is missing."""
    return TraceError(f"{path} is only half written ({found}): wait until its rank has ended, or record the run again")


class Json:
    """A JSON document read piece by piece: ``members`` of an object, ``items`` of an array, ``value`` of anything."""

    def __init__(self, path: Path, text: Text) -> None:
        self._path, self._text = path, text
        self._buffer, self._place, self._dropped, self._ended = text.read(CHUNK), 0, 0, False

    def peek(self) -> str:
        """The next character that means something."""
        while True:
            match = _SPACE.match(self._buffer, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            self._more(CHUNK)

    def skip(self) -> None:
        """Step over the character that ``peek`` has shown."""
        self._place += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                held = len(self._buffer) - self._place
                cut_off = len(self._buffer.rstrip()) - error.pos < NEAR or "Unterminated" in error.msg
                if not cut_off or held > LARGEST_VALUE:
                    raise self._damaged(error.pos) from None
                self._more(max(CHUNK, held))  # doubles, so that a large value costs no more than its length
                continue
            except (ValueError, RecursionError):  # a number of thousands of digits, or as many brackets
                raise self._damaged(self._place) from None
            if len(self._buffer) - end < NEAR and not isinstance(value, dict | list | str) and not self._ended:
                self._more(CHUNK)  # a number may go on
                continue
            self._place = end
            return value

    def items(self) -> Iterator[Any]:
        """The values of the array that comes next."""
        self.skip()
        while self.peek() != "]":
            yield self.value()
        self.skip()

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; whoever takes a key takes its value."""
        self.skip()
        while self.peek() != "}":
            key = self.value()
            if self.peek() != ":" or not isinstance(key, str):
                raise self._damaged(self._place)
            self.skip()
            self.peek()
            yield key
        self.skip()

    def _damaged(self, place: int) -> TraceError:
        return TraceError(f"{self._path} is no JSON at character {self._dropped + place:,}: record the run again")

    def _more(self, size: int) -> None:
        text = self._text.read(size)
        if not text and self._ended:
            raise half_written(self._path, f"{self._dropped + len(self._buffer):,} characters and no end")
        self._ended = not text
        self._dropped += self._place
        self._buffer, self._place = self._buffer[self._place :] + text, 0
