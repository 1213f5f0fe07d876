"""The playground: what it carries along is what the theory says, and nothing of it comes from a network."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest

from blslib.lab import controls, site
from blslib.theory.delays import delays
from blslib.theory.maxplus import makespan, times


@pytest.fixture(scope="module")
def page() -> str:
    return site.playground().to_html(inline=True, embed_options={"actions": False})


def test_it_opens_from_a_stick(page: str) -> None:
    """Without a network, and small."""
    assert len(page.encode()) < 3e6
    plain = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in plain and not re.findall(r"<script[^>]*src", page)
    for name in ("left law", "right law", "one delay (ms)", "bound", "ranks"):
        assert f'"name": "{name} "' in page or f'"name":"{name} "' in page


def test_its_numbers_are_those_of_the_theory(page: str) -> None:
    """At 100 settings that are drawn, to a nanosecond: each call of each rank, its lag, and the end of the run."""
    carried = re.search(r'"law,delay,[^"]*"', page)
    assert carried
    table = pd.read_csv(io.StringIO(json.loads(carried[0])))
    assert len(table) == len(site.LAWS) * len(site.DELAYS_MS) * len(site.BOUNDS) * sum(site.RANKS) * site.ITERATIONS
    groups = dict(iter(table.groupby(["law", "delay", "ranks", "bound"])))
    rng = np.random.default_rng(1)
    for nth in rng.choice(len(groups), 100, replace=False):
        (law, delay_ms, ranks, bound), here = list(groups.items())[nth]
        late_s = delays(law, ranks, site.ITERATIONS, controls.mean_s(law, delay_ms / 1000, ranks), seed=1)
        run = times(site.WORK_S + late_s, bound)
        for name, seconds in (("entered", run.entered_s), ("returned", run.returned_s)):
            assert np.abs(here[name].to_numpy() / 1000 - seconds.ravel()).max() < 1e-9
        assert here["worked"].to_numpy() - here["began"].to_numpy() == pytest.approx(1000 * site.WORK_S)
        assert here["ahead"].min() >= 0 and here["ahead"].max() <= bound
        assert here["returned"].max() / 1000 == pytest.approx(makespan(site.WORK_S + late_s, bound), abs=1e-9)


def test_what_the_playground_is_to_show() -> None:
    """A permanent straggler: the others' lag climbs to the bound and stays there; one that moves: it comes back."""
    table = site.settings().query("delay == 80 and ranks == 4 and bound == 4")
    for law, stays in (("permanent", True), ("rotating", False)):
        lag = table[(table["law"] == law) & (table["rank"] == 0)]["ahead"].tolist()
        assert (lag[4:] == [4] * 8) == stays
        assert (max(lag) == 4) or not stays
