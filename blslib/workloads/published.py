"""Numbers that others have published about recommender data, each with its source. Nothing here is measured by us.

Row counts are embedding tables' rows, pooling factors are ids per sample and table; entry t belongs to table t.
"""

from typing import NamedTuple

import numpy as np

CRITEO_DENSE = 13
"""Integer columns of the Criteo sets."""

# fmt: off
CRITEO_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)
"""Cardinalities of the 26 Criteo Kaggle columns (facebookresearch/dlrm, data preprocessing)."""

MLPERF_V2_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209, 11938, 155, 4, 976, 14,
    40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)
"""Rows of the 26 tables of MLPerf DLRM v2 (facebookresearch/dlrm, torchrec_dlrm/README)."""

MLPERF_V2_POOLING = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Multi-hot sizes of MLPerf DLRM v2: 214 lookups per sample (same source)."""

ALICCP_FIELDS = (
    "101", "109_14", "110_14", "121", "122", "124", "125", "126", "127", "127_14", "128", "129", "150_14", "205", "206",
    "207", "210", "216", "301", "508", "509", "702", "853",
)
"""The 23 fields of Ali-CCP in ascending order: the order of the tables, everywhere in this package."""

ALICCP_ROWS = (
    238635, 6086, 116741, 98, 14, 3, 8, 4, 4, 58015, 3, 5, 33786, 467298, 6929, 263942, 33786, 106399, 4, 5888, 104830,
    51878, 37148,
)
"""Vocabulary of each field: ids seen ten times or more (PaddlePaddle/PaddleRec, models/multitask/aitm), for the four
behaviour lists all ids (NVIDIA-Merlin/models, raw schema). For 210 no number is known; it names intentions as 150_14
does and is given the same."""

ALICCP_POOLING = (
    0.998, 69.037, 250.084, 0.870, 0.870, 0.870, 0.870, 0.416, 0.870, 153.696, 0.870, 0.637, 135.920, 1.0, 1.0, 1.0,
    6.098, 0.711, 1.0, 0.697, 0.221, 0.224, 1.400,
)
"""Mean ids per sample and field, training part (limings02/ali-ccp-multitask-ranking, vectorized/metadata.json)."""
# fmt: on


class ReuseHistogram(NamedTuple):
    """How often the rows of a table are used in a trace.

    Bin 0 holds the rows used once, bin j those used more than 2**(j-1) and up to 2**j times; the last is open above.

    Attributes:
        name: of the trace.
        accesses: (bins,) share of all accesses that go to the rows of each bin.
        rows: (bins,) share of the distinct rows that lie in each bin.
        accesses_per_row: mean accesses of a row that is used at all.
    """

    name: str
    accesses: np.ndarray
    rows: np.ndarray
    accesses_per_row: float


def _published(name: str, accesses_per_row: float, accesses: str, rows: str) -> ReuseHistogram:
    """Shares in thousandths; bins missing at the end of ``rows`` were published as below 0.0005."""
    share = np.array(accesses.split(), dtype=np.float64) / 1000
    known = np.array(rows.split(), dtype=np.float64) / 1000
    return ReuseHistogram(f"Meta {name}", share, np.pad(known, (0, len(share) - len(known))), accesses_per_row)


_META: tuple[tuple[str, float, str, str], ...] = (
    ("2021", 6.9, "69 44 68 101 121 104 73 58 52 50 49 48 48 43 31 23 19", "473 152 139 112 72 32 11 5 2 1"),
    ("2021_0", 7.6, "56 43 75 99 112 91 64 52 49 50 54 58 61 52 38 26 20", "423 165 167 121 73 31 11 4 2 1 1"),
    ("2022_0", 12.7, "27 23 40 68 105 120 99 70 59 54 40 72 64 47 21 17 76", "342 144 149 138 112 68 29 10 4 2 1 1"),
)

META_REUSE = {numbers[0]: _published(*numbers) for numbers in _META}
"""Reuse in production-like traces of Meta (facebookresearch/dlrm_datasets, MIT, locality_stats): bs65536, bs65536_0 of
2021 and bs131072_0 of 2022; three decimals were published."""


def capped(rows: tuple[int, ...], max_rows: int | None) -> tuple[int, ...]:
    """Row counts cut to ``max_rows``, so that the tables fit a small machine; None leaves them as they are."""
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"a table needs at least one row, got max_rows={max_rows}: give 1 or more, or None for no cap")
    return rows if max_rows is None else tuple(min(count, max_rows) for count in rows)
