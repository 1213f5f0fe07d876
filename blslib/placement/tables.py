"""Embedding tables as values: what has to be known of each to place it. Read from CSV or JSON."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any


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
        for what, least in (("rows", 1), ("dim", 1), ("pooling", 0.0), ("spread", 0.0), ("time_us", 0.0)):
            value = getattr(self, what)
            if value is not None and not least <= value < math.inf:
                raise TableError(f"table {self.name}: {what} must be a number of {least:g} or more, got {value}")
        if not 0 < self.item_bytes < math.inf:
            raise TableError(f"table {self.name}: item_bytes must be above 0, got {self.item_bytes}")

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
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise TableError(f"{path}: neither CSV nor JSON in UTF-8: {error}") from None
    if isinstance(entries, dict):
        entries = entries.get("tables")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TableError(f"{path}: JSON must be a list of objects, one per table, or have one under 'tables'")
    return made(entries, str(path))


def made(entries: Sequence[dict[str, Any]], where: str) -> tuple[Table, ...]:
    """Tables of entries with text or numbers in them; ``where`` begins each complaint."""
    known: dict[str, type] = {field.name: float for field in fields(Table)}
    known |= {"name": str, "net": str, "rows": int, "dim": int}
    tables = []
    for number, entry in enumerate(entries):
        given = {name: value for name, value in entry.items() if value not in (None, "")}
        told = f"{where}, table {given.get('name', number)}"
        if unknown := [str(name) for name in given if name not in known]:
            raise TableError(f"{told}: no column {', '.join(unknown)}: there are {', '.join(known)}")
        if missing := {"rows", "dim"} - given.keys():
            raise TableError(f"{told}: {' and '.join(sorted(missing))} missing: every table needs its shape")
        parts: dict[str, Any] = {"name": str(number)}
        for name, value in given.items():
            try:
                parts[name] = known[name](value)
                if known[name] is int and float(value) != int(value):
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                kind = "a whole number" if known[name] is int else "a number"
                raise TableError(f"{told}: {name} must be {kind} with a decimal point, got {value!r}") from None
        try:
            tables.append(Table(**parts))
        except TableError as error:
            raise TableError(f"{where}: {error}") from None
    if not tables:
        raise TableError(f"{where}: no tables: give a heading with rows,dim and one line per table")
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise TableError(f"{where}: two tables are called {next(n for n in names if names.count(n) > 1)}: rename one")
    return tuple(tables)


def scaled(tables: Iterable[Table], factor: float) -> tuple[Table, ...]:
    """The same with ``factor`` times the rows, one at least: to fit a smaller memory. Nets and pooling stay."""
    return tuple(replace(table, rows=max(1, round(table.rows * factor)), time_us=None) for table in tables)
