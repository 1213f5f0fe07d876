"""The benchmarks behind ``python -m blslib bench NAME``: a plan of experiments, ranks of their own to run it, a table.

To add one, put its experiment and the way it is laid out over the options into ``PLANS``.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from blslib.lab.ranks.hosts import run_on_two
from blslib.lab.ranks.launch import run_ranks
from blslib.lab.results.records import Row, provenance

TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Options:
    """What a bench can be asked; None leaves it to the bench."""

    ranks: int = 4
    counts: tuple[int, ...] = ()
    bounds: tuple[int, ...] | None = None
    repeats: int | None = None
    bytes: tuple[int, ...] | None = None
    laws: tuple[str, ...] | None = None
    scenarios: tuple[str, ...] | None = None
    minutes: float | None = None
    quick: bool = False


class Step(NamedTuple):
    """``run(comm, CONFIG(**arguments))`` of a module of ``blslib.lab.experiments``, on so many ranks if it is told."""

    module: str
    config: str
    arguments: Row
    ranks: int | None = None


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


def _hosts(options: Options) -> list[Step]:
    bounds = options.bounds or ((0, 4) if options.quick else None)
    repeats = options.repeats or (3 if options.quick else None)
    arguments = _given(ranks=options.ranks, bounds=bounds, repeats=repeats, iterations=60 if options.quick else None)
    return [
        Step("hosts_bench", "HostsConfig", {"bytes_per_block": size, **arguments}) for size in options.bytes or (16384,)
    ]


def _predict(options: Options) -> list[Step]:
    bounds = options.bounds or ((0, 4, 16) if options.quick else None)
    arguments = _given(bounds=bounds, repeats=options.repeats or (3 if options.quick else None))
    laws = options.laws or ("exponential", *(() if options.quick else ("bernoulli", "rotating", "lognormal")))
    scenarios = options.scenarios or (("rotating",) if options.quick else ("balanced", "rotating", "wandering"))
    iterations = _given(iterations=80 if options.quick else None)
    sleeps = [
        Step("predict", "PredictConfig", {"law": law, **iterations, **arguments}, ranks)
        for ranks in options.counts
        for law in laws
    ]
    # Real compute only where every rank has a core: elsewhere a waiting rank lends its own to a working one.
    return sleeps + [
        Step("predict", "PredictConfig", {"law": name, "loop": True, "iterations": 64, **arguments}, ranks)
        for ranks in options.counts
        if ranks <= (os.cpu_count() or 1)
        for name in scenarios
    ]


def _simulate(options: Options) -> list[Step]:
    lengths = (100, 1000) if options.quick else (100, 300, 1000)
    repeats = _given(repeats=options.repeats or (1 if options.quick else None))
    return [
        Step("predict", "SimulateConfig", {"ranks": ranks, "iterations": n, "bound": bound, **repeats}, 1)
        for bound in options.bounds or (4,)
        for ranks in options.counts
        for n in lengths
    ]


def _soak(options: Options) -> list[Step]:
    minutes = options.minutes or (0.1 if options.quick else 1.0)
    return [Step("soak", "SoakConfig", {"minutes": minutes, **_given(bounds=options.bounds)})]


class Plan(NamedTuple):
    """A bench: what it measures, the options that fit it, its steps, the columns of its printed table, how its ranks
    are started and, if ``--ranks`` takes several numbers, which ones by default."""

    about: str
    options: tuple[str, ...]
    steps: Callable[[Options], list[Step]]
    columns: tuple[str, ...]
    start: Callable[..., subprocess.CompletedProcess[str]] = run_ranks
    counts: tuple[int, ...] = ()


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
    "hosts": Plan(
        "the channels on one host and on two, which are made of network namespaces (needs root), and with delays",
        ("bytes",),
        _hosts,
        ("hosts", "contender", "bound", "ranks", "bytes_per_block", "time_us", "share_of_mpi", "delayed_ratio"),
        run_on_two,
    ),
    "soak": Plan(
        "endurance: exchanges of every kind for so many minutes, every byte checked; running totals",
        ("minutes",),
        _soak,
        ("minutes", "ranks", "exchanges", "blocks", "bytes", "wrong", "rss_slope_bytes_per_s", "fds_start", "fds"),
    ),
    "predict": Plan(
        "runs with delays, and the DLRM loop where ranks have cores, against what was predicted; the recommended bound",
        ("laws", "scenarios"),
        _predict,
        ("law", "ranks", "bound", "measured_s", "predicted_s", "error", "over_best", "recommended"),
        counts=(2, 4, 8),
    ),
    "simulate": Plan(
        "the max-plus recurrence by itself, in one process: what simulating many ranks costs",
        (),
        _simulate,
        ("ranks", "iterations", "bound", "seconds", "ns_each", "peak_bytes"),
        counts=(1000, 10_000, 100_000),
    ),
}


def bench(name: str, options: Options) -> list[Row]:
    """Start ranks, run a bench on them, and return its rows.

    Raises:
        RuntimeError: the ranks failed; the text holds the end of what they printed.
        TimeoutError: they did not end within an hour, or an hour more than was asked for.
    """
    steps = PLANS[name].steps(options)
    timeout_s = TIMEOUT_S + 60 * (options.minutes or 0)
    found: list[Row] = []
    for ranks in dict.fromkeys(step.ranks or options.ranks for step in steps):
        with tempfile.TemporaryDirectory(prefix="bls-") as folder:
            rows = Path(folder, "rows.json")
            plan = Path(folder, "plan.json")
            plan.write_text(json.dumps([step for step in steps if (step.ranks or options.ranks) == ranks]))
            arguments = ["-m", "blslib.lab.bench", str(plan), str(rows)]
            done = PLANS[name].start(ranks, arguments, timeout_s=timeout_s, capture=False)
            if done.returncode or not rows.exists():
                raise RuntimeError(f"the ranks of bench {name} ended with code {done.returncode}, see above")
            found += json.loads(rows.read_text())
    return found


def on_ranks(plan: str, out: str) -> None:
    """What each rank runs: every step of the plan; rank 0 writes the rows and shows the progress."""
    import tqdm
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    rows: list[Row] = []
    steps = [Step(*step) for step in json.loads(Path(plan).read_text())]
    for step in tqdm.tqdm(steps, disable=comm.rank > 0 or not sys.stderr.isatty(), unit="step", leave=False):
        module = importlib.import_module(f"blslib.lab.experiments.{step.module}")
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
    ranks = ", ".join(map(str, options.counts)) or options.ranks
    settings = " ".join(f"{key}={value}" for key, value in about["mpi_settings"].items() if key.startswith("MPIR"))
    return (
        f"bench {name}: {PLANS[name].about}\n"
        f"{ranks} ranks on {about['cores']} cores ({about['processor']}), {about['mpi']}, {settings}\n"
        "median [least-greatest] over the repeats, contenders interleaved in one run"
    )


OPTION_NAMES = tuple(field.name for field in fields(Options))

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    on_ranks(*sys.argv[1:])
