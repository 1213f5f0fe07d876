"""Criteo's click logs: Kaggle's ``train.txt`` as published, and the headed CSV form of its extracts."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from blslib.workloads.batch import Batch
from blslib.workloads.files import Loader, RowError, parsed_lines, show
from blslib.workloads.published import CRITEO_DENSE, CRITEO_ROWS

Sample = tuple[float, list[int], list[int]]
"""Label, 13 integers, 26 categories."""


class _Column(NamedTuple):
    name: str
    pattern: bytes
    reason: str
    expected: str


_ID = _Column("Id", rb"\d+", "not an integer", "a number")
_COLUMNS = [
    _Column("Label", rb"[01]", "bad label", "0 or 1"),
    *(
        _Column(f"I{n}", rb"(?:-?\d{1,18})?", "not an integer", "an integer of up to 18 digits or nothing")
        for n in range(1, CRITEO_DENSE + 1)
    ),
    *(
        _Column(f"C{n}", rb"(?:[0-9a-fA-F]{1,8})?", "not hexadecimal", "up to 8 hex digits or nothing")
        for n in range(1, len(CRITEO_ROWS) + 1)
    ),
]
_HEADER = ",".join(column.name for column in [_ID, *_COLUMNS]).encode()


class _Form:
    """One of the two layouts. One match tells that a whole row is right; only a row that fails is taken apart."""

    def __init__(self, separator: bytes, columns: list[_Column], hint: str) -> None:
        self.separator, self.columns, self.hint = separator, columns, hint
        self.row = re.compile(separator.join(column.pattern for column in columns))

    def parse(self, line: bytes) -> Sample:
        row = line.rstrip(b"\r\n")
        fields = row.split(self.separator)
        # Without a line end only a full last category proves that nothing is missing.
        if not line.endswith(b"\n") and (len(fields) != len(self.columns) or len(fields[-1]) < 8):
            raise RowError("cut short", "expected a whole last row and a line end; if the row is whole, add one")
        if not self.row.fullmatch(row):
            raise self._fault(fields)
        return float(fields[-40]), [int(v or 0) for v in fields[-39:-26]], [int(v or b"0", 16) for v in fields[-26:]]

    def _fault(self, fields: list[bytes]) -> RowError:
        if len(fields) != len(self.columns):
            expected = f"expected {len(self.columns)} {self.hint}, got {len(fields)}"
            return RowError("wrong number of fields", expected)
        pairs = zip(self.columns, fields, strict=True)
        column, field = next((c, field) for c, field in pairs if not re.fullmatch(c.pattern, field))
        return RowError(column.reason, f"expected {column.expected} in {column.name}, got {show(field)}")


_TABS = _Form(b"\t", _COLUMNS, "tab separated fields (or, for commas, the header Id,Label,I1,... in line 1)")
_HEADED = _Form(b",", [_ID, *_COLUMNS], "comma separated fields")


def _form_of(first: bytes) -> tuple[Callable[[bytes], Sample], bool]:
    headed = first.rstrip(b"\r\n") == _HEADER
    return (_HEADED if headed else _TABS).parse, headed


class Criteo(Loader):
    """Streams a Criteo file; the form is known by its content, and so is gzip.

    Dense features are log(max(x, 0) + 1) of the 13 integers. A category is int(hex, 16) modulo the rows of its table,
    one id per table and sample. What is missing counts as 0, as in the reference DLRM; unlike there, categories are not
    renumbered by first appearance, which would need the whole file. Labels: clicked or not.
    Arguments, attributes and errors: see :class:`~blslib.workloads.files.Loader`.
    """

    published_rows = CRITEO_ROWS
    cure = "give a Criteo file, to notebooks as BLS_CRITEO=FILE, or unset it for made data (see data/README.md)"

    def _pass(self) -> Iterator[Sample]:
        return parsed_lines(self.path, _form_of, self._report)

    def _batch(self, samples: list[Sample]) -> Batch:
        labels, integers, categories = zip(*samples, strict=True)
        dense = np.log1p(np.maximum(np.array(integers, dtype=np.float64), 0)).astype(np.float32)
        ids = np.ascontiguousarray((np.array(categories, dtype=np.int64) % self.rows).T)
        offsets = np.arange(len(samples) + 1, dtype=np.int64)
        return Batch(dense, tuple(ids), (offsets,) * len(ids), np.array(labels, dtype=np.float32))
