"""Options that benches share, and how experiments declare those of their own."""

import argparse
import math
import re
from collections.abc import Callable, Collection
from typing import Any

Row = dict[str, Any]
"""Of a table: a value for each column."""
Given = argparse.Namespace
"""What a bench was asked: ranks, bounds, repeats, quick, and its own options; None where nothing was said."""


def several(kind: Callable[[str], object], known: Collection[object] = ()) -> Callable[[str], tuple]:
    """A comma-separated list of different values, each of a kind and, if given, one of those known."""

    def parse(text: str) -> tuple:
        try:
            values = tuple(dict.fromkeys(kind(part) for part in text.split(",") if part))
        except ValueError:
            what = f"expected {kind.__name__}, several with commas between them"
            raise argparse.ArgumentTypeError(f"{text!r}: {what}") from None
        if not values or any(known and value not in known for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(map(str, known)) or 'whole numbers'}")
        return values

    return parse


def number(kind: Callable[[str], Any], what: str, allowed: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A number of a kind that is allowed; ``what`` names it where one is not."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not allowed(value):
            raise ValueError
        return value

    parse.__name__ = what
    return parse


def at_least(least: int, unit: int = 1) -> Callable[[str], int]:
    """A whole number."""
    what = f"whole number >= {least}" + (f", a multiple of {unit}" if unit > 1 else "")
    return number(int, f"{what}, and below 2**40", lambda value: least <= value < 1 << 40 and value % unit == 0)


def size(text: str) -> float:
    """Bytes, such as 64GiB, 1.5e9 or 200MB."""
    number, unit = re.fullmatch(r"(.*?)\s*([kKMGT]?i?B?)", text).groups()  # type: ignore[union-attr]
    power = " KMGT".index(unit[:1].upper().replace("B", " ") or " ")
    value = float(number) * (1024 if "i" in unit else 1000) ** power
    if not 0 < value < math.inf:
        raise ValueError
    return value


BY_GROUP = "by-group"
"""The placement that others are compared with: whole groups of tables, as many on each rank."""

BYTES: Row = {"type": several(at_least(4, 4)), "metavar": "N,N,...", "help": "bytes per block, multiples of 4"}
RANKS: Row = {"type": at_least(1), "default": 4, "metavar": "P", "help": "MPI processes, by default %(default)s"}


def names(known: Collection[str], metavar: str) -> Row:
    """An option that takes several of some names."""
    return {"type": several(str, known), "metavar": f"{metavar},...", "help": f"of {', '.join(known)}"}


def settings(given: Given, quick: Row, full: Row | None = None) -> Row:
    """Fields of a configuration for a quick or a full run, with the contenders, bounds and repeats that were asked for.

    For what is in neither, the configuration has values of its own. Repeats that were asked for are exactly so many.
    """
    asked = {"bounds": given.bounds, "repeats": given.repeats, "budget_s": 0.0 if given.repeats else None}
    asked["names"] = getattr(given, "contenders", None)
    chosen = {"budget_s": 0.0, **quick} if given.quick else full or {}
    return chosen | {name: value for name, value in asked.items() if value is not None}
