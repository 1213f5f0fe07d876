"""The ``torch.distributed`` backend ``"bls"``: importing this registers it. It starts MPI and imports torch."""

from blslib.collective.torch.options import BLSOptions
from blslib.collective.torch.process_group import BLSGroup

__all__ = ["BLSGroup", "BLSOptions"]
