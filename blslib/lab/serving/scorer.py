"""The main process of distributed inference: dense parts, fan-outs to the sparse shards, and what each of them took.

A request is scored in order: bottom MLP; for one net after the other the look-ups, out to all shards at once, and those
of replicated tables here while the first are out; interaction and top MLP. Nothing dense hides behind a look-up, so
that the parts of a latency add up.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from blslib.dlrm.config import ModelConfig
from blslib.dlrm.model import DLRM
from blslib.lab.serving.client import Answer, Shards
from blslib.placement.shards import Placement, Shard
from blslib.workloads.batch import Bags, Batch, bags_within


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
        nets: (T,) number of the net of each table, from 0; tables of a net are looked up together, net after net.
        placement: its ranks are the shards.
        seed: of the weights.
        how: times to wait, as for ``Shards``.

    Raises:
        PlacementError: the placement is of other tables.
    """

    def __init__(self, config: ModelConfig, nets: Sequence[int], placement: Placement, seed: int, **how: float) -> None:
        # To the model, what a shard holds of one net is a rank of its own, and we are the last.
        self._nets, self._ranks = range(max(nets) + 1), placement.ranks
        last = len(self._nets) * self._ranks
        apart = (
            s if s.rank is None else s._replace(rank=self._source(nets[s.table], s.rank)) for s in placement.shards
        )
        self._model = DLRM(config, seed=seed, placement=Placement(tuple(apart), last + 1), rank=last)
        held = self._model.placement.of_rank[:last]
        super().__init__(config, [held[shard :: self._ranks] for shard in range(self._ranks)], seed, **how)

    def _source(self, net: int, shard: int) -> int:
        return net * self._ranks + shard

    @torch.inference_mode()
    def score(self, request: Sequence[Batch]) -> Scored:
        """Score a request that was split into batches.

        Raises:
            LateError, ShardError: as from ``answers`` and ``ask``.
        """
        model = self._model
        home = [model.bottom(batch.dense) for batch in request]
        blocks = [[np.empty(0, np.float32)] * model.placement.ranks for _ in request]
        fanned_s, answers, with_ids = [], list[Answer](), 0
        for net in self._nets:
            began_s, asked = perf_counter(), {}
            for at, batch in enumerate(request):
                for shard in self.processes:
                    source = self._source(net, shard)
                    if bags := [self._bags(batch, part) for part in model.placement.of_rank[source]]:
                        asked[self.ask(shard, net, bags)] = at, source
                        with_ids += any(len(ids) for ids, _ in bags)
            if net == 0 and model.placement.replicated:
                replicas = (model.tables.replicas(batch, slice(0, batch.size)) for batch in request)
                home = [torch.cat((dense, *sums), dim=1) for dense, sums in zip(home, replicas, strict=True)]
            came = self.answers(asked)
            fanned_s.append((began_s, perf_counter()))
            for (at, source), answer in zip(asked.values(), came, strict=True):
                blocks[at][source] = answer.sums
            answers += came
        return Scored(np.concatenate(list(map(model.score, home, blocks))), fanned_s, answers, with_ids)

    def _bags(self, batch: Batch, part: Shard) -> Bags:
        """What a batch asks of one part of a table, with rows counted within the part."""
        ids, offsets, rows = batch.ids[part.table], batch.offsets[part.table], self._model.config.rows[part.table]
        if len(part.rows) < rows:
            ids, offsets = bags_within(part.rows, ids, offsets, part.table, rows)
            ids = (ids - part.rows.start) // part.rows.step
        return ids, offsets
