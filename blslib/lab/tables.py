"""Lists of tables for a placement, by the name of a published model or of a file."""

from pathlib import Path

from blslib.placement import models
from blslib.placement.tables import Table, TableError, made, read


def named(what: str) -> tuple[tuple[Table, ...], str]:
    """Tables of a model of ``placement.models`` or of a CSV, JSON or YAML file, and where they are from.

    Raises:
        TableError: the file is faulty, or there is neither such a model nor such a file.
        OSError: it cannot be read.
    """
    if what in models.NAMES:
        return models.tables(what), models.source(what)
    path = Path(what)
    if not path.exists():
        raise TableError(f"no file {what}, and no model of this name: there are {', '.join(models.NAMES)}")
    if path.suffix not in (".yaml", ".yml"):
        return read(path), path.name
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # such as a date of month 13
        raise TableError(f"{path}: no YAML: {error}") from None
    return made(entries, what), path.name
