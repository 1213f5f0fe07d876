"""Requests that nobody sent: latency and processor time of other placements, shards and loads, from one that was run.

Costs are straight lines, none of them negative, fitted to the requests that one shard with all tables served at one
load. The shards and the main process are then a network of queues (``theory.fanout``), for the placement and the load
that are asked for. What a fit cannot know is left out: ranks of other hosts, and anything else on the machine.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from blslib.lab.experiments import distributed, serving
from blslib.lab.options import Row
from blslib.lab.rows import Rows
from blslib.placement.loads import LookupCost, of_shards
from blslib.placement.shards import Placement
from blslib.theory.fanout import simulate

CALIBRATED_ON = "one-shard"
"""The strategy whose requests are fitted: its look-ups do not hide behind each other."""


class Costs(NamedTuple):
    """What is fitted; seconds.

    Attributes:
        visits: (M + 1, 3) of the main process before each net and behind the last: once, a batch, a sample.
        away: (3,) of a fan-out beyond its look-ups: once, a message, which takes the main process, and a pooled value.
        lookup: (2,) of look-ups: a table of a message, a second by ``LookupCost``.
        core_s: of all processes for a message, beyond visits and look-ups.
    """

    visits: np.ndarray
    away: np.ndarray
    lookup: np.ndarray
    core_s: float


class Asked(NamedTuple):
    """(M, S) of each net and shard: tables there, seconds that a sample's look-ups take by ``LookupCost``, values sent.

    What lies in the main process, all of it a replica, is in the column of a shard behind the others.
    """

    parts: np.ndarray
    model_s: np.ndarray
    values: np.ndarray


def asked(config: distributed.Config, placement: Placement) -> Asked:
    """What a placement asks of its shards."""
    nets, shards = distributed.nets(config), placement.shards
    found = np.zeros((3, max(nets) + 1, placement.ranks + 1))
    each_us = of_shards(shards, config.tables, LookupCost(batch=1, call_us=0.0)).time_us.tolist()
    for shard, one_us in zip(shards, each_us, strict=True):
        rank = placement.ranks if shard.rank is None else shard.rank
        found[:, nets[shard.table], rank] += 1, 1e-6 * one_us, len(shard.columns)
    return Asked(*found)


def calibrated(rows: Rows, config: distributed.Config, rate_per_s: float) -> Costs:
    """The costs that fit the requests of ``CALIBRATED_ON`` at one rate best.

    Raises:
        ValueError: there are none.
    """
    table = pd.DataFrame(rows)
    here = table[(table["strategy"] == CALIBRATED_ON) & (table["rate_per_s"] == rate_per_s)]
    if here.empty:
        raise ValueError(f"no requests of {CALIBRATED_ON} at {rate_per_s:g} a second to calibrate on: serve some")
    what = asked(config, distributed.placements(config)[CALIBRATED_ON, 1])
    samples, once = here["samples"].to_numpy(), np.ones(len(here))
    messages, known = -(-samples // config.batch_size), range(len(what.parts))

    def fitted(columns: list[np.ndarray], seconds: list[str], less: list[str] | None = None) -> np.ndarray:
        found = np.concatenate([here[name].to_numpy() for name in seconds])
        found = found - (np.concatenate([here[name].to_numpy() for name in less]) if less else 0)
        # Relative errors count, or the few largest requests would decide; and no outlier more than ten others.
        weights = 1 / np.maximum(found, np.median(found) / 10)
        for _ in range(5):
            best = nnls(np.stack(columns, axis=1) * weights[:, None], found * weights)[0]
            off = np.abs(np.stack(columns, axis=1) @ best / np.maximum(found, 1e-9) - 1)
            weights = 1 / np.maximum(found, np.median(found) / 10) / np.maximum(1, off / np.median(off) / 2)
        return best

    fans, lookups = ([f"{part}{net}_s" for net in known] for part in ("fan", "lookup"))
    visits = [fitted([once, messages, samples], [f"visit{net}_s"]) for net in (*known, len(known))]
    values = np.concatenate([samples * what.values[net, 0] for net in known])
    away = fitted([np.ones(len(values)), np.tile(messages, len(known)), values], fans, lookups)
    work = [np.concatenate([messages * what.parts[net, 0] for net in known])]
    work.append(np.concatenate([samples * what.model_s[net, 0] for net in known]))
    visited_s = here[[f"visit{net}_s" for net in (*known, len(known))]].sum(axis=1)
    core_s = ((here["cpu_s"] - visited_s - here["lookups_s"]) / here["asked"]).median()
    return Costs(np.array(visits), away, fitted(work, lookups), max(0.0, float(core_s)))


class Work(NamedTuple):
    """What R requests ask of a placement, in seconds.

    Attributes:
        main_s: (R, M + 1) of the main process, visit by visit.
        shard_s: (R, M, S) of the shards, net by net; NaN where a shard has nothing of a net.
        lookup_s: the same of look-ups alone, 0 where there are none.
        asked: (R,) messages to shards.
    """

    main_s: np.ndarray
    shard_s: np.ndarray
    lookup_s: np.ndarray
    asked: np.ndarray

    @property
    def core_s(self) -> np.ndarray:
        """(R,) of all cores, but for what messages cost beyond that."""
        return self.main_s.sum(axis=1) + self.lookup_s.sum(axis=(1, 2))


def work(costs: Costs, config: distributed.Config, placement: Placement, samples: np.ndarray) -> Work:
    """What requests of so many samples ask of a placement."""
    what, messages = asked(config, placement), -(-samples // config.batch_size)
    lookup_s = np.multiply.outer(messages, costs.lookup[0] * what.parts)
    lookup_s += np.multiply.outer(samples, costs.lookup[1] * what.model_s)
    there = what.parts[:, :-1] > 0
    visits = costs.visits[[0, *[1] * (len(what.parts) - 1), -1]]  # the model may have more nets, or one
    main_s = np.stack([np.ones(len(samples)), messages, samples], axis=1) @ visits.T
    main_s[:, 1:] += lookup_s[:, :, -1]  # of what lies in the main process
    main_s[:, :-1] += np.multiply.outer(messages, costs.away[1] * there.sum(axis=1))
    away_s = np.multiply.outer(samples, costs.away[2] * what.values[:, :-1])
    lookup_s = lookup_s[:, :, :-1]
    return Work(main_s, np.where(there, lookup_s + away_s, np.nan), lookup_s, messages * there.sum())


def foreseen(costs: Costs, config: distributed.Config, draws: int, in_flight: int | None = 1) -> pd.DataFrame:
    """Rows as ``distributed.run`` has them, of the same requests and arrivals, for all its placements and rates.

    Args:
        costs: of ``calibrated``.
        config: strategies, shards, rates and tables, which may be others than those of the run that was fitted.
        draws: of requests.
        in_flight: most requests at a time, as for ``simulate``; 1 is what the live main process does.
    """
    found = []
    for (strategy, shards), placement in distributed.placements(config).items():
        for rate_per_s in config.rates_per_s:
            for draw in range(draws):
                samples = distributed.sizes(config, draw + 1)
                asks = work(costs, config, placement, samples)
                due_s = serving.arrivals(rate_per_s or np.inf, len(samples), config.seed + draw + 1)
                served = simulate(due_s, asks.main_s, asks.shard_s, costs.away[0] / 2, in_flight=in_flight)
                # One by one, a request comes when the one before is done.
                begun_s = due_s if rate_per_s else np.insert(served.done_s, 0, 0.0)[:-1]
                each_s, several = asks.lookup_s.max(axis=2, initial=0), (asks.lookup_s > 0).sum(axis=2)
                setting = {"strategy": strategy, "shards": shards, "rate_per_s": rate_per_s, "repeat": draw}
                columns = {"request": np.arange(len(samples)), "latency_s": served.done_s - begun_s}
                columns |= {"embedded_s": served.embedded_s, "away_s": served.embedded_s - each_s.sum(axis=1)}
                uneven_s = each_s - asks.lookup_s.sum(axis=2) / np.maximum(several, 1)
                columns |= {"uneven_s": uneven_s.sum(axis=1), "cpu_s": asks.core_s + costs.core_s * asks.asked}
                found.append(pd.DataFrame(setting | columns))
    return pd.concat(found, ignore_index=True)


NEAR = {"latency_p50_s": 0.15, "cpu_s": 0.15, "latency_p99_s": 0.30}
"""How far what is foreseen may be from what was measured."""


def compared(rows: Rows, config: distributed.Config, costs: Costs, fitted_at: float) -> pd.DataFrame:
    """What is foreseen over what was measured, for all that was not fitted.

    ``processes`` is how many want a core. ``stands`` where all are ``NEAR``, or within the interval of what was
    measured, which then spreads more than that itself.
    """
    live = distributed.pooled(rows)
    table = live.merge(
        distributed.pooled(foreseen(costs, config, int(live["repeats"].max()))),
        on=["strategy", "shards", "rate_per_s"],
        suffixes=("", "_foreseen"),
    )
    table = table[(table["strategy"] != CALIBRATED_ON) | (table["rate_per_s"] != fitted_at)]
    shown = table[["strategy", "shards", "rate_per_s"]].assign(processes=1 + table["shards"], stands=True)
    for column, near in NEAR.items():
        shown[column] = table[f"{column}_foreseen"] / table[column]
        within = table[f"{column}_foreseen"].between(table[f"{column}_low"], table[f"{column}_high"])
        shown["stands"] &= within | (shown[column] - 1).abs().le(near)
    return shown


def replicas(costs: Costs, config: distributed.Config, rate_per_s: float, busy: float) -> list[Row]:
    """Copies of the main process and of each shard for a rate of requests, and the bytes of tables in them.

    Args:
        costs: of ``calibrated``.
        config: strategies, shards and tables; the whole model alone is "singular".
        rate_per_s: of requests.
        busy: share of the time that a process may work.
    """
    samples, found = distributed.sizes(config, 1), []
    for (strategy, shards), placement in distributed.placements(config).items():
        asks = work(costs, config, placement, samples)
        each_s = np.append(asks.main_s.sum(axis=1).mean(), np.nansum(asks.shard_s, axis=1).mean(axis=0))
        copies = np.ceil(rate_per_s * each_s / busy)
        sizes = of_shards(placement.shards, config.tables, LookupCost()).bytes
        held = [shards if shard.rank is None else shard.rank for shard in placement.shards]
        of_rank = np.bincount(held, sizes, shards + 1)  # replicas lie in the main process
        stored = of_rank[-1] * copies[0] + of_rank[:shards] @ copies[1:][:shards]
        row = {"strategy": strategy, "shards": shards, "main": copies[0], "copies": copies[1:][:shards].sum()}
        found.append(
            row | {"gib": stored / 2**30, "cores": rate_per_s * (asks.core_s + costs.core_s * asks.asked).mean()}
        )
    return found
