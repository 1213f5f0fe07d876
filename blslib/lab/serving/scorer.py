"""The main process of distributed inference: dense parts, fan-outs to the sparse shards, and what each of them took.

A request is scored in order: bottom MLP; for one net after the other the look-ups, out to all shards at once and those
of replicated tables here meanwhile; interaction and top MLP. Nothing dense hides behind a look-up, so that the parts of
a latency add up.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from blslib.dlrm.config import ModelConfig
from blslib.dlrm.model import DLRM
from blslib.lab.serving.client import Answer, Shards
from blslib.lab.serving.shard import Bag, initial_weight, pooled
from blslib.placement.shards import Placement, Shard
from blslib.workloads.batch import Batch


class Scored(NamedTuple):
    """One request, scored.

    Attributes:
        scores: (samples,) float32.
        fanned_s: for each net, when its first look-up began to go out, and when its last answer was there.
        answers: of all shards.
        with_ids: how many of them were asked for any row.
    """

    scores: np.ndarray
    fanned_s: list[tuple[float, float]]
    answers: list[Answer]
    with_ids: int


class Scorer(Shards):
    """A model whose tables lie on shards of their own; replicated ones lie here. Scores what one process would.

    Row blocks apart, whose sums are added in the order of the blocks, scores are the same to the bit.

    Args:
        config: of the model.
        nets: the tables of each; they are looked up together, and nets follow one another.
        placement: its ranks are the shards.
        seed: of the weights.
        how: times to wait, as for ``Shards``.

    Raises:
        PlacementError: the placement is of other tables.
    """

    def __init__(
        self, config: ModelConfig, nets: Iterable[Collection[int]], placement: Placement, seed: int, **how: float
    ) -> None:
        placement.check([(rows, config.dim) for rows in config.rows])
        ranks = range(placement.ranks)
        of_net = [[shard for shard in placement.shards if shard.table in net] for net in nets]
        self._config = config
        self._here = [[shard for shard in net if shard.rank is None] for net in of_net]
        self._held = [[[shard for shard in net if shard.rank == rank] for net in of_net] for rank in ranks]
        self._weights = [[initial_weight(config, shard, seed) for shard in net] for net in self._here]
        self._dense = DLRM(replace(config, rows=(1,) * config.tables), seed=seed)  # layers do not depend on the rows
        super().__init__(config, self._held, seed, **how)

    @torch.inference_mode()
    def score(self, request: Sequence[Batch]) -> Scored:
        """Score a request that was split into batches; ids must lie within their tables.

        Raises:
            LateError, ShardError: as from ``answers`` and ``ask``.
        """
        dense = [self._dense.bottom(batch.dense) for batch in request]
        features = [np.empty((batch.size, batch.tables, self._config.dim), np.float32) for batch in request]
        fanned_s, answers, with_ids = [], list[Answer](), 0
        for net, here in enumerate(self._here):
            began_s, asked = perf_counter(), {}
            for at, batch in enumerate(request):
                for shard in self.processes:
                    if parts := self._held[shard][net]:
                        wanted = [self._bag(batch, part) for part in parts]
                        asked[self.ask(shard, net, wanted)] = at, parts
                        with_ids += any(len(ids) for ids, _ in wanted)
            bags = ([self._bag(batch, part) for part in here] for batch in request if here)
            found = [(at, here, pooled(self._weights[net], each)) for at, each in enumerate(bags)]
            came = self.answers(asked)
            fanned_s.append((began_s, perf_counter()))
            found += [(*whose, answer.sums) for whose, answer in zip(asked.values(), came, strict=True)]
            _fill(features, found)
            answers += came
        scores = [self._dense.score(*each) for each in zip(dense, ([part] for part in features), strict=True)]
        return Scored(np.concatenate(scores), fanned_s, answers, with_ids)

    def _bag(self, batch: Batch, part: Shard) -> Bag:
        """What a batch asks of one part of a table, with rows counted within the part."""
        ids, offsets, rows = batch.ids[part.table], batch.offsets[part.table], part.rows
        if len(rows) == self._config.rows[part.table]:
            return ids, offsets
        inside = (ids >= rows.start) & (ids < rows.stop) & ((ids - rows.start) % rows.step == 0)
        return (ids[inside] - rows.start) // rows.step, np.r_[0, np.cumsum(inside)][offsets]


def _fill(features: Sequence[np.ndarray], found: Iterable[tuple[int, Sequence[Shard], np.ndarray]]) -> None:
    """Put sums where they belong; row blocks are added in their order, so that scores do not know who came first."""
    pieces = []
    for at, parts, values in found:
        ends = np.cumsum([len(part.columns) for part in parts])
        for part, sums in zip(parts, np.split(values.reshape(-1, ends[-1]), ends[:-1], axis=1), strict=True):
            place = features[at][:, part.table, part.columns.start : part.columns.stop]
            pieces.append((part.rows.start, place, sums))
    for first_row, place, sums in sorted(pieces, key=itemgetter(0)):
        place[:] = place + sums if first_row else sums
