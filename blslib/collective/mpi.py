"""MPI from mpi4py, started by whoever first asks for something of it; or in one line what it takes to have it.

Importing the package starts no MPI by that: ranks that torch has started on one host have no use for it.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI as MPI
else:

    class _Lazy:
        """Looks like the module, and holds all of its names from the first look on."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):  # whoever only looks at modules starts nothing
                raise AttributeError(name)
            try:
                started = import_module("mpi4py.MPI")
            except (ImportError, RuntimeError) as error:
                raise ImportError(
                    f"no MPI to use ({str(error).splitlines()[0]}): install one, and only one, such as mpich with pip "
                    "or conda, or libmpich-dev on Debian"
                ) from None
            vars(self).update(vars(started))
            return getattr(started, name)

    MPI = _Lazy()


def failures() -> tuple[type[Exception], ...]:
    """What MPI raises; nothing where it was never started, which catching it must not do."""
    started = sys.modules.get("mpi4py.MPI")
    return (started.Exception,) if started else ()
