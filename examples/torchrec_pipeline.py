"""TorchRec inference that has batches under way: one flag changes the backend, one the sharding, one the depth.

    mpiexec -n 2 python examples/torchrec_pipeline.py --backend gloo --delay-ms 20
    mpiexec -n 2 python examples/torchrec_pipeline.py --backend bls --delay-ms 20
    mpiexec -n 2 python examples/torchrec_pipeline.py --backend bls --delay-ms 20 --batches-in-flight 2 --sharding row

A sharded EmbeddingBagCollection takes a batch in three steps, each of which ends in an exchange: how many ids there are
(input_dist), the ids (its wait), the pooled embeddings (compute_and_output_dist). Its own forward, and the pipelines
that come with it, wait for each soon after it has begun, so that no rank gets ahead. Here each step may have so many
batches under way, and the ranks may be apart by as many; all runs print the same digest of all outputs. docs/torch.md
says how to install TorchRec, and what the bound has to do with the calls of a batch.
"""

import argparse
import gc
import hashlib
import logging
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI

from blslib.collective.torch import BLSGroup, BLSOptions

NOT_THERE = ""
try:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
    from torchrec.distributed.sharding_plan import (
        column_wise,
        construct_module_sharding_plan,
        row_wise,
        table_wise,
    )
    from torchrec.distributed.types import ShardingEnv
except ModuleNotFoundError as error:
    NOT_THERE = (
        f"needs TorchRec, and there is no {error.name}: pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 && "
        "pip install tensordict torchmetrics==1.0.3 tqdm pyre-extensions"
    )
except OSError as error:  # the packages fbgemm-gpu and fbgemm-gpu-cpu are in each other's folder
    NOT_THERE = (
        f"cannot load TorchRec's operators ({error}): pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && "
        "pip install --no-deps --force-reinstall fbgemm-gpu-cpu==1.8.0"
    )

DIM, MOST_IDS = 32, 20


def arguments() -> argparse.Namespace:
    """What the user has asked for; ends the program where that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("gloo", "bls"), default="bls")
    parser.add_argument("--sharding", choices=("table", "row", "column"), default="table", help="by whole tables, ...")
    parser.add_argument("--batches-in-flight", type=int, default=0, metavar="K", help="that each step may have (0)")
    parser.add_argument("--calls-per-batch", type=int, metavar="N", help="all-to-alls; else a small batch counts them")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64, help="samples of each rank (64)")
    parser.add_argument("--tables", type=int, default=4, help="embedding tables of each rank (4)")
    parser.add_argument("--rows", type=int, default=10_000, help="of each table (10000)")
    parser.add_argument("--delay-ms", type=float, default=0, help="that rank i mod P sleeps before batch i (0)")
    options = parser.parse_args()
    for name in ("calls_per_batch", "batches", "batch_size", "tables", "rows"):
        if (given := getattr(options, name)) is not None and given < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {given}")
    if options.batches_in_flight < 0 or options.delay_ms < 0:
        parser.error("--batches-in-flight and --delay-ms cannot be less than 0")
    if NOT_THERE:
        sys.exit(f"{parser.prog}: {NOT_THERE}" if MPI.COMM_WORLD.rank == 0 else 1)
    return options


def sharded(group: dist.ProcessGroup, how: str, tables: int, rows: int) -> "ShardedEmbeddingBagCollection":
    """Tables of weights that say where they stand, small whole numbers: their sums are exact in every order."""
    ranks = group.size()
    configs = [
        EmbeddingBagConfig(name=f"table {t}", feature_names=[f"{t}"], num_embeddings=rows, embedding_dim=DIM)
        for t in range(tables)
    ]
    module, sharder = EmbeddingBagCollection(configs, device=torch.device("meta")), EmbeddingBagCollectionSharder()
    each = {
        config.name: {
            "table": table_wise(rank=t % ranks),
            "row": row_wise(),
            "column": column_wise(ranks=[t % ranks, (t + 1) % ranks]),
        }[how]
        for t, config in enumerate(configs)
    }
    plan = construct_module_sharding_plan(module, each, sharder, local_size=ranks, world_size=ranks, device_type="cpu")
    placed = sharder.shard(module, plan, ShardingEnv.from_process_group(group), torch.device("cpu"))
    for t, (_, table) in enumerate(sorted(placed.state_dict().items())):
        for shard in table.local_shards():
            first_row, first_column = shard.metadata.shard_offsets
            row = torch.arange(first_row, first_row + shard.tensor.shape[0])[:, None]
            column = torch.arange(first_column, first_column + shard.tensor.shape[1])
            shard.tensor.copy_((7 * t + 5 * row + 3 * column) % 17 - 8)
    return placed


def made(tables: int, rows: int, size: int, seed: int) -> "KeyedJaggedTensor":
    """A rank's part of a batch: up to 20 ids for each sample and table."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, MOST_IDS + 1, (tables * size,), generator=random)
    ids = torch.randint(0, rows, (int(lengths.sum()),), generator=random)
    return KeyedJaggedTensor(keys=[f"{t}" for t in range(tables)], values=ids, lengths=lengths)


def held(under_way: Iterable[Any], depth: int) -> Iterator[Any]:
    """The same in the same order, each when ``depth`` more have begun."""
    queue: deque[Any] = deque()
    for each in under_way:
        queue.append(each)
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


def pooled(bags: "ShardedEmbeddingBagCollection", batches: Iterable["KeyedJaggedTensor"], depth: int) -> Iterator[Any]:
    """The embeddings of each batch. All ranks begin the same exchanges in the same order, as they must."""

    def counted() -> Iterator[Any]:
        for batch in batches:
            context = bags.create_context()
            yield context, bags.input_dist(context, batch)

    sent = ((context, counts.wait()) for context, counts in held(counted(), depth))
    looked_up = (bags.compute_and_output_dist(context, ids.wait()) for context, ids in held(sent, depth))
    for embeddings in held(looked_up, depth):
        yield embeddings.wait()


def calls_of_a_batch(group: BLSGroup, how: str, tables: int) -> int:
    """All-to-alls of one batch: they depend on the sharding, not on the rows, so a few show it. Collective."""
    rows = group.size()
    before = group.calls
    for _ in pooled(sharded(group, how, tables, rows), [made(tables, rows, 1, seed=0)], depth=0):
        pass
    return group.calls - before


def run(group: dist.ProcessGroup, options: argparse.Namespace) -> str:
    """What there is to say of the loop, on every rank. Collective."""
    rank, ranks = group.rank(), group.size()
    tables, depth = options.tables * ranks, options.batches_in_flight
    if isinstance(group, BLSGroup):
        # One number for both: the group has the bound, in batches, and the queues take their depth from it.
        calls = options.calls_per_batch or calls_of_a_batch(group, options.sharding, tables)
        group = dist.new_group(backend="bls", pg_options=BLSOptions(bound=depth, calls_per_batch=calls))
        depth = group.bound
    bags = sharded(group, options.sharding, tables, options.rows)
    torch.manual_seed(1)
    top = torch.nn.Sequential(torch.nn.Linear(tables * DIM, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    pool = [made(tables, options.rows, options.batch_size, ranks * i + rank) for i in range(2 * ranks)]
    digest = hashlib.sha256()

    def arriving() -> Iterator["KeyedJaggedTensor"]:
        for i in range(options.batches):
            if i % ranks == rank:
                time.sleep(1e-3 * options.delay_ms)
            yield pool[i % len(pool)]

    dist.barrier()
    started_s = time.perf_counter()
    for embeddings in pooled(bags, arriving(), depth):
        by_table = embeddings.to_dict()  # in an order that depends on the sharding
        inputs = torch.cat([by_table[f"{t}"] for t in range(tables)], dim=1)
        digest.update(inputs.numpy().tobytes() + top(inputs).numpy().tobytes())
    dist.barrier()
    speed = options.batches / (time.perf_counter() - started_s)
    everybody: list[Any] = [None] * ranks
    dist.all_gather_object(everybody, digest.hexdigest())
    outputs = hashlib.sha256("".join(everybody).encode()).hexdigest()[:16]
    depths = f"{depth} in flight in each step"
    if isinstance(group, BLSGroup):
        bound = group.bound * group.calls_per_batch
        depths += f" (a bound of {bound} calls, {group.calls / options.batches:g} calls a batch)"
    return f"{options.backend}, {options.sharding}-wise, {depths}: {speed:.0f} batches/s, outputs {outputs}"


def main() -> None:
    """Run the loop; rank 0 prints throughput and digest."""
    options = arguments()
    for name in ("torchrec", "torch.fx"):  # which tell of choices that are meant
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # TorchRec's business
    torch.set_num_threads(1)
    dist.init_process_group(options.backend)
    with torch.no_grad():
        told = run(dist.group.WORLD, options)
    # The module knows its group. With gloo, one that is still known when Python ends can take the process down.
    gc.collect()
    if dist.get_rank() == 0:
        print(told)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
