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
from blslib.lab.compare.intervals import Interval
from blslib.lab.experiments import serving
from blslib.lab.options import Given, Row, at_least, names, settings, several
from blslib.placement.shards import Placement
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

COLUMNS = "strategy shards rate_per_s repeats latency_p50_s latency_p90_s latency_p99_s embedded_s away_s cpu_s"
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


def sizes(config: Config, draw: int) -> np.ndarray:
    """Samples of each request of one draw."""
    rng = np.random.default_rng([config.seed, draw])
    drawn = rng.lognormal(np.log(config.samples), config.spread, config.requests)
    return np.clip(drawn, 1, config.most).astype(int)


@lru_cache(maxsize=1)
def requests(config: Config, draw: int) -> list[list[Batch]]:
    """The requests of one draw, each split into batches."""
    most = config.batch_size
    made = ([most] * (size // most) + [size % most] for size in sizes(config, draw).tolist())
    rows, pooling = zip(*((table.rows, table.pooling) for table in config.tables), strict=True)
    how = Zipf(config.skew), config.bottom[0], config.seed
    return [
        [Synthetic(rows, n, pooling, *how).batch(draw << 32 | i << 16 | k) for k, n in enumerate(split) if n]
        for i, split in enumerate(made)
    ]


def nets(config: Config) -> list[int]:
    """(T,) the number of each table's net, in the order in which they come."""
    known = list(dict.fromkeys(table.net for table in config.tables))
    return [known.index(table.net) for table in config.tables]


def placements(config: Config) -> dict[tuple[str, int], Placement]:
    """By strategy and number of shards, 0 if all is in one process."""
    alone = {"singular": (0,), "one-shard": (1,)}
    return {
        (name, n): STRATEGIES[name](config.tables, max(n, 1), Options())
        for name in config.strategies
        for n in alone.get(name, config.shards)
    }


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Serve the same requests with every contender at every rate; a row a request.

    Of net n: ``fan{n}_s`` from the first look-up that goes out until all answers are there, ``lookup{n}_s`` of it in
    the busiest shard; ``visit{n}_s`` is the main process's own time before, and behind the last net. ``away_s`` is what
    all fan-outs took beyond look-ups, ``uneven_s`` what the busiest shards' took beyond the mean of those asked,
    ``lookups_s`` are those of all shards, ``difference`` is the greatest one to the scores of the first strategy.
    """
    from blslib.dlrm.config import ModelConfig
    from blslib.lab.compare.contest import interleaved
    from blslib.lab.serving.scorer import Scorer

    tables = config.tables
    model = ModelConfig(tuple(table.rows for table in tables), tables[0].dim, config.bottom, config.top)
    draws: Counter[tuple] = Counter()
    with ExitStack() as stack:
        scorers = {
            item: stack.enter_context(Scorer(model, nets(config), placement, config.seed))
            for item, placement in placements(config).items()
        }

        def once(item: tuple) -> list[Served]:
            draws[item] += 1
            return _serve(scorers[item[0]], requests(config, draws[item]), item[1], config.seed + draws[item])

        served = interleaved(comm, list(product(scorers, config.rates_per_s)), once, config)
    rows = []
    for ((name, n), rate), found in served.items():
        if config.timelines and n:
            _trace(Path(config.timelines, f"{name}-{n}-{rate:g}"), found[0], n)
        setting = {"strategy": name, "shards": n, "rate_per_s": rate}
        for repeat, both in enumerate(zip(found, served[next(iter(scorers)), rate], strict=True)):
            for i, (each, first) in enumerate(zip(*both, strict=True)):
                rows.append({**setting, "repeat": repeat, **_row(i, each, n, first.scored.scores)})
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


def _row(request: int, served: Served, shards: int, scores: np.ndarray) -> Row:
    scored = served.scored
    began_s, came_s = np.transpose(scored.fanned_s)
    visits_s = np.append(began_s, served.ended_s) - np.insert(came_s, 0, served.begun_s)
    each_s = _lookup_s(scored, shards)
    row = {"request": request, "samples": len(scores), "latency_s": served.ended_s - served.due_s}
    row |= {"embedded_s": (came_s - began_s).sum(), "cpu_s": served.cpu_s}
    busiest_s = each_s.max(axis=1, initial=0)
    row |= {"lookups_s": each_s.sum(), "away_s": row["embedded_s"] - busiest_s.sum()}
    row |= {"uneven_s": (busiest_s - each_s.sum(axis=1) / np.maximum(1, (each_s > 0).sum(axis=1))).sum()}
    row |= {"asked": len(scored.answers), "asked_with_ids": scored.with_ids}
    row |= {"difference": float(np.abs(scored.scores - scores).max())}
    parts = {"visit": visits_s, "fan": came_s - began_s, "lookup": busiest_s}
    return row | {f"{part}{n}_s": seconds for part, values in parts.items() for n, seconds in enumerate(values)}


def _lookup_s(scored: "Scored", shards: int) -> np.ndarray:
    """(nets, shards) seconds that the look-ups of one request took."""
    found = np.zeros((len(scored.fanned_s), shards))
    for each in scored.answers:
        found[each.net, each.shard] += each.ended_s - each.began_s
    return found


def _trace(path: Path, found: list[Served], shards: int) -> None:
    """A timeline of all processes for Perfetto, and the look-ups, shard by shard, for ``diagnose``: other suffixes."""
    spans, lines = [], ["rank,iteration,compute_s\n"]
    for i, (_, begun_s, ended_s, _, scored) in enumerate(found):
        spans.append(("request", 0, i, begun_s, ended_s))
        spans += [(f"net {net}", 0, i, began_s, came_s) for net, (began_s, came_s) in enumerate(scored.fanned_s)]
        spans += [("look-up", 1 + each.shard, i, each.began_s, each.ended_s) for each in scored.answers]
        lines += [f"{shard},{i},{seconds}\n" for shard, seconds in enumerate(_lookup_s(scored, shards).sum(axis=0))]
    whose = ["main", *(f"shard {shard}" for shard in range(shards))]
    events: list[Row] = [
        {"ph": "M", "name": "process_name", "pid": i, "args": {"name": w}} for i, w in enumerate(whose)
    ]
    for name, pid, i, began_s, ended_s in spans:
        when = {"ts": 1e6 * began_s, "dur": 1e6 * (ended_s - began_s)}
        events.append({"ph": "X", "name": name, "pid": pid, "tid": 0, **when, "args": {"request": i}})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write({Path(f"{path}.json"): json.dumps({"traceEvents": events}), Path(f"{path}.csv"): "".join(lines)})


def overhead(
    rows: "Rows", percent: int, strategy: tuple[str, int], over: tuple[str, int] = ("singular", 0)
) -> Interval:
    """A percentile of latency with one strategy and number of shards over that with another; draws resampled together.

    Args:
        rows: of ``run``, at one rate.
        percent: which percentile.
        strategy, over: names and numbers of shards; above 1 where the first has the longer latency.
    """
    import pandas as pd

    groups = dict(iter(pd.DataFrame(rows).groupby(["strategy", "shards"])))
    one, other = (serving.percentiles(groups[key], percent, "request") for key in (strategy, over))
    return serving.resampled(one / other)


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
