"""Embedding tables as values: what has to be known of each to place it. Read from CSV or JSON."""

import csv
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

_LEAST = {"rows": 1, "dim": 1, "pooling": 0.0, "spread": 0.0, "time_us": 1e-3, "item_bytes": 0.01}
_MOST = 1e15
_WHOLE, _TEXT = (int, "a whole number"), (str, "text")
_KINDS: dict[str, tuple[type, str]] = {"name": _TEXT, "net": _TEXT, "rows": _WHOLE, "dim": _WHOLE}


class TableError(ValueError):
    """A list of tables is faulty: says where, what is wrong, and the cure."""


@dataclass(frozen=True)
class Table:
    """One embedding table.

    Attributes:
        name: unique in its list.
        rows, dim: its shape; D values a row.
        pooling: mean ids per sample.
        spread: standard deviation of the ids per sample.
        item_bytes: of one value: 4 for float32; a fraction where rows are packed with a scale of their own.
        net: tables of one net are looked up together; nets follow each other.
        time_us: measured for one batch, all its lookups in the whole table; None if only modelled.

    Raises:
        TableError: a value is out of range.
    """

    name: str
    rows: int
    dim: int
    pooling: float = 1.0
    spread: float = 0.0
    item_bytes: float = 4.0
    net: str = ""
    time_us: float | None = None

    def __post_init__(self) -> None:
        for what, least in _LEAST.items():
            value = getattr(self, what)
            if value is not None and not least <= value <= _MOST:
                raise TableError(f"table {self.name}: {what} must be {least:g} to {_MOST:g}, got {value!s:.40}")

        if self.rows * self.dim > _MOST:
            raise TableError(
                f"table {self.name}: rows times dim must be at most {_MOST:g}, got {self.rows * self.dim:g}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""
        return self.rows, self.dim

    @property
    def bytes(self) -> int:
        """Stored, rounded up."""
        return math.ceil(self.rows * self.dim * self.item_bytes)


def read(path: Path) -> tuple[Table, ...]:
    """The tables of a file: CSV with a heading, or JSON, a list of objects; columns are the fields of ``Table``.

    ``rows`` and ``dim`` have to be there. A table without a name is called by its number, from 0.

    Raises:
        TableError: the file is neither, empty, or an entry is faulty.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = json.loads(text) if text.lstrip()[:1] in ("[", "{") else list(csv.DictReader(text.splitlines()))
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise TableError(f"{path}: neither CSV nor JSON in UTF-8: {error}") from None
    return made(entries.get("tables") if isinstance(entries, dict) else entries, str(path))


def made(entries: Any, where: str) -> tuple[Table, ...]:
    """Tables of a list of mappings with text or numbers in them; ``where`` begins each complaint."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise TableError(f"{where}: no tables: give a heading with rows,dim and a line per table, or a list of objects")
    kinds = {field.name: _KINDS.get(field.name, (float, "a number")) for field in fields(Table)}
    tables: dict[str, Table] = {}
    for number, entry in enumerate(entries):
        given = {"name": str(number)} | {name: value for name, value in entry.items() if value not in (None, "")}
        told = f"{where}, table {given['name']}"
        if None in given:
            raise TableError(f"{told}: its line has more cells than the heading: {given[None]}")
        if wrong := [f"no column {name!r}" for name in given.keys() - kinds] or sorted({"rows", "dim"} - given.keys()):
            raise TableError(f"{told}: {wrong[0]}: rows and dim are needed, and known are {', '.join(kinds)}")
        for name, value in given.items():
            try:
                given[name] = kinds[name][0](str(value))
            except ValueError:
                raise TableError(f"{told}: {name} must be {kinds[name][1]}, got {value!r:.40}") from None
        try:
            table = Table(**given)
        except TableError as error:
            raise TableError(f"{where}: {error}") from None
        if tables.setdefault(table.name, table) is not table:
            raise TableError(f"{told}: two tables have this name: rename one")
    return tuple(tables.values())
