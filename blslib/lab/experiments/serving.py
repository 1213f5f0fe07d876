"""Serving: batches arrive by a clock that waits for nobody (open loop), and a batch's latency runs from its arrival.

The arrivals are a Poisson process, as in MLPerf's Server scenario, drawn beforehand from a seed: the same for every
rank and contender. A rank starts on a batch once that has arrived and the batches before it are done with.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from blslib.collective.clock import Clock
from blslib.collective.mpi import MPI
from blslib.lab.compare.contest import Contender, contenders, interleaved
from blslib.lab.compare.intervals import Interval
from blslib.lab.compare.run import Run, delaying, gathered, start
from blslib.lab.experiments import dlrm
from blslib.lab.options import Given, Row, number, settings, several
from blslib.theory.maxplus import times

if TYPE_CHECKING:
    import pandas as pd

    from blslib.lab.rows import Rows

COLUMNS = "contender bound idle rate_per_s ranks draws batches latency_p50_s latency_p99_s predicted_p99_s"
RATE = number(float, "number of batches a second > 0", lambda value: 0 < value < np.inf)
OPTIONS = {"rates": {"type": several(RATE), "metavar": "R,R,...", "help": "batches a second"}}

POLL_S = 100e-6
"""How long an idle server sleeps between two looks for results."""

HEAD_START_S = 10e-3
"""From the ranks' meeting to time 0, so that every rank is ready for the first arrival."""

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Config(dlrm.Config):
    """One rate of arrivals, every contender at every bound; else as ``dlrm.Config``.

    Attributes:
        iterations: N batches of each draw.
        repeats: draws of arrivals and delays.
        rate_per_s: batches that arrive per second, on average.
        idle: what a rank does that has no batch to work on: "polls" for results that are still out, or "sleeps".

    Raises:
        ValueError: the rate is not positive, or a rank would do something else.
    """

    scenario: str = "balanced"
    law: str = "bernoulli"
    mean_delay_s: float = 2e-3
    names: tuple[str, ...] = ("mpi", "bls")
    iterations: int = 100
    batch_size: int = 128
    max_rows: int = 20_000
    repeats: int = 12
    budget_s: float = 0.0
    rate_per_s: float = 100.0
    idle: tuple[str, ...] = ("polls",)

    def __post_init__(self) -> None:
        if self.rate_per_s <= 0:
            raise ValueError(f"rate_per_s is a positive number of batches per second, got {self.rate_per_s}")
        if unknown := set(self.idle) - {"polls", "sleeps"}:
            raise ValueError(f"an idle rank polls or sleeps, got {', '.join(sorted(unknown))}")


class Server(NamedTuple):
    """A contender, and what it does while idle."""

    contender: Contender
    idle: str


class Served(NamedTuple):
    """One run of one contender; seconds count from the time 0 that all ranks share.

    Attributes:
        due_s: (N,) when each batch arrived.
        freed_s: (P, N) when each rank was done with the step that took it in.
        scored_s: (P, N) when each rank had scored its part.
        run: the calls of the exchange.
        scores: (N, rows) float32, of the samples of this rank.
        collected_s: (P, N) seconds that each step spent in ``collect``.
        looked_s: (P, N) when each step did so, to see what has come in since its call; 0 if nothing was out.
    """

    due_s: np.ndarray
    freed_s: np.ndarray
    scored_s: np.ndarray
    run: Run
    scores: np.ndarray
    collected_s: np.ndarray = np.zeros((1, 1))  # none, for any P and N
    looked_s: np.ndarray = np.zeros((1, 1))

    @property
    def latency_s(self) -> np.ndarray:
        """(N,) from a batch's arrival until the slowest rank has scored its part."""
        return self.scored_s.max(axis=0) - self.due_s

    def predicted_s(self, bound: int, polls: bool) -> np.ndarray:
        """(N,) latencies by the max-plus recurrence, from the realised work and with an exchange that costs nothing.

        Work on a batch runs from the moment when it is there and the rank is free until the call; what the rank does
        from the return of the call to the end of the step, ``collect`` apart, counts as work on that batch's arrival.
        One that does not poll sees arrivals only when a step looks for them; what it does until then is work before.
        """
        free_s = np.column_stack([np.zeros(len(self.freed_s)), self.freed_s[:, :-1]])
        work_s = self.run.entered_s - np.maximum(free_s, self.due_s)
        follows_s = self.freed_s - self.run.returned_s - self.collected_s
        after_s = np.zeros(1) if polls else np.maximum(self.looked_s - self.run.returned_s, 0)
        about = {"release_s": self.due_s, "arrival_s": follows_s - after_s, "after_s": after_s, "polls": polls}
        return (times(work_s, bound, **about).delivered_s + follows_s - after_s).max(axis=0) - self.due_s


def plan(given: Given) -> list[Config]:
    """One configuration for each rate."""
    chosen = settings(given, {"bounds": (0, 4), "iterations": 60, "repeats": 2})
    rates = given.rates or ((40.0, 160.0) if given.quick else (40.0, 80.0, 120.0, 160.0, 200.0))
    return [Config(rate_per_s=rate, **chosen) for rate in rates]


def arrivals(rate_per_s: float, iterations: int, seed: int) -> np.ndarray:
    """(N,) seconds at which batches arrive: a Poisson process."""
    return np.random.default_rng([seed, 1]).exponential(1 / rate_per_s, iterations).cumsum()


def run(comm: "MPI.Intracomm", config: Config) -> list[Row]:
    """Serve the same arrivals with every contender. Collective; the rows, one a batch, are on every rank.

    Repeats differ in arrivals and delays, the contenders of one repeat do not.
    """
    servers = [Server(item, idle) for item in contenders(config.names, config.bounds) for idle in config.idle]
    draws = dict.fromkeys(servers, config.seed - 1)
    with dlrm.prepared(comm, config) as (here, model, made):

        def once(server: Server) -> Served:
            draws[server] += 1
            return _serve(comm, model, made[server.contender], here, config, server.idle == "polls", draws[server])

        served = interleaved(comm, servers, once, config)
    rows, reference = [], served[servers[0]][0].scores
    for (item, idle), found in served.items():
        for repeat, each in enumerate(found):
            same = comm.allreduce(np.array_equal(each.scores, reference), op=MPI.LAND)
            setting = {"contender": item.name, "bound": item.bound, "idle": idle, "ranks": comm.size}
            setting |= {name: getattr(config, name) for name in ("law", "mean_delay_s", "batch_size", "rate_per_s")}
            took_s = each.latency_s.round(6).tolist()
            predicted_s = each.predicted_s(item.bound, idle == "polls").round(6).tolist()
            rows += [
                {**setting, "repeat": repeat, "batch": i, "latency_s": one_s, "predicted_s": law_s, "identical": same}
                for i, (one_s, law_s) in enumerate(zip(took_s, predicted_s, strict=True))
            ]
    return rows


def _serve(
    comm: "MPI.Intracomm", model: Any, exchange: Any, here: Any, config: Config, polls: bool, seed: int
) -> Served:
    from blslib.dlrm.inference import Inference, Scored

    due_s = arrivals(config.rate_per_s, config.iterations, seed)
    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, seed)
    clock = Clock(exchange)
    loop = Inference(model, clock, before_post=delay)
    begun_s, freed_s, scored_s = np.zeros((3, config.iterations))
    scores: list[np.ndarray] = []

    def keep(ready: list[Scored]) -> None:
        for one in ready:
            scores.append(one.scores)
            scored_s[one.iteration] = begun_s[one.iteration] + one.response_s

    start_s = comm.bcast(start(comm)) + HEAD_START_S
    for i, batch in enumerate(here.pool[which] for which in here.order):
        while (early_s := start_s + due_s[i] - time.perf_counter()) > 0:
            if polls and len(scores) < i:
                keep(loop.poll())
                early_s = min(early_s, POLL_S)
            time.sleep(early_s)
        begun_s[i] = time.perf_counter() - start_s
        keep(loop.step(batch))
        freed_s[i] = time.perf_counter() - start_s
    keep(loop.finish())
    run = gathered(comm, clock, start_s)
    collected_s, looked_s = np.zeros((2, config.iterations))
    for call in clock.calls:
        began = call.iteration - 1
        # Those of a poll, before the next batch is begun, belong to no step.
        if call.kind == "collect" and call.entered_s - start_s < freed_s[began]:
            collected_s[began] += call.returned_s - call.entered_s
            looked_s[began] = call.entered_s - start_s
    freed, scored, collected, looked = np.stack(comm.allgather([freed_s, scored_s, collected_s, looked_s]), axis=1)
    return Served(due_s, freed, scored, run, np.array(scores), collected, looked)


def pooled(rows: "Rows") -> "pd.DataFrame":
    """Percentiles of latency over all batches of all draws, one line for each server and rate.

    ``latency_p99_s_low`` and ``_high`` are the ends of a 95 % interval, from resampled draws: batches of one draw
    depend on each other, and are never taken apart.
    """
    import pandas as pd

    from blslib.lab.rows import settings_of

    lines = []
    table = pd.DataFrame(rows)
    keys = settings_of(table)
    for key, group in table.groupby(keys, sort=False):
        line = dict(zip(keys, key, strict=True)) | {"draws": group["repeat"].nunique(), "batches": len(group)}
        for percent in PERCENTILES:
            line |= _interval(_percentiles(group, percent)).columns(f"latency_p{percent}_s")
            line[f"predicted_p{percent}_s"] = float(np.percentile(group["predicted_s"], percent))
        lines.append(line)
    return pd.DataFrame(lines)


def gains(
    rows: "Rows", percent: int, contender: tuple[str, int] = ("bls", 4), over: tuple[str, int] = ("mpi", 0)
) -> Interval:
    """A percentile of latency of one contender over that of another, at one rate; all draws resampled together.

    Args:
        rows: of ``run``, at one rate and with one way to be idle.
        percent: which percentile.
        contender, over: names and bounds; the ratio is above 1 where the first has the shorter latency.

    Raises:
        ValueError: one of them was not measured.
    """
    import pandas as pd

    groups = dict(iter(pd.DataFrame(rows).groupby(["contender", "bound"])))
    if missing := {contender, over} - set(groups):
        raise ValueError(f"no rows of {missing}: measure that, too")
    ratios = _percentiles(groups[over], percent) / _percentiles(groups[contender], percent)
    return _interval(ratios)


def highest_rates(rows: "Rows", limit_s: float) -> "pd.DataFrame":
    """Up to which rate the 99th percentile of latency keeps a limit, measured and predicted, server by server.

    Interpolated between the rates that were measured, linearly in the logarithm of latency; 0 where not even the lowest
    keeps it, and the highest where all do. A latency that falls as the rate grows is chance: there the curve is taken
    half-way between the greatest before and the least after, so that one slow draw does not count at all higher rates.

    Args:
        rows: of ``run``, at two rates or more.
        limit_s: seconds that 99 of 100 batches may take at most.

    Returns:
        contender, bound, idle, ranks, limit_s, rate_per_s with the ends of its 95 % interval, and predicted_per_s.
    """
    import pandas as pd

    def rate(p99_s: np.ndarray, rates: list[float]) -> float:
        log_s = np.log(p99_s)
        rising = (np.maximum.accumulate(log_s) + np.minimum.accumulate(log_s[::-1])[::-1]) / 2
        return float(np.interp(np.log(limit_s), rising, rates, left=0.0))

    lines = []
    for key, group in pd.DataFrame(rows).groupby(["contender", "bound", "idle", "ranks"], sort=False):
        by_rate = dict(iter(group.groupby("rate_per_s")))
        measured_s = np.array([_percentiles(each, 99) for each in by_rate.values()])
        predicted_s = np.array([np.percentile(each["predicted_s"], 99) for each in by_rate.values()])
        found = np.array([rate(column, list(by_rate)) for column in measured_s.T])
        line = dict(zip(("contender", "bound", "idle", "ranks"), key, strict=True)) | {"limit_s": limit_s}
        line |= _interval(found).columns("rate_per_s")
        lines.append(line | {"predicted_per_s": rate(predicted_s, list(by_rate))})
    return pd.DataFrame(lines)


def _percentiles(group: "pd.DataFrame", percent: int, resamples: int = 2000) -> np.ndarray:
    """(1 + resamples,) a percentile of the latency of all batches, then of those of as many draws drawn anew."""
    by_draw = group.pivot(index="repeat", columns="batch", values="latency_s").to_numpy()
    chosen = np.random.default_rng(1).integers(len(by_draw), size=(resamples, len(by_draw)))
    replicas = by_draw[chosen].reshape(resamples, -1)
    return np.r_[np.percentile(by_draw, percent), np.percentile(replicas, percent, axis=1)]


def _interval(found: np.ndarray) -> Interval:
    """What was found first, and the 95 % interval of what resampled draws have in its place."""
    return Interval(float(found[0]), *np.percentile(found[1:], [2.5, 97.5]).tolist())


summarise = pooled
"""How a bench sums its rows up."""
