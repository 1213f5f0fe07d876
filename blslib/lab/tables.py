"""Lists of tables for a placement: of a file or a published model, by name; of batches; and their time, measured."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from blslib.placement import models
from blslib.placement.shards import Placement, whole
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


def timed(tables: Sequence[Table], batches: Sequence[Batch]) -> tuple[Table, ...]:
    """The same with the time of their lookups in a batch, measured on one core."""
    found = []
    for number, table in enumerate(tables):
        alone = [replace(batch, ids=(batch.ids[number],), offsets=(batch.offsets[number],)) for batch in batches]
        [time_us] = measured_us(whole([(table.rows, table.dim)], [0], 1), (table,), alone)
        found.append(replace(table, time_us=time_us))
    return tuple(found)


def measured_us(
    placement: Placement, tables: Sequence[Table], batches: Sequence[Batch], passes: int = 9
) -> list[float]:
    """Microseconds that each rank's lookups of a batch take, measured one rank after the other on one core.

    Tables must have one dimension. The median over some passes through all batches, after one that is not counted.
    """
    import torch

    from blslib.dlrm.config import ModelConfig
    from blslib.dlrm.sharding import ShardedTables, own_rows

    dim = tables[0].dim
    config = ModelConfig(tuple(table.rows for table in tables), dim, bottom=(1, dim), top=(1,), interaction="cat")
    held = [ShardedTables(config, placement, rank, seed=0) for rank in range(placement.ranks)]
    pools = [[batch.only(placement.parts(one.rank), config.rows) for batch in batches] for one in held]
    took_s = np.zeros((passes + 1, placement.ranks))
    with torch.inference_mode():
        for of_pass, rank in np.ndindex(took_s.shape):
            started_s = time.perf_counter()
            for batch in pools[rank]:
                held[rank].lookup(batch)
                held[rank].replicas(batch, own_rows(batch.size, rank, placement.ranks))
            took_s[of_pass, rank] = time.perf_counter() - started_s
    return (1e6 * np.median(took_s[1:], axis=0) / len(batches)).tolist()
