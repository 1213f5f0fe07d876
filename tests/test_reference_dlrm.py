"""``examples/reference_dlrm.py`` on the checkout that BLS_REFERENCE_DLRM names, else on a small stand-in of ours.

Run under ``mpiexec``, this file is the program of one rank: it drives several runs, so that torch is loaded once.
"""

import builtins
import contextlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from blslib.lab.ranks.launch import rank_environment, run_guarded, run_ranks
from tests.conftest import LONG_S, ROOT

DRIVER = ROOT / "examples" / "reference_dlrm.py"
STAND_IN = ROOT / "tests" / "reference_dlrm_stand_in"
CHECKOUT = Path(os.environ.get("BLS_REFERENCE_DLRM") or STAND_IN).resolve()
THEIRS = [
    "--mini-batch-size=24",
    "--num-batches=9",
    "--arch-sparse-feature-size=8",
    "--arch-embedding-size=40-30-20-50-60",
    "--arch-mlp-bot=5-12-8",
    "--arch-mlp-top=12-1",
    "--num-indices-per-lookup=6",
    "--loss-threshold=0.2",
]


def driver() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("reference_dlrm", DRIVER)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def newest_first(driver: Any) -> None:
    """A fault: of the batches under way the last one is finished first."""
    driver.deque.popleft = driver.deque.pop


def two_swapped(driver: Any) -> None:
    """A fault: two predictions of one rank change places, in every batch."""
    forward = driver.forward

    def swapped(ext: Any, *given: Any) -> Iterator[Any]:
        nothing, scores = forward(ext, *given)
        yield nothing
        yield scores if ext.my_rank == 0 else scores[[1, 0, *range(2, len(scores))]]

    driver.forward = swapped


def one_request_for_all(driver: Any) -> None:
    """A fault: the global request stays the one that it was."""
    imported = driver.import_checkout

    class Forgetful(ModuleType):
        def __init__(self, ext: Any) -> None:
            self.__dict__["_ext"] = ext

        def __getattr__(self, name: str) -> Any:
            return getattr(self._ext, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name != "myreq":
                setattr(self._ext, name, value)

        def __delattr__(self, name: str) -> None:
            delattr(self._ext, name)

    def import_checkout(*given: Any) -> tuple[Any, Any]:
        program, ext = imported(*given)
        return program, Forgetful(ext)

    driver.import_checkout = import_checkout


FAULTS: dict[str, Callable[[Any], None]] = {
    each.__name__: each for each in (newest_first, two_swapped, one_request_for_all)
}


def run_all(runs: Sequence[Sequence[str]]) -> None:
    """What each rank does: every run of the driver, each a fault or "", and the arguments."""
    import torch.distributed as dist

    for fault, *arguments in runs:
        program, loaded, said = driver(), set(sys.modules), builtins.print
        most = [0, None]

        class Queue(program.deque):  # type: ignore[name-defined,misc]
            def append(self, item: Any, most: list[Any] = most) -> None:
                super().append(item)
                most[:] = max(len(self), most[0]), getattr(dist.group.WORLD, "bound", None)

        program.deque = Queue
        if fault:
            FAULTS[fault](program)
        with contextlib.suppress(SystemExit):
            program.main(arguments)
        builtins.print = said  # the reference keeps it to rank 0
        if os.environ["RANK"] == "0":
            print(f"most under way {most[0]} bound {most[1]}", flush=True)
        sys.path.remove(arguments[0])
        for name in set(sys.modules) - loaded:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(arguments[0]):
                del sys.modules[name]


def drive(ranks: int, runs: Sequence[Sequence[str]]) -> str:
    """All runs under one ``mpiexec``, with the usual arguments of the reference unless some follow; what they print."""
    usual = ["--", *THEIRS]
    texts = [[fault, str(CHECKOUT), *rest, *([] if "--" in rest else usual)] for fault, *rest in runs]
    done = run_ranks(ranks, [__file__, json.dumps(texts)], timeout_s=LONG_S, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def digests(printed: str) -> list[str]:
    return re.findall(r"ms each \(.*\), predictions ([0-9a-f]{16})\n", printed)


def errors(printed: str) -> list[str]:
    return re.findall(r"(?:reference_dlrm|dlrm_s_pytorch).py: error: (.*)\n", printed)


@pytest.mark.parametrize("ranks", [2, 4])
def test_predictions_are_the_same_over_both_backends_at_every_depth(
    ranks: int, record_property: Callable[[str, object], None]
) -> None:
    stand_in = f"a stand-in, tests/{STAND_IN.name}: BLS_REFERENCE_DLRM names no checkout"
    record_property(f"reference DLRM on {ranks} ranks", stand_in if CHECKOUT == STAND_IN else CHECKOUT)
    runs = [("", "--backend", backend, "--depth", depth) for backend in ("gloo", "bls") for depth in ("0", "1", "4")]
    faults = [(fault, "--depth", "4") for fault in ("newest_first", "two_swapped")]
    printed = drive(ranks, [*runs, ("", "--preload", "--depth", "2"), *faults])
    *right, reversed_, swapped = digests(printed)
    assert len(right) == 7 and len(set(right)) == 1, printed
    assert len({right[0], reversed_, swapped}) == 3, "a planted fault went unnoticed"
    assert printed.count("9 batches, ") == 9
    assert "no all-to-all" not in printed
    found = re.findall(r"most under way (\d) bound (\w+)", printed)
    assert found[:6] == [("0", "None"), ("2", "None"), ("5", "None"), ("0", "None"), ("2", "1"), ("5", "4")], printed


def test_at_3_ranks_it_scatters_and_says_so() -> None:
    printed = drive(3, [("", "--backend", "gloo"), ("", "--backend", "bls"), ("", "--depth", "2")])
    assert len(digests(printed)) == 2 and len(set(digests(printed))) == 1
    words = (
        "it makes none on 3 ranks, as its probe of 4 numbers cannot be shared out equally and is refused, so that it "
    )
    words += "scatters: start 2, 4, 8 or 16 ranks"
    assert printed.count(f"no all-to-all ran: {words}\n") == 2
    assert errors(printed) == [f"--depth 2 needs its all-to-all, and {words}, or take --depth 0"]


def test_one_request_for_all_batches_is_no_pipeline() -> None:
    texts = [["one_request_for_all", str(CHECKOUT), "--depth", "3", "--", *THEIRS]]
    done = run_ranks(2, [__file__, json.dumps(texts)], timeout_s=LONG_S, cwd=ROOT)
    assert done.returncode != 0
    assert "Traceback" in done.stdout and "NoneType" in done.stdout, done.stdout  # a request that was waited for twice
    assert "most under way" not in done.stdout


def test_batches_that_do_not_divide_are_left_out_and_refusals_are_said_once() -> None:
    few = ("--num-batches=0", "--data-size=77")
    odd = ("--mini-batch-size=9",)
    unknown, narrow = ("--no-such-thing",), ("--arch-embedding-size=9",)
    runs = [("", "--depth", depth, "--", *THEIRS, *more) for more in (few, odd) for depth in ("0", "2")]
    printed = drive(2, [*runs, *(("", "--", *THEIRS, *more) for more in (unknown, narrow))])
    assert len(digests(printed)) == 2 and len(set(digests(printed))) == 1
    assert printed.count("3 batches, ") == 2
    assert "batch 3 is left out: 5 rows are not the same number on 2 ranks" in printed
    shared = "no batch can be shared out among 2 ranks: --mini-batch-size is to be a multiple of 2"
    for said, begins in zip(errors(printed), [shared, shared, "unrecognized", "dlrm_s_pytorch.py says: "], strict=True):
        assert said.startswith(begins)


NONE = "no dlrm_s_pytorch.py in nowhere: git clone https://github.com/facebookresearch/dlrm nowhere"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CHECKOUT"),
        (["{}"], "put one behind this program's arguments, and the reference's own arguments behind it"),
        (["nowhere", "--"], NONE),
        (["{}", "--depth", "-1", "--"], "--depth is a number of batches, 0 or more, got -1"),
        (["{}", "--num-batches=3", "--"], "--num-batches=3 is no argument of this program: put -- before"),
        (["{}", "--backend", "mpi", "--"], "choose from"),
        (["{}", "--", "--dist-backend", "gloo"], "--dist-backend among the reference's arguments: leave it out"),
        (["{}", "--"], "there is one rank, and nothing to exchange: start it by mpiexec -n 2"),
    ],
)
def test_bad_input_gets_one_line_with_the_cure(arguments: list[str], said: str) -> None:
    command = [sys.executable, str(DRIVER), *(each.format(CHECKOUT) for each in arguments)]
    done = run_guarded(command, timeout_s=LONG_S, env=rank_environment(), cwd=ROOT)
    assert done.returncode == 2
    assert said in errors(done.stdout)[0] and len(errors(done.stdout)) == 1
    assert "Traceback" not in done.stdout


if __name__ == "__main__":
    run_all(json.loads(sys.argv[1]))
