"""torch.distributed's all_to_all_single over "bls", where a small first call had to tell the size of blocks."""

from typing import Any

from mpi4py import MPI

from blslib.lab.compare.contenders import gloo

BOUNDED = True


def build(comm: MPI.Intracomm, bound: int, **sizes: Any) -> Any:
    """A group that is told nothing."""
    return gloo.build(comm, bound, **sizes | {"backend": "bls", "slot_bytes": None})
