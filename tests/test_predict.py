"""Runs that go as the model says are predicted exactly; what simulating costs."""

import time
import tracemalloc

import numpy as np
import pytest

from blslib.lab.compare.run import Run
from blslib.theory.delays import Constant, delays, named
from blslib.theory.maxplus import Cost, makespans, times
from tests.conftest import punctual, within


def made(bound: int, cost: Cost, law: str = "none") -> Run:
    """A run that goes exactly as the model says: 1 ms of work and 1 ms of delay in the mean on 3 ranks, 50 calls."""
    work_s = 1e-3 + delays(law, 3, 50, 1e-3, seed=1)
    model = times(work_s, bound, cost=cost)
    drained_s = np.column_stack([model.returned_s[:, -1], np.full(3, model.ended_s)])
    return Run(np.zeros(3), model.entered_s, model.returned_s, np.zeros((3, 51)), drained_s, drained_s[:, 1])


@pytest.mark.parametrize("law", ["exponential", "rotating"])
@pytest.mark.parametrize("bound", [0, 2, 50])
def test_with_its_cost_a_run_is_predicted_exactly(law, bound):
    cost = Cost(2e-4, alpha_s=1e-4)
    run = made(bound, cost, law)
    assert run.predicted_s(bound, cost) == pytest.approx(run.measured_s, rel=1e-12)
    assert run.predicted_s(bound) < run.measured_s


@punctual
@pytest.mark.parametrize(("ranks", "bound"), [(500, 0), (20_000, 8)])
def test_simulating_costs_what_it_simulates(ranks: int, bound: int) -> None:
    """100,000 ranks and 1,000 iterations in 6 s are 60 ns for each; ten times that if others use this machine."""

    def simulate(iterations: int) -> None:
        law = Constant(1e-3) + named("exponential", 1e-3, ranks)
        makespans(law.columns(np.random.default_rng(1), ranks, iterations), [bound])

    started_s = time.process_time()
    simulate(1000)
    within(600e-9 * ranks * 1000, time.process_time() - started_s)
    tracemalloc.start()  # for a run of its own, since it slows down what it watches
    simulate(100)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * ranks < peak_bytes < 20 * 8 * ranks + 200_000
