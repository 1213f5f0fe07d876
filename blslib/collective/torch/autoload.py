"""What torch calls at the end of its own import, by the entry point ``torch.backends``, wherever we are installed.

So a program that has never heard of us takes the backend by its name alone. All that costs time is loaded when a group
is made, and nothing that goes wrong here is the importing program's trouble: ``import torch`` must not fail.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

NAME = "bls"

_LAUNCHERS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


def register() -> None:
    """Make the backend known, and let ``env://`` ask MPI where nothing else says who and where ranks are."""
    try:
        import torch.distributed as dist

        dist.Backend.register_backend(NAME, _create, extended_api=True, devices=["cpu"])
        # torch.distributed has a function of the module's name.
        handlers = import_module("torch.distributed.rendezvous")._rendezvous_handlers
        if handlers["env"] is not _meet:
            _ENV.append(handlers["env"])
            handlers["env"] = _meet
    except Exception:  # a torch without distributed, or one that has changed: then the name is not known
        return


def under_mpi() -> bool:
    """Whether MPI's launcher has started this process; else torch has, wherever an MPI is installed.

    Torchrun may itself have been started by a launcher, such as Slurm's, whose variables are those of its agent then.
    BLS_MPI=0 in the environment says the same of other programs that start ranks of their own.
    """
    others = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("BLS_MPI") == "0"
    return not others and any(name in os.environ for name in _LAUNCHERS)


_ENV: list[Any] = []
"""Torch's own ``env://``."""


def _meet(url: str, **how: Any) -> Iterator[tuple]:
    told = "RANK" in os.environ or "rank=" in url
    if under_mpi() and not ("MASTER_ADDR" in os.environ and told):
        yield from import_module("blslib.collective.torch.rendezvous").meet(url, **how)
    yield from _ENV[0](url, **how)


def _create(options: Any, group_options: Any) -> Any:
    """What torch calls for ``init_process_group`` and, on the group's ranks, for ``new_group``."""
    return import_module("blslib.collective.torch.create").create(options, group_options)
