"""Lists of tables for a placement: of a file or a published model, by name; of batches; and their time, measured."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from blslib.placement import models
from blslib.placement.tables import Table, TableError, made, read
from blslib.workloads.batch import Batch


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
        return made(yaml.safe_load(path.read_text(encoding="utf-8")), what), path.name
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: no YAML: {error}") from None


def of_batches(rows: Sequence[int], dim: int, batches: Sequence[Batch]) -> tuple[Table, ...]:
    """Tables of a stream: pooling and its spread, from sample to sample, are counted in some batches of it."""
    lengths = [np.concatenate([np.diff(batch.offsets[table]) for batch in batches]) for table in range(len(rows))]
    return tuple(
        Table(str(table), size, dim, float(each.mean()), float(each.std()))
        for table, (size, each) in enumerate(zip(rows, lengths, strict=True))
    )


def timed(tables: Sequence[Table], batches: Sequence[Batch], passes: int = 5) -> tuple[Table, ...]:
    """The same with the time of their lookups in a batch, measured on one core: the median over some passes."""
    import torch

    found = []
    for number, table in enumerate(tables):
        weight = torch.rand(table.rows, table.dim)
        bags = [(torch.from_numpy(batch.ids[number]), torch.from_numpy(batch.offsets[number])) for batch in batches]
        took_s = []
        for _ in range(passes + 1):
            started_s = time.perf_counter()
            for ids, offsets in bags:
                torch.nn.functional.embedding_bag(ids, weight, offsets, mode="sum", include_last_offset=True)
            took_s.append(time.perf_counter() - started_s)
        found.append(replace(table, time_us=1e6 * float(np.median(took_s[1:])) / len(bags)))
    return tuple(found)
