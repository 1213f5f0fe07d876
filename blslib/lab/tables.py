"""Lists of tables for a placement: of a file or a published model, by name; or of batches, with measured times."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from blslib.placement import models
from blslib.placement.shards import whole
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
        entries = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # such as a date of month 13
        raise TableError(f"{path}: no YAML: {error}") from None
    return made(entries, what), path.name


def of_batches(rows: Sequence[int], dim: int, batches: Sequence[Batch]) -> tuple[Table, ...]:
    """Tables of a stream: pooling and its spread, from sample to sample, are counted in some batches of it."""
    lengths = [np.concatenate([np.diff(batch.offsets[table]) for batch in batches]) for table in range(len(rows))]
    return tuple(
        Table(str(table), size, dim, float(each.mean()), float(each.std()))
        for table, (size, each) in enumerate(zip(rows, lengths, strict=True))
    )


def timed(tables: Sequence[Table], batches: Sequence[Batch], passes: int = 9) -> tuple[Table, ...]:
    """The same with the time of their lookups in a batch, measured on this core.

    Table after table of a batch, as the inference loop goes: looked up again and again by itself, a small table would
    stay in the caches that the others take from it. The median over some passes after one that is not counted.

    Args:
        tables: T tables of one dimension, made here, with weights that nobody reads.
        batches: their ids.
        passes: through all batches.
    """
    import torch

    from blslib.dlrm.config import ModelConfig
    from blslib.dlrm.sharding import ShardedTables

    dim, alone = tables[0].dim, range(len(tables))
    config = ModelConfig(tuple(table.rows for table in tables), dim, bottom=(1, dim), top=(1,), interaction="cat")
    placement = whole(config.shapes, alone, len(tables))  # each table on a rank of its own
    held = [ShardedTables(config, placement, table, seed=0) for table in alone]
    took_us = np.zeros((passes + 1, len(batches), len(tables)))
    with torch.inference_mode():
        for of_pass, which, table in np.ndindex(took_us.shape):
            started_s = time.perf_counter()
            held[table].lookup(batches[which])
            took_us[of_pass, which, table] = 1e6 * (time.perf_counter() - started_s)
    each_us = np.median(took_us[1:], axis=0).mean(axis=0).tolist()
    return tuple(replace(table, time_us=one_us) for table, one_us in zip(tables, each_us, strict=True))
