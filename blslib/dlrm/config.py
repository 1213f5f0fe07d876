"""What a model is made of, and a published configuration."""

from dataclasses import dataclass
from typing import Literal, get_args

from blslib.workloads.published import CRITEO_DENSE, CRITEO_ROWS

Interaction = Literal["dot", "cat"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a DLRM (arXiv 1906.00091). Shapes are spelled as in ``blslib.workloads.batch``.

    Attributes:
        rows: rows of each of the T tables.
        dim: D.
        bottom: widths of the bottom MLP, its input F first; the last is D.
        top: widths of the top MLP without its input, which follows from the interaction; the last is 1.
        interaction: ``dot`` (pairwise products of the T + 1 vectors, after the dense one) or ``cat``.

    Raises:
        ValueError: if the parts do not fit together.
    """

    rows: tuple[int, ...]
    dim: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: Interaction = "dot"

    def __post_init__(self) -> None:
        for what, widths in (("rows", self.rows), ("bottom", self.bottom), ("top", self.top), ("dim", (self.dim,))):
            if min(widths, default=0) < 1:
                raise ValueError(f"{what} must be one positive number or more, got {widths}")
        if len(self.bottom) < 2:
            raise ValueError(f"bottom needs the dense features and at least one layer, got {self.bottom}")
        if self.bottom[-1] != self.dim:
            raise ValueError(
                f"last bottom width {self.bottom[-1]} does not match dim {self.dim}: "
                "the dense vector takes part in the interaction, make them equal"
            )
        if self.top[-1] != 1:
            raise ValueError(f"last top width must be 1, one score per sample, got {self.top}")
        if self.interaction not in get_args(Interaction):
            raise ValueError(f"interaction must be one of {get_args(Interaction)}, got {self.interaction!r}")

    @property
    def tables(self) -> int:
        """T."""
        return len(self.rows)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, D) of each table."""
        return tuple((rows, self.dim) for rows in self.rows)

    @property
    def dense_features(self) -> int:
        """F."""
        return self.bottom[0]

    @property
    def interaction_width(self) -> int:
        """Values per sample that enter the top MLP."""
        vectors = self.tables + 1
        return vectors * self.dim if self.interaction == "cat" else self.dim + vectors * (vectors - 1) // 2


KAGGLE = ModelConfig(CRITEO_ROWS, dim=16, bottom=(CRITEO_DENSE, 512, 256, 64, 16), top=(512, 256, 1))
"""Criteo Kaggle: bench/dlrm_s_criteo_kaggle.sh of the reference DLRM. 2.2 GB of tables; cut rows with ``replace``."""
