"""Numbers that others have published about recommender data, each with its source. Nothing here is measured by us.

Row counts are embedding tables' rows, pooling factors are ids per sample and table; entry t belongs to table t.
"""

CRITEO_DENSE = 13
"""Integer columns of the Criteo sets."""

# fmt: off
CRITEO_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)
"""Cardinalities of the 26 Criteo Kaggle columns (facebookresearch/dlrm, data preprocessing)."""

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


def capped(rows: tuple[int, ...], max_rows: int | None) -> tuple[int, ...]:
    """Row counts cut to ``max_rows``, so that the tables fit a small machine; None leaves them as they are."""
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"a table needs at least one row, got max_rows={max_rows}: give 1 or more, or None for no cap")
    return rows if max_rows is None else tuple(min(count, max_rows) for count in rows)
