"""Serving: batches arrive by a clock that waits for nobody (open loop), and a batch's latency runs from its arrival.

The arrivals are a Poisson process, as in MLPerf's Server scenario, drawn beforehand from a seed: the same for every
rank and contender. A rank starts on a batch once that has arrived and the batches before it are done with.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from mpi4py import MPI

from blslib.collective.exchange import Exchange
from blslib.dlrm.inference import Inference, Scored
from blslib.dlrm.model import DLRM
from blslib.lab.compare.measure import Contender, Run, Timed, contenders, delaying, interleaved
from blslib.lab.experiments.dlrm import RecommendConfig, prepared
from blslib.lab.rows import Row, spread
from blslib.lab.scenarios import Scenario
from blslib.theory.maxplus import times

POLL_S = 100e-6
"""How long an idle server sleeps between two looks for results."""

HEAD_START_S = 10e-3
"""From the ranks' meeting to time 0, so that every rank is ready for the first arrival."""

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class ServingConfig(RecommendConfig):
    """One rate of arrivals, every contender at every bound.

    Attributes:
        rate_per_s: batches that arrive per second, on average.
        idle: what a rank does that has no batch to work on: "polls" for results that are still out, or "sleeps".

    Raises:
        ValueError: the rate is not positive, or a rank would do something else.
    """

    scenario: str = "balanced"
    law: str = "bernoulli"
    mean_delay_s: float = 2e-3
    names: tuple[str, ...] = ("mpi", "bls")
    bounds: tuple[int, ...] = (0, 1, 4, 16)
    iterations: int = 160
    batch_size: int = 128
    max_rows: int = 20_000
    repeats: int = 3
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
    """

    due_s: np.ndarray
    freed_s: np.ndarray
    scored_s: np.ndarray
    run: Run
    scores: np.ndarray
    collected_s: np.ndarray = np.zeros((1, 1))  # none, for any P and N

    @property
    def latency_s(self) -> np.ndarray:
        """(N,) from a batch's arrival until the slowest rank has scored its part."""
        return self.scored_s.max(axis=0) - self.due_s

    @property
    def batches_per_s(self) -> float:
        """Batches served per second, from time 0 to the last score."""
        return self.due_s.size / float(self.scored_s.max())

    def predicted_s(self, bound: int, polls: bool) -> np.ndarray:
        """(N,) latencies by the max-plus recurrence, from the realised work and with an exchange that costs nothing.

        Work on a batch runs from the moment when it is there and the rank is free until the call; what the rank does
        from the return of the call to the end of the step, ``collect`` apart, counts as work on that batch's arrival.
        """
        free_s = np.column_stack([np.zeros(len(self.freed_s)), self.freed_s[:, :-1]])
        work_s = self.run.entered_s - np.maximum(free_s, self.due_s)
        arrival_s = self.freed_s - self.run.returned_s - self.collected_s
        found = times(work_s, bound, release_s=self.due_s, arrival_s=arrival_s, polls=polls)
        return (found.delivered_s + arrival_s).max(axis=0) - self.due_s


def arrivals(rate_per_s: float, iterations: int, seed: int) -> np.ndarray:
    """(N,) seconds at which batches arrive: a Poisson process."""
    return np.random.default_rng([seed, 1]).exponential(1 / rate_per_s, iterations).cumsum()


def run(comm: MPI.Intracomm, config: ServingConfig) -> list[Row]:
    """Serve the same arrivals with every contender. Collective; the rows are on every rank.

    Percentiles are those of each run; in a run of fewer than 100 batches the 99th is all but its slowest. Repeats
    differ in arrivals and delays, the contenders of one repeat do not.
    """
    servers = [Server(item, idle) for item in contenders(config.names, config.bounds) for idle in config.idle]
    seeds = {server: count(config.seed) for server in servers}
    with prepared(comm, config) as (here, model, made):

        def once(server: Server) -> Served:
            polls, seed = server.idle == "polls", next(seeds[server])
            return _serve(comm, model, made[server.contender], here, config, polls, seed)

        served = interleaved(config.repeats, servers, once)
    return [_row(comm, config, here.source, server, served) for server in servers]


def _serve(
    comm: MPI.Intracomm, model: DLRM, exchange: Any, here: Scenario, config: ServingConfig, polls: bool, seed: int
) -> Served:
    due_s = arrivals(config.rate_per_s, config.iterations, seed)
    delay = delaying(comm, config.law, config.iterations, config.mean_delay_s, seed)
    timed = Timed(comm, exchange)
    loop = Inference(model, cast(Exchange, timed), before_post=delay)
    begun_s, freed_s, scored_s, collected_s = np.zeros((4, config.iterations))
    scores: list[np.ndarray] = []

    def keep(ready: list[Scored]) -> None:
        for one in ready:
            scores.append(one.scores)
            scored_s[one.iteration] = begun_s[one.iteration] + one.response_s

    timed.start()
    start_s = timed.started_s = comm.bcast(timed.started_s) + HEAD_START_S
    for i, batch in enumerate(here.pool[which] for which in here.order):
        while (early_s := start_s + due_s[i] - time.perf_counter()) > 0:
            if polls and len(scores) < i:
                keep(loop.poll())
                early_s = min(early_s, POLL_S)
            time.sleep(early_s)
        begun_s[i] = time.perf_counter() - start_s
        keep(loop.step(batch))
        freed_s[i], collected_s[i] = time.perf_counter() - start_s, timed.collected_s
    keep(loop.finish())
    run = timed.end()
    freed, scored, collected = np.stack(comm.allgather([freed_s, scored_s, collected_s]), axis=1)
    return Served(due_s, freed, scored, run, np.array(scores), collected)


def _row(
    comm: MPI.Intracomm, config: ServingConfig, source: str, server: Server, served: dict[Server, list[Served]]
) -> Row:
    found, reference = served[server], next(iter(served.values()))[0].scores
    baseline = served.get(Server(Contender("mpi", 0), server.idle), found)
    same = all(np.array_equal(each.scores, reference) for each in found)
    row = {
        "contender": server.contender.name,
        "scenario": config.scenario,
        "law": config.law,
        "mean_delay_s": config.mean_delay_s,
        "source": source,
        "bound": server.contender.bound,
        "idle": server.idle,
        "ranks": comm.size,
        "batch_size": config.batch_size,
        "iterations": config.iterations,
        "repeats": config.repeats,
        "rate_per_s": config.rate_per_s,
        **spread("batches_per_s", [each.batches_per_s for each in found]),
        "lag": max(each.run.lag for each in found),
        "identical_scores": bool(comm.allreduce(same, op=MPI.LAND)),
    }
    predicted = [each.predicted_s(server.contender.bound, server.idle == "polls") for each in found]
    for percent in PERCENTILES:
        latency_s, mpi_s = ([np.percentile(each.latency_s, percent) for each in runs] for runs in (found, baseline))
        row |= spread(f"latency_p{percent}_s", latency_s)
        row |= spread(f"predicted_p{percent}_s", [np.percentile(each, percent) for each in predicted])
        row[f"gains_p{percent}"] = " ".join(f"{gain:.6f}" for gain in np.divide(mpi_s, latency_s))
    return row


def highest_rates(rows: Sequence[Row], limit_s: float) -> list[Row]:
    """Up to which rate the 99th percentile of latency keeps a limit, measured and predicted, contender by contender.

    Interpolated between the rates that were measured, linearly in the logarithm of latency; 0 where not even the lowest
    keeps it, and the highest where all do.

    Args:
        rows: of ``run``, at two rates or more.
        limit_s: seconds that 99 of 100 batches may take at most.
    """
    table = pd.DataFrame(rows).sort_values("rate_per_s")
    columns = {"rate_per_s": "latency_p99_s", "rate_per_s_min": "latency_p99_s_max"}
    columns |= {"rate_per_s_max": "latency_p99_s_min", "predicted_per_s": "predicted_p99_s"}
    return [
        {"contender": name, "bound": bound, "idle": idle, "ranks": group["ranks"].iloc[0], "limit_s": limit_s}
        | {
            told: float(np.interp(np.log(limit_s), np.log(group[column].cummax()), group["rate_per_s"], left=0.0))
            for told, column in columns.items()
        }
        for (name, bound, idle), group in table.groupby(["contender", "bound", "idle"], sort=False)
    ]
