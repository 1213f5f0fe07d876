"""Plans: placements as JSON, to write down and to audit, whoever made them.

A plan is an object with ``ranks``, a number, and ``tables``, a list of objects, one per table:

==========  ===========================================================================================================
table       its name
type        ``table_wise``, ``row_wise``, ``column_wise``, ``grid`` or ``data_parallel``, names as TorchRec's
ranks       the rank of each block; none if ``data_parallel``, which is on every rank
blocks      one object per rank: ``rows``, [from, to) or [first, end, every n-th], and ``columns``, [from, to); left out
            where they are all of the table's. Left out altogether if the table is whole.
==========  ===========================================================================================================
"""

import json
from collections.abc import Sequence
from itertools import groupby
from operator import index
from typing import Any

from blslib.placement.shards import Placement, PlacementError, Shard
from blslib.placement.tables import Table

EVERYWHERE = "data_parallel"
TYPES = ("table_wise", "row_wise", "column_wise", "grid", EVERYWHERE)


def to_json(placement: Placement, tables: Sequence[Table]) -> str:
    """The plan of a placement."""
    entries = []
    for number, group in groupby(placement.shards, key=lambda shard: shard.table):
        shards, table = list(group), tables[number]
        cut = any(len(s.columns) < table.dim for s in shards), any(len(s.rows) < table.rows for s in shards)
        kind = {(False, False): "table_wise", (True, False): "column_wise", (False, True): "row_wise"}.get(cut, "grid")
        entry: dict[str, Any] = {"table": table.name, "type": kind, "ranks": [s.rank for s in shards]}
        if any(cut):
            entry["blocks"] = [
                {"rows": [s.rows.start, s.rows.stop, s.rows.step], "columns": [s.columns.start, s.columns.stop]}
                for s in shards
            ]
        elif shards[0].rank is None:
            entry |= {"type": EVERYWHERE, "ranks": []}
        entries.append(entry)
    lines = ",\n  ".join(map(json.dumps, entries))
    return f'{{"ranks": {placement.ranks}, "tables": [\n  {lines}\n]}}\n'


def from_json(text: str, tables: Sequence[Table]) -> Placement:
    """The placement of a plan, checked against its tables.

    Raises:
        PlacementError: it is no plan, is of other tables, or does not hold every row and column exactly once.
    """
    numbers = {table.name: number for number, table in enumerate(tables)}
    shards: list[Shard] = []
    try:
        plan = json.loads(text)
        for entry in plan["tables"]:
            if entry["table"] not in numbers:
                raise PlacementError(f"the plan has a table {entry['table']!r}, which the list of tables does not have")
            number = numbers[entry["table"]]
            if entry["type"] not in TYPES or (entry["type"] == EVERYWHERE and entry.get("ranks")):
                raise ValueError(f"type is one of {', '.join(TYPES)}, the last of them without ranks, got {entry}")
            ranks = [None] if entry["type"] == EVERYWHERE else [_rank(each) for each in entry["ranks"]]
            for rank, block in zip(ranks, entry.get("blocks") or [{}] * len(ranks), strict=True):
                if block.keys() - {"rows", "columns"}:
                    raise ValueError(f"a block has rows and columns, got {block}")
                size = {"rows": [0, tables[number].rows], "columns": [0, tables[number].dim], **block}
                shards.append(Shard(number, range(*size["rows"]), range(*size["columns"]), rank))
        placement = Placement(tuple(shards), _rank(plan["ranks"]))
        placement.check([table.shape for table in tables], [table.name for table in tables])
    except PlacementError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise PlacementError(f"not a plan as docs/placement.md has it: {type(error).__name__}: {error}") from None
    return placement


def _rank(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"ranks are whole numbers, got {value}")
    return index(value)
