r"""The reference DLRM, unmodified, over gloo or "bls": its inference loop as it is, or with batches under way.

    git clone https://github.com/facebookresearch/dlrm ../dlrm
    mpiexec -n 4 python examples/reference_dlrm.py ../dlrm --backend gloo -- ARGUMENTS OF dlrm_s_pytorch.py
    mpiexec -n 4 python examples/reference_dlrm.py ../dlrm --backend bls --depth 4 -- ARGUMENTS OF dlrm_s_pytorch.py

What follows -- goes to the reference's own parser; --inference-only and --dist-backend are added. For example:

    mpiexec -n 2 python examples/reference_dlrm.py ../dlrm --backend bls --depth 4 -- --mini-batch-size=64 \
        --num-batches=20 --arch-sparse-feature-size=16 --arch-embedding-size=1000-2000-3000-4000 \
        --arch-mlp-bot=13-64-16 --arch-mlp-top=64-1 --num-indices-per-lookup=20 --round-targets=True

With the same arguments and ranks the last line has the same digest whatever the backend and the depth.
The checkout is imported and wrapped from outside; docs/torch.md says where, and why.
"""

import argparse
import gc
import hashlib
import importlib
import importlib.util
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch

from blslib.collective.mpi import MPI

if TYPE_CHECKING:
    import torch

PROGRAM, COMMUNICATION = "dlrm_s_pytorch", "extend_distributed"
TIMEOUT = timedelta(minutes=5)

OPTIONAL = {
    "sklearn": ("sklearn", "sklearn.metrics"),
    "tensorboard": ("torch.utils.tensorboard",),
    "tqdm": ("tqdm",),
}
"""By package: modules that the reference imports at its top and does not need for its predictions."""


def refuse(text: str) -> NoReturn:
    """End on all ranks, with one line; to be called by all of them."""
    if MPI.COMM_WORLD.rank == 0:
        sys.stderr.write(f"reference_dlrm.py: error: {text}\n")
    sys.exit(2)


class Absent(ModuleType):
    """Stands in for an optional module that is not installed, and says so when anything of it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # torch's compiler looks for one in every module it meets
        self.SummaryWriter = self.tqdm = Nothing

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self.__name__}.{name} is asked for, and {self.__name__} is not installed: install it")


class Nothing:
    """A log that nobody asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def add_scalar(self, *_: Any) -> None:
        """Keep nothing."""


class Loop:
    """Takes the place of the reference's ``inference``, runs it, and keeps the predictions.

    Args:
        program, ext: its two modules.
        depth: batches under way at once; 0 leaves its loop alone.
        preload: make all batches before the clock starts.

    Attributes:
        predictions: of each batch, those of all ranks, in the batch's order.
        elapsed_s: from the first batch to the last prediction.
    """

    def __init__(self, program: Any, ext: Any, depth: int, preload: bool) -> None:
        self._program, self._ext, self._depth, self._preload = program, ext, depth, preload
        self._inference = program.inference
        self.predictions: list[torch.Tensor] = []
        self.elapsed_s = 0.0

    def __call__(self, args: Any, model: Any, accuracy: float, auc: float, batches: Iterable, *rest: Any) -> Any:
        """As ``inference``, with all its arguments and results."""
        program, ext = self._program, self._ext
        batches = islice(batches, program.nbatches if program.nbatches > 0 else None)
        if self._preload:
            batches = list(batches)
        ext.barrier()
        started_s = time.perf_counter()
        gather, forward = ext.all_gather, program.dlrm_wrap
        if self._depth:
            # Its own function still counts the hits: it is given the predictions in place of the inputs.
            batches = [(scores, None, None, target) for scores, target in self._pipelined(model, batches)]
            gather, forward = (lambda scores, *_: scores), (lambda scores, *_, **__: scores)

        def kept(scores: "torch.Tensor", *lengths: Any) -> "torch.Tensor":
            everybody = gather(scores, *lengths)
            self.predictions.append(everybody.detach())
            return everybody

        with patch.object(ext, "all_gather", kept), patch.object(program, "dlrm_wrap", forward):
            try:
                return self._inference(args, model, accuracy, auc, batches, *rest)
            except ZeroDivisionError:
                if self.predictions:
                    raise
                refuse(
                    f"no batch can be shared out among {ext.my_size} ranks: --mini-batch-size is to be a multiple of "
                    f"{ext.my_size}, and --num-batches, or a --data-size as large as a batch, at least 1"
                )
            finally:
                self.elapsed_s = time.perf_counter() - started_s

    def _pipelined(self, model: Any, batches: Iterable) -> "list[tuple[torch.Tensor, torch.Tensor]]":
        """Predictions and targets of each batch, while up to ``depth`` further ones are under way."""
        import torch

        ext, under_way = self._ext, deque[Iterator[Any]]()
        mine, targets = [], []
        for i, batch in enumerate(batches):
            dense, offsets, ids, target, *_ = self._program.unpack_batch(batch)
            if len(dense) % ext.my_size:
                print(f"batch {i} is left out: {len(dense)} rows are not the same number on {ext.my_size} ranks")
                continue
            targets.append(target)
            steps = forward(ext, model, dense, offsets, ids)
            next(steps)
            under_way.append(steps)
            if len(under_way) > self._depth:
                mine.append(next(under_way.popleft()))
        while under_way:
            mine.append(next(under_way.popleft()))
        if not mine:
            return []
        # A gather after every batch would make the ranks wait for each other in every batch. One is enough.
        everybody = ext.all_gather(torch.cat(mine), None).unflatten(0, (ext.my_size, -1))
        scores = [each.flatten(0, 1) for each in everybody.split([len(each) for each in mine], dim=1)]
        return list(zip(scores, targets, strict=True))


def forward(ext: Any, model: Any, dense: "torch.Tensor", offsets: Any, ids: Any) -> "Iterator[torch.Tensor | None]":
    """The model's forward in two steps: until the exchange is under way, and from its arrival to the own predictions.

    Its modules keep *the* request in one variable, ``ext.myreq``, from the call to the wait. Here every call has one.

    Yields:
        None, then the predictions for the own rows, (B / P, 1).
    """
    tables = model.local_emb_slice
    pooled = model.apply_emb(offsets[tables], ids[tables], model.emb_l, model.v_W_l)
    ext.myreq = ext.Request()
    request = ext.alltoall(pooled, model.n_emb_per_rank)
    home = model.apply_mlp(dense[ext.get_my_slice(len(dense))], model.bot_l)
    yield None
    ext.myreq = request  # its wait looks there
    features = model.interact_features(home, list(request.wait()))
    scores = model.apply_mlp(features, model.top_l)
    least = model.loss_threshold
    # Its loop builds a graph for a backward pass that never comes, and so does this one, but none outlives its batch.
    yield (scores.clamp(least, 1 - least) if 0 < least < 1 else scores).detach()


def import_checkout(checkout: Path) -> tuple[Any, Any]:
    """Its program and its module for communication, imported with stubs where optional packages are missing."""
    sys.dont_write_bytecode = True  # not even a cache is written there
    for package, names in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            sys.modules.update({name: Absent(name) for name in names})
    sys.path.insert(0, str(checkout.resolve()))
    try:
        ext: Any = importlib.import_module(COMMUNICATION)
        ext.my_rank = MPI.COMM_WORLD.rank  # so that, from here on, it prints on rank 0 alone
        return importlib.import_module(PROGRAM), ext
    except ModuleNotFoundError as error:
        refuse(f"{checkout} imports {error.name}, which is not installed: install it")


def uses_all_to_all(ext: Any) -> bool:
    """Whether its exchange is an all-to-all, once its group is made and its probe has been answered."""
    return ext.alltoall_supported and ext.a2a_impl in ("", "alltoall")


def checked(init: Callable[..., None], ext: Any, depth: int) -> Callable[..., None]:
    """Its ``init_distributed``, after which a depth is refused that its exchange does not allow."""

    def init_distributed(*args: Any, **kwargs: Any) -> None:
        init(*args, **kwargs)
        if depth and not uses_all_to_all(ext):
            refuse(f"--depth {depth} needs its all-to-all, and {why_none(ext)}, or take --depth 0")

    return init_distributed


def why_none(ext: Any) -> str:
    """Why no all-to-all is made, and the cure."""
    if ext.alltoall_supported:
        return f"DLRM_ALLTOALL_IMPL={ext.a2a_impl} asks for scatters: unset it"
    return (
        f"it makes none on {ext.my_size} ranks, as its probe of 4 numbers cannot be shared out equally and is refused, "
        "so that it scatters: start 2, 4, 8 or 16 ranks"
    )


def drive(checkout: Path, backend: str, depth: int, preload: bool, theirs: Sequence[str]) -> None:
    """Run the checkout's program on all ranks; rank 0 prints a digest of all predictions.

    Args:
        checkout: of facebookresearch/dlrm.
        backend: "gloo" or "bls".
        depth: batches under way at once; with "bls" the group's bound as well.
        preload: make all batches before the clock starts.
        theirs: arguments of its own parser.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; ranks share the host's cores
    import torch.distributed as dist

    from blslib.collective.torch import BLSOptions
    from blslib.collective.torch.rendezvous import mpi_store

    rank, ranks = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}  # where it finds no variables of an MPI that it knows
    program, ext = import_checkout(checkout)
    loop = Loop(program, ext, depth, preload)
    # It says nothing of options, and would have the ranks meet at one port for all jobs of a host.
    options = {"pg_options": BLSOptions(bound=depth)} if backend == "bls" else {}
    init_group = partial(dist.init_process_group, store=mpi_store(MPI.COMM_WORLD, TIMEOUT), **options)
    with (
        patch.object(dist, "init_process_group", init_group),
        patch.object(ext, "init_distributed", checked(ext.init_distributed, ext, depth)),
        patch.object(program, "inference", loop),
        patch.object(sys, "argv", [f"{PROGRAM}.py", *theirs, "--inference-only", "--dist-backend", backend]),
    ):
        try:
            program.run()
            stopped = None
        except SystemExit as stop:
            stopped = stop.code
    # Its DistributedDataParallel should not be the last to hold the group. Several runs in one process over plain gloo
    # hung twice, a rank standing where the garbage collector may run, beside a thread of no Python: we take it that
    # gloo's end waited there, with Python's lock held, for its thread that waited for that lock.
    program.dlrm = None
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
    if isinstance(stopped, str):  # its refusals are those of all ranks, and are said once
        refuse(f"{PROGRAM}.py says: {stopped}")
    if stopped is not None:
        sys.exit(stopped)
    if rank == 0:
        by = "" if uses_all_to_all(ext) else f"no all-to-all ran: {why_none(ext)}\n"
        digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in loop.predictions)).hexdigest()[:16]
        batches = len(loop.predictions)
        made = "made before" if preload else "making them included"
        print(
            f"{by}{backend}, depth {depth}, {ranks} ranks: {batches} batches, {1e3 * loop.elapsed_s / batches:.2f} ms "
            f"each ({made}), predictions {digest}",
            flush=True,
        )


def arguments(argv: Sequence[str]) -> tuple[Path, str, int, bool, list[str]]:
    """Checked, in the order of ``drive``."""
    ours, theirs = list(argv), []
    if divided := "--" in ours:
        at = ours.index("--")
        ours, theirs = ours[:at], ours[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="reference_dlrm.py",
        usage="mpiexec -n P python examples/reference_dlrm.py CHECKOUT [--backend gloo|bls] [--depth K] [--preload] "
        "-- ARGUMENTS",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkout", metavar="CHECKOUT", type=Path, help="of facebookresearch/dlrm")
    parser.add_argument("--backend", choices=("gloo", "bls"), default="bls")
    parser.add_argument("--depth", type=int, default=0, help="batches under way at once; 0 runs its own loop (default)")
    parser.add_argument("--preload", action="store_true", help="make all batches before the clock starts")
    options, unknown = parser.parse_known_args(ours)
    checkout = options.checkout
    if unknown:
        refuse(f"{unknown[0]} is no argument of this program: put -- before the reference's own arguments")
    if not divided:
        refuse("there is no --: put one behind this program's arguments, and the reference's own arguments behind it")
    if options.depth < 0:
        refuse(f"--depth is a number of batches, 0 or more, got {options.depth}")
    for name in (PROGRAM, COMMUNICATION):
        if not (checkout / f"{name}.py").is_file():
            refuse(f"no {name}.py in {checkout}: git clone https://github.com/facebookresearch/dlrm {checkout}")
    for name, cure in {
        "--dist-backend": "leave it out, and put --backend before the --",
        "--use-gpu": "leave it out, tensors are on the CPU here",
        "--debug-mode": "leave it out, with it the ranks do not exchange anything",
    }.items():
        if any(each.split("=")[0] == name for each in theirs):
            refuse(f"{name} among the reference's arguments: {cure}")
    if "--mlperf-logging" in theirs and not all(map(importlib.util.find_spec, ("sklearn", "mlperf_logging"))):
        refuse("--mlperf-logging needs scikit-learn and mlperf_logging: install both, or leave it out")
    if MPI.COMM_WORLD.size == 1:
        refuse("there is one rank, and nothing to exchange: start it by mpiexec -n 2 python reference_dlrm.py ...")
    return checkout, options.backend, options.depth, options.preload, theirs


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and drive. What goes wrong on one rank alone ends all of them."""
    # Of all parsers, the reference's included.
    said = argparse.ArgumentParser._print_message if MPI.COMM_WORLD.rank == 0 else (lambda *_: None)
    try:
        with patch.object(argparse.ArgumentParser, "_print_message", said):
            drive(*arguments(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        if MPI.COMM_WORLD.rank == 0:
            sys.stderr.write("reference_dlrm.py: interrupted\n")
        end_all(130)
    except Exception:
        sys.stderr.write(traceback.format_exc())
        end_all(1)


def end_all(code: int) -> NoReturn:
    """End every rank: some may be waiting for this one, in gloo for as long as its timeout."""
    sys.stderr.flush()
    time.sleep(0.5)  # mpiexec drops what has not reached it by the abort
    MPI.COMM_WORLD.Abort(code)
    os._exit(code)  # MPICH returns from there, until mpiexec ends us


if __name__ == "__main__":
    main()
