"""Criteo's click logs: Kaggle's ``train.txt`` as published, and the headed CSV form of its extracts."""

import re
from functools import partial

import numpy as np

from blslib.workloads.batch import Batch
from blslib.workloads.files import Form, Loader, RowError, show
from blslib.workloads.published import CRITEO_DENSE, CRITEO_ROWS

Sample = tuple[float, list[int], list[int]]
"""Label, 13 integers, 26 categories."""

Columns = dict[str, tuple[re.Pattern[bytes], str, str]]
"""By name: the pattern of a field, what is wrong with one that has another, and what was expected."""

_INTEGER = (re.compile(rb"(?:-?\d{1,18})?"), "not an integer", "an integer of up to 18 digits or nothing")
_CATEGORY = (re.compile(rb"(?:[0-9a-fA-F]{1,8})?"), "not hexadecimal", "up to 8 hex digits or nothing")
_COLUMNS: Columns = {"Label": (re.compile(rb"[01]"), "bad label", "0 or 1")}
_COLUMNS |= {f"I{n + 1}": _INTEGER for n in range(CRITEO_DENSE)}
_COLUMNS |= {f"C{n + 1}": _CATEGORY for n in range(len(CRITEO_ROWS))}
_WITH_ID: Columns = {"Id": (re.compile(rb"\d+"), "not an integer", "a number"), **_COLUMNS}


def _sample(separator: bytes, columns: Columns, hint: str, line: bytes) -> Sample:
    fields = line.rstrip(b"\r\n").split(separator)
    # Without a line end only a full last category proves that nothing is missing.
    if not line.endswith(b"\n") and (len(fields) != len(columns) or len(fields[-1]) < 8):
        raise RowError("cut short", "expected a whole last row and a line end; if the row is whole, add one")
    if len(fields) != len(columns):
        raise RowError("wrong number of fields", f"expected {len(columns)} {hint}, got {len(fields)}")
    for (name, (pattern, reason, expected)), field in zip(columns.items(), fields, strict=True):
        if not pattern.fullmatch(field):
            raise RowError(reason, f"expected {expected} in {name}, got {show(field)}")
    return float(fields[-40]), [int(v or 0) for v in fields[-39:-26]], [int(v or b"0", 16) for v in fields[-26:]]


_TABS = partial(_sample, b"\t", _COLUMNS, "tab separated fields (or, for commas, the header Id,Label,I1,... in line 1)")
_HEADED = partial(_sample, b",", _WITH_ID, "comma separated fields")


class Criteo(Loader):
    """Streams a Criteo file; the form is known by its content, and so is gzip.

    Dense features are log(max(x, 0) + 1) of the 13 integers. A category is int(hex, 16) modulo the rows of its table,
    one id per table and sample. What is missing counts as 0, as in the reference DLRM; unlike there, categories are not
    renumbered by first appearance, which would need the whole file. Labels: clicked or not.
    Arguments, attributes and errors: see :class:`~blslib.workloads.files.Loader`.
    """

    published_rows = CRITEO_ROWS
    cure = "give a Criteo file, to notebooks as BLS_CRITEO=FILE, or unset it for made data (see data/README.md)"

    def _form_of(self, first: bytes) -> Form:
        headed = first.rstrip(b"\r\n") == ",".join(_WITH_ID).encode()
        return (_HEADED if headed else _TABS), headed

    def _batch(self, samples: list[Sample]) -> Batch:
        labels, integers, categories = zip(*samples, strict=True)
        dense = np.log1p(np.maximum(np.array(integers, dtype=np.float64), 0)).astype(np.float32)
        ids = np.ascontiguousarray((np.array(categories, dtype=np.int64) % np.array(self.rows)).T)
        offsets = np.arange(len(samples) + 1, dtype=np.int64)
        return Batch(dense, tuple(ids), (offsets,) * len(ids), np.array(labels, dtype=np.float32))
