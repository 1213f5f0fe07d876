"""Lists of tables for a placement: of a file or a published model, by name; or of batches, whose times are measured."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blslib.placement import models
from blslib.placement.shards import contiguous
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


def times_us(shapes: Sequence[tuple[int, int]], batches: Sequence[Batch], passes: int = 9) -> np.ndarray:
    """(J, T) microseconds of the lookups of each batch in each table, measured on this core.

    Table after table of a batch, as the inference loop goes: looked up again and again by itself, a small table would
    stay in the caches that the others take from it. Medians over some passes after one that is not counted.

    Args:
        shapes: (rows, D) of T tables, all of one D; they are made here, with weights that nobody reads.
        batches: J, with the ids of all tables.
        passes: through all batches.
    """
    import torch

    from blslib.dlrm.config import ModelConfig
    from blslib.dlrm.sharding import ShardedTables

    dim = shapes[0][1]
    config = ModelConfig(tuple(rows for rows, _ in shapes), dim, bottom=(1, dim), top=(1,))
    held = ShardedTables(config, contiguous(shapes, 1), 0, seed=0)
    rooms = [np.zeros((batch.size, dim), np.float32) for batch in batches]
    took_us = np.zeros((passes + 1, len(batches), len(shapes)))
    with torch.inference_mode():
        for of_pass, which, table in np.ndindex(took_us.shape):
            ids, offsets = batches[which].ids[table], batches[which].offsets[table]
            started_s = time.perf_counter()
            rooms[which][:] = held.sums(held.placement.shards[table], ids, offsets).numpy()
            took_us[of_pass, which, table] = 1e6 * (time.perf_counter() - started_s)
    return np.median(took_us[1:], axis=0)
