"""Stands in for the module of that name: the names that ``examples/reference_dlrm.py`` touches, and their habits.

The request is one global, the probe is a call of 4 numbers, and where that is refused an exchange goes by scatters.
"""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

__all__ = ["DistributedDataParallel"]

my_rank = my_size = -1
alltoall_supported = False
a2a_impl = os.environ.get("DLRM_ALLTOALL_IMPL", "")
myreq = None


class Request:
    def __init__(self):
        self.works, self.tensor, self.widths = [], None, []

    def wait(self):
        for work in myreq.works:  # of the global one, whichever that is
            work.wait()
        myreq.works = None
        rows = self.tensor.numel() // sum(self.widths)
        parts = self.tensor.split([rows * width for width in self.widths])
        return tuple(part.view(rows, width) for part, width in zip(parts, self.widths, strict=True))


def init_distributed(backend):
    global my_rank, my_size, alltoall_supported, myreq
    my_rank, my_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, rank=my_rank, world_size=my_size)
    try:
        dist.all_to_all_single(torch.zeros(4), torch.zeros(4))
        alltoall_supported = True
    except RuntimeError:
        print(f"rank {my_rank}: no all-to-all over {backend}")
    myreq = Request()


def get_split_lengths(total):
    least, over = divmod(total, my_size)
    lengths = [least + (rank < over) for rank in range(my_size)]
    return lengths[my_rank], lengths if over else None


def get_my_slice(total):
    starts = [rank * (total // my_size) + min(rank, total % my_size) for rank in range(my_size + 1)]
    return slice(starts[my_rank], starts[my_rank + 1])


def alltoall(pooled, tables_of):
    rows, dimension = pooled[0].shape
    myreq.widths = [n * dimension for n in tables_of or [len(pooled)] * my_size]
    whole = torch.cat(pooled, dim=1)
    sizes = [rows // my_size * width for width in myreq.widths]
    myreq.tensor = whole.new_empty(sum(sizes))
    if alltoall_supported and a2a_impl in ("", "alltoall"):
        sent = [whole.numel() // my_size] * my_size
        whole = whole.detach().flatten()
        myreq.works = [dist.all_to_all_single(myreq.tensor, whole, sizes, sent, async_op=True)]
    else:
        blocks = list(whole.detach().split(rows // my_size))
        outputs = [part.view(rows // my_size, -1) for part in myreq.tensor.split(sizes)]
        myreq.works = [
            dist.scatter(output, blocks if source == my_rank else [], source, async_op=True)
            for source, output in enumerate(outputs)
        ]
    return myreq


def all_gather(scores, lengths):
    gathered = [scores.new_empty(n, *scores.shape[1:]) for n in lengths or [len(scores)] * my_size]
    dist.all_gather(gathered, scores.detach().contiguous())
    return torch.cat(gathered)


def barrier():
    dist.barrier()
