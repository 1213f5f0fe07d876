"""Alibaba's click and conversion log, Ali-CCP: the raw pair of files, and the one-line form of its extracts."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blslib.workloads.batch import Batch
from blslib.workloads.files import DataError, Form, Loader, RowError, existing, is_gzip, show
from blslib.workloads.published import ALICCP_FIELDS, ALICCP_ROWS

DENSE_FIELDS = ("109_14", "110_14", "127_14", "150_14", "508", "509", "702", "853")
"""Fields whose number of ids becomes a dense feature: the behaviour lists and the crosses."""

_TABLE = {field.encode(): table for table, field in enumerate(ALICCP_FIELDS)}
_DENSE = [ALICCP_FIELDS.index(field) for field in DENSE_FIELDS]

Features = np.ndarray
"""(2, n) int64: the tables and the ids of n lookups, in the order of the file."""

Sample = tuple[float, Features]
"""Label and features."""


class _Listing(NamedTuple):
    """One of the two ways to write features; an entry reaches to both its neighbours, and has a field and an id."""

    entry: re.Pattern[bytes]
    separator: bytes
    words: str

    def parse(self, listing: bytes, count: bytes | None = None) -> Features:
        """The features of a list; where their number stands before it, it may be empty."""
        entries = listing.count(self.separator) + 1 if listing or count is None else 0
        if count not in (None, str(entries).encode()):
            raise RowError("wrong number of features", f"expected {show(count or b'')} as n_feat says, got {entries}")
        pairs = self.entry.findall(listing)
        if len(pairs) != entries:
            wrong = next(each for each in listing.split(self.separator) if not self.entry.fullmatch(each))
            raise RowError("bad feature", f"expected {self.words}, got {show(wrong)}")
        if unknown := [field for field, _ in pairs if field not in _TABLE]:
            raise RowError("unknown field", f"expected one of {' '.join(ALICCP_FIELDS)}, got {show(unknown[0])}")
        return np.array([[_TABLE[field] for field, _ in pairs], [int(i) for _, i in pairs]], dtype=np.int64)


_PAIRS = _Listing(re.compile(rb"(?:\A|,)(\d+(?:_\d+)?):(\d{1,18})(?=,|\Z)"), b",", "field:id")
_TRIPLE = re.compile(rb"(?:\A|\x01)(\d+(?:_\d+)?)\x02(\d{1,18})\x03[-+.0-9eE]+(?=\x01|\Z)")
_TRIPLES = _Listing(_TRIPLE, b"\x01", r"field\x02id\x03value between \x01s")


def _split(line: bytes, names: str) -> list[bytes]:
    """The comma separated fields of a line; the last may hold more commas. The line must be whole."""
    if not line.endswith(b"\n"):
        raise RowError("cut short", "expected a whole last row and a line end; if the row is whole, add one")
    fields = names.count(",") + 1
    parts = line.rstrip(b"\r\n").split(b",", fields - 1)
    if len(parts) != fields:
        raise RowError("wrong number of fields", f"expected {fields}, comma separated: {names}, got {len(parts)}")
    return parts


def _key_of(line: bytes) -> bytes:
    return _split(line, "common_feature_index,n_feat,feat_list")[0]


@dataclass(eq=False, kw_only=True)
class AliCcp(Loader):
    """Streams Ali-CCP; the form is known by its content, and so is gzip (of all but the common features).

    Tables are the 23 fields in ascending order (:data:`~blslib.workloads.published.ALICCP_FIELDS`). The data number the
    ids of all fields in one space; here an id is taken modulo the rows of its field's table. Ids keep the order of the
    file, common features first. Labels are clicks. Rows with a purchase but no click are left out and counted, whatever
    ``on_error`` says. Ali-CCP has no dense columns: the dense features are log(1 + number of ids) of the eight
    :data:`DENSE_FIELDS`. Weights of the raw form are checked and not used: pooling is a plain sum.

    Attributes:
        path: ``sample_skeleton_*.csv``, or a file of lines ``row,click,purchase,field:id,...``.
        multi_hot: False keeps the first id of every field.
        common: the common features of the raw form; None looks for ``common_features_*`` beside the skeleton. Where
            each of its lines begins is kept in memory, some 230 bytes a line.

    All else is as of :class:`~blslib.workloads.files.Loader`.
    """

    published_rows = ALICCP_ROWS
    cure = "give an Ali-CCP file, to notebooks as BLS_ALICCP=FILE, or unset it for made data (see data/README.md)"

    multi_hot: bool = True
    common: Path | None = None

    def _form_of(self, first: bytes) -> Form:
        if b"\x02" not in first:
            return self._line, False
        name = self.path.name.replace("sample_skeleton", "common_features").removesuffix(".gz")
        how = f"{self.path} needs its common features: put them there, unpacked, or give common=FILE"
        path = existing(self.common or self.path.with_name(name), how)
        if is_gzip(path) or path == self.path:
            raise ValueError(f"{path} cannot be the common features: give common=FILE, unpacked, for keyed access")
        return partial(self._skeleton, self._common_features(path)), False

    def _common_features(self, path: Path) -> Callable[[bytes], Features]:
        """Keyed access to ``common_features_*.csv``, whose lines stay on disk: what is kept is where each begins.

        The file is read once, and what is wrong with it reported. The function in return gives the features of a key;
        it raises RowError if there are none or they are faulty, naming this file and its line.
        """
        places: dict[bytes, tuple[int, int]] = {}
        for number, position, key in self._lines(path, lambda first: (_key_of, False)):
            if key in places:
                expected = f"expected each common_feature_index once, got {show(key)} again"
                self._report(path, number, RowError("repeated index", expected))
            places.setdefault(key, (number, position))

        @lru_cache(maxsize=1024)
        def features(key: bytes) -> Features:
            if key not in places:
                raise RowError("no common features", f"expected a common_feature_index of {path}, got {show(key)}")
            number, position = places[key]
            with path.open("rb") as file:
                file.seek(position)
                _, count, listing = file.readline().rstrip(b"\r\n").split(b",", 2)
            try:
                return _TRIPLES.parse(listing, count)
            except RowError as error:
                raise RowError("bad common features", str(DataError(path, number, error))) from None

        return features

    def _line(self, line: bytes) -> Sample | None:
        number, click, purchase, listing = _split(line, "row,click,purchase,field:id...")
        if not number.isdigit():
            raise RowError("not an integer", f"expected a row number, got {show(number)}")
        return self._sample(click, purchase, _PAIRS.parse(listing))

    def _skeleton(self, common: Callable[[bytes], Features], line: bytes) -> Sample | None:
        names = "sample_id,click,purchase,common_feature_index,n_feat,feat_list"
        _, click, purchase, key, count, listing = _split(line, names)
        features = np.concatenate((common(key), _TRIPLES.parse(listing, count)), axis=1)
        return self._sample(click, purchase, features)

    def _sample(self, click: bytes, purchase: bytes, features: Features) -> Sample | None:
        if click not in (b"0", b"1") or purchase not in (b"0", b"1"):
            expected = f"expected click and purchase to be 0 or 1, got {show(click)} and {show(purchase)}"
            raise RowError("bad label", expected)
        if purchase > click:
            self.skipped["purchase without click"] += 1
            return None
        return float(click), features

    def _batch(self, samples: list[Sample]) -> Batch:
        size = len(samples)
        tables, ids = np.concatenate([features for _, features in samples], axis=1)
        sample = np.repeat(np.arange(size), [features.shape[1] for _, features in samples])
        cell = tables * size + sample
        counts = np.bincount(cell, minlength=len(ALICCP_FIELDS) * size).reshape(-1, size)
        dense = np.log1p(counts[_DENSE].T).astype(np.float32)
        order = np.argsort(cell, kind="stable")
        if not self.multi_hot:
            order = order[np.diff(cell[order], prepend=-1) > 0]
            counts = np.minimum(counts, 1)
        ids = ids[order] % np.array(self.rows)[tables[order]]
        return Batch(
            dense,
            tuple(np.split(ids, np.cumsum(counts.sum(axis=1))[:-1])),
            tuple(np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))),
            np.array([label for label, _ in samples], dtype=np.float32),
        )
