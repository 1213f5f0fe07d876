"""Bounded-lag synchronous collectives for distributed recommender inference.

``from blslib import BoundedLagAlltoallv`` starts MPI; importing ``blslib`` alone does not, nor does it load torch or
altair. The modules are the rest of the interface:

==============  =====================================================================================
``theory``      max-plus recurrence, delay laws, the split of a run's time
``workloads``   the ``Batch`` and who makes it: synthetic, Criteo, Ali-CCP
``collective``  the bounded-lag alltoallv on mpi4py, its baselines; in ``torch/`` the backend
``charts``      tables in, Altair charts out
``dlrm``        the recommendation model, tables sharded over ranks, the inference loop
``diagnosis``   what would help a recorded run: readers of traces, the advice; no MPI, no torch
``lab``         live ranks, contenders, scenarios, experiments, rows, claims, command line
==============  =====================================================================================
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blslib.collective.alltoallv import BoundedLagAlltoallv

__version__ = "0.1.0"
__all__ = ["BoundedLagAlltoallv"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from blslib.collective.alltoallv import BoundedLagAlltoallv

    return BoundedLagAlltoallv
