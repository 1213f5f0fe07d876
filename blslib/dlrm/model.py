"""The recommendation model: two MLPs, the interaction between them, and one rank's share of the tables.

Weights follow from a seed alone and are the same for every P. Layers and distributions are those of the reference DLRM
(``dlrm_s_pytorch.py`` of facebookresearch/dlrm), whose ``bot_l`` and ``top_l`` the two MLPs are: trained weights are
loaded as into any module of torch, and those of a table copied into the weights of its shards.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from blslib.dlrm.config import ModelConfig
from blslib.dlrm.sharding import ShardedTables, moves, own_rows, stream
from blslib.placement.shards import Placement, contiguous
from blslib.workloads.batch import Batch


def interact_dot(features: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """The dense vector, then the products of every two of the vectors.

    Args:
        features: (rows, V, D); vector 0 is the dense one, then the tables in order.
        pairs: (V * (V - 1) / 2,) int64 from ``lower_triangle(V)``.

    Returns:
        (rows, D + V * (V - 1) / 2): strictly lower triangle, row by row.
    """
    products = torch.bmm(features, features.transpose(1, 2)).flatten(1)
    return torch.cat((features[:, 0], products.index_select(1, pairs)), dim=1)


def lower_triangle(vectors: int) -> torch.Tensor:
    """Positions of the strictly lower triangle, row by row, in a flattened (V, V) matrix."""
    row, column = np.tril_indices(vectors, k=-1)
    return torch.from_numpy(row * vectors + column)


class DLRM:
    """One rank's part of the model: both MLPs whole, and its shards of the tables. By default one rank is all.

    Args:
        config: the whole model.
        seed: of all weights.
        placement: of the T tables over P ranks, in any mix of shards; None keeps all of them here.
        rank: this one.

    Attributes:
        bottom_layers, top_layers: the two MLPs, ``torch.nn.Sequential``.
        tables: the own shards.

    Raises:
        blslib.placement.shards.PlacementError: the placement does not hold every row and column of the tables once.
        ValueError: the rank is outside the placement.

    Example:
        >>> from blslib.dlrm.config import ModelConfig
        >>> model = DLRM(ModelConfig(rows=(3, 5), dim=2, bottom=(4, 2), top=(1,)), seed=7)
        >>> none = np.array([], dtype=np.int64)
        >>> batch = Batch(np.zeros((1, 4), np.float32), (np.array([0, 2]), none), (np.array([0, 2]), np.array([0, 0])))
        >>> model(batch).shape
        (1,)
    """

    def __init__(self, config: ModelConfig, *, seed: int, placement: Placement | None = None, rank: int = 0) -> None:
        self.config, self.rank = config, rank
        self.placement = placement or contiguous(config.shapes, 1)
        self.tables = ShardedTables(config, self.placement, rank, seed)
        self.bottom_layers = _mlp(config.bottom, seed, part=1, last=torch.nn.ReLU(inplace=True))
        self.top_layers = _mlp((config.interaction_width, *config.top), seed, part=2, last=torch.nn.Sigmoid())
        self._pairs = lower_triangle(config.tables + 1)
        self._moves = moves(self.placement, config.dim)
        self._features = torch.empty(0, config.tables + 1, config.dim)

    def bottom(self, dense: np.ndarray) -> torch.Tensor:
        """(rows, F) dense features to (rows, D)."""
        if dense.shape[1] != self.config.dense_features:
            raise ValueError(f"batch has {dense.shape[1]} dense features, the model has {self.config.dense_features}")
        # A copy: a slice of a batch may lie at any address, and matrix products may round by how input is aligned.
        return self.bottom_layers(torch.tensor(dense, dtype=torch.float32))

    def home(self, batch: Batch) -> torch.Tensor:
        """What needs no other rank, for the own samples of a batch: dense vectors, then sums of replicated shards.

        Returns:
            (rows, D and the columns of all replicated shards).

        Raises:
            ValueError: as of ``bottom`` and ``ShardedTables.replicas``.
        """
        mine = own_rows(batch.size, self.rank, self.placement.ranks)
        dense, replicas = self.bottom(batch.dense[mine]), self.tables.replicas(batch, mine)
        return torch.cat((dense, *replicas), dim=1) if replicas else dense

    def interact(self, home: torch.Tensor, blocks: Sequence[np.ndarray]) -> torch.Tensor:
        """Bring the shards of all ranks to their places, add row blocks up, and combine all with the dense vectors.

        Args:
            home: from ``home``.
            blocks: P flat float32 arrays, one per source rank: (rows, columns of all its shards).

        Returns:
            (rows, ``config.interaction_width``); with ``cat`` a view which the next call overwrites.

        Raises:
            ValueError: if a block has another size.
        """
        rows = len(home)
        if rows > len(self._features):
            self._features = torch.empty(rows, self.config.tables + 1, self.config.dim)
        features = self._features[:rows]
        sums = []
        for source, (block, width) in enumerate(zip(blocks, self.placement.widths, strict=True)):
            if block.size != rows * width:
                raise ValueError(
                    f"block of rank {source} has {block.size} values, {rows} samples of {width} columns "
                    f"make {rows * width}: every rank must post the same batch"
                )
            sums.append(block.reshape(rows, width))
        sums.append(home.numpy())
        values = features.flatten(1).numpy()
        for block_of_rows, source, taken, to in self._moves:
            if block_of_rows:
                values[:, to] += sums[source][:, taken]
            else:
                values[:, to] = sums[source][:, taken]
        return features.flatten(1) if self.config.interaction == "cat" else interact_dot(features, self._pairs)

    def score(self, home: torch.Tensor, blocks: Sequence[np.ndarray]) -> np.ndarray:
        """(rows,) float32 in [0, 1]: interaction and top MLP. Arguments as for ``interact``."""
        return self.top_layers(self.interact(home, blocks)).flatten().numpy()

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> np.ndarray:
        """(B,) float32: the scores of a whole batch, in one process.

        Raises:
            ValueError: if the placement is over several ranks.
        """
        if self.placement.ranks > 1:
            raise ValueError(
                f"rank {self.rank} holds {len(self.tables.weights)} of {len(self.placement.shards)} shards: "
                "score with blslib.dlrm.inference, or build the model without a placement"
            )
        blocks = self.tables.lookup(batch)
        return self.score(self.home(batch), blocks)


def _mlp(widths: Sequence[int], seed: int, part: int, last: torch.nn.Module) -> torch.nn.Sequential:
    """As in the reference: weights N(0, sqrt(2 / (m + n))), biases N(0, sqrt(1 / m)), ReLU after all but the last."""
    layers: list[torch.nn.Module] = []
    for index, (n, m) in enumerate(pairwise(widths)):
        normal = stream(seed, part, index).normal
        drawn = {"weight": normal(0.0, np.sqrt(2 / (m + n)), (m, n)), "bias": normal(0.0, np.sqrt(1 / m), m)}
        layer = torch.nn.Linear(n, m, device="meta")  # which draws no weights of its own
        layer.load_state_dict({name: torch.tensor(x, dtype=torch.float32) for name, x in drawn.items()}, assign=True)
        layers += [layer, torch.nn.ReLU(inplace=True)]
    return torch.nn.Sequential(*layers[:-1], last).requires_grad_(False)
