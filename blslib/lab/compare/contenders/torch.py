"""torch.distributed's all_to_all_single over the backend "bls"."""

from typing import Any

from mpi4py import MPI

from blslib.lab.compare.contenders import gloo

BOUNDED = True


def build(comm: MPI.Intracomm, bound: int, **sizes: Any) -> Any:
    """A group that is told the size of blocks."""
    return gloo.build(comm, bound, backend="bls", **sizes)
