"""Finding what a folder holds: one file, one experiment or one contender, known by the name of the file.

Whoever has experiments or contenders of their own puts them into ``experiments/`` or ``contenders/`` of a folder, and
names that folder in the environment variable ``BLS_EXTRA``.
"""

import importlib
import os
import pkgutil
from types import ModuleType

EXTRA_VARIABLE = "BLS_EXTRA"


def also(kind: str) -> list[str]:
    """Folders of the user's with more of that kind, for the ``__path__`` of a package."""
    return [os.path.join(os.environ[EXTRA_VARIABLE], kind)] if os.environ.get(EXTRA_VARIABLE) else []


def names(package: ModuleType) -> list[str]:
    """What there is, in alphabetical order; a file ``a_b.py`` is called "a-b"."""
    return sorted(each.name.replace("_", "-") for each in pkgutil.iter_modules(package.__path__))


def load(package: ModuleType, name: str) -> ModuleType:
    """The module of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in names(package):
        raise ValueError(f"no {name!r} in {package.__name__}: choose from {', '.join(names(package))}")
    return importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
