"""Pooled lookups on one core in float32, int8 and int4 tables: time in and out of caches, and the error.

Packed rows carry a scale and an offset of their own (``torch.ops.quantized``). Ids are uniform, so a table that the
caches do not hold is read from memory. Weights are uniform too, the best case for a scale per row: trained tables have
outliers. What is smaller than a rank's memory needs no sharding: this is the alternative to it.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from blslib.collective.mpi import MPI
from blslib.lab.compare.contest import interleaved
from blslib.lab.options import RANKS, Given, Row, names, settings

COLUMNS = "kind rows dim pooling table_mib lookup_us ns_each error_rms error_max repeats"
KINDS = ("float32", "int8", "int4")
OPTIONS = {"kinds": names(KINDS, "KIND"), "ranks": RANKS | {"default": 1}}


@dataclass(frozen=True)
class Config:
    """One table in several kinds.

    Attributes:
        kinds: of ``KINDS``.
        rows, dim: of the table.
        pooling, batch_size: ids a bag and bags a call.
        calls: that are timed together, each with ids of its own, or all rows would soon be in a cache.
    """

    rows: int
    dim: int
    kinds: tuple[str, ...] = KINDS
    pooling: int = 20
    batch_size: int = 512
    calls: int = 8
    repeats: int = 15
    budget_s: float = 0.0
    seed: int = 1


def plan(given: Given) -> list[Config]:
    """Tables of 1,000 rows to a million, narrow and wide."""
    sizes = (1000, 100_000) if given.quick else (1000, 20_000, 100_000, 1_000_000)
    chosen = settings(given, {"repeats": 3}) | ({"kinds": given.kinds} if given.kinds else {})
    chosen.pop("bounds", None)  # of which lookups know nothing
    return [Config(rows, dim, **chosen) for rows in sizes for dim in (16, 128)]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Look the same bags up in every kind; a row a kind and repeat. Errors are over the greatest exact sum."""
    import torch

    rng, ops = np.random.default_rng(config.seed), torch.ops.quantized
    lookups = config.pooling * config.batch_size
    offsets = torch.arange(0, lookups + 1, config.pooling)
    whole = torch.from_numpy(rng.random((config.rows, config.dim), dtype=np.float32) - np.float32(0.5))
    packs = {"int8": ops.embedding_bag_byte_prepack, "int4": ops.embedding_bag_4bit_prepack}
    pools = {"int8": ops.embedding_bag_byte_rowwise_offsets, "int4": ops.embedding_bag_4bit_rowwise_offsets}
    tables = {kind: packs[kind](whole) if kind in packs else whole for kind in config.kinds}

    def pooled(kind: str, ids: Any) -> Any:
        if kind in pools:  # which always sum, whatever mode they are given
            return pools[kind](tables[kind], ids, offsets, False, 0, False, None, None, include_last_offset=True)
        return torch.nn.functional.embedding_bag(ids, whole, offsets, mode="sum", include_last_offset=True)

    def once(kind: str) -> float:
        drawn = [torch.from_numpy(rng.integers(config.rows, size=lookups)) for _ in range(config.calls)]
        started_s = time.perf_counter()
        for ids in drawn:
            pooled(kind, ids)
        return (time.perf_counter() - started_s) / config.calls

    some, rows = torch.from_numpy(rng.integers(config.rows, size=lookups)), list[Row]()
    exact = pooled("float32", some)
    for kind, seconds in interleaved(comm, config.kinds, once, config).items():
        off = (pooled(kind, some) - exact).abs() / exact.abs().max()
        setting = {"kind": kind, "rows": config.rows, "dim": config.dim, "pooling": config.pooling}
        setting |= {"batch_size": config.batch_size, "table_mib": tables[kind].nbytes / 2**20}
        error = {"error_rms": float(off.square().mean().sqrt()), "error_max": float(off.max())}
        for repeat, one_s in enumerate(seconds):
            rows.append(
                setting | {"repeat": repeat, "lookup_us": 1e6 * one_s, "ns_each": 1e9 * one_s / lookups} | error
            )
    return rows
