"""Pooled lookups on one core: time by size of table and width of row, and what int8 and int4 rows change.

Ids are uniform, so a table that the caches do not hold is read from memory; skewed ids lie between in and out of cache.
Packed rows carry a scale and an offset of their own (``torch.ops.quantized``); their error is beside the largest value
of the exact sums. Weights are uniform, which is the best case for a scale per row: trained tables have outliers.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blslib.lab.options import Given, Row, names

if TYPE_CHECKING:
    from mpi4py import MPI

COLUMNS = "kind rows dim pooling table_bytes lookup_us ns_each error_rms error_max repeats"
RANKS = 1
KINDS = {"float32": 0, "int8": 8, "int4": 4}
"""Bits of a packed value; 0 is not packed."""
OPTIONS = {"kinds": names(KINDS, "KIND")}


@dataclass(frozen=True)
class Config:
    """One table, packed in several ways.

    Attributes:
        kinds: of ``KINDS``.
        rows, dim: of the table.
        pooling, batch_size: ids a bag and bags a call.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    rows: int = 200_000
    dim: int = 64
    pooling: int = 20
    batch_size: int = 512
    repeats: int = 15
    budget_s: float = 0.0
    seed: int = 1


def plan(given: Given) -> list[Config]:
    """Tables from a few rows to half a gigabyte, narrow and wide."""
    sizes = (1000, 100_000) if given.quick else (3, 1000, 20_000, 100_000, 300_000, 1_000_000)
    repeats = given.repeats or (3 if given.quick else 15)
    kinds = given.kinds or tuple(KINDS)
    return [Config(kinds, rows, dim, repeats=repeats) for rows in sizes for dim in (16, 128)]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Look the same bags up in every kind; a row a kind and repeat."""
    import torch

    from blslib.lab.compare.contest import interleaved

    rng = np.random.default_rng(config.seed)
    lookups = config.pooling * config.batch_size

    def drawn() -> Any:  # anew for each call, or all rows would soon be in cache
        return torch.from_numpy(rng.integers(config.rows, size=lookups))

    offsets = torch.arange(0, lookups + 1, config.pooling)
    whole = torch.from_numpy(rng.random((config.rows, config.dim), dtype=np.float32) - np.float32(0.5))
    packed = {kind: _pack(whole, KINDS[kind]) for kind in config.kinds}
    ids = drawn()
    exact = _pool(whole, ids, offsets, 0)

    def once(kind: str) -> float:
        calls = [drawn() for _ in range(8)]
        started_s = time.perf_counter()
        for each in calls:
            _pool(packed[kind], each, offsets, KINDS[kind])
        return (time.perf_counter() - started_s) / len(calls)

    rows = []
    for kind, seconds in interleaved(comm, config.kinds, once, config).items():
        off = (_pool(packed[kind], ids, offsets, KINDS[kind]) - exact).abs() / exact.abs().max()
        setting = {"kind": kind, "rows": config.rows, "dim": config.dim, "pooling": config.pooling}
        setting |= {"batch_size": config.batch_size, "table_bytes": packed[kind].nbytes}
        found = {"error_rms": float(off.square().mean().sqrt()), "error_max": float(off.max())}
        rows += [
            {**setting, "repeat": repeat, "lookup_us": 1e6 * each_s, "ns_each": 1e9 * each_s / lookups, **found}
            for repeat, each_s in enumerate(seconds)
        ]
    return rows


def _pack(whole: Any, bits: int) -> Any:
    import torch

    if not bits:
        return whole
    named = {8: torch.ops.quantized.embedding_bag_byte_prepack, 4: torch.ops.quantized.embedding_bag_4bit_prepack}
    return named[bits](whole)


def _pool(table: Any, ids: Any, offsets: Any, bits: int) -> Any:
    """(B, D) float32 sums of the bags."""
    import torch

    if not bits:
        return torch.nn.functional.embedding_bag(ids, table, offsets, mode="sum", include_last_offset=True)
    ops = torch.ops.quantized
    pool = {8: ops.embedding_bag_byte_rowwise_offsets, 4: ops.embedding_bag_4bit_rowwise_offsets}[bits]
    return pool(table, ids, offsets, False, 0, False, None, None, include_last_offset=True)
