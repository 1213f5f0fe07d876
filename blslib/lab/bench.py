"""The benchmarks behind ``python -m blslib bench NAME``: a plan of experiments, ranks of their own to run it, a table.

To add one, put its experiment and the way it is laid out over the options into ``PLANS``.
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from blslib.lab.launch import run_ranks
from blslib.lab.records import Row, provenance

TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Options:
    """What a bench can be asked; None leaves it to the bench."""

    ranks: int = 4
    bounds: tuple[int, ...] | None = None
    repeats: int | None = None
    bytes: tuple[int, ...] | None = None
    laws: tuple[str, ...] | None = None
    scenarios: tuple[str, ...] | None = None
    quick: bool = False


class Step(NamedTuple):
    """One experiment: ``blslib.lab.MODULE.run(comm, MODULE.CONFIG(**arguments))``."""

    module: str
    config: str
    arguments: Row


def _given(**arguments: Any) -> Row:
    return {name: value for name, value in arguments.items() if value is not None}


def _alltoallv(options: Options) -> list[Step]:
    sizes = options.bytes or ((256, 16384, 262144) if options.quick else tuple(4**n for n in range(3, 11)))
    arguments = _given(bounds=options.bounds or ((0, 1, 4) if options.quick else None), repeats=options.repeats)
    return [Step("micro", "MicroConfig", {"bytes_per_block": size, **arguments}) for size in sizes]


def _delayed(options: Options) -> list[Step]:
    laws = options.laws or ("bernoulli", "exponential", "rotating")
    bounds = options.bounds or ((0, 4, 16) if options.quick else None)
    repeats = options.repeats or (2 if options.quick else None)
    arguments = _given(bounds=bounds, repeats=repeats, iterations=60 if options.quick else 200)
    # Rotating: 10 ms on one rank at a time, whatever P.
    means = {"rotating": 10e-3 / options.ranks, "permanent": 10e-3 / options.ranks}
    return [
        Step(
            "delayed",
            "DelayedConfig",
            {"law": law, "bytes_per_block": size, "mean_delay_s": means.get(law, 1e-3), **arguments},
        )
        for law in laws
        for size in options.bytes or (16384,)
    ]


def _dlrm(options: Options) -> list[Step]:
    bounds = options.bounds or ((0, 1, 4) if options.quick else (0, 1, 4, 16))
    # Many short runs and not a few long ones: contenders are then compared within seconds of each other.
    repeats = options.repeats or (3 if options.quick else 15)
    arguments = _given(bounds=bounds, repeats=repeats, iterations=48 if options.quick else 64)
    return [
        Step("recommend", "RecommendConfig", {"scenario": name, **arguments})
        for name in options.scenarios or ("rotating", "balanced")
    ]


def _torch(options: Options) -> list[Step]:
    bounds = _given(bounds=options.bounds)
    repeats = _given(repeats=options.repeats or (3 if options.quick else None))
    sizes = options.bytes or ((256, 16384, 262144) if options.quick else (256, 4096, 16384, 65536, 262144, 1048576))
    return [
        Step("torch_bench", "TorchConfig", {"bytes_per_block": size, "even": even, **bounds, **repeats})
        for even in (True, False)
        for size in sizes
    ] + [
        Step("torch_bench", "LoopConfig", {"scenario": name, **bounds, **repeats})
        for name in options.scenarios or ("rotating",)
    ]


class Plan(NamedTuple):
    """A bench: what it measures, the options that fit it, its steps, and the columns of its printed table."""

    about: str
    options: tuple[str, ...]
    steps: Callable[[Options], list[Step]]
    columns: tuple[str, ...]


PLANS = {
    "alltoallv": Plan(
        "one call of the exchange, over block sizes, as a share of MPI_Alltoallv's time",
        ("bytes",),
        _alltoallv,
        ("contender", "bound", "ranks", "bytes_per_block", "copied_out", "time_us", "share_of_mpi"),
    ),
    "delayed": Plan(
        "delays by sleep: measured time against the max-plus prediction",
        ("bytes", "laws"),
        _delayed,
        (
            "contender",
            "law",
            "bound",
            "ranks",
            "bytes_per_block",
            "measured_s",
            "predicted_s",
            "ratio",
            "limit_s",
            "lag",
        ),
    ),
    "dlrm": Plan(
        "the DLRM inference loop with real lookups: throughput over the loop with MPI_Alltoallv",
        ("scenarios",),
        _dlrm,
        (
            "contender",
            "scenario",
            "bound",
            "ranks",
            "batches_per_s",
            "speedup_over_mpi",
            "memory_bytes",
            "identical_scores",
        ),
    ),
    "torch": Plan(
        "torch's all_to_all_single over bls and over gloo, bls without torch (bare), and the DLRM loop on them",
        ("bytes", "scenarios"),
        _torch,
        ("what", "contender", "bound", "ranks", "bytes_per_block", "even", "time_us", "speedup_over_gloo"),
    ),
}


def bench(name: str, options: Options) -> list[Row]:
    """Start ranks, run a bench on them, and return its rows.

    Raises:
        RuntimeError: the ranks failed; the text holds the end of what they printed.
        TimeoutError: they did not end within an hour.
    """
    steps = PLANS[name].steps(options)
    with tempfile.TemporaryDirectory(prefix="bls-") as folder:
        rows = Path(folder, "rows.json")
        plan = Path(folder, "plan.json")
        plan.write_text(json.dumps(steps))
        done = run_ranks(
            options.ranks, ["-m", "blslib.lab.bench", str(plan), str(rows)], timeout_s=TIMEOUT_S, capture=False
        )
        if done.returncode or not rows.exists():
            raise RuntimeError(f"the ranks of bench {name} ended with code {done.returncode}, see above")
        return json.loads(rows.read_text())


def on_ranks(plan: str, out: str) -> None:
    """What each rank runs: every step of the plan; rank 0 writes the rows and shows the progress."""
    import tqdm
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    rows: list[Row] = []
    steps = [Step(*step) for step in json.loads(Path(plan).read_text())]
    for step in tqdm.tqdm(steps, disable=comm.rank > 0 or not sys.stderr.isatty(), unit="step", leave=False):
        module = importlib.import_module(f"blslib.lab.{step.module}")
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in step.arguments.items()}
        rows += module.run(comm, getattr(module, step.config)(**arguments))
    if comm.rank == 0:
        Path(out).write_text(json.dumps(rows))


def table(name: str, rows: Sequence[Row]) -> str:
    """The printed table: a median with its least and greatest value in brackets."""
    shown = pd.DataFrame({column: [_cell(row, column) for row in rows] for column in PLANS[name].columns})
    return shown.to_string(index=False)


def _cell(row: Row, column: str) -> str:
    value = "" if row[column] is None else row[column]
    if f"{column}_min" in row:
        return f"{value:.4g} [{row[f'{column}_min']:.4g}-{row[f'{column}_max']:.4g}]"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def heading(name: str, options: Options) -> str:
    """What a reader of the table must know: what, where, with which settings."""
    about = provenance()
    settings = " ".join(f"{key}={value}" for key, value in about["mpi_settings"].items() if key.startswith("MPIR"))
    return (
        f"bench {name}: {PLANS[name].about}\n"
        f"{options.ranks} ranks on {about['cores']} cores ({about['processor']}), {about['mpi']}, {settings}\n"
        "median [least-greatest] over the repeats, contenders interleaved in one run"
    )


OPTION_NAMES = tuple(field.name for field in fields(Options))

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    on_ranks(*sys.argv[1:])
