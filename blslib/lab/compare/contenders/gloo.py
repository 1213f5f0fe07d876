"""torch.distributed's all_to_all_single over gloo, with up to k requests in flight; at bound 0 one at a time."""

from typing import Any

from mpi4py import MPI

BOUNDED = True


def build(comm: MPI.Intracomm, bound: int, *, backend: str = "gloo", **sizes: Any) -> Any:
    """A group of its own over this communicator, on this host's loopback interface."""
    from blslib.collective.torch.exchange import TorchAlltoallv  # not every rank has need of torch

    return TorchAlltoallv(comm, backend=backend, bound=bound, **sizes)
