"""Time of an all-to-all of torch.distributed, every block filled and read, under whichever launcher starts the ranks.

    torchrun --nproc-per-node 2 examples/call_time.py --backend bls --bytes 256
    mpiexec -n 2 python examples/call_time.py --backend bls --bytes 256

``python -m blslib bench torch`` compares backends in one run, interleaved; this compares launchers, one run after the
other, so start them in turn and several times. ``--bound k`` keeps k requests in flight, over any backend.
"""

import argparse
import os
import statistics
import time
from collections import deque

import torch
import torch.distributed as dist

import blslib.collective.torch  # noqa: F401  under mpiexec ranks then need no address, over gloo either


def main() -> None:
    """Run the loop some times, and print the median of the times of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="bls", help="bls or gloo")
    parser.add_argument("--bytes", type=int, default=256, metavar="N", help="of each block, a multiple of 4 (256)")
    parser.add_argument("--bound", type=int, default=0, metavar="K", help="requests in flight (0)")
    parser.add_argument("--calls", type=int, default=3000, metavar="N", help="of a run (3000)")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="after one that is not counted (5)")
    options = parser.parse_args()
    if options.bytes < 4 or options.bytes % 4 or min(options.calls, options.runs) < 1 or options.bound < 0:
        parser.error("--bytes is a multiple of 4, --calls and --runs are at least 1, --bound is at least 0")
    os.environ["BLS_BOUND"] = str(options.bound)
    dist.init_process_group(options.backend)
    rank, size, depth = dist.get_rank(), dist.get_world_size(), options.bound + 1
    sent = [torch.empty(size, options.bytes // 4) for _ in range(depth)]
    received = [torch.empty_like(each) for each in sent]
    peers = torch.arange(size, dtype=torch.float32)

    def finish(work: dist.Work | None, i: int) -> None:
        if work is not None:
            work.wait()
        sums, expected = received[i % depth].sum(dim=1), (peers + i % 50) * (options.bytes // 4)
        if not torch.equal(sums, expected):
            raise RuntimeError(f"rank {rank}, call {i}: sums {sums.tolist()}, expected {expected.tolist()}")

    def run() -> float:
        dist.barrier()
        under_way: deque[tuple[dist.Work | None, int]] = deque()
        started_s = time.perf_counter()
        for i in range(options.calls):
            sent[i % depth].fill_(rank + i % 50)
            into, out = received[i % depth], sent[i % depth]
            under_way.append((dist.all_to_all_single(into, out, async_op=options.bound > 0), i))
            if len(under_way) > options.bound:
                finish(*under_way.popleft())
        while under_way:
            finish(*under_way.popleft())
        return 1e6 * (time.perf_counter() - started_s) / options.calls

    times_us = [run() for _ in range(options.runs + 1)][1:]
    if rank == 0:
        by = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "mpiexec"
        setting = f"{options.backend}, bound {options.bound}, {size} ranks by {by}, blocks of {options.bytes} bytes"
        print(f"{setting}: {statistics.median(times_us):.1f} us a call ({min(times_us):.1f} to {max(times_us):.1f})")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
