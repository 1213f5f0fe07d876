"""The ``torch.distributed`` backend ``"bls"``: importing this registers it, as torch does where we are installed.

MPI is started by the first group of ranks that ``mpiexec`` has started, and never where torch has started them.
"""

from typing import TYPE_CHECKING, Any

from blslib.collective.torch.autoload import register

if TYPE_CHECKING:
    from blslib.collective.torch.options import BLSOptions
    from blslib.collective.torch.process_group import BLSGroup

__all__ = ["BLSGroup", "BLSOptions"]

register()


def __getattr__(name: str) -> Any:
    """What the backend consists of is loaded when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from blslib.collective.torch import process_group

    return getattr(process_group, name)
