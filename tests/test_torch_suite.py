"""The backend ``"bls"`` under torch's own tests, which come in its wheel, and as users start it.

Run under ``mpiexec``, this file is the program of one rank.
"""

import importlib.util
import json
import os
import re
import sys
import types
import unittest
from pathlib import Path

import pytest

from blslib.lab.ranks.launch import rank_environment, run_guarded, run_ranks
from tests.conftest import LONG_S, ROOT

NOT_OURS = r"(?!.*(_cuda|_nccl|_timeout|_profiler))"
SUITE = {
    # The suite asks for a backend's name and leaves out what it knows that one to lack. Of the two whose names it knows
    # for the CPU, "mpi" has all-to-all, and "gloo" the rest.
    "mpi": r"test_(all_to_all|all_reduce(?!_coal)|reduce|broadcast(?!_obj)|all_gather(?!_coal|_obj)|gather(?!_obj)|"
    r"scatter(?!_obj)|barrier|send_recv|isend)" + NOT_OURS,
    "gloo": r"test_(all_reduce_coalesced|all_gather_coalesced|(all_gather|scatter)_object)" + NOT_OURS,
}
ALL_TO_ALL = 12


def conform(name: str, folder: str) -> None:
    """What each rank runs: the chosen tests of torch's suite, in the same order everywhere."""
    os.environ |= {"BACKEND": name, "TEMP_DIR": folder}
    if importlib.util.find_spec("expecttest") is None:  # imported by the suite, for tests other than these
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)  # type: ignore[assignment]
    import torch.distributed as dist

    from blslib.collective.process_group import NAME

    dist.init_process_group(NAME)
    os.environ["WORLD_SIZE"] = str(dist.get_world_size())
    from torch.testing._internal.common_utils import TestCase
    from torch.testing._internal.distributed.distributed_test import DistributedTest

    os.environ["BACKEND"] = "mpi"  # asked again by each test: only of "mpi" does the suite try groups of few ranks

    class Suite(TestCase, DistributedTest._DistTestBase):
        rank, world_size = dist.get_rank(), dist.get_world_size()

    tests = sorted(test for test in dir(Suite) if re.match(SUITE[name], test))
    result = unittest.TextTestRunner(failfast=True).run(unittest.TestSuite(map(Suite, tests)))
    skipped = {each._testMethodName: why for each, why in result.skipped}
    failed = [text for _, text in result.failures + result.errors]
    verdict = {"run": [test for test in tests if test not in skipped], "skipped": skipped, "failed": failed}
    Path(folder, f"verdict-{dist.get_rank()}.json").write_text(json.dumps(verdict))
    if failed:
        os._exit(1)  # the others may be waiting for this rank
    dist.destroy_process_group()


@pytest.mark.parametrize(("name", "ranks"), [("mpi", 3), ("mpi", 4), ("gloo", 3)])
def test_torchs_own_tests(name: str, ranks: int, tmp_path: Path) -> None:
    (tmp_path / "barrier").mkdir()
    here = {"PYTHONPATH": str(ROOT)}
    done = run_ranks(ranks, [__file__, name, str(tmp_path)], timeout_s=5 * LONG_S, env=here, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-8000:]
    for rank in range(ranks):
        verdict = json.loads((tmp_path / f"verdict-{rank}.json").read_text())
        assert verdict["run"] and not verdict["failed"]
        assert not verdict["skipped"]
        if name == "mpi":
            assert sum("all_to_all" in test for test in verdict["run"]) == ALL_TO_ALL
            for kind in ("all_reduce", "broadcast", "all_gather", "barrier", "reduce", "scatter", "send_recv"):
                assert any(kind in test for test in verdict["run"]), kind


def program(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(text)
    return str(path)


def test_under_torchrun_it_says_how_to_start(tmp_path: Path) -> None:
    text = "import torch.distributed as dist\nimport blslib.collective.process_group\ndist.init_process_group('bls')\n"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run_guarded([*command, program(tmp_path, text)], timeout_s=2 * LONG_S, env=rank_environment())
    assert done.returncode != 0
    assert re.search(r"rank [01] of 2 for torch and rank 0 of 1 for MPI", done.stdout), done.stdout
    assert "start the program with mpiexec -n 2 python PROGRAM, not with torchrun" in done.stdout


A_RANK_FAILS = """
import torch, torch.distributed as dist
from blslib.collective.process_group import BLSOptions
dist.init_process_group("bls", pg_options=BLSOptions(bound=1))
out, data = torch.zeros(6), torch.ones(6)
dist.all_to_all_single(out, data)
if dist.get_rank() == 1:
    raise KeyError("no such table")
try:
    for _ in range(4):
        dist.all_to_all_single(out, data)
except RuntimeError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


def test_a_rank_that_dies_is_named_by_the_others(tmp_path: Path) -> None:
    done = run_ranks(3, [program(tmp_path, A_RANK_FAILS)], timeout_s=LONG_S)
    assert done.stdout.count("PeerError: rank 1 failed after posting 1 iterations: KeyError: 'no such table'") == 2


FORGETS_TO_DESTROY = """
import torch, torch.distributed as dist
from blslib.collective.process_group import BLSOptions
dist.init_process_group("bls", pg_options=BLSOptions(bound=2))
out = torch.zeros(4)
work = dist.all_to_all_single(out, torch.ones(4), async_op=True)
"""


def test_a_program_may_end_without_destroying(tmp_path: Path) -> None:
    done = run_ranks(2, [program(tmp_path, FORGETS_TO_DESTROY)], timeout_s=LONG_S)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_example_scores_the_same_over_every_backend() -> None:
    small = ["--batches", "12", "--batch-size", "30", "--rows", "500"]
    digests = set()
    for backend in (["gloo"], ["bls"], ["bls", "--bound", "3"]):
        arguments = ["examples/dlrm_torch.py", *small, "--backend", *backend]
        done = run_ranks(3, arguments, timeout_s=LONG_S, cwd=ROOT)
        assert done.returncode == 0, done.stdout
        assert "batches/s" in done.stdout
        digests.add(done.stdout.split()[-1])
    assert len(digests) == 1


if __name__ == "__main__":
    conform(*sys.argv[1:])
