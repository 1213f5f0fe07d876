"""DLRM inference for ``torch.distributed`` alone: one flag changes the backend, another the lag, over either.

    mpiexec -n 4 python examples/dlrm_torch.py --backend gloo
    mpiexec -n 4 python examples/dlrm_torch.py --backend gloo --bound 4
    mpiexec -n 4 python examples/dlrm_torch.py --backend bls
    mpiexec -n 4 python examples/dlrm_torch.py --backend bls --bound 4

The steps are those of the reference DLRM (``dlrm_s_pytorch.py`` of facebookresearch/dlrm): look the own tables up for
the whole batch, start the exchange, run the bottom MLP on the own rows meanwhile, wait, interact, top MLP. All four
print the same digest of the scores. Two things in the reference would undo any lag, and are done otherwise here; look
for "Trap".
"""

import argparse
import hashlib
import time
from collections import deque

import numpy as np
import torch
import torch.distributed as dist

from blslib.collective.torch import BLSOptions
from blslib.dlrm.config import ModelConfig
from blslib.dlrm.model import DLRM
from blslib.dlrm.sharding import recv_counts, send_counts
from blslib.placement.shards import contiguous
from blslib.workloads.synthetic import Synthetic

LIGHT, HEAVY = 10, 50
"""Ids per bag; in iteration i the tables of rank i mod P have the heavy ones, so the load wanders."""


def main() -> None:
    """Run the loop; rank 0 prints throughput and digest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("gloo", "bls"), default="bls")
    parser.add_argument("--bound", type=int, default=0, help="batches under way at once")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rows", type=int, default=100_000, help="of each of 8 tables per rank")
    options = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group(options.backend, pg_options=BLSOptions(bound=options.bound))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tables = (options.rows,) * (8 * ranks)
    config = ModelConfig(rows=tables, dim=32, bottom=(13, 64, 32), top=(64, 1))
    placement = contiguous(config.shapes, ranks)
    model = DLRM(config, seed=1, placement=placement, rank=rank)
    owners = np.array([shard.rank for shard in placement.shards])
    made = Synthetic(
        tables,
        options.batch_size,
        pooling=lambda i: np.where(owners == i % ranks, HEAVY, LIGHT),
        seed=1,
    )
    pool = [made.batch(i).only(placement.parts(rank), tables) for i in range(2 * ranks)]

    input_splits = send_counts(placement, rank, options.batch_size).tolist()
    output_splits = recv_counts(placement, rank, options.batch_size).tolist()
    scores: list[np.ndarray] = []

    def score(request: dist.Work, sent: torch.Tensor, received: torch.Tensor, home: torch.Tensor) -> None:
        request.wait()  # from here on ``received`` is filled, and nobody reads ``sent`` any more
        scores.append(model.score(home, [block.numpy() for block in received.split(output_splits)]))

    # Trap 1. The reference keeps *the* request in one global variable, so that no more than one can be under way. A
    # queue of as many as the bound allows is all that bounded lag asks of a program. Each batch needs an output of its
    # own until it is scored. Its input stands in the queue, too: bls has copied it when the call returns, gloo may read
    # it until the wait.
    under_way: deque[tuple[dist.Work, torch.Tensor, torch.Tensor, torch.Tensor]] = deque()
    outputs = [torch.empty(sum(output_splits)) for _ in range(options.bound + 1)]
    dist.barrier()
    started_s = time.perf_counter()
    with torch.inference_mode():
        for i in range(options.batches):
            batch, received = pool[i % len(pool)], outputs[i % len(outputs)]
            pooled = torch.from_numpy(np.concatenate(model.tables.lookup(batch)))
            request = dist.all_to_all_single(received, pooled, output_splits, input_splits, async_op=True)
            under_way.append((request, pooled, received, model.home(batch)))
            if len(under_way) > options.bound:
                score(*under_way.popleft())
        while under_way:
            score(*under_way.popleft())
    # Trap 2. The reference gathers the scores of all ranks after *every* batch, to count hits. That is a synchronising
    # collective in each iteration, and cancels whatever lag the exchange allows: gather once, at the end.
    dist.barrier()
    elapsed_s = time.perf_counter() - started_s
    everybody: list[np.ndarray] = [np.empty(0)] * ranks
    dist.all_gather_object(everybody, np.concatenate(scores))
    dist.destroy_process_group()
    if rank == 0:
        digest = hashlib.sha256(b"".join(each.tobytes() for each in everybody)).hexdigest()[:16]
        print(f"{options.backend} bound {options.bound}: {options.batches / elapsed_s:.0f} batches/s, scores {digest}")


if __name__ == "__main__":
    main()
