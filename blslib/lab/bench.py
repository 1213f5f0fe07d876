"""The benchmarks behind ``python -m blslib bench NAME``: a plan of experiments, ranks of their own to run it, a table.

To add one, put its experiment and the way it is laid out over the options into ``PLANS``.
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from blslib import files
from blslib.lab.rows import Row, provenance

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

    def settings(self, quick: Row, full: Row | None = None) -> Row:
        """Fields of a configuration for a quick or a full run, with the bounds and repeats that were asked for.

        For what is in neither, the configuration has values of its own.
        """
        asked = {"bounds": self.bounds, "repeats": self.repeats}
        chosen = quick if self.quick else full or {}
        return chosen | {name: value for name, value in asked.items() if value is not None}


class Step(NamedTuple):
    """``run(comm, CONFIG(**arguments))`` of a module of ``blslib.lab.experiments``, on so many ranks if it is told."""

    module: str
    config: str
    arguments: Row
    ranks: int | None = None


def _each(module: str, config: str, settings: Row, on: int | None = None, **over: Iterable[Any]) -> list[Step]:
    """A step for every combination of the values of some fields; the last of them changes first."""
    return [
        Step(module, config, settings | dict(zip(over, values, strict=True)), on) for values in product(*over.values())
    ]


def _alltoallv(options: Options) -> list[Step]:
    sizes = options.bytes or ((256, 16384, 262144) if options.quick else tuple(4**n for n in range(3, 11)))
    return _each("alltoallv", "MicroConfig", options.settings(quick={"bounds": (0, 1, 4)}), bytes_per_block=sizes)


def _delayed(options: Options) -> list[Step]:
    quick = {"bounds": (0, 4, 16), "repeats": 2, "iterations": 60}
    settings = options.settings(quick, full={"iterations": 200})
    # Rotating: 10 ms on one rank at a time, whatever P.
    means_s = dict.fromkeys(("rotating", "permanent"), 10e-3 / options.ranks)
    steps = []
    for law in options.laws or ("bernoulli", "exponential", "rotating"):
        of_law = settings | {"law": law, "mean_delay_s": means_s.get(law, 1e-3)}
        steps += _each("delayed", "DelayedConfig", of_law, bytes_per_block=options.bytes or (16384,))
    return steps


def _dlrm(options: Options) -> list[Step]:
    quick = {"bounds": (0, 1, 4), "repeats": 3, "iterations": 48}
    # Many short runs and not a few long ones: contenders are then compared within seconds of each other.
    settings = options.settings(quick, full={"bounds": (0, 1, 4, 16), "repeats": 15, "iterations": 64})
    return _each("dlrm", "RecommendConfig", settings, scenario=options.scenarios or ("rotating", "balanced"))


def _torch(options: Options) -> list[Step]:
    settings = options.settings(quick={"repeats": 3})
    sizes = options.bytes or ((256, 16384, 262144) if options.quick else (256, 4096, 16384, 65536, 262144, 1048576))
    calls = _each("torch", "TorchConfig", settings, even=(True, False), bytes_per_block=sizes)
    return calls + _each("torch", "LoopConfig", settings, scenario=options.scenarios or ("rotating",))


def _hosts(options: Options) -> list[Step]:
    settings = options.settings(quick={"bounds": (0, 4), "repeats": 3, "iterations": 60}) | {"ranks": options.ranks}
    return _each("hosts", "HostsConfig", settings, bytes_per_block=options.bytes or (16384,))


def _predict(options: Options) -> list[Step]:
    settings = options.settings(quick={"bounds": (0, 4, 16), "repeats": 3, "iterations": 80})
    laws = options.laws or ("exponential", *(() if options.quick else ("bernoulli", "rotating", "lognormal")))
    scenarios = options.scenarios or (("rotating",) if options.quick else ("balanced", "rotating", "wandering"))
    # Real compute only where every rank has a core: elsewhere a waiting rank lends its own to a working one.
    own_cores = [ranks for ranks in options.counts if ranks <= (os.cpu_count() or 1)]
    loops = settings | {"loop": True, "iterations": 64}
    return [
        *(step for ranks in options.counts for step in _each("predict", "PredictConfig", settings, ranks, law=laws)),
        *(step for ranks in own_cores for step in _each("predict", "PredictConfig", loops, ranks, law=scenarios)),
    ]


def _simulate(options: Options) -> list[Step]:
    settings = {"repeats": options.repeats or (1 if options.quick else 3)}
    sizes = {"ranks": options.counts, "iterations": (100, 1000) if options.quick else (100, 300, 1000)}
    return _each("predict", "SimulateConfig", settings, 1, bound=options.bounds or (4,), **sizes)


def _soak(options: Options) -> list[Step]:
    bounds = {} if options.bounds is None else {"bounds": options.bounds}
    return [Step("soak", "SoakConfig", {"minutes": options.minutes or (0.1 if options.quick else 1.0), **bounds})]


class Plan(NamedTuple):
    """A bench: what it measures, the options that fit it, its steps, the words above its printed table, whether it
    takes two hosts and, if ``--ranks`` takes several numbers, which ones by default."""

    about: str
    options: tuple[str, ...]
    steps: Callable[[Options], list[Step]]
    heads: str
    two_hosts: bool = False
    counts: tuple[int, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns of the rows that are printed."""
        return self.heads.split()


PLANS = {
    "alltoallv": Plan(
        "one call of the exchange, over block sizes, as a share of MPI_Alltoallv's time",
        ("bytes",),
        _alltoallv,
        "contender bound ranks bytes_per_block copied_out time_us share_of_mpi",
    ),
    "delayed": Plan(
        "delays by sleep: measured time against the max-plus prediction",
        ("bytes", "laws"),
        _delayed,
        "contender law bound ranks bytes_per_block measured_s predicted_s ratio limit_s lag",
    ),
    "dlrm": Plan(
        "the DLRM inference loop with real lookups: throughput over the loop with MPI_Alltoallv",
        ("scenarios",),
        _dlrm,
        "contender scenario bound ranks batches_per_s speedup_over_mpi memory_bytes identical_scores",
    ),
    "torch": Plan(
        "torch's all_to_all_single over bls and over gloo, bls without torch (bare), and the DLRM loop on them",
        ("bytes", "scenarios"),
        _torch,
        "what contender bound ranks bytes_per_block even time_us speedup_over_gloo",
    ),
    "hosts": Plan(
        "the channels on one host and on two, which are made of network namespaces (needs root), and with delays",
        ("bytes",),
        _hosts,
        "hosts contender bound ranks bytes_per_block time_us share_of_mpi delayed_ratio",
        two_hosts=True,
    ),
    "soak": Plan(
        "endurance: exchanges of every kind for so many minutes, every byte checked; running totals",
        ("minutes",),
        _soak,
        "minutes ranks exchanges blocks bytes wrong rss_slope_bytes_per_s fds_start fds",
    ),
    "predict": Plan(
        "runs with delays, and the DLRM loop where ranks have cores, against what was predicted; the recommended bound",
        ("laws", "scenarios"),
        _predict,
        "law ranks bound measured_s predicted_s error over_best recommended",
        counts=(2, 4, 8),
    ),
    "simulate": Plan(
        "the max-plus recurrence by itself, in one process: what simulating many ranks costs",
        (),
        _simulate,
        "ranks iterations bound seconds ns_each peak_bytes",
        counts=(1000, 10_000, 100_000),
    ),
}


def bench(name: str, options: Options) -> list[Row]:
    """Start ranks, run a bench on them, and return its rows.

    Raises:
        RuntimeError: there is no room for so many ranks, or they failed, and have told the terminal why.
        TimeoutError: they did not end within an hour, or an hour more than was asked for.
    """
    # Here, since whoever asks for help needs none of it.
    from blslib.lab.ranks.hosts import run_on_two
    from blslib.lab.ranks.launch import check_room, run_ranks
    from blslib.signals import undisturbed

    start = run_on_two if PLANS[name].two_hosts else run_ranks
    steps = PLANS[name].steps(options)
    timeout_s = TIMEOUT_S + 60 * (options.minutes or 0)
    found: list[Row] = []
    for ranks in dict.fromkeys(step.ranks or options.ranks for step in steps):
        check_room(ranks)
        with ExitStack() as stack:
            with undisturbed():
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bls-"))
            rows = Path(folder, "rows.json")
            plan = Path(folder, "plan.json")
            files.write({plan: json.dumps([step for step in steps if (step.ranks or options.ranks) == ranks])})
            arguments = ["-m", "blslib.lab.bench", str(plan), str(rows)]
            done = start(ranks, arguments, timeout_s=timeout_s, capture=False)
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
        files.write({Path(out): json.dumps(rows)})


def table(name: str, rows: Sequence[Row]) -> str:
    """The printed table: a median with its least and greatest value in brackets."""
    import pandas as pd

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


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        on_ranks(*sys.argv[1:])
    except (MemoryError, files.WriteError) as told:  # on every rank, or on rank 0 alone
        from blslib.collective.mpi import MPI

        sys.exit(1 if MPI.COMM_WORLD.rank else str(told))
