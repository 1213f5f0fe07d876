"""Bounded-lag synchronous collectives for distributed recommender inference.

The modules are the interface; importing ``blslib`` alone starts no MPI and imports neither torch nor altair.

==============  =====================================================================================
``theory``      max-plus recurrence, delay laws (numpy only)
``workloads``   the ``Batch`` and who makes it: synthetic, Criteo, Ali-CCP, lookup traces
``collective``  the bounded-lag alltoallv on mpi4py, its baselines, its one-process reference
``dlrm``        the recommendation model, tables sharded over ranks, the inference loop
``lab``         scenarios, experiments, engines, records, charts, claims, command line
==============  =====================================================================================
"""

__version__ = "0.1.0"
