"""Distributed inference: a main process and sparse shards over ZeroMQ, by strategy of placement and number of shards.

Requests have heavy-tailed numbers of samples. They come one by one, the next when the previous is scored, or by a clock
that waits for nobody; then latency runs from the intended arrival, and requests queue up before the main process. All
shards of all contenders are there all the time: one that waits costs nothing.
"""

import json
import math
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from blslib import files
from blslib.lab.experiments import serving
from blslib.lab.options import Given, Row, at_least, names, settings, several
from blslib.placement.strategies import STRATEGIES, Options
from blslib.placement.tables import Table
from blslib.workloads.batch import Batch
from blslib.workloads.skew import Zipf
from blslib.workloads.synthetic import Synthetic

if TYPE_CHECKING:
    import pandas as pd
    from mpi4py import MPI

    from blslib.lab.rows import Rows
    from blslib.lab.serving.scorer import Scored, Scorer

COLUMNS = "strategy shards rate_per_s repeats latency_p50_s latency_p90_s latency_p99_s embedded_s network_s cpu_s"
OPTIONS = serving.OPTIONS | {
    "strategies": names(STRATEGIES, "NAME"),
    "shards": {"type": several(at_least(1)), "metavar": "N,N,...", "help": "numbers of shards"},
    "timelines": {"metavar": "FOLDER", "help": "write the first repeat there: JSON for Perfetto, CSV for diagnose"},
}
RANKS = 1
PERCENTILES = (50, 90, 99)

TABLES = tuple(
    Table(f"{net}-{i}", round(rows * 0.7**i), 32, 1 + (7 * i + shift) % 40, net=net)
    for net, rows, shift in (("user", 100_000, 5), ("item", 70_000, 0))
    for i in range(12)
)
"""Made up: a long tail of sizes, two nets, 1 to 40 lookups a sample; 85 MB."""


@dataclass(frozen=True)
class Config:
    """Every strategy with every number of shards, and every load.

    Attributes:
        tables: of the model, all of one dimension D; tables of a net are looked up together.
        bottom, top: widths of the MLPs, as in ``ModelConfig``.
        strategies: names of ``placement.strategies.STRATEGIES``.
        shards: numbers of them; "singular" has none, "one-shard" has one.
        rates_per_s: requests per second, on average; 0: one by one.
        requests: in each draw.
        samples, spread, most: of a request: median and deviation of the logarithm of a lognormal law, and the limit.
        batch_size: samples that are scored together at most.
        skew: exponent of the law of ids.
        repeats: draws of requests and arrivals.
        timelines: folder for traces of the first repeat; none if empty.
    """

    tables: tuple[Table, ...] = TABLES
    bottom: tuple[int, ...] = (13, 64, 32)
    top: tuple[int, ...] = (64, 1)
    strategies: tuple[str, ...] = ("singular", "one-shard", "capacity-balanced", "net-specific")
    shards: tuple[int, ...] = (2,)
    rates_per_s: tuple[float, ...] = (0.0, 25.0)
    requests: int = 60
    samples: float = 48.0
    spread: float = 1.0
    most: int = 512
    batch_size: int = 128
    skew: float = 1.1
    repeats: int = 12
    budget_s: float = 0.0
    seed: int = 1
    timelines: str = ""


class Served(NamedTuple):
    """One request.

    Attributes:
        due_s, begun_s, ended_s: when it came, when work on it began, and when it was scored, by ``perf_counter``.
        cpu_s: seconds of cores in all processes.
        scored: what came of it.
    """

    due_s: float
    begun_s: float
    ended_s: float
    cpu_s: float
    scored: "Scored"


def plan(given: Given) -> list[tuple[Config, int]]:
    """One configuration, so that all that is compared is interleaved; on one rank, whose children the shards are."""
    asked = {name: value for name in ("strategies", "shards", "timelines") if (value := getattr(given, name))}
    if given.rates:
        asked["rates_per_s"] = (0.0, *given.rates)
    return [(Config(**settings(given, {"requests": 20, "repeats": 2}) | asked), 1)]


@lru_cache(maxsize=1)
def requests(config: Config, draw: int) -> list[list[Batch]]:
    """The requests of one draw, each split into batches."""
    rng = np.random.default_rng([config.seed, draw])
    sizes = np.clip(rng.lognormal(np.log(config.samples), config.spread, config.requests), 1, config.most).astype(int)
    made = ([config.batch_size] * (size // config.batch_size) + [size % config.batch_size] for size in sizes.tolist())
    rows, pooling = zip(*((table.rows, table.pooling) for table in config.tables), strict=True)
    how = Zipf(config.skew), config.bottom[0], config.seed
    return [
        [Synthetic(rows, n, pooling, *how).batch(draw << 32 | i << 16 | k) for k, n in enumerate(split) if n]
        for i, split in enumerate(made)
    ]


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Serve the same requests with every contender at every rate; a row a request.

    ``difference`` is the greatest one to the scores of the first strategy; ``network_s`` what a look-up took here and
    not in its shard, in the mean; ``operator_s`` the look-ups of the busiest shard, ``operators_s`` those of all.
    """
    from blslib.dlrm.config import ModelConfig
    from blslib.lab.compare.contest import interleaved
    from blslib.lab.serving.scorer import Scorer

    tables, shards = config.tables, {"singular": (1,), "one-shard": (1,)}
    model = ModelConfig(tuple(table.rows for table in tables), tables[0].dim, config.bottom, config.top)
    known = list(dict.fromkeys(table.net for table in tables))
    nets = [known.index(table.net) for table in tables]
    draws: Counter[tuple] = Counter()
    with ExitStack() as stack:
        scorers = {}
        for name, n in ((each, n) for each in config.strategies for n in shards.get(each, config.shards)):
            placement = STRATEGIES[name](tables, n, Options())
            scorers[name, n] = stack.enter_context(Scorer(model, nets, placement, config.seed))

        def once(item: tuple) -> list[Served]:
            draws[item] += 1
            return _serve(scorers[item[0]], requests(config, draws[item]), item[1], config.seed + draws[item])

        served = interleaved(comm, list(product(scorers, config.rates_per_s)), once, config)
    rows = []
    for ((name, n), rate), found in served.items():
        if config.timelines and name != "singular":
            _trace(Path(config.timelines, f"{name}-{n}-{rate:g}"), found[0], n)
        setting = {"strategy": name, "shards": 0 if name == "singular" else n, "rate_per_s": rate}
        for repeat, both in enumerate(zip(found, served[next(iter(scorers)), rate], strict=True)):
            for i, (each, first) in enumerate(zip(*both, strict=True)):
                rows.append({**setting, "repeat": repeat, **_row(i, each, first.scored.scores)})
    return rows


def _serve(scorer: "Scorer", stream: list[list[Batch]], rate_per_s: float, seed: int) -> list[Served]:
    """Score the requests of one draw, in order."""

    def cpu_s() -> float:
        return time.process_time() + sum(scorer.process_s.values())

    scorer.score(stream[0])  # wakes all up, and what the shards spent until now is known
    served, start_s = [], time.perf_counter()
    due_s = start_s + serving.arrivals(rate_per_s or math.inf, len(stream), seed)
    for request, at_s in zip(stream, due_s.tolist(), strict=True):
        while (early_s := at_s - time.perf_counter()) > 0:
            time.sleep(early_s)
        begun_s, before_s = time.perf_counter(), cpu_s()
        scored = scorer.score(request)
        ended_s = time.perf_counter()
        served.append(Served(at_s if rate_per_s else begun_s, begun_s, ended_s, cpu_s() - before_s, scored))
    return served


def _row(request: int, served: Served, scores: np.ndarray) -> Row:
    answers = served.scored.answers
    operator_s = _operator_s(served.scored, max((each.shard + 1 for each in answers), default=1))
    away_s = sum(each.came_s - each.asked_s for each in answers) - operator_s.sum()
    return {
        "request": request, "samples": len(scores), "latency_s": served.ended_s - served.due_s,
        "embedded_s": float(np.diff(served.scored.fanned_s).sum()), "operator_s": operator_s.max(),
        "operators_s": operator_s.sum(), "network_s": away_s / max(len(answers), 1), "cpu_s": served.cpu_s,
        "asked": len(answers), "asked_with_ids": served.scored.with_ids,
        "difference": float(np.abs(served.scored.scores - scores).max()),
    }  # fmt: skip


def _operator_s(scored: "Scored", shards: int) -> np.ndarray:
    """(shards,) seconds that the look-ups of one request took in each."""
    found = np.zeros(shards)
    for each in scored.answers:
        found[each.shard] += each.ended_s - each.began_s
    return found


def _trace(path: Path, found: list[Served], shards: int) -> None:
    """A timeline of all processes for Perfetto, and the look-ups, shard by shard, for ``diagnose``: other suffixes."""
    spans, lines = [], ["rank,iteration,compute_s\n"]
    for i, (_, begun_s, ended_s, _, scored) in enumerate(found):
        spans.append(("request", 0, i, begun_s, ended_s))
        spans += [(f"net {net}", 0, i, *fanned_s) for net, fanned_s in enumerate(scored.fanned_s)]
        spans += [("look-up", 1 + each.shard, i, each.began_s, each.ended_s) for each in scored.answers]
        lines += [f"{shard},{i},{seconds}\n" for shard, seconds in enumerate(_operator_s(scored, shards).tolist())]
    whose = ["main", *(f"shard {shard}" for shard in range(shards))]
    events: list[Row] = [
        {"ph": "M", "name": "process_name", "pid": i, "args": {"name": w}} for i, w in enumerate(whose)
    ]
    for name, pid, i, began_s, ended_s in spans:
        when = {"ts": 1e6 * began_s, "dur": 1e6 * (ended_s - began_s)}
        events.append({"ph": "X", "name": name, "pid": pid, "tid": 0, **when, "args": {"request": i}})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write({Path(f"{path}.json"): json.dumps({"traceEvents": events}), Path(f"{path}.csv"): "".join(lines)})


def pooled(rows: "Rows") -> "pd.DataFrame":
    """One line for each contender and rate: percentiles of latency over all requests of all draws, each with a 95 %
    interval from resampled draws; of all else the median over the draws of its mean.
    """
    import pandas as pd

    from blslib.lab.rows import settings_of, summary

    table = pd.DataFrame(rows)
    keys = settings_of(table)
    groups = [group for _, group in table.groupby(keys, sort=False)]
    found = summary(table.groupby([*keys, "repeat"], sort=False).mean().reset_index())
    for percent in PERCENTILES:
        name, each = f"latency_p{percent}_s", (serving.percentiles(group, percent, "request") for group in groups)
        found = found.join(pd.DataFrame([serving.resampled(values).columns(name) for values in each]))
    return found


summarise = pooled
"""How a bench sums its rows up."""
