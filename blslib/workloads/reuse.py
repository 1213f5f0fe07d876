"""How often rows are used again: traces of lookups, their histogram, and laws that draw like either."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blslib.workloads.files import DataError, RowError, existing, parsed_lines, show
from blslib.workloads.published import META_REUSE, ReuseHistogram
from blslib.workloads.skew import CARDS, Key, scatter


def _fail(path: Path, line: int, error: RowError) -> None:
    raise DataError(path, line, error)


def _id(line: bytes) -> int:
    text = line.rstrip(b"\r\n")
    if not line.endswith(b"\n"):
        raise RowError("cut short", "expected a line end after the last id; if the id is whole, add one")
    if not text.isdigit() or len(text) > 18:
        raise RowError("not an id", f"expected one integer of up to 18 digits, 0 or more, got {show(text)}")
    return int(text)


def read_trace(path: str | Path) -> np.ndarray:
    """Read a lookup trace of one table: one id per line, plain or gzip. It is held in memory, 8 bytes per lookup.

    Returns:
        (lookups,) int64, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line is not an id, or the file is empty or cut short.
    """
    path = existing(path, "give the path of a file with one id per line")
    return np.fromiter(parsed_lines(path, lambda first: (_id, False), _fail), dtype=np.int64)


def summarise(ids: np.ndarray, name: str, bins: int = 17) -> ReuseHistogram:
    """The reuse histogram of a trace of at least one lookup; the last of the bins is open above."""
    uses = np.unique(ids, return_counts=True)[1]
    bin_of = np.minimum(np.ceil(np.log2(uses)).astype(np.int64), bins - 1)
    rows, accesses = np.bincount(bin_of, minlength=bins), np.bincount(bin_of, weights=uses, minlength=bins)
    return ReuseHistogram(name, accesses / len(ids), rows / len(uses), len(ids) / len(uses))


@dataclass(frozen=True, eq=False)
class Trace:
    """Replays a trace in its order, which keeps how long a row waits for its next use.

    Every seed and table starts elsewhere in the trace; behind its end it goes on at its beginning. Ids are taken modulo
    the rows of the table.

    Attributes:
        ids: (lookups,) int64, not negative, see :func:`read_trace`.
        name: for labels.
    """

    ids: np.ndarray
    name: str

    def __str__(self) -> str:
        return f"trace {self.name}"

    def draw(self, rows: int, size: int, key: Key) -> np.ndarray:
        """(size,) int64 ids in [0, rows)."""
        start = int(Key(key.seed, key.table, 0).rng().integers(len(self.ids))) + key.iteration * size
        return self.ids[(start + np.arange(size)) % len(self.ids)] % rows


@dataclass(frozen=True, eq=False)
class Reuse:
    """Draws like a reuse histogram: one of ``META_REUSE``, by default that of 2021, or one from :func:`summarise`.

    The bins make a deck of cards: a row that is used c times is on c cards. An iteration takes the next cards of a deck
    shuffled for its seed and table, so that while all draw equally much, a whole deck has the histogram's shares;
    drawing with replacement would smear neighbouring bins. The rows of a bin are used equally often, at the bin's
    published mean; where it holds fewer than 0.0005 of the rows, at 1.5 times its lower edge. In a table too small for
    all bins the hottest come first, with one row each.
    """

    histogram: ReuseHistogram = META_REUSE["2021"]

    def __str__(self) -> str:
        return f"reuse {self.histogram.name}"

    def deck(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Groups of rows that are used equally often, hottest first.

        Args:
            rows: of the table.

        Returns:
            (accesses per row, rows) of every group, int64; the dot product of the two is the size of the deck.
        """
        bins = np.flatnonzero(self.histogram.accesses)[::-1]
        accesses, share = self.histogram.accesses[bins], self.histogram.rows[bins]
        lower = np.where(bins == 0, 0.0, 2.0 ** (bins - 1))
        upper = np.where(bins == len(self.histogram.accesses) - 1, np.inf, 2.0**bins)
        with np.errstate(divide="ignore"):
            uses = np.where(share > 0, accesses * self.histogram.accesses_per_row / share, 1.5 * lower)
        uses = np.clip(uses, lower + 1, upper)
        total = rows / (accesses / uses).sum()  # the accesses that use every row as often as its bin says
        ends = np.rint(np.cumsum(accesses / uses * total)).astype(np.int64)
        ends = np.minimum(np.maximum(ends, np.arange(1, len(bins) + 1)), rows)
        members = np.diff(ends, prepend=0)
        # A single row may stand for a part of a row or for more than one: it gets what its bin has.
        cards = np.maximum(np.rint(np.where(members == 1, accesses * total, uses * members)), 1).astype(np.int64)
        base, more = np.divmod(cards[members > 0], members[members > 0])
        each = np.stack([base + 1, base], axis=1).ravel()
        members = np.stack([more, members[members > 0] - more], axis=1).ravel()
        return each[members > 0], members[members > 0]

    def draw(self, rows: int, size: int, key: Key) -> np.ndarray:
        """(size,) int64 ids in [0, rows)."""
        each, members = self.deck(rows)
        card_ends, row_ends = np.cumsum(each * members), np.cumsum(members)
        deck = int(card_ends[-1])
        place = (key.iteration * size + np.arange(size, dtype=np.int64)) % deck
        card = scatter(place, deck, key.seed, key.table, CARDS)
        group = np.searchsorted(card_ends, card, side="right")
        row = row_ends[group] - 1 - (card_ends[group] - 1 - card) // each[group]
        return scatter(row, rows, key.seed, key.table)
