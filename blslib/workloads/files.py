"""What all readers of data files share: errors that name the line, counts of what was left out, fixed-size batches."""

import gzip
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from blslib.workloads.batch import Batch


class RowError(ValueError):
    """What is wrong with one line: the kind of fault in a word or two, under which it is counted; what was expected."""


class DataError(ValueError):
    """A data file is not what it should be: names the file, the line, counted from 1, and what a ``RowError`` says."""

    def __init__(self, path: Path, line: int, error: RowError) -> None:
        super().__init__(f"{path}, line {line}: {': '.join(error.args)}")


def existing(path: Path, how: str) -> Path:
    """The path, if it is that of a file.

    Raises:
        FileNotFoundError: there is none; the text ends with ``how``, the way to point to one.
    """
    if not path.is_file():
        kind = "it is a folder, not a file" if path.is_dir() else f"no such file, looked up from {Path.cwd()}"
        raise FileNotFoundError(f"cannot read {path} ({kind}): {how}")
    return path


def is_gzip(path: Path) -> bool:
    """Whether the content, whatever the name, is compressed."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def show(text: bytes, most: int = 40) -> str:
    """A piece of a line for an error message."""
    return ascii(text[:most].decode("latin-1")) + ("..." if len(text) > most else "")


Form = tuple[Callable[[bytes], Any], bool]
"""The parser of a line, which gets it with its line end, and whether the first line is a header."""

LONGEST_BYTES = 1 << 20
"""No row of these data sets comes near; a file without line ends, or a small one that unpacks to a huge one, does."""


_KEPT = 2048
"""A file of up to so many samples is parsed once when it is to be repeated."""


@dataclass(eq=False)
class Loader(ABC):
    """Streams a data file as batches; its memory does not grow with the file. Iterate as often as you like.

    Attributes:
        path: the file, plain or gzip.
        batch_size: B.
        rows: T row counts; the ids of table t are taken modulo ``rows[t]``. By default the published ones.
        samples: how many to hand out, starting again at the top of the file as often as needed; None: all, once.
        on_error: "raise" a :class:`DataError` at the first faulty line, or "skip" such lines and count them.
        skipped: lines left out of the latest pass over the file so far, counted by reason.
        file_samples: usable samples in the file, None until a pass has reached its end.
        passes: passes over the file begun in the latest iteration.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an argument makes no sense; while iterating, its subclass :class:`DataError`.
    """

    published_rows: ClassVar[tuple[int, ...]]
    cure: ClassVar[str]
    """How to point to another file."""

    path: Path
    batch_size: int
    _: KW_ONLY
    rows: Sequence[int] = ()
    samples: int | None = None
    on_error: Literal["raise", "skip"] = "raise"
    skipped: Counter[str] = field(default_factory=Counter, init=False)
    file_samples: int | None = field(default=None, init=False)
    passes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        existing(self.path, self.cure)
        if self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise ValueError(f"batch_size and samples must be 1 or more, got {self.batch_size} and {self.samples}")
        self.rows = tuple(self.rows) or self.published_rows
        if len(self.rows) != len(self.published_rows) or min(self.rows) < 1:
            raise ValueError(f"rows must be {len(self.published_rows)} counts >= 1, one per table, got {self.rows}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")

    @abstractmethod
    def _form_of(self, first: bytes) -> Form:
        """The form of a file with this first line."""

    @abstractmethod
    def _batch(self, samples: list[Any]) -> Batch:
        """One batch of these samples."""

    def _report(self, path: Path, line: int, error: RowError) -> None:
        """Where it returns, the line is left out."""
        if self.on_error == "raise":
            raise DataError(path, line, error)
        self.skipped[error.args[0]] += 1

    def _lines(self, path: Path, form_of: Callable[[bytes], Form]) -> Iterator[tuple[int, int, Any]]:
        """Parse a file line by line, plain or gzip, and report every fault.

        Yields:
            Number of the line, counted from 1, its position in the file, and what the parser returns unless it is None.
        """
        number, header = 0, False
        try:
            with gzip.open(path, "rb") if is_gzip(path) else path.open("rb") as file:
                while line := file.readline(LONGEST_BYTES + 1):
                    number, position = number + 1, file.tell() - len(line)
                    if number == 1:
                        parse, header = form_of(line)
                        if header:
                            continue
                    try:
                        if len(line) > LONGEST_BYTES:
                            expected = f"expected no more than {LONGEST_BYTES} bytes, got {show(line)}"
                            raise RowError("line too long", expected)
                        sample = parse(line)
                    except RowError as error:
                        self._report(path, number, error)
                        while len(line) > LONGEST_BYTES and not line.endswith(b"\n"):
                            line = file.readline(LONGEST_BYTES + 1)
                    else:
                        if sample is not None:
                            yield number, position, sample
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._report(path, number + 1, RowError("cut short", f"expected the rest of the gzip stream, got: {error}"))
        else:
            if number <= header:
                self._report(path, number + 1, RowError("empty file", "expected at least one row of data, got none"))

    def _stream(self) -> Iterator[Any]:
        """The samples of the file, over and over if ``samples`` asks for a number of them."""
        self.passes = 0
        kept: list[Any] = []
        while not self.passes or self.samples is not None:
            self.passes += 1
            if 0 < len(kept) == self.file_samples:
                yield from kept
                continue
            self.skipped, kept, count = Counter(), [], 0
            for count, (_, _, sample) in enumerate(self._lines(self.path, self._form_of), 1):
                if self.samples is not None and count <= _KEPT:
                    kept.append(sample)
                yield sample
            self.file_samples = count
            if self.samples is not None and not count:
                raise ValueError(f"{self.path} has no usable row (left out: {dict(self.skipped)}): {self.cure}")

    def __iter__(self) -> Iterator[Batch]:
        samples = islice(self._stream(), self.samples)
        while batch := list(islice(samples, self.batch_size)):
            yield self._batch(batch)
