"""MPI from mpi4py, or in one line what it takes to have it."""

try:
    from mpi4py import MPI as MPI
except (ImportError, RuntimeError) as error:
    raise ImportError(
        f"no MPI to use ({str(error).splitlines()[0]}): install one, and only one, such as mpich with pip or conda, or "
        "libmpich-dev on Debian"
    ) from None
